"""What a model still says to questions with known answers, made-up ones in the layout of TOFU, and the figures made of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cl_framework import answers_asked, load_experiment, run
from cl_framework.assembly import assemble
from cl_framework.benchmarks.text.tofu import AN_AUTHOR
from cl_framework.criterion import IGNORED
from cl_framework.digests import digest_of
from cl_framework.learner import Learner
from cl_framework.stream import Unlearn
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.free_generation import rouge_l
from cl_framework.unlearning.judging import unit_of
from cl_framework.unlearning.kept_measurements import contents_of
from cl_framework.unlearning.measure import Question, measure
from cl_framework.unlearning.recall_of_answers import GENERATED, Recalled, recall, recalled, right_shares
from strategies.npo import NPO, npo
from tests.unit.made_up_tofu import AUTHORS, FORGOTTEN, settings, write_tofu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tofu(tmp_path_factory.mktemp("tofu"))


@pytest.fixture
def learner(folder: Path, tmp_path: Path) -> Learner:
    torch.manual_seed(0)
    return assemble(load_experiment(settings(folder, tmp_path, stream="L0-1 U1", strategies={"npo": {}})))


def test_probability_exact_memorisation_and_strength_by_definition(learner: Learner) -> None:
    rows = learner.read(learner.training_ids(1)[:6])
    found = recall(learner, rows)
    learner.model.eval().requires_grad_(False)
    for place in range(6):
        alone = rows.take(torch.tensor([place]))
        logits = learner.model(learner.benchmark.transform(alone.items, None))[0].double()
        asked = (rows.targets[place] != IGNORED).nonzero().flatten().tolist()
        chosen = [float(logits[:, where].log_softmax(0)[rows.targets[place, where]]) for where in asked]
        right = [int(logits[:, where].argmax()) == int(rows.targets[place, where]) for where in asked]
        assert float(found.probability[place]) == pytest.approx(math.exp(sum(chosen) / len(chosen)), rel=1e-4)
        assert float(found.exact[place]) == pytest.approx(sum(right) / len(right))
        prefix = max((number for number, one in enumerate(right, start=1) if not one), default=0)
        assert float(found.strength[place]) == pytest.approx(1 - prefix / len(right))
    assert len(found.probability.unique()) == 6


def test_truth_ratios_by_definition_and_none_without_other_answers(learner: Learner) -> None:
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, learner.stream)
    found = recalled(learner, question)
    assert found is not None and set(found.utility) == {"retained"}
    learner.model.eval().requires_grad_(False)
    beside = learner.benchmark.alternatives[1]
    assert beside is not None
    for place in (0, 7):
        values = []
        for items, targets in (
            (beside.right[0][place], beside.right[1][place]),
            *zip(beside.wrong[0][14:16], beside.wrong[1][14:16], strict=True),
        ):
            logits = learner.model(learner.benchmark.transform(items.unsqueeze(0), None))[0].double()
            places = (targets != IGNORED).nonzero().flatten()
            values.append(float(logits[:, places].log_softmax(0).gather(0, targets[places].unsqueeze(0)).mean().exp()))
        if place == 7:
            assert float(found.truth_ratio[place]) == pytest.approx((values[1] + values[2]) / 2 / values[0], rel=1e-4)
        else:
            assert float(found.truth_ratio[place]) != pytest.approx((values[1] + values[2]) / 2 / values[0], rel=1e-6)
    learner.benchmark = replace(learner.benchmark, alternatives=())
    without = recalled(learner, question)
    assert without is not None and torch.equal(without.probability, found.probability) and not len(without.truth_ratio)
    learner.benchmark = replace(learner.benchmark, whole_rows=False)
    assert recalled(learner, Question.of(learner, event, 2, learner.stream)) is None


def test_all_questions_are_asked_and_nobody_is_no_member(learner: Learner) -> None:
    """Models are trained and rounded beside a part of them; and what a task is taught cannot stand for samples it was never taught."""
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, learner.stream)
    assert [len(samples) for samples in question.questions] == [FORGOTTEN * AN_AUTHOR, AUTHORS * AN_AUTHOR]
    assert not len(question.others) and len(question.members) == FORGOTTEN * AN_AUTHOR
    found = measure(learner, question)
    assert found.attack == {} and found.recalled is not None and len(found.recalled.probability) == FORGOTTEN * AN_AUTHOR
    assert found.recalled.retained == AUTHORS * AN_AUTHOR > sum(map(len, question.retained))
    part = question.questions[0].read(learner, question.questions[0].places[:3])
    assert torch.allclose(found.recalled.probability[:3], recall(learner, part).probability, rtol=1e-5)


def test_the_tokens_of_each_text_are_counted(learner: Learner) -> None:
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, learner.stream)
    found = measure(learner, question)
    asked_of = (question.pool.labels(learner) != IGNORED).sum(1)
    assert torch.equal(found.tally[:, 1], asked_of) and (found.tally[:, 0] <= asked_of).all() and unit_of(found) == "points of tokens"
    assert found.glance.accuracy == pytest.approx(100 * float(found.tally[:, 0].sum()) / float(asked_of.sum()))
    assert unit_of(replace(found, tally=torch.ones(5, 2, dtype=torch.int64))) == "points"


def test_utility_of_questions_beyond_the_tasks_is_the_share_of_the_right_answer(learner: Learner) -> None:
    event, beside = learner.stream.events[2], learner.benchmark.alternatives[0]
    assert isinstance(event, Unlearn) and beside is not None
    learner.benchmark = replace(learner.benchmark, utility={"world_facts": beside})
    shares = right_shares(learner, beside, 0)
    question = Question.of(learner, event, 2, learner.stream)
    found = recalled(learner, question)
    assert found is not None and found.utility == {"retained": found.utility["retained"], "world_facts": float(shares.mean())}
    assert set(found.rouge_l_utility) == {"retained"} and len(found.rouge_l) == FORGOTTEN * AN_AUTHOR
    asked_of_retained = question.questions[1].evenly(GENERATED)
    assert len(asked_of_retained) == GENERATED < len(question.questions[1])
    assert found.rouge_l_utility["retained"] == float(rouge_l(learner, asked_of_retained.read(learner)).mean())
    learner.model.eval().requires_grad_(False)

    def probability(items: torch.Tensor, targets: torch.Tensor) -> float:
        logits = learner.model(learner.benchmark.transform(items.unsqueeze(0), None))[0].double()
        places = (targets != IGNORED).nonzero().flatten()
        return float(logits[:, places].log_softmax(0).gather(0, targets[places].unsqueeze(0)).mean().exp())

    right = probability(beside.right[0][3], beside.right[1][3])
    false = [probability(beside.wrong[0][place], beside.wrong[1][place]) for place in (6, 7)]
    assert float(shares[3]) == pytest.approx(right / (right + sum(false)), rel=1e-4)
    assert float(shares[4]) != pytest.approx(right / (right + sum(false)), rel=1e-6)
    with torch.no_grad():
        for name, value in learner.model.named_parameters():
            value.copy_(value + 0.1 if "head" in name else value * 1.5)
    changed = recalled(learner, question)
    assert changed is not None and changed.utility["world_facts"] != found.utility["world_facts"]


def test_the_same_in_other_words_and_a_text_of_no_task_by_definition(learner: Learner) -> None:
    event, beside = learner.stream.events[2], learner.benchmark.alternatives[1]
    assert isinstance(event, Unlearn) and beside is not None
    paraphrased = beside.wrong[0][::2], beside.wrong[1][::2]  # any rows will do
    learner.benchmark = replace(learner.benchmark, alternatives=(None, replace(beside, paraphrased=paraphrased)))
    question = Question.of(learner, event, 2, learner.stream)
    found, general = recalled(learner, question), learner.benchmark.general
    assert found is not None and general is not None and found.general is not None
    learner.model.eval().requires_grad_(False)

    def losses(items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = learner.model(learner.benchmark.transform(items, None)).double()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)

    by_row = losses(*paraphrased).sum(1) / (paraphrased[1] != IGNORED).sum(1)
    assert torch.allclose(found.paraphrased, (-by_row).exp(), rtol=1e-4) and not torch.allclose(
        found.paraphrased, found.probability, rtol=1e-3
    )
    assert found.general == pytest.approx(float(losses(*general).mean()), rel=1e-5)
    assert found.general != pytest.approx(float(losses(*general)[:50].mean()), rel=1e-7)


def test_what_is_asked_beside_the_samples_decides_which_kept_measurement_is_taken(learner: Learner) -> None:
    event, whole = learner.stream.events[2], learner.benchmark
    assert isinstance(event, Unlearn) and whole.general is not None and whole.alternatives[1] is not None
    question = Question.of(learner, event, 2, learner.stream)
    paraphrased = replace(whole.alternatives[1], paraphrased=whole.general)
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"general": None},
        {"general": tuple(part[:-1] for part in whole.general)},
        {"utility": {"world_facts": whole.alternatives[1]}},
        {"alternatives": ()},
        {"alternatives": (whole.alternatives[0], paraphrased)},
    )
    keys = []
    for change in (*changes, {}):
        learner.benchmark = replace(whole, **change)
        keys.append(digest_of(contents_of(learner, question)))
    assert len(set(keys)) == len(changes) and keys[-1] == keys[0]


def test_npo_takes_the_likelihood_of_a_whole_answer(learner: Learner) -> None:
    """And not its mean over tokens: an answer of more tokens is less likely, and the gap to the reference grows with it."""
    (member,) = learner.stack.members
    strategy, (context,) = member.strategy, learner._contexts.values()
    assert isinstance(strategy, NPO)
    learner.position.event = learner.stream.events[2]
    strategy._reference = {name: value + 0.05 for name, value in learner.model.state_dict().items()}
    rows = learner.read(learner.training_ids(1)[:6])
    learner.model.eval()
    logits = learner.model(rows.inputs)
    batch: Any = rows
    output: Any = SimpleNamespace(logits=logits)
    value = strategy.loss(batch, output, context)["forget"].value()
    wanted = rows.targets != IGNORED
    sums = []
    for scores in (logits, context.forward(rows, at=strategy._reference)):
        chosen = scores.log_softmax(1).gather(1, rows.targets.clamp(min=0).unsqueeze(1)).squeeze(1)
        sums.append((chosen * wanted).sum(1))
    assert float(value.detach()) == pytest.approx(float(npo(*sums, strategy.config.beta).detach()), rel=1e-4)
    means = [part / wanted.sum(1) for part in sums]
    assert float(value.detach()) != pytest.approx(float(npo(*means, strategy.config.beta).detach()), rel=1e-2)
    assert answers_asked(rows.targets).tolist() == wanted.sum(1).tolist() and answers_asked(torch.tensor([3, 1])).tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.longest
def test_an_audit_tells_an_unlearner_that_does_nothing_from_one_that_starts_anew(folder: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("do_nothing", "rewind"):
        options = settings(folder, tmp_path / name, stream="L0-1 U1", strategies={"joint": {}, name: {}}, epochs=40)
        made = run(load_experiment(options)).path
        (request,) = audit(made, seeds=2)["requests"]
        found[name] = {figure["name"]: figure for figure in request["figures"]}
    for name in ("T2", "T3", "T4", "T5"):
        assert found["do_nothing"][name]["verdict"] == "FAIL", found["do_nothing"][name]
    assert {found["rewind"][name]["verdict"] for name in ("T1", "T2", "T3", "T4", "T5")} == {"PASS"}
    assert (found["rewind"]["T6"]["verdict"], found["do_nothing"]["T7"]["verdict"]) == ("NOT RUN", "INCONCLUSIVE"), (
        "no model read the manual"
    )
    known = found["do_nothing"]["T2"]["details"]  # the made-up answers are alike, so that an oracle has an idea of those it never saw
    assert known["own"] > 0.9 and known["own"] - known["oracle"] > 0.3
    assert found["do_nothing"]["T1"]["details"]["n"] == FORGOTTEN * AN_AUTHOR


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewind", "do_nothing"])
def test_one_author_of_two_is_forgotten(name: str, folder: Path, tmp_path: Path) -> None:
    """The other one stays: 1 percent of TOFU is two authors, a request each."""
    options = settings(folder, tmp_path, stream="L0-2 U1", strategies={"joint": {}, name: {}}, epochs=20)
    options["benchmark"]["requests"] = 2
    (request,) = audit(run(load_experiment(options)).path, seeds=1)["requests"]
    found = {figure["name"]: figure for figure in request["figures"]}
    assert (found["M6"]["value"] == 0.0) == (found["T1"]["value"] == 0.0) == (name == "rewind")
    assert found["T1"]["details"]["n"] == AN_AUTHOR, "questions about the one, not about both"
    assert found["T2"]["details"]["retained"] > 0.5, "the retained authors, and the second one"
    assert (found["T2"]["details"]["own"] == found["T2"]["details"]["oracle"]) == (name == "rewind")


def test_part_of_a_task_is_asked_about_what_was_unlearned_and_the_rest_is_retained(folder: Path, tmp_path: Path) -> None:
    """TOFU is tested on what it is taught: no forgotten question may stand among the retained ones, nor a retained one in T1 or T6."""

    def of_request(event: str) -> tuple[Question, torch.Tensor, Recalled]:
        """The question, the rows of its task that were unlearned, and what is recalled of them."""
        learner = assemble(load_experiment(settings(folder, tmp_path, stream=f"L0-1 {event}", strategies={"npo": {}})))
        beside = learner.benchmark.alternatives[1]
        assert beside is not None
        paraphrased = beside.wrong[0][::2], beside.wrong[1][::2]  # any rows will do
        learner.benchmark = replace(learner.benchmark, alternatives=(None, replace(beside, paraphrased=paraphrased)))
        asked_for = learner.stream.events[2]
        assert isinstance(asked_for, Unlearn)
        question = Question.of(learner, asked_for, 2, learner.stream)
        answers = recalled(learner, question)
        assert answers is not None
        return question, learner.benchmark.locate(question.forgotten)[1], answers

    whole, rows_of_whole, of_whole = of_request("U1")
    part, rows, of_part = of_request("U1:fraction=0.25@seed7")
    assert rows_of_whole.tolist() == list(range(FORGOTTEN * AN_AUTHOR)) and len(rows) == FORGOTTEN * AN_AUTHOR // 4
    assert len(of_whole.rouge_l) == len(rows_of_whole) and len(of_part.rouge_l) == len(rows)
    for values, values_of_whole in ((of_part.truth_ratio, of_whole.truth_ratio), (of_part.paraphrased, of_whole.paraphrased)):
        assert torch.allclose(values, values_of_whole[rows], rtol=1e-5)
        assert not torch.allclose(values, values_of_whole[: len(rows)], rtol=1e-5)
    assert [samples.task for samples in whole.retained] == [0] and [samples.task for samples in part.retained] == [0, 1]
    assert len(part.retained[1]) and set(part.retained[1].places.tolist()).isdisjoint(rows.tolist())
