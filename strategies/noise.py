"""A control of unlearning: add noise to every tensor, of a norm that is a share of the tensor's own.

Source: EVALUATION's controls: "noise of equal norm": set `norm` to the share by which another unlearner moved the weights
    (`moved` of M12 in its audit).
Uses: unlearn
Cost: none.
Differs: nothing to differ from.
Interacts: with nobody; statistics of normalisation layers are left as they are, and the deletion record names them (M11).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cl_framework import Context, Done, Strategy, Traits, Unlearn, check_range, register


def noise_like(tensor: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of the tensor's shape whose norm is `share` times the tensor's."""
    noise = torch.randn(tensor.shape, generator=generator).to(tensor)
    return noise * (share * tensor.norm() / noise.norm().clamp(min=1e-12))


@dataclass(frozen=True)
class NoiseConfig:
    norm: float = 0.5  # of the noise, as a share of each tensor's own, >= 0

    def __post_init__(self) -> None:
        check_range("norm", self.norm, low=0)


@register("noise")
class Noise(Strategy):
    """Answers every request by noise on all weights."""

    Config = NoiseConfig
    traits = Traits(unlearns=frozenset({"task", "class", "sample"}), neutral={})

    @torch.no_grad()
    def unlearn(self, event: Unlearn, context: Context) -> Done:
        generator = context.random("noise").generator()
        for parameter in context.model.parameters():
            parameter.add_(noise_like(parameter, self.config.norm, generator))
        return Done()
