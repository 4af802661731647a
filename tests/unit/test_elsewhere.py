"""Runs on a pretended device: what lies apart never meets, no step waits, and the figures are those of the host, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import assembly, registry
from cl_framework.assembly import make_benchmark, on_device
from cl_framework.benchmarks.base import Benchmark
from cl_framework.config import Experiment
from cl_framework.host import Host
from cl_framework.learner import Learner
from cl_framework.strategy import Batch, Evaluation
from cl_framework.testing import Subject
from cl_framework.testing.laboratory import ROUGH, assert_equal_outcomes, augmented, experiment_of, finish, finish_in_pieces
from tests.unit import text_stacks
from tests.unit.elsewhere import ELSEWHERE, Apart, Elsewhere, Waits, a_device_elsewhere, nothing_waits
from tests.unit.text_stacks import experiment_on_texts, rmu_under_watch

pytestmark = pytest.mark.filterwarnings("ignore:.*to a meta parameter in the current model")  # which is no no-op here

NAMES = sorted(entry.name for entry in registry.strategies.entries() if entry.origin.startswith("cl-framework"))
OPTIONS = {"gdumb": {"epochs": 7}}
# How many of a memory's rows are not to be forgotten is known on the device alone, and a step on some rows waits to learn it.
WAIT_FOR_LENT_ROWS = {"finetune_retain", "grad_diff", "rmu", "simnpo"}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The framework chooses the pretended device."""
    monkeypatch.setattr(assembly, "choose_device", lambda name: ELSEWHERE)
    with a_device_elsewhere():
        yield


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps refuse to wait; the list counts them."""
    step, steps = Learner.step, [0]

    def watching(learner: Learner, batch: Batch) -> Evaluation:
        steps[0] += 1
        with nothing_waits():
            return step(learner, batch)

    monkeypatch.setattr(Learner, "step", watching)
    return steps


def moved(benchmark: Benchmark) -> Benchmark:
    return on_device(benchmark, ELSEWHERE, 1 << 30)


def experiment_of_subject(name: str, folder: Path, optimizer: str = "sgd") -> Experiment:
    subject = Subject.named(name)
    stream = "L0 L1 U0 L2" if "task" in subject.traits.unlearns else "L0 L1 L0"
    settings: dict[str, Any] = {} if optimizer == "sgd" else {"optimizer": {"name": optimizer, "lr": 0.01}}
    return subject.experiment(folder, OPTIONS.get(name), stream=stream, epochs=2, model=ROUGH, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_there_is_the_run_here(name: str, optimizer: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    here = experiment_of_subject(name, tmp_path / "here", optimizer)
    expected = finish(here, augmented(here))
    there = experiment_of_subject(name, tmp_path / "there", optimizer)
    data = augmented(there)
    steps = None if name in WAIT_FOR_LENT_ROWS else request.getfixturevalue("watched")
    request.getfixturevalue("elsewhere")
    assert_equal_outcomes(expected, finish(there, moved(data)), "on another device it ends elsewhere")
    assert steps is None or steps[0] == expected.summary["steps"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WAIT_FOR_LENT_ROWS))
def test_who_reads_lent_rows_waits_in_unlearning(name: str, tmp_path: Path, elsewhere: None, watched: list[int]) -> None:
    experiment = experiment_of_subject(name, tmp_path)
    with pytest.raises(Waits, match="how many places a mask has"):
        finish(experiment, moved(make_benchmark(experiment)))


@pytest.mark.parametrize("stack", text_stacks.STACKS)
def test_no_step_on_texts_waits(stack: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    expected = finish(experiment_on_texts(stack, tmp_path))
    there = experiment_on_texts(stack, tmp_path, out=str(tmp_path / "there"))
    data, steps = make_benchmark(there), request.getfixturevalue("watched")
    request.getfixturevalue("elsewhere")
    assert_equal_outcomes(expected, finish(there, moved(data)), "on another device it ends elsewhere")
    assert steps[0] == expected.summary["steps"] > 0


def test_the_terms_of_rmu_on_texts_do_not_wait(tmp_path: Path, elsewhere: None) -> None:
    experiment, counted = rmu_under_watch(tmp_path, nothing_waits)
    finish(experiment, moved(make_benchmark(experiment)))
    assert counted[0] > 3  # of what is forgotten in each of three steps, and of what is lent where there is any


def test_a_run_stopped_there_ends_as_one_that_was_not(tmp_path: Path, elsewhere: None) -> None:
    strategies = {"er": {"capacity": 20}, "refresh": {"gamma": 0.01}}
    whole, pieces = (experiment_of(strategies, tmp_path / name, model=ROUGH) for name in ("whole", "pieces"))
    data = moved(augmented(whole))
    outcome, stops = finish_in_pieces(pieces, lambda step: step % 3 == 1, data)
    assert stops == 7
    assert_equal_outcomes(finish(whole, data), outcome, "stopped and resumed there it ends elsewhere")


def test_a_fit_leaves_the_model_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: nn.Module, *args: object) -> nn.Module:
        raise AssertionError("the model was moved")

    experiment = Subject.named("er").experiment(tmp_path)
    for name in ("cpu", "cuda", "to"):
        monkeypatch.setattr(Host, name, refuse)
    finish(experiment)


@pytest.mark.parametrize(
    ("device", "asked", "found"),
    [("cpu", False, (False, False)), ("cpu", True, (True, False)), ("cuda", False, (True, True)), ("cuda", True, (True, False))],
)
def test_an_accelerator_gives_the_same_bits_each_time(
    device: str, asked: bool, found: tuple[bool, bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one, deterministic algorithms where there are some; where they are asked for, nothing else."""
    monkeypatch.setattr(assembly, "choose_device", lambda name: torch.device(device))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)

    def now() -> tuple[bool, bool]:
        return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()

    before = now()
    with assembly.torch_as_configured(Subject.named("er").experiment(tmp_path, deterministic=asked)):
        assert now() == found
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == (device == "cuda")
    assert now() == before == (False, False)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


# --- the pretended device itself ---


@pytest.fixture
def there() -> Iterator[Tensor]:
    with a_device_elsewhere():
        yield torch.arange(6.0).view(2, 3).to(ELSEWHERE)


def test_it_computes_as_the_host_does(there: Tensor) -> None:
    assert isinstance(there, Elsewhere) and there.device == ELSEWHERE
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    expected = torch.autograd.grad(model(there.cpu()).sum(), list(model.parameters()))
    found = torch.autograd.grad(model.to(ELSEWHERE)(there).sum(), list(model.parameters()))
    assert all(torch.equal(one, other.cpu()) for one, other in zip(expected, found, strict=True))
    view = there[1:]
    view.add_(1)
    assert there.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert torch.tensor([1, 2], device=ELSEWHERE).tolist() == torch.arange(1, 3, device=ELSEWHERE).tolist() == [1, 2]


def test_what_lies_apart_does_not_meet(there: Tensor) -> None:
    with pytest.raises(Apart, match=r"aten::add: expected all tensors to be on the same device"):
        there + torch.ones(3)
    with pytest.raises(Apart, match="expected a generator of the device"):
        there.normal_(generator=torch.Generator())
    with pytest.raises(AssertionError, match="holds nothing"):
        there[[0, 1]]  # torch makes places there itself
    with pytest.raises(TypeError, match="copy it to the host first"):
        there.numpy()
    assert (there + torch.tensor(1.0)).tolist() == [[1, 2, 3], [4, 5, 6]]  # a number may come from the host
    there.normal_(generator=torch.Generator(ELSEWHERE).manual_seed(0))


def test_a_fused_update_wants_one_layout(there: Tensor) -> None:
    parameter = nn.Parameter(there.clone())
    optimizer = torch.optim.Adam([parameter], fused=True)
    parameter.grad = torch.ones(3, 2).to(ELSEWHERE).t()
    with pytest.raises(Apart, match="must have the same layout"):
        optimizer.step()
    parameter.grad = parameter.grad.contiguous()
    optimizer.step()


WAITS = {
    "is a number": lambda there: float(there.sum()),
    "decides": lambda there: bool((there > 1).any()),
    "comes over": lambda there: there.cpu(),
    "fills the host's": lambda there: torch.empty(2, 3).copy_(there),
    "is a list": lambda there: there.tolist(),
    "is picked by a mask": lambda there: there[there > 1],
    "is picked by the host's places": lambda there: there[torch.tensor([1, 0])],
    "is where": lambda there: there.nonzero(),
    "is unique": lambda there: there.unique(),
    "is repeated as it says": lambda there: there[:, 0].repeat_interleave(torch.arange(1, 3, device=ELSEWHERE)),
    "arrives": lambda there: torch.ones(2).to(ELSEWHERE),
}


@pytest.mark.parametrize("how", WAITS)
def test_what_waits(there: Tensor, how: str) -> None:
    WAITS[how](there)
    with pytest.raises(Waits), nothing_waits():
        WAITS[how](there)


def test_what_does_not_wait(there: Tensor) -> None:
    with nothing_waits():
        torch.ones(2).to(ELSEWHERE, non_blocking=True)
        there.index_select(0, torch.arange(2, device=ELSEWHERE))
        torch.where(there > 1, there, 0.0).topk(2)
        there.masked_fill_(there > 1, 0.0)
