"""Online and blurry streams, streams that repeat or leave out tasks, scenarios: what is shown, and what is reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import ConfigurationError, load_experiment, run
from cl_framework.assembly import assemble
from cl_framework.evaluation import candidates, evaluate
from cl_framework.records import RunDirectory

BASE: dict[str, Any] = {"experiment": "trial", "benchmark": {"name": "synthetic", "tasks": 3}, "batch_size": 10}


def finished(tmp_path: Path, *words: str) -> dict[str, Any]:
    summary = run(load_experiment(BASE, [f"out={tmp_path}", *words])).summary
    assert summary is not None
    return summary


def test_a_blurry_stream_shows_every_sample_once_and_mixes_tasks() -> None:
    learner = assemble(load_experiment(BASE, ["blurry=0.3", "online=true"]))
    shown = [learner.training_ids(task) for task in range(3)]
    assert torch.equal(torch.cat(shown).sort().values, torch.arange(240))
    foreign = [int((learner.benchmark.locate(ids)[0] != task).sum()) for task, ids in enumerate(shown)]
    assert all(10 < count < 25 for count in foreign)  # 24 dealt, of which a third falls back to its own task
    straight = assemble(load_experiment(BASE, ["online=true"]))
    assert torch.equal(straight.training_ids(1), straight.benchmark.ids_of(1))


def test_what_is_left_out_must_be_of_a_task_that_there_is() -> None:
    assert len(assemble(load_experiment(BASE, ["without=U2:class=5"])).training_ids(2)) == 40
    with pytest.raises(ConfigurationError, match=r"without: U9:class=3 names task 9, but the benchmark has tasks 0 to 2\."):
        assemble(load_experiment(BASE, ["without=U9:class=3"]))
    with pytest.raises(ConfigurationError, match=r"without: cannot read event 'L0\?'\. Write events like"):
        assemble(load_experiment(BASE, ["without=L0?"]))


def test_what_is_left_out_must_be_of_a_task_that_is_learned(tmp_path: Path) -> None:
    never = ["stream=L0 L2", "without=U2:class=5 U1:class=3"]
    with pytest.raises(ConfigurationError, match=r"^without: U1:class=3 does nothing: the stream never learns task 1\. Leave it out\.$"):
        run(load_experiment(BASE, [*never, f"out={tmp_path}"]))
    assert not list(tmp_path.iterdir())
    assert len(assemble(load_experiment(BASE, ["stream=L0 L2", "without=U2:class=5"])).training_ids(2)) == 40


def test_a_blurry_stream_runs(tmp_path: Path) -> None:
    summary = finished(tmp_path, "blurry=1.0", "online=true", "strategies.er.capacity=30")
    assert summary["samples"] == 240
    assert summary["accuracy_matrix"][0][1] > 0.0  # the classes of the second task were seen already
    assert finished(tmp_path, "online=true")["accuracy_matrix"][0][1] == 0.0


def test_repeats_and_left_out_tasks(tmp_path: Path) -> None:
    summary = finished(tmp_path, "stream=L2 L0 L2")
    assert summary["stream"] == "L2 L0 L2"
    assert [row[1] for row in summary["accuracy_matrix"]] == [None, None, None]
    assert len(summary["accuracy_matrix"]) == 3
    # The second time, another order: randomness is keyed by the occurrence.
    learner = assemble(load_experiment(BASE, ["stream=L2 L0 L2"]))
    plans = []
    for index in (0, 2):
        learner.position.event, learner.position.event_index = learner.stream.events[index], index
        plans.append(learner.learn_phase(learner.stream.events[index]).plan.ids)  # type: ignore[arg-type, union-attr]
    assert torch.equal(plans[0].sort().values, plans[1].sort().values)
    assert not torch.equal(plans[0], plans[1])


def test_taking_a_task_out_moves_nobody_elses_order() -> None:
    def order(stream: str, index: int) -> torch.Tensor:
        learner = assemble(load_experiment(BASE, [f"stream={stream}"]))
        learner.position.event, learner.position.event_index = learner.stream.events[index], index
        return learner.learn_phase(learner.stream.events[index]).plan.ids  # type: ignore[arg-type, union-attr]

    assert torch.equal(order("L0 L1 L2", 2), order("L0 L2", 1))
    assert not torch.equal(order("L0 L1 L2", 2), order("L0 L1", 1))


def test_only_seen_tasks_are_evaluated_if_asked(tmp_path: Path) -> None:
    summary = finished(tmp_path, "evaluate=seen")
    assert [sum(value is not None for value in row) for row in summary["accuracy_matrix"]] == [1, 2, 3]


def test_candidates_of_an_answer() -> None:
    learner = assemble(load_experiment(BASE))

    def chosen(scenario: str, task: int, live: tuple[int, ...]) -> list[int]:
        return candidates(learner, scenario, task, live).nonzero().flatten().tolist()

    assert chosen("class_il", 2, (0,)) == [0, 1, 4, 5]
    assert chosen("class_il", 0, (0, 1)) == [0, 1, 2, 3]
    assert chosen("task_il", 1, (0, 1, 2)) == [2, 3]


def test_training_in_a_task_incremental_run_is_masked_to_the_task(tmp_path: Path) -> None:
    """The head rows of other tasks get no gradient: they stay at their initial values."""
    result = run(load_experiment(BASE, [f"out={tmp_path}", "scenario=task_il", "stream=L0"]))
    model = torch.load(sorted(RunDirectory(result.path).checkpoints.iterdir())[-1], weights_only=True)["learner"]["model"]
    initial = assemble(load_experiment(BASE)).model.state_dict()
    assert torch.equal(model["head.weight"][2:], initial["head.weight"][2:])
    assert not torch.equal(model["head.weight"][:2], initial["head.weight"][:2])
    assert result.summary is not None
    assert result.summary["scenario"] == "task_il"
    assert {row["scenario"] for row in RunDirectory(result.path).records()} == {"task_il", "class_il"}
    class_il = run(load_experiment(BASE, [f"out={tmp_path}", "stream=L0"]))
    other = torch.load(sorted(RunDirectory(class_il.path).checkpoints.iterdir())[-1], weights_only=True)["learner"]["model"]
    assert not torch.equal(other["head.weight"][2:], initial["head.weight"][2:])


def test_evaluation_changes_nothing() -> None:
    learner = assemble(load_experiment(BASE, ["model.batch_norm=true", "model.dropout=0.5"]))
    learner.model.train()
    torch.manual_seed(5)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    state = torch.random.get_rng_state()
    first = evaluate(learner, (0, 1, 2), (0, 1))
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert all(module.training for module in learner.model.modules())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert evaluate(learner, (0, 1, 2), (0, 1)) == first
    with torch.no_grad():
        learner.model(torch.rand(4, 1, 4, 4))  # what the guard is for: a training pass moves statistics and random numbers
    assert not all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert not torch.equal(torch.random.get_rng_state(), state)


def test_accuracy_is_counted_over_samples_not_batches() -> None:
    learner = assemble(load_experiment(BASE, ["evaluation_batch_size=7"]))
    whole = assemble(load_experiment(BASE))
    assert evaluate(learner, (0, 1), (0, 1)) == evaluate(whole, (0, 1), (0, 1))
    rows = learner.benchmark.test[0]
    inputs = learner.benchmark.transform(rows.read(torch.arange(len(rows))), None)
    assert isinstance(inputs, torch.Tensor)
    answers = learner.model.eval()(inputs)[:, :2].argmax(1)
    expected = int((answers == rows.targets).sum())
    assert evaluate(learner, (0,), (0,))[0].correct == expected
