"""Figures and verdicts of an audit, from made-up measurements whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from cl_framework.metrics import wilson_interval
from cl_framework.stream import Unlearn
from cl_framework.unlearning.attacks import SCORES
from cl_framework.unlearning.audit import with_put_back
from cl_framework.unlearning.fast import FAIL, INCONCLUSIVE, INVALID, NOT_RUN, PASS, Figure
from cl_framework.unlearning.judging import independent_answers
from cl_framework.unlearning.measure import RELEARNING_STEPS, Glance, Measured, Question, Samples
from cl_framework.unlearning.recall_of_answers import Recalled
from cl_framework.unlearning.verdicts import (
    CLAIM,
    WORD,
    Later,
    Models,
    as_json,
    exact_claim,
    farthest_answer,
    figures,
    forget_gap,
    identical,
    is_unlearned,
    leakage,
    membership,
    steps_ratio,
)
from cl_framework.unlearning.verdicts_of_answers import FEWEST_RATIOS
from cl_framework.unlearning.verdicts_of_answers import answers as answers_of

COUNT = 600


def question(classes: int = 4, own: int = 2) -> Question:
    columns = torch.arange(classes)
    pool = Samples(1, torch.arange(COUNT), columns)
    members = Samples(None, torch.arange(COUNT), columns)
    return Question(
        Unlearn(1), 2, (0,), columns < own, members.places, members, pool, pool, pool, (Samples(0, torch.arange(COUNT), columns),)
    )


def answers(share: float, tilt: float = 1.0, classes: int = 4) -> Tensor:
    """Log-probabilities that give the first class this much, and the others the rest, the last of them `tilt` times as much."""
    probabilities = torch.ones(COUNT, classes, dtype=torch.float64)
    probabilities[:, -1] = tilt
    probabilities[:, 0] = 0
    probabilities *= (1 - share) / probabilities.sum(1, keepdim=True)
    probabilities[:, 0] = share
    return probabilities.log()


def measured(name: str, **changes: Any) -> Measured:
    """An oracle, or what differs from it."""
    plain: dict[str, Any] = {
        "digest": name,
        "glance": Glance(25.0, 60.0),
        "retained_accuracy": 90.0,
        "pool": answers(0.25),
        "tally": torch.ones(COUNT, 2, dtype=torch.int64),
        "retained": (answers(0.9),),
        "attack": dict.fromkeys(SCORES, (0.5, 0.01)),
        "likelihoods": None,
        "relearning": tuple(25.0 + step for step in RELEARNING_STEPS),
        "neighbours": 60.0,
        "quantized": {"int8": (25.0, 90.0), "int4": (25.0, 88.0)},
    }
    return Measured(**{**plain, **changes})


ORACLE = measured("oracle")
OTHER = measured(
    "other",
    glance=Glance(26.0, 61.0),
    pool=answers(0.3),
    retained=(answers(0.88),),
    relearning=tuple(26.0 + step for step in RELEARNING_STEPS),
    attack=dict.fromkeys(SCORES, (0.51, 0.01)),
)
BEFORE = measured(
    "before",
    glance=Glance(95.0, 95.0),
    pool=answers(0.97, tilt=3.0),
    relearning=(95.0,) * len(RELEARNING_STEPS),
    attack=dict.fromkeys(SCORES, (0.7, 0.2)),
)
QUIET = Later([Glance(25.0, 60.0)] * 3, [Glance(25.0, 60.0)] * 3, [[Glance(26.0, 61.0)] * 3])


def judged(unlearned: Measured, later: Later = QUIET, others: bool = True, before: Measured = BEFORE) -> dict[str, Figure]:
    found = figures(question(), Models(unlearned, before, ORACLE, [OTHER] if others else []), later)
    return {figure.name: figure for figure in found}


def test_an_ensemble_of_oracles_finds_members_that_no_plain_attack_finds() -> None:
    """Of hard and easy samples, alike among members and others, each member is a little likelier under the model than under the oracles."""
    hardness = torch.linspace(-3, 0, 40, dtype=torch.float64)

    def model(name: str, members: float, noise: float, **changes: Any) -> Measured:
        spread = noise * torch.sin(torch.arange(40) * (7.0 + len(name)))
        return measured(name, likelihoods=(hardness + members + spread, hardness - spread), **changes)

    oracle, others = model("oracle", 0.0, 0.01), [model("second", 0.0, 0.01), model("the third", 0.0, 0.01)]
    remembers, before = model("remembers", 0.1, 0.01), model("before", 1.0, 0.01, attack=BEFORE.attack)
    plain = membership(Models(remembers, before, oracle, others))
    found = membership(Models(remembers, before, oracle, others, ensemble=True))
    assert plain.verdict == PASS and "auc_calibrated" not in plain.details
    assert found.verdict == FAIL and found.details["auc_calibrated"] == 1.0 and abs(found.details["oracle_auc_calibrated"] - 0.5) < 0.3
    forgot = membership(Models(model("forgot it all", 0.0, 0.01), before, oracle, others, ensemble=True))
    assert forgot.verdict == PASS


def test_a_model_like_the_oracle_passes_everything() -> None:
    found = judged(measured("like", pool=answers(0.26)))
    assert {name: figure.verdict for name, figure in found.items()} == dict.fromkeys(
        ("M1", "M3", "M4", "M5", "M6", "M8", "M9", "M10"), PASS
    )
    assert is_unlearned([*found.values(), Figure("M11", 0.0, PASS, "")])


def test_a_model_that_did_nothing_fails_what_matters() -> None:
    found = judged(replace(BEFORE, digest="same"))
    assert {name for name, figure in found.items() if figure.verdict == FAIL} == {"M1", "M4", "M5", "M6", "M9", "M10"}
    assert found["M1"].value == 70.0 and found["M9"].value == 1.0
    assert found["M4"].value == pytest.approx(95 - 25 - sum(RELEARNING_STEPS) / len(RELEARNING_STEPS))


@pytest.mark.parametrize(
    ("unlearned", "distance", "verdict"),
    [
        (ORACLE, 0.0, PASS),
        (replace(ORACLE, pool=ORACLE.pool + 5e-7), 5e-7, PASS),  # sums that were taken back, to rounding
        (replace(ORACLE, pool=ORACLE.pool + 2e-6), 2e-6, FAIL),
        (replace(ORACLE, retained=(ORACLE.retained[0] - 0.25,)), 0.25, FAIL),
        (replace(ORACLE, digest="weights of which no answer tells"), 0.0, FAIL),
        (replace(ORACLE, pool=torch.full_like(ORACLE.pool, float("nan"))), float("nan"), FAIL),
    ],
)
def test_who_claims_to_be_exact_must_be_the_oracle(unlearned: Measured, distance: float, verdict: str) -> None:
    found = exact_claim(Models(unlearned, BEFORE, ORACLE, [OTHER]), True)
    assert (found.name, found.verdict, found.value) == (CLAIM, verdict, pytest.approx(distance, nan_ok=True))
    assert ("are not the oracle's" in found.why) is (unlearned.digest != ORACLE.digest)
    assert exact_claim(Models(unlearned, BEFORE, ORACLE, [OTHER]), False).verdict == NOT_RUN
    assert farthest_answer(replace(ORACLE, pool=torch.empty(0, 4), retained=()), replace(ORACLE, pool=torch.empty(0, 4), retained=())) == 0


def test_an_oracle_that_is_the_model_before_tells_nothing() -> None:
    found = judged(BEFORE, before=ORACLE)
    assert {figure.verdict for figure in found.values()} <= {INVALID, NOT_RUN} and found["M6"].verdict == INVALID
    assert found["M1"].why.startswith("the oracle is the model before the request: nothing was learned from the data, or it is no oracle")
    assert exact_claim(Models(ORACLE, ORACLE, ORACLE, [OTHER]), True).verdict == INVALID
    assert "the oracle is the model" not in judged(BEFORE)["M1"].why  # it differs from the oracle, if in what it answers alone:
    assert judged(BEFORE, before=replace(BEFORE, digest=ORACLE.digest))["M1"].verdict == FAIL


@pytest.mark.parametrize(("verdict", "said"), [(PASS, True), (NOT_RUN, True), (FAIL, False), (INVALID, False)])
def test_a_claim_that_does_not_hold_takes_the_word_away(verdict: str, said: bool) -> None:
    good = [Figure(one, 0.0, PASS, "") for one in WORD]
    assert is_unlearned([*good, Figure(CLAIM, 0.0, verdict, "")]) is said


@pytest.mark.parametrize("name", WORD)
def test_each_figure_of_the_word_is_needed(name: str) -> None:
    good = [Figure(one, 0.0, PASS, "") for one in WORD]
    assert is_unlearned(good)
    assert not is_unlearned([replace(one, verdict=INCONCLUSIVE) if one.name == name else one for one in good])
    assert not is_unlearned([one for one in good if one.name != name])


def test_nothing_is_rounded_where_somebody_else_answers() -> None:
    assert judged(replace(ORACLE, digest="another", quantized={}))["M8"].verdict == NOT_RUN
    assert judged(replace(ORACLE, digest="another"))["M8"].verdict == PASS


def test_the_gap_to_the_oracle_is_two_sided() -> None:
    for accuracy, verdict in ((27.0, PASS), (27.5, FAIL), (23.0, PASS), (22.0, FAIL)):
        assert judged(measured("u", glance=Glance(accuracy, 60.0)))["M1"].verdict == verdict
    interval = judged(measured("u", glance=Glance(27.0, 60.0)))["M1"].interval
    assert interval is not None and interval[0] < 2.0 < interval[1]


def test_the_bound_is_the_noise_floor_where_that_is_larger() -> None:
    noisy = Models(measured("u", glance=Glance(31.0, 60.0)), BEFORE, ORACLE, [replace(OTHER, glance=Glance(18.0, 60.0))])
    found = {figure.name: figure for figure in figures(question(), noisy, QUIET)}
    assert (found["M1"].verdict, found["M1"].bound) == (PASS, 7.0) and "noise floor 7" in found["M1"].why
    quiet = replace(noisy, others=[replace(OTHER, glance=Glance(20.0, 60.0))])
    assert {figure.name: figure for figure in figures(question(), quiet, QUIET)}["M1"].verdict == FAIL


def test_the_interval_of_an_accuracy_over_tokens_goes_by_texts() -> None:
    """The same share of right answers, each a sample of its own, or 20 in each of 30 texts that are right or wrong as a whole."""
    alone = torch.tensor([[1, 1]] * 300 + [[0, 1]] * 300)
    in_texts = torch.tensor([[20, 20]] * 15 + [[0, 20]] * 15)
    widths = []
    for tally in (alone, in_texts):
        unlearned = measured("unlearned", glance=Glance(50.0, 60.0), tally=tally)
        figure = forget_gap(question(), Models(unlearned, BEFORE, ORACLE, (OTHER,)))
        assert figure.interval is not None and figure.interval[0] < figure.value < figure.interval[1]
        widths.append(figure.interval[1] - figure.interval[0])
        assert figure.why.startswith("points of tokens" if tally is in_texts else "points from")
    assert widths[1] > 3 * widths[0]


def test_tokens_of_a_text_are_fewer_answers_than_they_are_many() -> None:
    """Of 400 texts with 20 tokens each: all alike in a text, they are 400 answers; each by itself, they are 8,000."""
    generator, count = torch.Generator().manual_seed(0), torch.full((400,), 20)
    alike = 20 * (torch.rand(400, generator=generator) < 0.3).long()
    apart = (torch.rand(400, 20, generator=generator) < 0.3).sum(1)

    def number(right: Tensor, asked: Tensor = count) -> float:
        return independent_answers(torch.stack([right, asked], 1))

    assert number(alike) == pytest.approx(400, rel=0.01)
    assert number(apart) == pytest.approx(8000, rel=0.15) and number(apart) <= 8000
    assert number(alike // 20, torch.ones(400, dtype=torch.int64)) == 400
    assert number(count) == number(torch.zeros_like(count)) == 400, "nothing varies that could tell"
    assert number(torch.full((2,), 10), torch.full((2,), 20)) == 2, "nor do two"


def test_one_wrong_token_does_not_make_many_answers_of_few_texts() -> None:
    """The spread of texts is not known from one that differs: as none wrong says little, so does one."""
    none = torch.full((24, 2), 45)
    one = none.clone()
    one[0, 0] -= 1
    assert independent_answers(none) == independent_answers(one) == 24
    many = none.clone()
    many[:12, 0] -= 5
    assert independent_answers(many) > 24


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_the_interval_by_independent_answers_covers_what_it_estimates(share: float) -> None:
    """72 texts of 50 tokens whose shares of right ones vary (beta-binomial, correlation 0.1); as many independent tokens are too narrow."""
    generator, held, held_by_tokens, trials = numpy.random.default_rng(5), 0, 0, 300
    for _ in range(trials):
        shares = generator.beta(9 * share, 9 * (1 - share), 72)
        tally = torch.stack([torch.from_numpy(generator.binomial(50, shares)), torch.full((72,), 50)], 1)
        right = float(tally[:, 0].sum()) / 3600
        for number in (independent_answers(tally), 3600.0):
            low, high = wilson_interval(right * number, number)
            if number == 3600.0:
                held_by_tokens += low <= share <= high
            else:
                held += low <= share <= high
    assert held >= 0.91 * trials, "three standard errors below 95 %"
    assert held_by_tokens < 0.8 * trials


def recalled_of(probabilities: Tensor, **more: Any) -> Recalled:
    """Twelve questions, with nothing beside them but what is given."""
    nothing = torch.empty(0, dtype=torch.float64)
    none: dict[str, Any] = {"truth_ratio": nothing, "rouge_l": nothing, "rouge_l_utility": {}, "paraphrased": nothing, "general": None}
    told = {"probability": probabilities, "exact": probabilities, "strength": probabilities, "utility": {"retained": 0.5}, "retained": 80}
    return Recalled(**none | told | more)


def test_what_is_said_asked_in_other_words_and_of_no_task_is_set_beside_the_oracle() -> None:
    def said(**of_own: Any) -> dict[str, Any]:
        own, oracle = (
            {"rouge_l": 0.25, "paraphrased": 0.5, "general": 1.25} | of_own,
            {"rouge_l": 0.25, "paraphrased": 0.125, "general": 0.25},
        )
        before = {"rouge_l": 1.0, "paraphrased": 0.75, "general": 0.75}

        def recalled(values: dict[str, float]) -> Recalled:
            lists = {name: torch.full((12,), value, dtype=torch.float64) for name, value in values.items() if name != "general"}
            return recalled_of(torch.ones(12), **lists, general=values["general"], rouge_l_utility={"retained": values["rouge_l"] / 2})

        models = Models(*(measured(name, recalled=recalled(values)) for name, values in (("u", own), ("b", before), ("o", oracle))))
        return {figure.name: figure for figure in answers_of(models)}

    found = said()
    assert [(found[name].value, found[name].verdict) for name in ("T5", "T6", "T7")] == [(0.0, "PASS"), (0.375, "FAIL"), (1.0, "FAIL")]
    assert found["T7"].details == {"own": 1.25, "oracle": 0.25, "before": 0.75} and "nats a token over the oracle's" in found["T7"].why
    kept = {name: found["T5"].details[name] for name in ("retained", "oracle_retained", "before_retained", "n")}
    assert kept == {"retained": 0.125, "oracle_retained": 0.125, "before_retained": 0.5, "n": 12.0}
    changed = said(rouge_l=0.375, paraphrased=0.125, general=0.125)
    verdicts = [(changed[name].value, changed[name].verdict) for name in ("T5", "T6", "T7")]
    assert verdicts == [(0.125, "FAIL"), (0.0, "PASS"), (-0.125, "PASS")], "a model that speaks better than the oracle does no harm"


@pytest.mark.parametrize(("before", "oracle", "verdict"), [(1.3, 0.3, "FAIL"), (1.5, 0.3, INCONCLUSIVE), (1.3, 1.5, INCONCLUSIVE)])
def test_a_text_that_models_cannot_read_tells_no_harm(before: float, oracle: float, verdict: str) -> None:
    """Of four tokens one at random costs 1.39 nats: what is done to a model that loses more may make it better there, or worse."""
    losses = {"u": 2.0, "b": before, "o": oracle}
    models = Models(*(measured(name, recalled=recalled_of(torch.ones(12), general=loss)) for name, loss in losses.items()))
    (found,) = [figure for figure in answers_of(models) if figure.name == "T7"]
    assert found.verdict == verdict and found.details == {"own": 2.0, "oracle": oracle, "before": before}
    assert ("no better than 1.39 nats" in found.why) == (verdict == INCONCLUSIVE)


def test_what_a_benchmark_does_not_have_is_not_run_and_says_why() -> None:
    models = Models(*(measured(name, recalled=recalled_of(torch.ones(12))) for name in ("u", "b", "o")))
    found = {figure.name: figure for figure in answers_of(models)}
    for name, why in (("T5", "Benchmark.tokens"), ("T6", "in other words"), ("T7", "benchmark.general")):
        assert (found[name].verdict, found[name].value) == ("NOT RUN", None) and why in found[name].why
    assert found["T4"].verdict != "NOT RUN"


def test_few_truth_ratios_tell_nothing_of_their_distribution() -> None:
    def said(count: int) -> dict[str, Any]:
        probabilities = torch.full((12,), 0.5, dtype=torch.float64)

        def recalled(ratio: float) -> Recalled:
            ratios = torch.full((count,), ratio, dtype=torch.float64)
            return recalled_of(probabilities, truth_ratio=ratios)

        models = Models(*(measured(name, recalled=recalled(ratio)) for name, ratio in (("u", 0.5), ("b", 0.1), ("o", 0.9))))
        return {figure.name: figure for figure in answers_of(models)}

    few, enough = said(FEWEST_RATIOS - 1), said(FEWEST_RATIOS)
    assert (few["T1"].verdict, few["T1"].value) == ("NOT RUN", None) and few["T1"].why.startswith("9 of the questions")
    assert (enough["T1"].verdict, enough["T1"].value) == ("FAIL", 1.0)
    assert few["T2"].value == enough["T2"].value == 0.0 and few["T2"].details["n"] == 12 and few["T2"].details["n_retained"] == 80


def test_without_a_second_oracle_there_is_no_floor() -> None:
    found = judged(measured("u"), others=False, later=replace(QUIET, others=[]))
    assert found["M6"].verdict == INCONCLUSIVE and "no noise floor" in found["M1"].why


def test_what_was_not_known_cannot_be_unlearned() -> None:
    found = judged(measured("u"), before=replace(BEFORE, glance=Glance(34.0, 95.0)))
    assert {figure.verdict for figure in found.values()} == {INVALID}
    assert found["M1"].why == "it was not known just before: 34.0 where chance is 25.0"


def test_a_model_that_knows_nothing_has_not_unlearned() -> None:
    found = judged(measured("u", retained_accuracy=30.0))
    assert {figure.verdict for figure in found.values()} == {INVALID}
    assert "does not know what it retains: 30.0 where chance is 25.0" in found["M1"].why


def test_a_model_that_diverged_has_not_unlearned() -> None:
    broken = measured(
        "u", pool=torch.full((COUNT, 4), float("nan"), dtype=torch.float64), relearning=(float("nan"),) * len(RELEARNING_STEPS)
    )
    models = Models(broken, BEFORE, ORACLE, [OTHER])
    found = figures(question(), models, QUIET)
    assert {figure.verdict for figure in found} == {INVALID} and "has diverged: its answers are not numbers" in found[0].why
    json.dumps(as_json(found), allow_nan=False)
    assert next(row for row in as_json(found) if row["name"] == "M4")["value"] is None


def test_an_attack_must_succeed_on_the_model_before() -> None:
    weak = replace(BEFORE, relearning=ORACLE.relearning, attack=ORACLE.attack, glance=Glance(95.0, 60.5), pool=answers(0.25))
    found = judged(measured("u"), before=weak)
    assert {name for name, figure in found.items() if figure.verdict == INCONCLUSIVE} == {"M4", "M5", "M6", "M9", "M10"}


def test_a_pass_tells_nothing_where_the_model_before_passes_too() -> None:
    """As after a request for so few samples that a model which knows them answers as the oracle does."""
    near = replace(BEFORE, glance=Glance(39.0, 95.0), pool=answers(0.26))  # known well enough for the pre-condition
    wide = replace(OTHER, glance=Glance(40.0, 61.0))

    def found(unlearned: Measured, before: Measured) -> dict[str, Figure]:
        models = Models(unlearned, before, ORACLE, [wide])
        return {figure.name: figure for figure in figures(question(), models, QUIET)}

    for unlearned in (replace(near, digest="did nothing"), measured("u", glance=Glance(27.0, 60.0), pool=answers(0.27))):
        blind = found(unlearned, near)
        assert (blind["M1"].verdict, blind["M6"].verdict) == (INCONCLUSIVE, INCONCLUSIVE)
        assert "so does the model before the request, which this does not tell from the oracle" in blind["M1"].why
        assert blind["M1"].value == unlearned.glance.accuracy - 25.0 and not is_unlearned(list(blind.values()))
    like = measured("u", glance=Glance(27.0, 60.0), pool=answers(0.27))
    assert {found(like, replace(near, glance=Glance(41.0, 95.0), pool=answers(0.5)))[name].verdict for name in ("M1", "M6")} == {PASS}
    exact = found(replace(ORACLE), near)
    assert (exact["M1"].verdict, exact["M6"].verdict) == (PASS, PASS), "the oracle itself hides nothing"
    far = found(measured("u", glance=Glance(5.0, 60.0), pool=answers(0.9)), near)
    assert (far["M1"].verdict, far["M6"].verdict) == (FAIL, FAIL), "what lies farther off than the model before is a finding all the same"
    retained = replace(near, retained=(answers(0.5),))
    assert found(like, retained)["M6"].verdict == PASS, "the model before differs on what is retained"


@pytest.mark.parametrize("verdict", [PASS, INCONCLUSIVE, FAIL])
def test_what_an_old_embedding_brings_back_is_a_finding_whatever_the_model_before_shows(verdict: str) -> None:
    figure = Figure("M1", 0.0, verdict, "", bound=2.0, details={"oracle": 25.0})
    assert with_put_back(figure, 90.0, question()).verdict == FAIL
    assert with_put_back(figure, 26.0, question()).verdict == with_put_back(figure, None, question()).verdict == verdict


def test_relapse_is_what_came_back_beyond_transfer() -> None:
    back = [Glance(25.0, 60.0), Glance(45.0, 60.0), Glance(30.0, 60.0)]
    assert judged(measured("u"), Later(back, back))["M3"].verdict == PASS  # the oracle gained as much
    found = judged(measured("u"), replace(QUIET, unlearned=back))["M3"]
    assert (found.value, found.verdict) == (20.0, FAIL)
    hidden = [Glance(25.0, 60.0), Glance(25.0, 90.0), Glance(25.0, 90.0)]  # a dead head over features that came back
    found = judged(measured("u"), replace(QUIET, unlearned=hidden))["M3"]
    assert (found.value, found.verdict, found.details["probe"]) == (0.0, FAIL, 30.0)
    assert judged(measured("u"), Later(back[:1], back[:1]))["M3"].verdict == NOT_RUN


def test_relearning_more_slowly_is_no_leak() -> None:
    slow = measured("u", relearning=(25.0,) * len(RELEARNING_STEPS))
    assert judged(slow)["M4"].verdict == PASS and (judged(slow)["M4"].value or 0) < 0


def test_relearning_is_an_attack_only_if_the_model_before_is_faster() -> None:
    for gap, verdict in ((-20.0, INCONCLUSIVE), (0.0, INCONCLUSIVE), (20.0, PASS)):
        before = replace(BEFORE, relearning=tuple(value + gap for value in ORACLE.relearning))
        found = judged(measured("u"), before=before)["M4"]
        assert (found.verdict, found.details["before"]) == (verdict, pytest.approx(gap))


def test_steps_to_half_of_what_the_oracle_relearns() -> None:
    oracle = [0.0] * 10 + [100.0] * (len(RELEARNING_STEPS) - 10)
    sooner = [0.0] * 5 + [100.0] * (len(RELEARNING_STEPS) - 5)
    assert steps_ratio(sooner, oracle) == 0.5
    assert steps_ratio(oracle, oracle) == 1.0
    assert steps_ratio([60.0] * len(oracle), oracle) == 0.0
    assert steps_ratio([0.0] * len(oracle), oracle) is None
    assert steps_ratio(sooner, [5.0] * len(oracle)) is None


def test_rounding_counts_beyond_the_oracle_and_not_where_all_is_lost() -> None:
    back = measured("u", quantized={"int8": (25.0, 90.0), "int4": (65.0, 85.0)})
    found = judged(back)["M8"]
    assert (found.value, found.verdict, found.details) == (40.0, FAIL, {"int8": 0.0, "int4": 40.0})
    lost = measured("u", quantized={"int8": (25.0, 90.0), "int4": (65.0, 50.0)})
    assert (judged(lost)["M8"].value, judged(lost)["M8"].verdict) == (0.0, PASS)
    assert judged(measured("u", quantized={"int8": (25.0, 20.0), "int4": (65.0, 50.0)}))["M8"].verdict == INVALID


def test_the_oracles_own_weights_pass_however_weak_the_attacks() -> None:
    weak = replace(BEFORE, relearning=ORACLE.relearning, attack=ORACLE.attack, glance=Glance(95.0, 60.0))
    found = judged(replace(ORACLE), before=weak)
    assert {figure.verdict for figure in found.values()} == {PASS} and found["M9"].value == 0.0
    assert judged(replace(ORACLE, digest="another"), before=weak)["M9"].verdict == INCONCLUSIVE


def test_what_an_untrained_model_tells_is_no_leak() -> None:
    """Of the way from the oracle's 60 to the 95 of the model before: 72 is 0.34, which 75 before the first event covers and 62 does not."""
    unlearned = measured("u", glance=Glance(25.0, 72.0))

    def leak(untrained: float | None, of: Measured = unlearned) -> Figure:
        return leakage(Models(of, BEFORE, ORACLE, [OTHER], untrained_probe=untrained), question())

    assert [leak(untrained).verdict for untrained in (75.0, 62.0, 40.0, None)] == [PASS, FAIL, FAIL, FAIL]
    assert leak(75.0).value == leak(None).value == pytest.approx(12 / 35)
    assert leak(75.0).details["untrained_probe"] == 75.0 and "untrained_probe" not in leak(None).details
    assert leak(75.0, of=measured("u", glance=Glance(25.0, 90.0))).verdict == FAIL
    assert leak(96.0).verdict == INCONCLUSIVE  # a probe that needs no learning is no attack


def test_equal_weights_prove_nothing_where_somebody_else_answers() -> None:
    found = judged(replace(BEFORE, digest="oracle"))  # frozen weights under a head that still knows
    assert found["M1"].verdict == found["M6"].verdict == FAIL
    assert not identical(replace(ORACLE, retained=(answers(0.8),)), ORACLE) and identical(replace(ORACLE), ORACLE)


def test_without_features_or_other_classes_nothing_is_probed() -> None:
    blind = [replace(one, glance=replace(one.glance, linear_probe=None)) for one in (measured("u"), BEFORE, ORACLE)]
    found = {figure.name: figure for figure in figures(question(2, 2), Models(*blind), QUIET)}
    assert found["M9"].verdict == NOT_RUN and found["M10"].verdict == NOT_RUN
