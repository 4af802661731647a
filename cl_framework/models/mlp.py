"""A multi-layer perceptron with a head sized for all classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from cl_framework.benchmarks.base import Benchmark
from cl_framework.checks import check_range
from cl_framework.errors import ConfigurationError
from cl_framework.models.suited import suited_model
from cl_framework.registry import register_model


@dataclass(frozen=True)
class MLPOptions:
    hidden: tuple[int, ...] = (100, 100)  # units of each hidden layer
    dropout: float = 0.0  # after each hidden layer, [0, 1)
    batch_norm: bool = False  # before each activation

    def __post_init__(self) -> None:
        for units in self.hidden:
            check_range("hidden", units, low=1)
        check_range("dropout", self.dropout, low=0, below=1)


class MLP(nn.Module):
    """Flatten, linear layers with ReLU, a linear head; Xavier-uniform weights, zero biases."""

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[int] = (100, 100),
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = [prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers.append(nn.Linear(before, after))
            if batch_norm:
                layers.append(nn.BatchNorm1d(after))
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def features(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> (B, D)."""
        return self.body(inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, ...) -> (B, num_classes)."""
        return self.head(self.features(inputs))


@register_model("mlp", MLPOptions)
def mlp(options: MLPOptions, benchmark: Benchmark) -> nn.Module:
    """Multi-layer perceptron with ReLU and Xavier-uniform weights."""
    if benchmark.vocabulary is not None:
        raise ConfigurationError(
            f"model mlp reads numbers, but inputs of benchmark {benchmark.name!r} are tokens. Use model.name={suited_model(benchmark)}."
        )
    return MLP(benchmark.input_shape, benchmark.num_classes, options.hidden, options.dropout, options.batch_norm)
