"""Figures T1 to T4 of a language model that was asked questions with known answers: see `recall_of_answers`. Pure functions."""

from __future__ import annotations

import torch

from cl_framework.unlearning.divergences import ks_interval, ks_statistic
from cl_framework.unlearning.fast import NOT_RUN, Figure
from cl_framework.unlearning.judging import Models, attacked, judged, noise_floor
from cl_framework.unlearning.measure import Measured
from cl_framework.unlearning.recall_of_answers import Recalled

FEWEST_RATIOS = 10  # questions of which distributions are compared: of fewer the statistic is far from 0 for equal models, too


def answers(models: Models) -> list[Figure]:
    """T1 to T4: truth ratios, probability, extraction strength and exact memorisation of the answers, beside the oracle's."""
    own, before, oracle = models.unlearned.recalled, models.before.recalled, models.oracle.recalled
    if own is None or before is None or oracle is None:
        return []
    return [_forget_quality(models, own, before, oracle), *(_answer_gap(models, name, column) for name, column in _ANSWERS.items())]


_ANSWERS = {"T2": "probability", "T3": "strength", "T4": "exact"}  # figure -> what it is the mean of


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
    """How far the mean of a column of `Recalled` lies from the oracle's, -1 to 1; probabilities bring the utility of all three models."""

    def mean_of(one: Measured) -> float:
        return float(getattr(_recalled(one), column).mean())

    def gap(one: Measured) -> float:
        return mean_of(one) - mean_of(models.oracle)

    own = _recalled(models.unlearned)
    details = {"own": mean_of(models.unlearned), "oracle": mean_of(models.oracle), "before": mean_of(models.before)}
    details["n"] = float(len(own.probability))
    if column == "probability":
        details["n_retained"] = float(own.retained)
        for who, model in (("", models.unlearned), ("oracle_", models.oracle), ("before_", models.before)):
            details |= {f"{who}{part}": value for part, value in _recalled(model).utility.items()}
    figure = judged(name, gap(models.unlearned), noise_floor(models, gap), "from the oracle's mean", details=details)
    return attacked(figure, abs(gap(models.before)), "the answers")


def _recalled(one: Measured) -> Recalled:
    assert one.recalled is not None
    return one.recalled
