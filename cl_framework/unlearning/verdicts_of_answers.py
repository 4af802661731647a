"""Figures T1 to T7 of a language model that was asked questions with known answers: see `recall_of_answers`. Pure functions."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from cl_framework.unlearning.divergences import ks_interval, ks_statistic
from cl_framework.unlearning.fast import INCONCLUSIVE, NOT_RUN, Figure
from cl_framework.unlearning.judging import Models, attacked, judged, noise_floor
from cl_framework.unlearning.measure import Measured
from cl_framework.unlearning.recall_of_answers import Recalled

FEWEST_RATIOS = 10  # questions of which distributions are compared: of fewer the statistic is far from 0 for equal models, too


def answers(models: Models) -> list[Figure]:
    """T1 to T7, beside the oracle's: truth ratios; probability, extraction strength and exact memorisation of the answers; what the model
    says by itself; their probability asked in other words; and the loss on a text of no task."""
    own, before, oracle = models.unlearned.recalled, models.before.recalled, models.oracle.recalled
    if own is None or before is None or oracle is None:
        return []
    gaps = [_answer_gap(models, name, column) for name, column in _ANSWERS.items()]
    return [_forget_quality(models, own, before, oracle), *gaps, _general_gap(models)]


_ANSWERS = {"T2": "probability", "T3": "strength", "T4": "exact", "T5": "rouge_l", "T6": "paraphrased"}  # figure -> what it is the mean of
_UTILITY = {"T2": "utility", "T5": "rouge_l_utility"}  # figure -> the same of what is to stay
_WITHOUT = {
    "T5": "the benchmark does not say how token ids are read (Benchmark.tokens)",
    "T6": "the benchmark has none, or not all, of these questions in other words that fit its rows",
}


def _forget_quality(models: Models, own: Recalled, before: Recalled, oracle: Recalled) -> Figure:
    """T1: the KS statistic between truth ratios and the oracle's, which does not grow with the number of questions as a p-value does."""
    count = len(own.truth_ratio)
    if count < FEWEST_RATIOS:
        return Figure(
            "T1", None, NOT_RUN, f"{count} of the questions that were unlearned have other answers; {FEWEST_RATIOS} tell something"
        )

    def distance(one: Measured) -> float:
        return ks_statistic(_recalled(one).truth_ratio, oracle.truth_ratio)

    interval = ks_interval(own.truth_ratio, oracle.truth_ratio, torch.Generator().manual_seed(0))
    ratios = {"truth_ratio": own, "oracle_truth_ratio": oracle, "before_truth_ratio": before}
    details = {name: float(recalled.truth_ratio.mean()) for name, recalled in ratios.items()}
    details |= {"before": distance(models.before), "n": float(count)}
    figure = judged("T1", distance(models.unlearned), noise_floor(models, distance), "KS statistic", interval=interval, details=details)
    return attacked(figure, distance(models.before), "the truth ratio")


def _answer_gap(models: Models, name: str, column: str) -> Figure:
    """How far the mean of a column of `Recalled` lies from the oracle's, -1 to 1; with the utility of all models, where there is one."""
    count = len(getattr(_recalled(models.unlearned), column))
    if not count:
        return Figure(name, None, NOT_RUN, _WITHOUT[name])

    def mean_of(one: Measured) -> float:
        return float(getattr(_recalled(one), column).mean())

    def gap(one: Measured) -> float:
        return mean_of(one) - mean_of(models.oracle)

    details = {"own": mean_of(models.unlearned), "oracle": mean_of(models.oracle), "before": mean_of(models.before)}
    details["n"] = float(count)
    if name == "T2":
        details["n_retained"] = float(_recalled(models.unlearned).retained)
    if name in _UTILITY:
        for who, model in (("", models.unlearned), ("oracle_", models.oracle), ("before_", models.before)):
            details |= {f"{who}{part}": value for part, value in getattr(_recalled(model), _UTILITY[name]).items()}
    figure = judged(name, gap(models.unlearned), noise_floor(models, gap), "from the oracle's mean", details=details)
    return attacked(figure, abs(gap(models.before)), "the answers")


def _general_gap(models: Models) -> Figure:
    """T7: how much more a text of no task costs than the oracle, in nats a token; what costs less is no harm.

    INCONCLUSIVE where the model before or the oracle loses as much there as one that picks tokens at random: it cannot read such a text,
    and what is done to it may as well make it better at it as worse.
    """
    if _recalled(models.oracle).general is None:
        return Figure("T7", None, NOT_RUN, "no text beside the tasks was named (benchmark.general)")

    def loss(one: Measured) -> float:
        general = _recalled(one).general
        assert general is not None
        return general

    def gap(one: Measured) -> float:
        return loss(one) - loss(models.oracle)

    own, floor = gap(models.unlearned), noise_floor(models, gap)
    details = {"own": loss(models.unlearned), "oracle": loss(models.oracle), "before": loss(models.before)}
    figure = judged("T7", own, floor, "nats a token over the oracle's", two_sided=False, details=details)
    at_random = math.log(models.oracle.pool.shape[1])
    if max(loss(models.before), loss(models.oracle)) < at_random:
        return figure
    why = f"the model before the request or the oracle cannot read the text: no better than {at_random:.2f} nats, those of a random token"
    return replace(figure, verdict=INCONCLUSIVE, why=why)


def _recalled(one: Measured) -> Recalled:
    assert one.recalled is not None
    return one.recalled
