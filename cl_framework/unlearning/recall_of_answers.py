"""What a language model still says to questions with known answers: probability, exact memorisation, extraction strength, truth ratio,
what it says by itself (`free_generation`), the same asked in other words, and how well it speaks at all.

Sources: Maini et al. 2024 "TOFU" (probability, truth ratio), Wang et al. 2025 "Towards Effective Evaluations and Comparisons for LLM
Unlearning Methods" (extraction strength). The truth ratio here is the mean over false answers of their length-normalised probability,
over that of the true answer in other words: near 0 for a model that knows, near 1 for one that cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Alternatives
from cl_framework.calls import evaluation_mode, run_model
from cl_framework.criterion import asked, last_asked
from cl_framework.inputs import each
from cl_framework.learner import Learner
from cl_framework.rng import global_randomness_kept
from cl_framework.strategy import Rows
from cl_framework.stream import TaskId
from cl_framework.unlearning.free_generation import rouge_l

if TYPE_CHECKING:
    from cl_framework.unlearning.measure import Question, Samples

_AT_ONCE = 2048  # places of texts in a batch
GENERATED = 50  # questions at most that a model answers by itself, of what was unlearned and, over all tasks, of what is retained


@dataclass(frozen=True)
class Recalled:
    """Of the questions that were unlearned; all in float64 on the host."""

    probability: Tensor  # (N,) of the right answer, its T-th root, [0, 1]
    exact: Tensor  # (N,) share of the answer's tokens that are predicted from those before, [0, 1]
    strength: Tensor  # (N,) extraction strength, [0, 1]
    truth_ratio: Tensor  # (M,) of those that have other answers, >= 0
    utility: Mapping[str, float]  # probability of the right answers that are to stay, [0, 1]: retained, real_authors, world_facts
    retained: int  # questions whose answers are to stay
    rouge_l: Tensor  # (S,) recall of what the model says by itself to some questions, [0, 1]; empty without tokens to read it by
    rouge_l_utility: Mapping[str, float]  # the mean of that on what is retained, [0, 1]
    paraphrased: Tensor  # (R,) probability of the right answer to each question that can be asked in other words, [0, 1]
    general: float | None  # loss on a text of no task, nats a token; None where the benchmark has none


def recalled(learner: Learner, question: Question) -> Recalled | None:
    """None where the benchmark does not ask questions whose answer counts as a whole."""
    if not question.questions:
        return None
    benchmark, task, (unlearned, *kept) = learner.benchmark, question.event.task, question.questions
    answers = recall(learner, unlearned.read(learner))
    beside = benchmark.alternatives[task] if benchmark.alternatives else None
    ratios = paraphrased = torch.empty(0, dtype=torch.float64)
    if beside is not None:
        of_unlearned = torch.isin(torch.tensor(beside.asked_by), benchmark.locate(question.forgotten)[1])
        ratios = truth_ratios(learner, beside, task)[of_unlearned]
        if beside.paraphrased is not None:
            paraphrased = recall(learner, _rows(learner, beside.paraphrased, task)).probability[of_unlearned]
    said, said_of_retained = _generated(learner, unlearned, kept)
    return Recalled(
        probability=answers.probability,
        exact=answers.exact,
        strength=answers.strength,
        truth_ratio=ratios,
        utility=_utility(learner, question, kept),
        retained=sum(map(len, kept)),
        rouge_l=said,
        rouge_l_utility=said_of_retained,
        paraphrased=paraphrased,
        general=_general_loss(learner, _live_task(question)),
    )


def _generated(learner: Learner, unlearned: Samples, retained: Sequence[Samples]) -> tuple[Tensor, dict[str, float]]:
    """What the model says by itself: recall of ROUGE-L on some questions unlearned, and its mean over tasks on some retained."""
    if learner.benchmark.tokens is None:
        return torch.empty(0, dtype=torch.float64), {}
    share = max(1, GENERATED // max(1, len(retained)))
    kept = [float(rouge_l(learner, samples.evenly(share).read(learner)).mean()) for samples in retained]
    return rouge_l(learner, unlearned.evenly(GENERATED).read(learner)), {"retained": mean(kept)} if kept else {}


def _general_loss(learner: Learner, task: TaskId) -> float | None:
    """The mean over tokens of a text of no task, in nats; 708 at most, where a double ends."""
    if learner.benchmark.general is None:
        return None
    probability = recall(learner, _rows(learner, learner.benchmark.general, task)).probability  # all rows are full: of as many tokens
    return float(-probability.clamp(min=torch.finfo(probability.dtype).tiny).log().mean())


def _live_task(question: Question) -> TaskId:
    """The task as which is asked what no task teaches."""
    return next((task for task in question.live if task != question.event.task), question.event.task)


def _utility(learner: Learner, question: Question, retained: Sequence[Samples]) -> dict[str, float]:
    """Of what is retained, the mean over tasks; of questions that no task holds as a share of the probability of all answers offered, as
    the code of TOFU has it for real authors and world facts: chance where a model has no idea."""
    kept = [float(recall(learner, samples.read(learner)).probability.mean()) for samples in retained]
    utility = {"retained": mean(kept)} if kept else {}
    for name, beside in learner.benchmark.utility.items():
        utility[name] = float(right_shares(learner, beside, _live_task(question)).mean())
    return utility


@dataclass(frozen=True)
class Recall:
    """Of rows of texts, (N,) each: see `Recalled`."""

    probability: Tensor
    exact: Tensor
    strength: Tensor


def recall(learner: Learner, rows: Rows) -> Recall:
    """What a model says at the places that are asked, each text read to that place.

    Texts of like lengths are asked together, each batch up to where its last question ends: what stands behind has no say.
    """
    model, predict, parts = learner.model, learner.stack.predictor, []
    order = last_asked(rows.targets).argsort(stable=True)
    with torch.no_grad(), evaluation_mode(model), global_randomness_kept(learner.device):
        for places in order.split(max(1, _AT_ONCE // rows.targets.shape[1])):
            some = rows.take(places)
            some.inputs = learner.benchmark.transform(some.items, None)
            cut_behind(some)
            features, scores = run_model(model, some)
            if predict is not None:
                scores = predict(features, scores, some)
            parts.append(torch.stack(_of_texts(scores, some.targets)).cpu())
    return Recall(*torch.cat(parts, 1)[:, order.argsort().cpu()])


def cut_behind(rows: Rows) -> None:
    """Cut texts (B, L), inputs and all, behind the last place that any of them is asked at: a causal model reads no further for it."""
    width = int(last_asked(rows.targets).max()) + 1
    assert rows.inputs is not None
    rows.items, rows.inputs = (each(lambda part: part[:, :width], parts) for parts in (rows.items, rows.inputs))
    rows.targets = rows.targets[:, :width]


def _of_texts(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probability, exact memorisation and extraction strength (B,) from logits (B, C, L) and targets (B, L)."""
    wanted = asked(targets)
    count, answers = wanted.sum(1), scores.transpose(1, 2)[wanted]  # (N, C): places behind a text need no probabilities
    chosen = torch.zeros(targets.shape, dtype=torch.float64, device=targets.device)
    chosen[wanted] = answers.double().log_softmax(1).gather(1, targets[wanted].unsqueeze(1)).squeeze(1)
    right = torch.zeros_like(wanted)
    right[wanted] = answers.argmax(1) == targets[wanted]
    return chosen.sum(1).div(count).exp(), right.sum(1).double() / count, extraction_strength(right, wanted)


def extraction_strength(right: Tensor, wanted: Tensor) -> Tensor:
    """(B,): 1 - k / T, k the shortest beginning of an answer of T tokens after which all others are predicted; 0 if the last one is not.

    right, wanted (B, L) bool: places where the prediction is right, and where an answer is asked. Every row asks at least once.
    """
    number = wanted.cumsum(1)  # which token of its answer a place asks for, from 1
    last_wrong = (number * (wanted & ~right)).amax(1)
    return 1.0 - last_wrong.double() / number[:, -1]


def truth_ratios(learner: Learner, beside: Alternatives, task: TaskId) -> Tensor:
    """(M,): mean probability of the false answers to a question, over that of the true one in other words."""
    right, wrong = _right_and_wrong(learner, beside, task)
    counts = torch.tensor(beside.owner).bincount(minlength=len(right))
    return wrong / counts / right.clamp(min=torch.finfo(right.dtype).tiny)


def right_shares(learner: Learner, beside: Alternatives, task: TaskId) -> Tensor:
    """(M,): probability of the right answer to a question, over the sum of it and those of the false ones."""
    right, wrong = _right_and_wrong(learner, beside, task)
    return right / (right + wrong).clamp(min=torch.finfo(right.dtype).tiny)


def _right_and_wrong(learner: Learner, beside: Alternatives, task: TaskId) -> tuple[Tensor, Tensor]:
    """(M,) each: probability of the right answer to a question, and the sum of those of the false ones."""
    right, wrong = (recall(learner, _rows(learner, part, task)).probability for part in (beside.right, beside.wrong))
    return right, torch.zeros(len(right), dtype=wrong.dtype).index_add(0, torch.tensor(beside.owner), wrong)


def _rows(learner: Learner, part: tuple[Tensor, Tensor], task: TaskId) -> Rows:
    items, targets = (values.to(learner.device) for values in part)
    tasks = torch.full((len(items),), task)
    ids = torch.full((len(items),), -1, device=learner.device)
    return Rows(items, targets, ids, tasks.to(learner.device), tasks_readable=learner.stack.reads_tasks)
