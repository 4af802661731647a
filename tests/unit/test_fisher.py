"""The diagonal of the Fisher information: against the analytic one, against a loop over samples, and by module."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework import Learn, fisher
from cl_framework.assembly import assemble
from cl_framework.fisher import LABELS, squared_gradients
from cl_framework.fisher_by_module import modules_apart, squared_gradients_by_module
from cl_framework.testing.laboratory import experiment_of

TASK = torch.zeros(1, dtype=torch.int64)

# --- the pure function ---


def data(count: int, width: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    inputs = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(classes, (count,), generator=generator)


def linear(values: Sequence[Tensor], inputs: Tensor, task: Tensor) -> Tensor:
    return (inputs @ values[0].T + values[1]).log_softmax(1)


def two_layers(values: Sequence[Tensor], inputs: Tensor, task: Tensor) -> Tensor:
    return linear(values[2:], (inputs @ values[0].T + values[1]).tanh(), task)


def weights(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(7)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


@pytest.mark.parametrize("labels", LABELS)
def test_of_a_logistic_model_it_is_the_analytic_one(labels: str) -> None:
    """d log p_y / d w_k = (1[k = y] - p_k) x, so that the expected square is p_k (1 - p_k) x^2."""
    inputs, targets = data(30, 4, 3)
    held = weights((3, 4), (3,))
    p = linear(held, inputs, TASK).exp()  # (30, 3)
    given = (functional.one_hot(targets, 3) - p).square()
    share = {"given": given, "expected": p * (1 - p), "weighted": p.gather(1, targets[:, None]) * given}
    found = squared_gradients(linear, held, inputs, targets, TASK, labels)
    torch.testing.assert_close(found[0], share[labels].T @ inputs.square(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found[1], share[labels].sum(0), rtol=1e-12, atol=0)
    for other in set(LABELS) - {labels}:
        assert not torch.allclose(found[1], share[other].sum(0), rtol=0.01)


def by_a_loop(held: Sequence[Tensor], inputs: Tensor, targets: Tensor, labels: str) -> list[Tensor]:
    total = [torch.zeros_like(value) for value in held]
    for row, target in zip(inputs, targets.tolist(), strict=True):
        for label in range(3) if labels == "expected" else [target]:
            leaves = [value.clone().requires_grad_() for value in held]
            log_p = two_layers(leaves, row[None], TASK)[0, label]
            factor = 1.0 if labels == "given" else float(log_p.detach().exp())
            for part, gradient in zip(total, torch.autograd.grad(log_p, leaves), strict=True):
                part += factor * gradient**2
    return total


@pytest.mark.parametrize("labels", LABELS)
def test_of_a_deeper_model_it_is_the_sum_over_samples_whatever_the_chunks(labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = data(11, 4, 3)
    held = weights((5, 4), (5,), (3, 5), (3,))
    expected = by_a_loop(held, inputs, targets, labels)
    entries = sum(value.numel() for value in held)
    swept = 0
    for rows_at_once in (1, 3, 11, 1000):
        monkeypatch.setattr(fisher, "_LARGEST", rows_at_once * entries)
        found = squared_gradients(two_layers, held, inputs, targets, TASK, labels)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
            swept += 1
    assert swept == 16
    short = squared_gradients(two_layers, held, inputs[:10], targets[:10], TASK, labels)
    assert not torch.allclose(short[0], expected[0], rtol=1e-3), "each row counts"
    assert not torch.allclose(found[0], by_square_of_the_mean(held, inputs, targets), rtol=0.1)


def by_square_of_the_mean(held: Sequence[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """What it would be if the gradients were averaged before they are squared."""
    leaves = [value.clone().requires_grad_() for value in held]
    loss = functional.nll_loss(two_layers(leaves, inputs, TASK), targets)
    return torch.autograd.grad(loss, leaves)[0].square() * len(inputs)


def test_no_more_gradients_are_held_at_once_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = data(10, 4, 3)
    held = weights((3, 4), (3,))
    sizes: list[int] = []
    vmap = torch.func.vmap

    def counted(function: Any) -> Any:
        def call(some: Tensor, labels: Tensor) -> Any:
            sizes.append(len(some))
            return vmap(function)(some, labels)

        return call

    monkeypatch.setattr(fisher, "vmap", counted)
    monkeypatch.setattr(fisher, "_LARGEST", 4 * 15 + 14)
    squared_gradients(linear, held, inputs, targets, TASK, "given")
    assert sizes == [4, 4, 2]
    monkeypatch.setattr(fisher, "_LARGEST", 1)
    squared_gradients(linear, held, inputs, targets, TASK, "given")
    assert sizes[3:] == [1] * 10


def test_other_labels_are_refused() -> None:
    inputs, targets = data(2, 4, 3)
    with pytest.raises(ValueError, match="labels must be one of given, expected, weighted, got 'true'"):
        squared_gradients(linear, weights((3, 4), (3,)), inputs, targets, TASK, "true")


# --- by module ---


@dataclass
class Case:
    """A model, and whether all its parameters lie in linear modules that see rows apart."""

    model: nn.Module
    fits: bool


class Reused(nn.Module):
    """One module called twice: its gradient of a row is a sum, whose square is not the sum of squares."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.twice(self.twice(self.once(inputs)))


class Turned(nn.Module):
    """Rows on the second axis within."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(self.inner(inputs.T.unsqueeze(2)).mean(0))


class Aside(nn.Module):
    """A parameter that no module of a known kind owns."""

    def __init__(self) -> None:
        super().__init__()
        self.shift, self.outer = nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(inputs + self.shift)


def tied() -> nn.Module:
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), last)


class InPlace(nn.Module):
    """What went into the first module is something else afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs.clone()
        inner = self.inner(hidden)
        return self.outer(inner + hidden.mul_(2))


def convolutional(*layers: nn.Module, side: int = 2) -> nn.Module:
    """These layers on images of one channel, and a head for three classes."""
    body = nn.Sequential(nn.Unflatten(1, (1, side, side)), nn.ZeroPad2d(1), *layers)
    with torch.no_grad():
        channels = body.eval()(torch.zeros(1, side * side)).shape[1]
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 3))


def moved(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """With statistics and factors that are not those it starts with."""
    assert norm.running_mean is not None and norm.running_var is not None
    for value in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        value.uniform_(0.5, 2.0)
    return norm


CASES = {
    "two layers": Case(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)), True),
    "a norm": Case(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), False),
    "reused": Case(Reused(), False),
    "turned": Case(Turned(), False),
    "aside": Case(Aside(), False),
    "tied": Case(tied(), False),
    "changed in place": Case(InPlace(), False),
    "convolutions": Case(
        convolutional(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 2, padding=(2, 1), dilation=(1, 2), bias=False)),
        True,
    ),
    "convolutions in groups": Case(convolutional(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 1, groups=2)), False),
    "batch norms": Case(convolutional(nn.Conv2d(1, 3, 3), moved(nn.BatchNorm2d(3)), nn.ReLU(), moved(nn.BatchNorm2d(3))), True),
    "norms of the batch itself": Case(convolutional(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)), False),
}


@pytest.mark.parametrize("name", CASES)
def test_a_model_fits_if_its_parameters_lie_in_modules_apart_that_see_rows_apart(name: str) -> None:
    model = CASES[name].model
    found = modules_apart(model, [name for name, _ in model.named_parameters()], lambda count: model(torch.rand(count, 4)))
    assert (found is not None) is CASES[name].fits


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.fits])
def test_by_module_it_is_what_it_is_row_by_row(name: str, labels: str) -> None:
    model = copy.deepcopy(CASES[name].model).double().eval()
    inputs, targets = data(11, 4, 3)
    names = [name for name, _ in model.named_parameters()]
    modules = modules_apart(model, names, lambda count: model(inputs[:count]))
    assert modules is not None

    def of_rows(values: tuple[Tensor, ...], rows: Any, task: Tensor) -> Tensor:
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), rows).log_softmax(1)

    def by_module(names: Sequence[str], targets: Tensor) -> tuple[Tensor, ...]:
        assert modules is not None
        return squared_gradients_by_module(model, names, modules, lambda: model(inputs).log_softmax(1), targets, labels)

    found = by_module(names, targets)
    expected = squared_gradients(of_rows, [value.detach() for value in model.parameters()], inputs, targets, TASK, labels)
    assert len(found) == len(expected) == len(names) >= 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
    assert torch.allclose(by_module(names, targets.flip(0))[0], found[0], rtol=1e-3) is (labels == "expected")
    assert all(torch.equal(one, other) for one, other in zip(by_module(names[::-1], targets)[::-1], found, strict=True))


@pytest.mark.parametrize("labels", LABELS)
def test_a_run_takes_the_short_way_and_it_is_the_long_one(labels: str, tmp_path: Path) -> None:
    learner = assemble(experiment_of({"ewc": {}}, tmp_path))
    event = learner.stream.events[0]
    assert isinstance(event, Learn)
    learner.position.phase = learner.learn_phase(event)
    learner.begin_phase(learner.position.phase)
    (context,) = learner._contexts.values()
    rows = learner.read(learner.training_ids(0)[:9])
    found = context.squared_gradients(rows, labels)
    assert learner._modules_apart and all(learner._modules_apart.values())
    learner._modules_apart = dict.fromkeys(learner._modules_apart)
    for one, other in zip(found, context.squared_gradients(rows, labels), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-8)
    fewer = rows.take(torch.arange(8))
    assert not torch.allclose(found[0], context.squared_gradients(fewer, labels)[0], rtol=1e-4)
