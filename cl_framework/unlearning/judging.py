"""When a figure of an unlearned model passes: within the noise floor of models that never saw the data, or a least difference that matters.

Every comparison is made a second time with an oracle of another seed in the place of the unlearned model. The largest of these is the
**noise floor**: two models that never saw the data lie that far apart. The bound of a figure is its floor, or the least difference that
matters (`LEAST`), whichever is larger. An attack that does not tell even the model before the request from the oracle shows nothing:
INCONCLUSIVE; and so is a comparison that passes where the model before passes it too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cl_framework.unlearning.fast import FAIL, INCONCLUSIVE, PASS, Figure
from cl_framework.unlearning.measure import Measured

LEAST = {
    "M1": 2.0,  # points of accuracy
    "M3": 0.5,  # points of accuracy that came back
    "M4": 2.0,  # points of accuracy, mean over the steps of relearning
    "M5": 0.03,  # of the area under the ROC curve
    "M6": 0.01,  # nats
    "M7": 0.005,  # squared distance of answers: as if 0.05 of the probability went from one class to another
    "M8": 2.0,  # points of accuracy
    "M9": 0.1,  # of the way from the oracle to the model before
    "M10": 0.05,  # total variation
    "T1": 0.1,  # of the KS statistic
    "T2": 0.02,  # of a mean probability
    "T3": 0.02,  # of the mean extraction strength
    "T4": 0.02,  # of the share of tokens
    "T5": 0.05,  # of the mean recall of words
    "T6": 0.02,  # of a mean probability
    "T7": 0.05,  # nats a token
}

FEWEST = 10  # samples on either side, below which their spread is not taken for that of all


@dataclass(frozen=True)
class Models:
    """The measurements that the figures of one request are made of."""

    unlearned: Measured
    before: Measured  # the same run just before the request
    oracle: Measured
    others: Sequence[Measured] = ()  # oracles of other seeds
    ensemble: bool = False  # whether these also calibrate an attack (tier full)
    untrained_probe: float | None = None  # percent, of a linear probe on the run's model before its first event


def independent_answers(tally: Tensor) -> float:
    """How many independent answers have the variance that a model's share of right ones has: tokens of one text are not independent.

    tally (N, 2), N >= 1: of each sample the answers that are right, and those asked for. The variance is that of a ratio of sums over
    samples (linearised, as of clusters). It says little where fewer than `FEWEST` samples have a right answer, or a wrong one: N at most
    there, and so where each sample asks for one.
    """
    right, count = tally.double().unbind(1)
    rows, total, share = len(tally), float(count.sum()), float(right.sum() / count.sum())
    if rows == total:
        return rows
    variance = float((right - share * count).square().sum()) / total**2 * rows / max(1, rows - 1)
    number = share * (1 - share) / variance if variance else rows
    few = min(int((right > 0).sum()), int((right < count).sum())) < FEWEST
    return max(1.0, min(number, rows if few else total))


def unit_of(one: Measured) -> str:
    """Of differences of accuracies."""
    return "points of tokens" if bool((one.tally[:, 1] > 1).any()) else "points"


def noise_floor(models: Models, figure: Callable[[Measured], float]) -> float | None:
    return max((abs(figure(other)) for other in models.others), default=None)


def judged(name: str, value: float, floor: float | None, unit: str, two_sided: bool = True, **more: Any) -> Figure:
    bound = max(LEAST[name], floor or 0.0)
    verdict = PASS if (abs(value) if two_sided else value) <= bound else FAIL
    noise = "no noise floor: one oracle only" if floor is None else f"noise floor {floor:.3g}"
    return Figure(name, value, verdict, f"{unit}, at most {bound:.3g} ({noise})", bound=bound, **more)


def attacked(figure: Figure, before: float, what: str) -> Figure:
    """INCONCLUSIVE where the attack does not tell the model before from the oracle, by no more than `before`."""
    assert figure.bound is not None
    if before > figure.bound:
        return figure
    return replace(figure, verdict=INCONCLUSIVE, why=f"{what} does not tell even the model before the request from the oracle")


def told_apart(figure: Figure, before_passes: bool) -> Figure:
    """INCONCLUSIVE in the place of a PASS that the model before the request is given as well; a FAIL tells something all the same."""
    if figure.verdict != PASS or not before_passes:
        return figure
    why = f"it passes ({figure.why}), but so does the model before the request, which this does not tell from the oracle"
    return replace(figure, verdict=INCONCLUSIVE, why=why)
