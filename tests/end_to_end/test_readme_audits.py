"""What README says in prose of unlearning images: each figure follows from a committed row.

Figures of single runs, which no record holds, are tied to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import mean

from cl_framework.collected import collect
from cl_framework.records import Row
from cl_framework.unlearning.audit_report import NEVER_SEEN, ORACLE, comparison, costs, read_csv
from cl_framework.unlearning.fast import FAIL, INCONCLUSIVE, INVALID, PASS, RELAPSE
from tests.end_to_end.readme_records import (
    IN_WORDS,
    README,
    RESULTS,
    ROOT,
    assert_numbers,
    audited,
    count,
    details,
    figures_in,
    rows_of,
    values,
)

APPROXIMATE = ("grad_diff", "gradient_ascent", "npo", "rmu", "simnpo", "ssd")  # the rest are exact, or controls
# Percent of MNIST's test images that are a 0, 1, … 9.
OF_ONE_CLASS = {"9.80", "11.35", "10.32", "10.10", "9.82", "8.92", "9.58", "10.28", "9.74", "10.09"}


def test_what_is_said_of_costs_is_in_the_committed_rows() -> None:
    rows = read_csv(ROOT / "experiments" / "results" / "audit_fashion_mnist.csv")
    header, lines = costs(rows)
    approximate = [line for line in lines if line[1].startswith("er, ") and line[1][4:] in APPROXIMATE]
    assert len(approximate) == 3 * len(APPROXIMATE)
    seconds, samples = ([100 * float(line[header.index(f"{what} ÷ suffix")]) for line in approximate] for what in ("seconds", "samples"))
    said = "in {:.1f} to {:.1f} percent of the suffix's seconds, with {:.1f} to {:.1f} percent of its samples"
    readme = " ".join(README.read_text().split())
    assert said.format(min(seconds), max(seconds), min(samples), max(samples)) in readme
    times = [row["value"] for row in rows if (row["name"], row["strategy"], row["model"]) == ("M12", "rewind", "unlearned")]
    longer = [value for value in times if value > 1]
    assert f"in {len(longer)} of {len(times)} requests, up to {max(longer):.2f} times as long" in readme


def test_what_is_said_of_orders_is_in_the_committed_rows() -> None:
    text = " ".join(README.read_text().split())

    def over_seeds(strategies: str, detail: str) -> list[float]:
        found = [row["details"][detail] for row in figures_in("audit_digits_orders", strategies, "M7")]
        assert len(found) == 3
        return found

    before, ascent, npo, head, rewind, oracle = (
        mean(over_seeds(strategies, f"distance_{moment}"))
        for strategies, moment in (
            ("er gradient_ascent", "before"),
            ("er gradient_ascent", "after"),
            ("er npo", "after"),
            ("er reset_head", "after"),
            ("er rewind", "after"),
            ("er rewind", "oracle"),
        )
    )
    assert rewind == oracle and f"`rewind` leaves models {rewind:.2f} apart on average" in text
    assert 1.8 < ascent / before < 2.2 and f"before the request, {before:.2f} to {ascent:.2f}" in text
    ranges = over_seeds("er gradient_ascent", "M1_range")
    assert f"differs by {min(ranges):.0f} to {max(ranges):.0f} points; NPO goes to {npo:.2f}" in text
    assert set(over_seeds("er reset_head", "M1_range")) == {0.0} and f"leaves models {head:.2f} apart, which M1 alone" in text
    assert {*over_seeds("analytic", "distance_after"), *over_seeds("isolation", "distance_after")} == {0.0}


def test_what_is_said_of_exact_methods_is_in_the_committed_rows() -> None:
    text = README.read_text()
    fashion, digits = ("audit_fashion_mnist", "er rewind", 18), ("audit_digits_orders", "er rewind", 3)
    equal = [f"M{number}" for number in (1, 3, 4, 5, 6, 8, 9, 10)]
    for (name, strategies, requests), names in ((fashion, equal), (digits, equal), (("audit_digits_orders", "isolation", 3), equal[:-1])):
        for figure in names:
            assert [row["value"] for row in figures_in(name, strategies, figure)] == [0.0] * requests, (strategies, figure)
    costs: dict[str, set[str]] = {}
    for row in figures_in(*fashion[:2], "M12"):
        costs.setdefault(row["granularity"], set()).add(f"{row['details']['samples'] / row['details']['oracle_samples']:.2f}")
    assert costs == {"task": {"1.00"}, "class": {"1.00"}, "sample": {"0.35"}}
    assert "samples shown over the suffix's: 1.00 for tasks, 1.00 for classes, 0.35 for samples" in text


def test_what_is_said_of_a_hypernetwork_s_requests_is_in_the_committed_rows() -> None:
    name = "audit_perm_mnist"
    gaps, spill, back = (audited(name, figure) for figure in ("M1", "M2", "M3"))
    chance = 10.0  # of ten classes, which M1 takes off
    returned = max((row for row in back if row["value"] is not None), key=lambda row: row["value"])
    (left,) = [chance + row["value"] for row in gaps if all(row[key] == returned[key] for key in ("stream", "seed", "event_index"))]
    relapsed = [value for value in values(back) if value > RELAPSE]
    after = [chance + gap for gap in values(gaps)]
    kept = by_seed_of_sequences("average_accuracy")
    extra = [audit / train for audit, train in zip(*map(by_seed_of_sequences, ("audit_seconds", "train_seconds")), strict=True)]
    assert len(gaps) == len(spill) == 48 and len(kept) == 9
    for said, numbers in (
        ("Retained tasks stand at {:.1f} percent on average over the three sequences", [mean(kept)]),
        (
            "and all {} unlearned tasks between {:.2f} and {:.2f} right after their requests, {} at the very share of one class",
            [str(len(gaps)), min(after), max(after), str(sum(f"{accuracy:.2f}" in OF_ONE_CLASS for accuracy in after))],
        ),
        ("costs the retained tasks {:.2f} points on average and {:.2f} at most", [mean(values(spill)), max(values(spill))]),
        ("On average {:.2f} points come back later", [mean(values(back))]),
        (
            "in {} requests it is more than {:g}, in one {:.2f} (on the way, from {:.1f} to {:.1f};",
            [IN_WORDS[len(relapsed)], RELAPSE, max(relapsed), left, left + max(relapsed)],
        ),
        ("What figures and record take is {:.1f} percent of training", [100 * mean(extra)]),
    ):
        assert_numbers(said, numbers)


def by_seed_of_sequences(figure: str) -> list[float]:
    """Of all runs of the three published sequences."""
    return [run[figure] for run in collect([RESULTS / "unlearn_perm_mnist.csv"]).summaries]


def test_what_is_said_of_a_hypernetwork_beside_oracles_is_in_the_committed_rows() -> None:
    name = "audit_perm_mnist_standard"
    gaps, probes, again, answers = (audited(name, figure) for figure in ("M1", "M9", "M4", "M6"))
    floored = [row for row in probes if "untrained_probe" in row["details"]]
    assert {row["seed"] for row in floored} == {2} == {row["seed"] for row in probes} - {0, 1}
    assert count(floored, FAIL) == len(floored) and not any(row["unlearned"] for row in probes)
    for said, numbers in (
        (
            "is right in {:.1f} percent, where the oracle's gives {:.1f} and the model before {:.1f}",
            [mean(details(probes, model)) for model in ("probe", "oracle_probe", "before_probe")],
        ),
        ("(M9, {:.2f} of the way, too far in all {})", [mean(values(probes)), str(count(probes, FAIL))]),
        ("Features of the untrained model tell {:.1f} percent;", [mean(details(floored, "untrained_probe"))]),
        (
            "in the {} requests of seed 2, of which {:.2f} to {:.2f} of the way is too far as well",
            [IN_WORDS[len(floored)], min(values(floored)), max(values(floored))],
        ),
        (
            "accuracy within {:.1f} points of an oracle that itself lies between {:.1f} and {:.1f}, with the old embedding put back at "
            "{:.1f} percent at most",
            [
                max(map(abs, values(gaps))),
                min(details(gaps, "oracle")),
                max(details(gaps, "oracle")),
                max(details(gaps, "old_embedding_put_back")),
            ],
        ),
        ("no farther from the oracle than another oracle in {} of {}", [str(count(answers, PASS)), str(len(answers))]),
        (
            "slower than of a task never seen ({:.1f} points beside {:.1f})",
            [mean(values(rows)) for rows in (again, audited(name, "M4", model=NEVER_SEEN))],
        ),
    ):
        assert_numbers(said, numbers)
    assert count(probes, FAIL) == len(probes) == 33


EXACT = ("rewind", "analytic")  # answer exactly


def test_what_is_said_of_classes_that_compete_is_in_the_committed_rows() -> None:
    name = "audit_fashion_mnist"

    def over(strategy: str, figure: str, summary: Callable[[Sequence[float]], float] = mean) -> list[float]:
        """For tasks, then classes."""
        return [summary(values(audited(name, figure, strategy, granularity=kind))) for kind in ("task", "class")]

    head, ascent, descent = (
        audited(name, figure, one) for figure, one in (("M6", "reset_head"), ("M1", "gradient_ascent"), ("M1", "grad_diff"))
    )
    samples = [row for row in audited(name, "M1", granularity="sample") if row["strategy"] not in EXACT]
    oracles = {figure: audited(name, figure, model=ORACLE) for figure in ("M3", "M6")}
    header, lines = comparison(rows_of(name))
    words = [line[header.index('"unlearned"')].split("/") for line in lines if line[1] == ORACLE]
    earned, requests = (str(sum(int(word[place]) for word in words)) for place in (0, 1))
    relapses = [*over("npo", "M3"), *over("simnpo", "M3")]
    for said, numbers in (
        ("({} of {} requests in the oracle's own rows)", [earned, requests]),
        (
            "so that it fails M6 in {} requests of {} and M3 in {};",
            [str(count(oracles["M6"], FAIL)), str(len(oracles["M6"])), str(count(oracles["M3"], FAIL))],
        ),
        ("fails M6 in {} requests of {}, and", [IN_WORDS[count(head, FAIL)], IN_WORDS[len(head)]]),
        (
            "SimNPO to {} to {} points of it, and both relapse, by {:.0f} to {:.0f} points",
            [str(math.floor(min(over("simnpo", "M1")))), str(math.ceil(max(over("simnpo", "M1")))), min(relapses), max(relapses)],
        ),
        (
            "in {} requests of {} and in {} so far that nothing can be said (INVALID)",
            [str(count(ascent, INVALID)), str(len(ascent)), str(count(descent, INVALID))],
        ),
        ("M1 tells nothing in {} of {} requests that were not answered exactly", [str(count(samples, INCONCLUSIVE)), str(len(samples))]),
    ):
        assert_numbers(said, numbers)
    assert max(over("npo", "M1")) < 1, "NPO brings task and class to the oracle's accuracy"


def test_what_is_said_of_known_tasks_is_in_the_committed_rows() -> None:
    name = "audit_fashion_by_task"

    def of(strategy: str, figure: str) -> list[Row]:
        found = audited(name, figure, strategy)
        assert len(found) == 12
        return found

    left = {round(mean(values(of(strategy, "M1")))) for strategy in ("do_nothing", "noise", "finetune_retain")}
    probes = of("hypernetwork", "M9")
    told = len(probes) - count(probes, INCONCLUSIVE)
    oracles = audited(name, "M1", model=ORACLE)
    assert len(left) == 1
    for said, numbers in (
        ("`rewind` is exact at {:.2f} of the suffix's seconds", [mean(values(of("rewind", "M12")))]),
        ("loses {:.2f} points elsewhere", [mean(values(of("hypernetwork", "M2")))]),
        (
            "is within the noise by M1 in {} requests of 12 and by M6 in {};",
            [str(count(of("hypernetwork", figure), PASS)) for figure in ("M1", "M6")],
        ),
        ("({} of 12 inconclusive) and fails it in {} of the other {},", [str(len(probes) - told), str(count(probes, FAIL)), str(told)]),
        ("stays known, {} points above the oracle", [str(*left)]),
        ("hides it (M6 passes in {} of 12)", [str(count(of("reset_head", "M6"), PASS))]),
        ("(M4 fails in {})", [str(count(of("reset_head", "M4"), FAIL))]),
        ("a third one fails M1 in {} of {}.", [str(count(oracles, FAIL)), str(len(oracles))]),
    ):
        assert_numbers(said, numbers)
