"""Closures over a small network that counts its passes, and gradients by brute force to hold theirs against."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from cl_framework.closure import StepClosure
from cl_framework.cost import Cost
from cl_framework.criterion import Criterion
from cl_framework.strategy import Batch, Draw, Rows, Strategy, Term, Traits

CLASSES = 4
WIDTH = 6


class Net(nn.Module):
    """Linear features with batch norm and dropout where asked; counts its passes."""

    def __init__(self, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Linear(3, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.passes: list[int] = []

    def features(self, inputs: Tensor) -> Tensor:
        self.passes.append(len(inputs))
        return self.dropout(torch.tanh(self.norm(self.body(inputs))))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


class Bench:
    """What a closure needs of the host."""

    def __init__(self, model: nn.Module, class_mask: Tensor | None = None) -> None:
        self.model = model
        self.parameters_in_play = list(model.parameters())
        self.criterion = Criterion(class_mask)
        self.cost = Cost()

    def restart_randomness(self, purpose: str = "") -> None:
        torch.default_generator.manual_seed(7 + sum(purpose.encode()))


class Pull(Strategy):
    """Half the squared norm of the head's weights, times `weight`."""

    traits = Traits(no_neutral="a fixture")

    def __init__(self, model: Net, weight: float) -> None:
        super().__init__(None)
        self.model = model
        self.weight = weight

    def loss(self, batch: Batch, output: object, context: object) -> Mapping[str, Term]:
        return {"pull": Term(lambda: self.model.head.weight.square().sum() / 2, self.weight)}


class Distance(Strategy):
    """Reads the pass of a separate draw: the mean square of its logits."""

    traits = Traits(no_neutral="a fixture")

    def __init__(self, weight: float) -> None:
        super().__init__(None)
        self.weight = weight

    def loss(self, batch, output, context):  # type: ignore[no-untyped-def]
        draw = batch.draws["far"]["rows"]
        return {"distance": Term(lambda: output.of(draw).logits.square().mean(), self.weight)}


def rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    ids = torch.arange(count) + 100 * seed
    return Rows(inputs, targets, ids, torch.zeros(count, dtype=torch.int64), inputs)


def batch_of(count: int = 5, **draws: Draw) -> Batch:
    """A batch; each draw under its own slot by the name `rows`."""
    stream = rows(count, 1)
    batch = Batch(stream.items, stream.targets, stream.ids, stream.task_of_row, stream.inputs)
    for slot, draw in draws.items():
        draw.key = f"{slot}/rows"
        batch.draws[slot] = {"rows": draw}
    return batch


def closure_of(model: Net, batch: Batch, *strategies: tuple[str, Strategy]) -> StepClosure:
    losses = [(slot, strategy, None) for slot, strategy in strategies]
    replaces = any(strategy.traits.replaces_task_term for _, strategy in strategies)
    return StepClosure(Bench(model), batch, losses, replaces)  # type: ignore[arg-type]


def brute_gradients(model: Net, loss: Tensor) -> list[Tensor]:
    """Gradients through `.backward()`; zero where a parameter is not reached."""
    model.zero_grad()
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return gradients


def filled(model: Net, gradients: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), gradients, strict=True)]


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture(name="net")
def net_of_one_seed() -> Net:
    torch.manual_seed(0)
    return Net()
