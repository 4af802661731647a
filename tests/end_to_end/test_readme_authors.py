"""What README says in prose of forgetting authors (TOFU): each figure follows from a committed row."""

from __future__ import annotations

import math
from statistics import mean

import pytest

from cl_framework.records import Row
from cl_framework.unlearning.audit_report import UNLEARNED, read_csv
from tests.end_to_end.readme_records import README, ROOT, assert_numbers, figures_in

GRADIENTS = ("gradient_ascent", "grad_diff")


def test_what_is_said_of_tofu_is_in_the_committed_rows() -> None:
    rows = [row for row in read_csv(ROOT / "experiments" / "results" / "audit_tofu.csv") if row["model"] == UNLEARNED]
    details = [row["details"] for row in rows if row["name"] == "T2"]

    def means(name: str) -> float:
        return mean(one[name] for one in details)

    readme = " ".join(README.read_text().split())
    said = "the right answers a probability of {:.3f} on what is to be forgotten and {:.3f} on what is retained"
    assert said.format(means("before"), means("before_retained")) in readme
    assert said.format(means("before") + 0.01, means("before_retained")) not in readme
    assert f"the oracle {means('oracle'):.4f} and {means('oracle_retained'):.3f}" in readme
    for name, kept in (
        ("rmu", "{:.3f} of it and {:.3f}"),
        ("ssd", "SSD leaves {:.3f} and {:.3f}"),
        ("simnpo", "SimNPO leaves {:.3f} and {:.3f}"),
        ("npo", "NPO {:.3f} and {:.3f}"),
    ):
        own = [row["details"] for row in rows if row["name"] == "T2" and row["strategy"] == name]
        assert len(own) == 3 and kept.format(mean(one["own"] for one in own), mean(one["retained"] for one in own)) in readme
    lost = {name: [row["value"] for row in rows if (row["name"], row["strategy"]) == ("M2", name)] for name in ("ssd", *GRADIENTS)}
    assert f"Of the retained whole answers it loses {min(lost['ssd']):.0f} to {max(lost['ssd']):.0f} in a hundred (M2)" in readme
    on_its_seed = [row["value"] for name in GRADIENTS for row in rows if (row["name"], row["strategy"], row["seed"]) == ("M2", name, 0)]
    assert "even that seed loses {:.1f} and {:.1f} of a hundred (M2)".format(*on_its_seed) in readme
    fresh = {name: [row for row in rows if row["name"] == name and row["strategy"] == "reset_head"] for name in ("T2", "M4", "M11")}
    left = [mean(row["details"][name] for row in fresh["T2"]) for name in ("own", "retained")]
    again = [row["value"] for row in fresh["M4"]]
    assert len(again) == 3 and {row["verdict"] for row in fresh["T2"] + fresh["M4"]} == {"INVALID"}
    assert "A fresh head leaves {:.4f} of what is to be forgotten and {:.4f} of what is retained".format(*left) in readme
    assert f"{left[0] + 0.001:.4f} of what is to be forgotten and" not in readme
    assert {row["value"] for row in fresh["M11"]} == {20.0} and "20 tensors (M11)" in readme
    assert "relearning is {:.0f}, {:.0f} and {:.0f} points above the oracle's (M4)".format(*again) in readme
    assert not any(row["unlearned"] for row in rows)


def test_what_is_said_of_requests_one_after_another_is_in_the_committed_rows() -> None:
    rows = [row for row in read_csv(ROOT / "experiments" / "results" / "audit_tofu_continual.csv") if row["model"] == UNLEARNED]
    readme = " ".join(README.read_text().split())

    def left(strategy: str, name: str) -> list[float]:
        found = []
        for event in ("U1", "U2", "U3"):
            own = [row["details"][name] for row in rows if (row["name"], row["strategy"], row["event"]) == ("T2", strategy, event)]
            assert len(own) == 3
            found.append(mean(own))
        return found

    for strategy, name, said in (
        ("npo", "retained", "NPO leaves {:.3f}, {:.3f} and {:.3f} of what is retained"),
        ("ssd", "retained", "SSD at its defaults {:.3f}, {:.3f} and {:.3f};"),
        ("simnpo", "retained", "SimNPO bears them ({:.3f}, {:.3f}, {:.3f} retained;"),
        ("simnpo", "own", "{:.3f}, {:.3f}, {:.3f} of what is forgotten left)"),
        ("rmu", "retained", "RMU leaves {:.3f}, {:.3f} and {:.3f},"),
        ("rmu", "own", "forgets to {:.3f}, {:.3f} and {:.3f},"),
    ):
        assert said.format(*left(strategy, name)) in readme, (strategy, name)
        assert said.format(*(value + 0.01 for value in left(strategy, name))) not in readme
    head = [left("reset_head", name)[0] for name in ("own", "retained")]
    assert "A fresh head leaves {:.4f} of what is forgotten and {:.4f} of what is retained after the first request".format(*head) in readme
    fresh = [row for row in rows if row["strategy"] == "reset_head"]
    assert [row["verdict"] for row in fresh if row["name"] == "T2"] == ["INVALID"] * 9
    kept = [row["value"] for row in fresh if row["name"] == "M11"]
    assert len(set(kept)) == 1 and f"below it {kept[0]:.0f} tensors are as they were (M11)" in readme
    assert (
        "GradDiff {:.3f} and nothing, gradient ascent {:.3f} and nothing".format(
            *(left(strategy, "retained")[0] for strategy in ("grad_diff", "gradient_ascent"))
        )
        in readme
    )
    back = {row["seed"]: row["value"] for row in rows if (row["name"], row["strategy"], row["event"]) == ("M3", "simnpo", "U1")}
    assert "back by {:.0f}, {:.0f} and {:.0f} points beyond".format(*(back[seed] for seed in (0, 1, 2))) in readme
    again = [row["value"] for row in rows if row["name"] == "M4" and row["strategy"] in ("rmu", "simnpo")]
    assert len(again) == 18 and f"M4, {min(again):.0f} to {max(again):.0f} points above the oracle" in readme
    nothing = [row for row in rows if (row["name"], row["strategy"]) == ("T1", "do_nothing")]
    low, high = (mean(row[end] for row in nothing) for end in ("low", "high"))
    wide = "With 40 questions a request the truth ratio's interval is wide ({:.2f} to {:.2f} where nothing was unlearned)"
    assert {row["n"] for row in nothing} == {40.0} and len(nothing) == 9
    assert wide.format(low, high) in readme and wide.format(low + 0.01, high) not in readme


@pytest.mark.parametrize("name", ["audit_tofu", "audit_tofu_continual"])
def test_every_unlearner_and_control_of_authors_has_three_seeds(name: str) -> None:
    seeds: dict[str, set[int]] = {}
    for row in read_csv(ROOT / "experiments" / "results" / f"{name}.csv"):
        seeds.setdefault(row["strategy"], set()).add(row["seed"])
    files = {path.stem.removeprefix(f"{name.removeprefix('audit_')}_") for path in (ROOT / "experiments" / "tofu").glob("*.yaml")}
    assert set(seeds) == {file for file in files if not file.startswith(("tofu_", "continual_"))}
    assert set(map(frozenset, seeds.values())) == {frozenset({0, 1, 2})}


def test_what_is_said_of_truth_ratios_and_relearning_is_in_the_committed_rows() -> None:
    text = " ".join(README.read_text().split())

    def of(strategy: str, figure: str) -> list[Row]:
        found = figures_in("audit_tofu", f"joint rewarm er {strategy}", figure)
        assert [row["seed"] for row in found] == [0, 1, 2]
        return found

    def values(strategy: str, figure: str) -> list[float]:
        return [row["value"] for row in of(strategy, figure)]

    ratios, again = of("rmu", "T1"), values("rmu", "M4")
    kept = {strategy: [row["details"]["retained"] for row in of(strategy, "T2")] for strategy in GRADIENTS}
    rows = read_csv(ROOT / "experiments" / "results" / "audit_tofu.csv")
    oracles = [row for row in rows if row["model"] == "oracle of another seed"]
    distances = [row for row in oracles if row["name"] == "T1"]
    failed = {(row["name"], row["seed"]) for row in oracles if row["verdict"] == "FAIL"}
    assert len(distances) == 33 and failed == {("M6", 0), ("M6", 2)} and max(max(left[1:]) for left in kept.values()) < 0.001
    assert values("rewind", "E1") == [0.0] * 3
    rounded = [row for row in rows if (row["model"], row["name"]) == (UNLEARNED, "M8") and row["verdict"] != "INVALID"]
    for said, numbers in (
        ("it is the oracle, bit for bit (E1), at {:.2f} of the suffix's seconds", [mean(values("rewind", "M12"))]),
        (
            "(KS {:.2f}, {:.2f} and {:.2f}, intervals from {:.2f} to {:.2f})",
            [*values("rmu", "T1"), min(row["low"] for row in ratios), max(row["high"] for row in ratios)],
        ),
        ("teaches it the rest again: {:.0f} to {:.0f} points above the oracle", [min(again), max(again)]),
        (
            "Four bits bring nothing back where M8 is valid (at most {:.0f} point)",
            [max(row["details"]["int4"] for row in rounded)],
        ),
        ("is relearned least: {:.1f}, {:.1f} and {:.1f} points above the oracle (M4", values("ssd", "M4")),
        (
            "a probability of {:.3f} and {:.3f} on the seed their rate was chosen on, and nothing on the other two",
            [kept[strategy][0] for strategy in GRADIENTS],
        ),
        (
            "An oracle of another seed is {:.2f} from the oracle in truth ratios ({:.2f} to {:.2f}, n {:.0f}) and passes all that tells "
            "anything but M6, in two seeds of three",
            [mean(row[column] for row in distances) for column in ("value", "low", "high", "n")],
        ),
    ):
        assert said.format(*numbers) in text, said
        assert said.format(*(1.1 * number + 1 for number in numbers)) not in text


def test_what_is_said_of_what_models_say_by_themselves_is_in_the_committed_rows() -> None:
    def of(strategy: str, figure: str) -> list[Row]:
        found = figures_in("audit_tofu", f"joint rewarm er {strategy}", figure)
        assert [row["seed"] for row in found] == [0, 1, 2]
        return found

    def average(strategy: str, figure: str, detail: str = "own") -> float:
        return mean(row["details"][detail] for row in of(strategy, figure))

    preferences = ("npo", "simnpo")
    assert {row["verdict"] for strategy in preferences for row in of(strategy, "T5")} == {"PASS"}
    assert {row["verdict"] for strategy in preferences for figure in ("T2", "T6") for row in of(strategy, figure)} == {"FAIL"}
    assert {row["verdict"] for row in of("rmu", "T5")} == {"FAIL"} and average("rmu", "T5") < average("rmu", "T5", "oracle")
    others = [row for name in ("npo", "simnpo", "rmu", "ssd", "do_nothing", "noise", "finetune_retain") for row in of(name, "T7")]
    assert {row["verdict"] for row in others} == {"INCONCLUSIVE"}
    worst = max((row for name in GRADIENTS for row in of(name, "T7")), key=lambda row: row["details"]["own"])
    assert worst["strategy"] == "gradient_ascent"
    for said, numbers in (
        (
            "NPO and SimNPO say {:.3f} and {:.3f} of the right answers' words, the oracle {:.3f} (T5, PASS in six of six)",
            [*(average(strategy, "T5") for strategy in preferences), average("npo", "T5", "oracle")],
        ),
        (
            "a probability of {:.3f} and {:.3f} (T2), asked in other words {:.3f} and {:.3f} (T6, where the oracle has {:.4f}; all FAIL)",
            [*(average(strategy, figure) for figure in ("T2", "T6") for strategy in preferences), average("npo", "T6", "oracle")],
        ),
        ("RMU says {:.3f}, less than a model that never saw them (FAIL)", [average("rmu", "T5")]),
        (
            "Before the request it is {:.3f} by itself and {:.3f} in other words, beside {:.3f} in those it was taught",
            [average("npo", figure, "before") for figure in ("T5", "T6", "T2")],
        ),
        (
            "costs {:.1f} nats a token before and the oracle {:.1f}, where a random token costs {:.2f}",
            [average("npo", "T7", "before"), average("npo", "T7", "oracle"), math.log(3002)],
        ),
        ("a model is destroyed (gradient ascent, up to {:.0f} nats)", [worst["details"]["own"]]),
    ):
        assert_numbers(said, numbers)
