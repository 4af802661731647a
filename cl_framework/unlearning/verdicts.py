"""Figures M1 to M12 and E1 with verdicts, from measurements of an unlearned model, its oracle, and oracles of other seeds. Pure functions.

For bounds and noise floors see `judging`; of questions with known answers T1 to T7 join them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from cl_framework.metrics import wilson_interval
from cl_framework.unlearning.attacks import SCORES, auc, calibrated
from cl_framework.unlearning.divergences import agreement, class_geometry_leak, jensen_shannon, kl_divergence
from cl_framework.unlearning.fast import COLLAPSE, FAIL, INCONCLUSIVE, INVALID, KNOWN, NOT_RUN, PASS, Figure, destroyed
from cl_framework.unlearning.judging import LEAST, Models, attacked, independent_answers, judged, noise_floor, told_apart, unit_of
from cl_framework.unlearning.measure import RELEARNING_STEPS, Glance, Measured, Question
from cl_framework.unlearning.probes import probe_leakage
from cl_framework.unlearning.verdicts_of_answers import answers

NATS = 1e-6  # log-probabilities that differ by less are the same but for rounding
WORD = ("M1", "M3", "M4", "M6", "M9", "M11")  # all must PASS for the word "unlearned"
CLAIM = "E1"  # must PASS, too, where the answer claims to be exact


@dataclass(frozen=True)
class Later:
    """Looks at one model after the request and after each later event, until the task is learned again."""

    unlearned: Sequence[Glance]
    oracle: Sequence[Glance]
    others: Sequence[Sequence[Glance]] = ()


def figures(question: Question, models: Models, later: Later) -> list[Figure]:
    """M1, M3 to M6 and M8 to M10 of one request, T1 to T7 where it is about questions. What does not apply is NOT RUN, with the reason."""
    made = [
        forget_gap(question, models),
        relearning_gap(models),
        membership(models),
        retrain_gap(models),
        quantization_relapse(models),
        leakage(models, question),
        geometry(question, models),
        *answers(models),
    ]
    if identical(models.unlearned, models.oracle):
        made = [one if one.verdict == NOT_RUN else _identical(one) for one in made]
    made.append(relapse(later))
    reason = void(question, models)
    return [replace(one, verdict=INVALID, why=reason) if reason and one.verdict != NOT_RUN else one for one in made]


def identical(one: Measured, oracle: Measured) -> bool:
    """Whether weights and statistics are the oracle's bit for bit, and so are all answers to rounding: a strategy may answer in the model's
    place, from a state of its own."""
    return one.digest == oracle.digest and farthest_answer(one, oracle) <= NATS


def farthest_answer(one: Measured, oracle: Measured) -> float:
    """The largest difference of a log-probability, in nats, on what was unlearned and on what is retained; not a number if one is none."""
    pairs = zip((one.pool, *one.retained), (oracle.pool, *oracle.retained), strict=True)
    gaps = [float((mine - theirs).abs().max()) for mine, theirs in pairs if mine.numel()]
    return max(gaps, default=0.0, key=lambda gap: (math.isnan(gap), gap))


def exact_claim(models: Models, claimed: bool, unlike: Sequence[str] = (), residual: Sequence[str] = ()) -> Figure:
    """E1: whether an answer that claims to be exact has led to the oracle of the run's own seed: weights, statistics, answers, and what
    strategies and optimizers keep.

    unlike: the places where only the one or only the other keeps something; residual: what both have of the data that was unlearned.
    """
    if not claimed:
        return Figure(CLAIM, None, NOT_RUN, "the answer does not claim to be exact")
    distance = farthest_answer(models.unlearned, models.oracle)
    same = models.unlearned.digest == models.oracle.digest
    if reason := no_oracle(models):
        return Figure(CLAIM, distance, INVALID, reason, bound=NATS)
    verdict = PASS if identical(models.unlearned, models.oracle) and not unlike else FAIL
    weights = "weights and statistics are the oracle's" if same else "weights or statistics are not the oracle's"
    why = f"nats, the farthest of its answers from the oracle's, 0 but for rounding; {weights}"
    if unlike:
        why += f"; what is kept beside it is not what is kept beside the oracle: {', '.join(unlike[:3])}{' ...' if len(unlike) > 3 else ''}"
    if residual:
        why += f"; both have {', '.join(residual)}"
    return Figure(CLAIM, distance, verdict, why, bound=NATS)


def _identical(figure: Figure) -> Figure:
    """A model that is the oracle hides nothing, however weak the attack."""
    return replace(figure, value=figure.value or 0.0, verdict=PASS, why="weights and answers are the oracle's")


def void(question: Question, models: Models) -> str:
    """Why nothing can be said: no oracle, what was to be unlearned was not known, or the model knows nothing of what it retains."""
    if reason := no_oracle(models):
        return reason
    finite, chances = bool(models.unlearned.pool.isfinite().all()), [samples.chance for samples in question.retained]
    if reason := destroyed(finite, models.unlearned.retained_accuracy, chances):
        return reason
    accuracy, chance = models.before.glance.accuracy, question.chance
    known = is_known(accuracy, independent_answers(models.before.tally), chance)
    return "" if known else f"it was not known just before: {accuracy:.1f} where chance is {chance:.1f}"


def no_oracle(models: Models) -> str:
    """Why the oracle tells nothing: one that is the model that knew the data, which an oracle never saw, bit for bit."""
    if not identical(models.before, models.oracle):
        return ""
    why = "nothing was learned from the data, or it is no oracle (`clu audit --again` trains others)"
    return f"the oracle is the model before the request: {why}"


def is_known(accuracy: float, count: float, chance: float) -> bool:
    """Whether an accuracy in percent, of `count` independent answers, is above chance by `KNOWN` points and by three errors."""
    error = 100 * (accuracy / 100 * (1 - accuracy / 100) / count) ** 0.5
    return accuracy >= chance + max(KNOWN, 3 * error)


def forget_gap(question: Question, models: Models) -> Figure:
    """M1: accuracy on what was unlearned, less the oracle's; below it is a signal too."""

    def gap(one: Measured) -> float:
        return one.glance.accuracy - models.oracle.glance.accuracy

    accuracy, count = models.unlearned.glance.accuracy, independent_answers(models.unlearned.tally)
    low, high = (100 * end - models.oracle.glance.accuracy for end in wilson_interval(accuracy / 100 * count, count))
    details = {
        "accuracy": accuracy,
        "oracle": models.oracle.glance.accuracy,
        "before": models.before.glance.accuracy,
        "chance": question.chance,
    }
    unit = f"{unit_of(models.unlearned)} from the oracle"
    figure = judged("M1", gap(models.unlearned), noise_floor(models, gap), unit, interval=(low, high), details=details)
    assert figure.bound is not None
    return told_apart(figure, abs(gap(models.before)) <= figure.bound)


def relapse(later: Later) -> Figure:
    """M3: what came back in later events, beyond what the oracle gained by transfer; also through a freshly fitted probe."""
    if len(later.unlearned) < 2:
        return Figure("M3", None, NOT_RUN, "no event followed, or the next one learned it again")

    def back(seen: Sequence[Glance], read: Callable[[Glance], float]) -> float:
        pairs = zip(seen[1:], later.oracle[1:], strict=True)
        return max((read(one) - read(seen[0])) - (read(oracle) - read(later.oracle[0])) for one, oracle in pairs)

    def weighed(read: Callable[[Glance], float]) -> tuple[float, float, bool]:
        floor = max((abs(back(seen, read)) for seen in later.others), default=0.0)
        value = back(later.unlearned, read)
        return value, floor, value <= max(LEAST["M3"], floor)

    value, floor, fine = weighed(lambda one: one.accuracy)
    details, probed = {}, True
    if all(one.linear_probe is not None for one in (*later.unlearned, *later.oracle)):
        probe, probe_floor, probed = weighed(lambda one: one.linear_probe or 0.0)
        details = {"probe": probe, "probe_floor": probe_floor}
    bound = max(LEAST["M3"], floor)
    noise = f"noise floor {floor:.3g}" if later.others else "no noise floor: one oracle only"
    verdict = PASS if fine and probed else FAIL
    why = f"points that came back beyond the oracle's, at most {bound:.3g} ({noise}); and by a fresh probe within its own floor"
    return Figure("M3", max(0.0, value), verdict, why, bound=bound, details=details)


def relearning_gap(models: Models) -> Figure:
    """M4: accuracy while relearning, mean over its steps, less the oracle's. Slower than the oracle is no leak: M6 sees that."""
    if not models.unlearned.relearning:
        return Figure("M4", None, NOT_RUN, "there are too few samples that were not trained on")

    def gap(one: Measured) -> float:
        return mean(one.relearning) - mean(models.oracle.relearning)

    ratio = steps_ratio(models.unlearned.relearning, models.oracle.relearning)
    details = {"before": gap(models.before), **({} if ratio is None else {"steps_ratio": ratio})}
    floor, unit = noise_floor(models, gap), f"{unit_of(models.unlearned)} above the oracle's curve"
    figure = judged("M4", gap(models.unlearned), floor, unit, two_sided=False, details=details)
    return attacked(figure, gap(models.before), "relearning")  # one-sided, as the figure: a model before that is slower shows nothing


def steps_ratio(curve: Sequence[float], oracle: Sequence[float]) -> float | None:
    """Steps to half of what the oracle relearns, over the oracle's; 0 where it is known at once, None where it is never reached."""
    threshold = (oracle[0] + max(oracle)) / 2
    if max(oracle) <= oracle[0]:
        return None
    steps, theirs = (_first(one, threshold) for one in (curve, oracle))
    return None if steps is None or not theirs else steps / theirs


def _first(curve: Sequence[float], threshold: float) -> int | None:
    return next((step for step, value in zip(RELEARNING_STEPS, curve, strict=True) if value >= threshold), None)


def membership(models: Models) -> Figure:
    """M5: area under the ROC curve of the attack that lies farthest from the oracle's; an ensemble of oracles adds one calibrated by it."""
    if not models.unlearned.attack:
        return Figure("M5", None, NOT_RUN, "there are no samples of these classes that were never trained on")

    def areas(one: Measured) -> dict[str, float]:
        found = {score: one.attack[score][0] for score in SCORES}
        return found | {"calibrated": calibrated_area(one, models)} if models.ensemble and models.others else found

    def farthest(one: Measured) -> float:
        oracle = areas(models.oracle)
        return max((area - oracle[score] for score, area in areas(one).items()), key=abs)

    details = {f"auc_{score}": area for score, area in areas(models.unlearned).items()}
    details |= {f"oracle_auc_{score}": area for score, area in areas(models.oracle).items()}
    details |= {"tpr_loss": models.unlearned.attack["loss"][1], "oracle_tpr_loss": models.oracle.attack["loss"][1]}
    details["before"] = farthest(models.before)
    figure = judged("M5", farthest(models.unlearned), noise_floor(models, farthest), "AUC from the oracle's", details=details)
    return attacked(figure, abs(farthest(models.before)), "the attack")


def calibrated_area(one: Measured, models: Models) -> float:
    """Of the attack that knows, from oracles other than the model itself, how hard each sample is."""
    own = any(one is other for other in models.others)
    peers = [other for other in (models.oracle, *models.others) if other is not one] if own else models.others
    told = [peer.likelihoods for peer in peers]
    assert one.likelihoods is not None
    members, others = (calibrated(one.likelihoods[side], [peer[side] for peer in told if peer is not None]) for side in (0, 1))
    return auc(members, others)


def retrain_gap(models: Models) -> Figure:
    """M6: KL(oracle || model) on what was unlearned and on what is retained; with Jensen-Shannon and agreement beside it."""

    def divergence(read: Callable[[Measured], Sequence[Tensor]]) -> Callable[[Measured], float]:
        def gap(one: Measured) -> float:
            found = [kl_divergence(oracle, own) for oracle, own in zip(read(models.oracle), read(one), strict=True)]
            return float(torch.cat(found).mean()) if found else 0.0

        return gap

    if not models.others:
        why = "without an oracle of another seed there is no noise floor"
        return Figure("M6", divergence(_pool)(models.unlearned), INCONCLUSIVE, why)
    told: dict[str, float] = {}
    fine = before_fine = True
    for part, read in (("forget", _pool), ("retain", _retained)):
        gap = divergence(read)
        floor = noise_floor(models, gap) or 0.0
        fine &= gap(models.unlearned) <= max(LEAST["M6"], floor)
        before_fine &= gap(models.before) <= max(LEAST["M6"], floor)
        told |= {f"kl_{part}": gap(models.unlearned), f"floor_{part}": floor}
        pairs = list(zip(read(models.oracle), read(models.unlearned), strict=True))
        if pairs:
            told[f"js_{part}"] = float(torch.cat([jensen_shannon(*pair) for pair in pairs]).mean())
            told[f"agreement_{part}"] = mean(agreement(*pair) for pair in pairs)
    why = f"nats, within the noise floor of {told['floor_forget']:.3g} on what was unlearned and {told['floor_retain']:.3g} on the rest"
    bound = max(LEAST["M6"], told["floor_forget"])
    figure = Figure("M6", told["kl_forget"], PASS if fine else FAIL, why, worst=told["kl_retain"], bound=bound, details=told)
    return told_apart(figure, before_fine)


def _pool(one: Measured) -> Sequence[Tensor]:
    return (one.pool,)


def _retained(one: Measured) -> Sequence[Tensor]:
    return one.retained


def quantization_relapse(models: Models) -> Figure:
    """M8: what comes back once weights are rounded to int8 or int4, less what the oracle gains."""

    def gain(one: Measured, name: str) -> float:
        return one.quantized[name][0] - one.glance.accuracy

    def collapsed(one: Measured, name: str) -> bool:
        before, after = one.retained_accuracy, one.quantized[name][1]
        return before is not None and after is not None and before - after > COLLAPSE

    if not models.unlearned.quantized or not models.oracle.quantized:
        return Figure("M8", None, NOT_RUN, "a strategy answers in the model's place, and not from its weights")
    usable = [name for name in models.oracle.quantized if not collapsed(models.unlearned, name) and not collapsed(models.oracle, name)]
    if not usable:
        return Figure("M8", None, INVALID, "what is retained is lost as well when weights are rounded")

    def most(one: Measured) -> float:
        return max(gain(one, name) - gain(models.oracle, name) for name in usable)

    details = {name: gain(models.unlearned, name) - gain(models.oracle, name) for name in usable}
    unit = f"{unit_of(models.unlearned)} that come back"
    return judged("M8", most(models.unlearned), noise_floor(models, most), unit, two_sided=False, details=details)


def leakage(models: Models, question: Question) -> Figure:
    """M9: how far features tell what was unlearned, from the oracle (0) to the model before (1), by a linear probe.

    The untrained model is part of the noise floor: it holds nothing of the data, yet where features belong to a task, as those that a
    hypernetwork writes, its random ones may tell more than what the oracle writes for a task that it never learned.
    """
    probes = [one.glance.linear_probe for one in (models.unlearned, models.oracle, models.before)]
    if None in probes:
        return Figure("M9", None, NOT_RUN, "the model has no features, or there are no two classes to tell")
    unlearned, oracle, before = (value or 0.0 for value in probes)
    details = {"probe": unlearned, "oracle_probe": oracle, "before_probe": before}
    neighbours = {"": models.unlearned.neighbours, "oracle_": models.oracle.neighbours, "before_": models.before.neighbours}
    details |= {f"{who}neighbours": value for who, value in neighbours.items() if value is not None}
    rows = len(question.probed.part(2, 3))
    leak = probe_leakage(unlearned, oracle, before, rows)
    if leak is None:
        why = "features of the model before do not tell more than the oracle's, beyond the error of so few samples"
        return Figure("M9", None, INCONCLUSIVE, why, details=details)

    def leaked(one: Measured) -> float:
        return probe_leakage(one.glance.linear_probe or 0.0, oracle, before, rows) or 0.0

    floor = noise_floor(models, leaked)
    if models.untrained_probe is not None:
        details["untrained_probe"] = models.untrained_probe
        floor = max(floor or 0.0, probe_leakage(models.untrained_probe, oracle, before, rows) or 0.0)
    figure = judged("M9", leak, floor, "of the way to the model before", two_sided=False, details=details)
    return attacked(figure, 1.0, "the probe")


def geometry(question: Question, models: Models) -> Figure:
    """M10: total variation from the oracle of the mean answer over the other classes, to inputs of what was unlearned."""
    if not bool((~question.own).any()):
        return Figure("M10", None, NOT_RUN, "there are no other classes among which to answer")

    def leak(one: Measured) -> float:
        return class_geometry_leak(one.pool, models.oracle.pool, question.own)

    figure = judged("M10", leak(models.unlearned), noise_floor(models, leak), "total variation", details={"before": leak(models.before)})
    return attacked(figure, leak(models.before), "the distribution over other classes")


def is_unlearned(found: Sequence[Figure]) -> bool:
    """Whether the word may be used: see `WORD` and `CLAIM`."""
    return may_say_unlearned({figure.name: figure.verdict for figure in found})


def may_say_unlearned(verdicts: Mapping[str, str], wanted: Sequence[str] = WORD) -> bool:
    """Whether these figures allow the word: all that are wanted pass, and so does a claim to be exact if there is one."""
    return all(verdicts.get(name) == PASS for name in wanted) and verdicts.get(CLAIM, NOT_RUN) in (PASS, NOT_RUN)


def as_json(found: Sequence[Figure]) -> list[Mapping[str, Any]]:
    """In order; what is no number (of a model that has diverged) is left out, since JSON has no name for it."""
    return [asdict(_finite(figure)) for figure in sorted(found, key=lambda figure: (figure.name[0], int(figure.name[1:])))]


def _finite(figure: Figure) -> Figure:
    def number(value: float | None) -> float | None:
        return value if value is not None and math.isfinite(value) else None

    details = {name: value for name, value in figure.details.items() if math.isfinite(value)}
    interval = figure.interval if figure.interval is not None and all(map(math.isfinite, figure.interval)) else None
    changes = {name: number(getattr(figure, name)) for name in ("value", "worst", "bound")}
    return replace(figure, details=details, interval=interval, **changes)  # type: ignore[arg-type]
