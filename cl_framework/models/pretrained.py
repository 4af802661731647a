"""A pretrained backbone with a new head for all classes: a classifier of torchvision or timm, or EfficientNet-Lite0 from its packages.

Inputs are brought to what the backbone was trained on: its normalisation, grey repeated in three channels, its size. A frozen backbone
keeps its weights as buffers and stays in evaluation mode, so that it is no parameter of any optimizer or penalty and its statistics rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from cl_framework.benchmarks.base import Benchmark
from cl_framework.checks import check_range
from cl_framework.errors import ConfigurationError
from cl_framework.models.backbones import Backbone, find_backbone
from cl_framework.models.freezing import give_up_training
from cl_framework.models.resnet import channels_of
from cl_framework.registry import register_model


@dataclass(frozen=True)
class PretrainedOptions:
    backbone: str = "resnet18"  # a classifier of torchvision by name, timm/NAME, or efficientnet_lite0
    weights: str = "cache"  # a file with its state dict; cache: the library's, or the installed package's; none: random weights
    frozen: bool = True  # only the head is trained
    size: int | None = None  # inputs are resized to size x size pixels, >= 1; default: what the backbone was trained on, mostly 224

    def __post_init__(self) -> None:
        if self.size is not None:
            check_range("size", self.size, low=1)


class Pretrained(nn.Module):
    """Adapted inputs, a backbone without its head, and a linear head."""

    factor: Tensor
    offset: Tensor

    def __init__(self, backbone: Backbone, benchmark: Benchmark, size: int | None, frozen: bool) -> None:
        super().__init__()
        self.size = backbone.size if size is None else size
        self.frozen = frozen
        self.backbone = backbone.module
        factor, offset = normalisation_between(benchmark, backbone)
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.head = nn.Linear(self._width(benchmark, backbone.size), benchmark.num_classes)
        if frozen:
            give_up_training(self.backbone)
            self.backbone.eval()

    def train(self, mode: bool = True) -> Pretrained:
        """As in any module, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, D)."""
        inputs = inputs * self.factor + self.offset  # grey becomes three channels by the factor's shape
        if inputs.shape[2:] != (self.size, self.size):
            inputs = interpolate(inputs, (self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        features: Tensor = self.backbone(inputs)
        return features

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits

    @torch.no_grad()
    def _width(self, benchmark: Benchmark, trained_on: int) -> int:
        """D, from a trial with one blank image. Raises ConfigurationError if the backbone cannot read images of this size."""
        self.backbone.eval()
        try:
            features = self.features(torch.zeros(1, *benchmark.input_shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise ConfigurationError(
                f"the backbone cannot read images of {self.size} pixels a side ({str(error).partition(chr(10))[0]}). "
                f"Set model.size={trained_on}, what it was trained on."
            ) from error
        self.backbone.train()
        return features.shape[1]


def normalisation_between(benchmark: Benchmark, backbone: Backbone) -> tuple[Tensor, Tensor]:
    """Factor and offset, (3, 1, 1) each, from the benchmark's inputs to the backbone's."""
    mean = torch.tensor(getattr(benchmark.transform, "mean", ()) or (0.0,))
    deviation = torch.tensor(getattr(benchmark.transform, "deviation", ()) or (1.0,))
    factor = deviation / torch.tensor(backbone.deviation)
    offset = (mean - torch.tensor(backbone.mean)) / torch.tensor(backbone.deviation)
    return factor.view(3, 1, 1), offset.view(3, 1, 1)


@register_model("pretrained", PretrainedOptions)
def pretrained(options: PretrainedOptions, benchmark: Benchmark) -> nn.Module:
    """Pretrained backbone of torchvision, timm or EfficientNet-Lite0, frozen or not, with a new head."""
    if channels_of(benchmark, "pretrained") not in (1, 3):
        raise ConfigurationError(
            f"model pretrained reads grey or colour images, but those of benchmark {benchmark.name!r} have "
            f"{benchmark.input_shape[0]} channels. Use model.name=resnet18."
        )
    return Pretrained(find_backbone(options.backbone, options.weights), benchmark, options.size, options.frozen)
