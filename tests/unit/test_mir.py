"""MIR: which rows are retrieved, against the definition; no trace; the rate of the virtual step."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework import Batch, ConfigurationError, Context, ContractError, Draw, Phase
from cl_framework.assembly import assemble
from cl_framework.testing.laboratory import ROUGH, experiment_of, finish, first_difference, in_place_of
from cl_framework.testing.neighbours import snapshot
from strategies.mir import MIR, MIRConfig, most_interfered, virtual_step


def test_a_virtual_step_is_gradient_descent_on_copies() -> None:
    parameters = [torch.nn.Parameter(torch.arange(3.0)), torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(1))]
    before = copy.deepcopy(parameters)
    ahead = virtual_step(parameters, (torch.tensor([1.0, 2.0, 3.0]), None, torch.tensor([-1.0])), 0.5)
    assert [value.tolist() for value in ahead] == [[-0.5, 0.0, 0.5], [1.0, 1.0], [1.5]]
    assert all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))
    assert not any(value.requires_grad for value in ahead)


def test_the_rows_of_the_largest_rise_are_picked_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    swept = differing = 0
    for count in (1, 4, 10, 30):
        for _ in range(20):
            before, after = torch.rand(2, 20, generator=generator)
            rises = [float(b) - float(a) for a, b in zip(before, after, strict=True)]
            expected = sorted(range(20), key=lambda row: -rises[row])[:count]
            assert most_interfered(before, after, count).tolist() == expected
            differing += expected != after.topk(min(count, 20)).indices.tolist()
            swept += 1
    assert swept == 80 and differing > 60, "the largest loss afterwards is not the largest rise"


class Spied(MIR):
    """Notes, at each draw, the model, the rate, the batch, the candidates and what was retrieved; and what the draw moved."""

    journal: list[dict[str, Any]] = []  # noqa: RUF012 - one test at a time reads it

    def draw(self, batch: Batch, context: Context) -> Any:
        model = snapshot(context.model.state_dict())
        noise = torch.get_rng_state()
        count = self.config.candidates or 5 * (self.config.minibatch or context.batch_size)
        candidates = self.memory.sample(count, context.random("candidates"))
        named = super().draw(batch, context)
        moved = first_difference(model, snapshot(context.model.state_dict()))
        if not torch.equal(noise, torch.get_rng_state()):
            moved = "torch's random state"
        rate = context.learner.optimizer.param_groups[0]["lr"]  # type: ignore[attr-defined]
        self.journal.append(
            {
                "model": model,
                "rate": rate,
                "told": context.learning_rate,
                "batch": batch,
                "candidates": candidates,
                "draw": named.get("interfered"),
                "moved": moved,
            }
        )
        return named


def run_spied(folder: Path, options: dict[str, Any], beside: dict[str, Any] | None = None, **settings: Any) -> list[dict[str, Any]]:
    Spied.journal.clear()
    finish(in_place_of(experiment_of({"mir": options, **(beside or {})}, folder, stream="L0 L1 L2", **settings), Spied))
    return list(Spied.journal)


def losses(model: dict[str, Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
    """Of the plain two-layer model, written out: (N,)."""
    hidden = functional.relu(inputs.flatten(1) @ model["body.1.weight"].T + model["body.1.bias"])
    return functional.cross_entropy(hidden @ model["head.weight"].T + model["head.bias"], targets, reduction="none")


def retrieved_by_definition(entry: dict[str, Any], rate: float, count: int) -> list[int]:
    """Ids of the candidates whose loss a step of this rate on the batch raises most."""
    model = {name: value.clone().requires_grad_() for name, value in entry["model"].items()}
    losses(model, entry["batch"].inputs, entry["batch"].targets).mean().backward()
    ahead = {name: (value - rate * value.grad).detach() for name, value in model.items()}  # type: ignore[operator]
    rows = entry["candidates"]
    inputs = rows.items.float() / 255
    rise = losses(ahead, inputs, rows.targets) - losses(model, inputs, rows.targets)
    return rows.ids[rise.detach().argsort(descending=True)[:count]].tolist()


def test_what_is_retrieved_is_what_the_step_would_harm_most(tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {"minibatch": 5, "candidates": 20, "capacity": 60}, epochs=2)
    swept = other_rate = 0
    for entry in journal:
        if entry["candidates"] is None or len(entry["candidates"]) <= 5:
            continue
        found = entry["draw"].rows.ids.tolist()
        assert found == retrieved_by_definition(entry, 0.05, 5)
        other_rate += found != retrieved_by_definition(entry, -0.05, 5)
        swept += 1
    assert swept >= 25 and other_rate > swept / 2
    assert {entry["draw"].kind for entry in journal if entry["draw"]} == {Draw.joined(journal[-1]["candidates"]).kind}


def test_a_draw_leaves_no_trace(tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {"minibatch": 4}, model=ROUGH)
    assert len(journal) == 15 and [entry["moved"] for entry in journal] == [None] * 15


def test_the_virtual_step_goes_at_the_rate_of_the_step_under_way(tmp_path: Path) -> None:
    import tests.contract.fakes  # noqa: F401 - registers fake_warm_up

    journal = run_spied(tmp_path, {"minibatch": 5}, {"fake_warm_up": {"count": 4}})
    for first in (0, 5, 10):
        assert [entry["told"] for entry in journal[first : first + 5]] == pytest.approx([0.0125, 0.025, 0.0375, 0.05, 0.05])
    assert all(entry["told"] == entry["rate"] for entry in journal) and len(journal) == 15


def test_candidates_are_five_times_as_many_as_are_replayed_and_never_as_few(tmp_path: Path) -> None:
    journal = run_spied(tmp_path, {"minibatch": 3, "capacity": 60}, epochs=2)
    asked = [len(entry["candidates"]) for entry in journal if entry["candidates"] is not None]
    assert max(asked) == 15 and asked.count(15) > 5
    for candidates in (3, 12):
        with pytest.raises(ConfigurationError, match=f"candidates={candidates} are not more than the 12 rows replayed a step"):
            run_spied(tmp_path / str(candidates), {"minibatch": 12, "candidates": candidates})


def test_more_candidates_than_the_memory_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"mir.candidates=30 are more than the capacity=20 of the memory that they are drawn from"):
        run_spied(tmp_path, {"capacity": 20, "candidates": 30})
    run_spied(tmp_path, {"capacity": 20, "candidates": 20})


def test_a_memory_that_is_replayed_whole_is_refused(tmp_path: Path) -> None:
    for options, count in (({"capacity": 8}, 8), ({"capacity": 3, "minibatch": 5}, 5)):
        with pytest.raises(ConfigurationError, match=f"mir.capacity={options['capacity']} holds no more than the {count} rows replayed a"):
            run_spied(tmp_path / str(count), options)
    assert any(entry["draw"] for entry in run_spied(tmp_path / "more", {"capacity": 9}))


def test_a_choice_among_many_is_not_a_draw_at_random(tmp_path: Path) -> None:
    chosen = finish(experiment_of({"replay": {"use": "mir", "minibatch": 5}}, tmp_path / "mir", stream="L0 L1 L2"))
    random = finish(experiment_of({"replay": {"use": "er", "minibatch": 5}}, tmp_path / "all", stream="L0 L1 L2"))
    assert first_difference(chosen.weights, random.weights) is not None
    assert len(chosen.learner["strategies"]["replay"]["memory"]["columns"]["ids"]) == 108


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": -1}, "capacity must be >= 0, got -1"),
        ({"candidates": 0}, "candidates must be >= 1, got 0"),
        ({"minibatch": 0}, "minibatch must be >= 1, got 0"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MIRConfig(**options)


def test_a_learning_rate_is_known_within_a_phase_only(tmp_path: Path) -> None:
    learner = assemble(experiment_of({"mir": {}}, tmp_path))
    with pytest.raises(ContractError, match="the learning rate was read outside of a phase"):
        _ = learner.stack.context("mir").learning_rate
    learner.begin_phase(Phase("quick", 1, optimizer={"lr": 0.25}))
    assert learner.stack.context("mir").learning_rate == 0.25
