"""Half fine-tuning: at each task a random half of the matrices learns, the other half stays as it is.

Source: Hui et al. 2025 "HFT: Half Fine-Tuning for Large Language Models", section 3: per round theta splits into updated and frozen
parameters; category level: 2 of 4 attention matrices, 2 of 3 feed-forward ones in half of the layers and 1 of 3 in the others, 1 of 2
norms; embeddings and head always learn.
Uses: check, begin, mask, state_dict, load_state_dict
Cost: no gradients of weights and no optimizer state for what is frozen; activations still pass back through it.
Differs: a bias goes with its matrix, a fused projection counts as one. Norms outside of the blocks and what fits no category learn. For
    networks without attention the categories are convolutions, linear layers and norms; a layer is a block, in an MLP each hidden layer.
    Half of an odd number is rounded down, as published; a category of a single matrix has it learn at every second task on average.
    `matrix` draws every matrix by itself, so that the share holds in the mean only; the publication compares `model` and `layer`.
    balance=params halves entries, not matrices: each matrix learns at `share` of the tasks, the largest are drawn first and smaller ones
    make up for them.
Interacts: whatever else acts, a frozen tensor is bit-identical after the event. With optimizer.reset=never the moments of a tensor wait
    until it learns again. Beside lora the two factors of a layer are one matrix: with one of them at rest, which starts at zero, the layer
    would not change. Phases that others ask for (Fisher, a classifier's training) are theirs and not halved. On a hypernetwork
    the output layer is its head: it always learns, and with it most of the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cl_framework import (
    SELECTABLE,
    ConfigurationError,
    Context,
    Learn,
    Matrix,
    Phase,
    Setting,
    Strategy,
    Traits,
    check_choice,
    check_range,
    matrices,
    register,
)

GRANULARITIES = ("category", "layer", "model", "matrix")


def chosen_by_count(layers: Sequence[Sequence[Matrix]], share: float, generator: torch.Generator) -> list[Matrix]:
    """`share` of the matrices of each layer; where that is no whole number, one more in so many random layers that the whole is right.

    A whole that is no number either is rounded down; less than one matrix is one with that probability.
    """
    least = [int(share * len(layer) + 1e-9) for layer in layers]
    wanted = share * sum(map(len, layers))
    whole = int(wanted + 1e-9)
    if not whole and wanted > 1e-9:
        whole = int(torch.rand(1, generator=generator) < wanted)
    uneven = [place for place, layer in enumerate(layers) if least[place] < share * len(layer) - 1e-9]
    for place in _shuffled(uneven, generator)[: max(0, whole - sum(least))]:
        least[place] += 1
    return [matrix for layer, count in zip(layers, least, strict=True) for matrix in _shuffled(layer, generator)[:count]]


def chosen_by_size(layers: Sequence[Sequence[Matrix]], share: float, generator: torch.Generator) -> list[Matrix]:
    """Matrices with `share` of all entries, as near as whole ones allow, where each has the chance `share` over draws.

    The largest are drawn first, equal ones in random order. What a draw has too many or too few of changes the chances of those after it,
    as far as these stay chances: the change is 0 in the mean, so that each keeps its share.
    """
    ordered = sorted(_shuffled(layers, generator), key=lambda layer: -sum(matrix.size for matrix in layer))
    units = [matrix for layer in ordered for matrix in sorted(_shuffled(layer, generator), key=lambda one: -one.size)]
    chances = [share] * len(units)
    chosen: list[Matrix] = []
    for place, matrix in enumerate(units):
        chance, owed = chances[place], float(matrix.size)  # entries by which all chances to come would move between learning and not
        learns = bool(torch.rand(1, generator=generator) < chance)
        if learns:
            chosen.append(matrix)
        if 0 < chance < 1:
            for later in range(place + 1, len(units)):
                step = min(owed / units[later].size, chances[later] / (1 - chance), (1 - chances[later]) / chance)
                chances[later] -= step * (learns - chance)
                owed -= step * units[later].size
    return chosen


def select(found: Sequence[Matrix], granularity: str, share: float, balance: str, generator: torch.Generator) -> list[Matrix]:
    """Which of a model's selectable matrices learn."""
    pool = [matrix for matrix in found if matrix.category in SELECTABLE]
    choose = chosen_by_count if balance == "count" else chosen_by_size
    if granularity == "matrix":
        return [matrix for matrix in pool if bool(torch.rand(1, generator=generator) < share)]
    if granularity == "model":
        return choose([_shuffled(pool, generator)], share, generator)
    if granularity == "layer":
        layers = [_as_one(layer) for layer in _by_layer(pool)]
        names = {name for layer in choose([_shuffled(layers, generator)], share, generator) for name in layer.parameters}
        return [matrix for matrix in pool if names.issuperset(matrix.parameters)]
    chosen: list[Matrix] = []
    for category in SELECTABLE:
        chosen += choose(_by_layer([matrix for matrix in pool if matrix.category == category]), share, generator)
    return chosen


def _by_layer(found: Sequence[Matrix]) -> list[list[Matrix]]:
    layers: dict[str, list[Matrix]] = {}
    for matrix in found:
        layers.setdefault(matrix.layer, []).append(matrix)
    return list(layers.values())


def _as_one(layer: Sequence[Matrix]) -> Matrix:
    names = tuple(name for matrix in layer for name in matrix.parameters)
    return Matrix(layer[0].layer, names, sum(matrix.size for matrix in layer), "layer", layer[0].layer)


def _shuffled(items: Sequence[Any], generator: torch.Generator) -> list[Any]:
    return [items[place] for place in torch.randperm(len(items), generator=generator).tolist()]


@dataclass(frozen=True)
class HalfConfig:
    share: float = 0.5  # of the matrices that learn, [0, 1]; 1 is fine-tuning, 0 leaves embeddings, head and what fits no category
    granularity: str = "category"  # category: share within each; layer: whole blocks; model: any; matrix: each drawn by itself
    balance: str = "count"  # what is halved: count of matrices or params, their entries

    def __post_init__(self) -> None:
        check_range("share", self.share, low=0, high=1)
        check_choice("granularity", self.granularity, GRANULARITIES)
        check_choice("balance", self.balance, ("count", "params"))
        if self.granularity == "matrix" and self.balance == "params":
            raise ValueError("balance=params would change nothing with granularity=matrix, which draws each matrix by itself; leave it out")


@register("half")
class Half(Strategy):
    """Half fine-tuning: a random half of the matrices learns, chosen anew for each task."""

    Config = HalfConfig
    traits = Traits(needs_boundaries=True, neutral={"share": 1.0})

    def __init__(self, config: HalfConfig) -> None:
        super().__init__(config)
        self._frozen: list[str] = []

    def check(self, setting: Setting) -> None:
        if self.config.share == 1 or setting.model is None:
            return
        if not any(matrix.category in SELECTABLE for matrix in matrices(setting.model)):
            raise ConfigurationError(
                "share: this model has no matrices beside its embeddings and its head, which always learn, so that nothing would be "
                "halved. Choose a model with hidden layers, or leave this strategy out."
            )

    def begin(self, context: Context) -> Sequence[Phase]:
        self._frozen = []
        if isinstance(context.position.event, Learn) and self.config.share < 1:
            found = matrices(context.model)
            config = self.config
            generator = context.random("half").generator()
            learns = {matrix.module for matrix in select(found, config.granularity, config.share, config.balance, generator)}
            frozen = [matrix for matrix in found if matrix.category in SELECTABLE and matrix.module not in learns]
            self._frozen = [name for matrix in frozen for name in matrix.parameters]
        return ()

    def mask(self, context: Context) -> Mapping[str, bool]:
        return dict.fromkeys(self._frozen, False)

    def state_dict(self) -> dict[str, Any]:
        return {"frozen": list(self._frozen)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._frozen = list(state["frozen"])
