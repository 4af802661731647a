"""ResNet-18 for small images: a 3x3 first convolution without max-pooling, as usual for CIFAR, with a head sized for all classes.

After He et al. 2016, "Deep residual learning for image recognition", with basic blocks and projections where the shape changes.
`resnet18` is 64 wide; the slim one, 20 wide, is that of Lopez-Paz and Ranzato 2017, "Gradient episodic memory", for online work.
Weights start as torch starts them, as in Mammoth, the code behind the figures published for DER, ER-ACE and others: no He
initialisation of convolutions, no zeros in the last norm of a block.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.functional import relu

from cl_framework.benchmarks.base import Benchmark
from cl_framework.checks import check_choice, check_range
from cl_framework.errors import ConfigurationError
from cl_framework.models.cosine import HEADS, head_of
from cl_framework.models.suited import suited_model
from cl_framework.registry import register_model
from cl_framework.schema import LATER

_STAGES = (1, 2, 4, 8)  # channels of each stage, in widths; each after the first halves the side
_BLOCKS = 2  # a stage


@dataclass(frozen=True)
class ResNetOptions:
    width: int = 64  # channels of the first stage, >= 1; the last has eight times as many
    head: str = field(default="linear", metadata=LATER)  # linear, or cosine: ten times the cosine of features and a class's weights

    def __post_init__(self) -> None:
        check_range("width", self.width, low=1)
        check_choice("head", self.head, HEADS)


@dataclass(frozen=True)
class SlimResNetOptions:
    width: int = 20  # channels of the first stage, >= 1; the last has eight times as many
    head: str = field(default="linear", metadata=LATER)  # linear, or cosine: ten times the cosine of features and a class's weights

    def __post_init__(self) -> None:
        check_range("width", self.width, low=1)
        check_choice("head", self.head, HEADS)


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut = nn.Sequential()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = relu(self.norm1(self.conv1(inputs)))
        return relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class ResNet18(nn.Module):
    """Four stages of two basic blocks, the mean over all places, a head: linear or of cosines."""

    def __init__(self, channels: int, num_classes: int, width: int = 64, head: str = "linear") -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        stages, before = [], width
        for number, times in enumerate(_STAGES):
            blocks = [BasicBlock(before, times * width, 2 if number else 1)]
            blocks += [BasicBlock(times * width, times * width, 1) for _ in range(_BLOCKS - 1)]
            stages.append(nn.Sequential(*blocks))
            before = times * width
        self.stages = nn.Sequential(*stages)
        self.head = head_of(head, before, num_classes)

    def features(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 8 * width)."""
        hidden: Tensor = self.stages(relu(self.norm(self.conv(inputs))))
        return hidden.mean((2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        logits: Tensor = self.head(self.features(inputs))
        return logits


@register_model("resnet18", ResNetOptions)
def resnet18(options: ResNetOptions, benchmark: Benchmark) -> nn.Module:
    """ResNet-18 with a 3x3 first convolution for small images, 64 channels wide."""
    return ResNet18(channels_of(benchmark, "resnet18"), benchmark.num_classes, options.width, options.head)


@register_model("slim_resnet18", SlimResNetOptions)
def slim_resnet18(options: SlimResNetOptions, benchmark: Benchmark) -> nn.Module:
    """ResNet-18 with 20 channels instead of 64, as used in online continual learning."""
    return ResNet18(channels_of(benchmark, "slim_resnet18"), benchmark.num_classes, options.width, options.head)


def channels_of(benchmark: Benchmark, model: str) -> int:
    """Channels of the benchmark's images. Raises ConfigurationError if its inputs are not images."""
    if len(benchmark.input_shape) != 3:
        raise ConfigurationError(
            f"model {model} reads images (channels, height, width), but inputs of benchmark {benchmark.name!r} have shape "
            f"{tuple(benchmark.input_shape)}. Use model.name={suited_model(benchmark)}, or a benchmark of images."
        )
    return benchmark.input_shape[0]
