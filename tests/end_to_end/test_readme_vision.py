"""What README says in prose of streams of images: each figure follows from a committed record, a committed row or a settings file.

Figures of single runs, which no record holds, are tied to nothing.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from itertools import pairwise
from statistics import mean, median

import pytest
from omegaconf import OmegaConf

from cl_framework.bench import step_table
from cl_framework.bench_strategies import strategies_table
from cl_framework.collected import collect
from cl_framework.tables import markdown
from tests.end_to_end.readme_records import IN_WORDS, README, RESULTS, ROOT, Apart, Pair, assert_numbers, assert_said, prose, said_of


def test_the_cost_of_a_step_is_the_committed_records() -> None:
    record = json.loads((ROOT / "experiments" / "results" / "bench_step.json").read_text())
    header, rows = step_table(record["results"])
    shown = re.search(r"<!-- table: bench_step -->\n(.*?)\n<!-- end -->", README.read_text(), re.DOTALL)
    assert shown is not None and shown[1] == markdown(header, rows)
    slower = [{**row, "ours_us": 2 * row["ours_us"]} for row in record["results"]]
    assert shown[1] != markdown(*step_table(slower))
    medians = [median(row["ours_us_of_each"]) / median(row["bare_us_of_each"]) for row in record["results"]]
    assert "{:.2f}, {:.2f} and {:.2f} of the bare".format(*medians) in README.read_text()


def test_the_costs_of_strategies_are_the_committed_records() -> None:
    models = ("slim_resnet18", "mlp")
    records = [json.loads((ROOT / "experiments" / "results" / f"bench_strategies_{model}.json").read_text()) for model in models]
    results = [row for record in records for row in record["results"]]
    shown = re.search(r"<!-- table: bench_strategies -->\n(.*?)\n<!-- end -->", README.read_text(), re.DOTALL)
    assert shown is not None and shown[1] == markdown(*strategies_table(results))
    assert shown[1] != markdown(*strategies_table([{**row, "ratio": 2 * row["ratio"]} for row in results]))
    slim, mlp = ([row["ratio"] for row in results if row["model"] == model] for model in models)
    assert f"within 1.15 × its passes (at most {max(slim):.2f})" in README.read_text()
    assert max(slim) <= 1.15 and f"from {min(mlp):.2f} to {max(mlp):.2f} ×" in README.read_text()
    halves = [record["half"][1]["us"] / record["half"][0]["us"] for record in records]
    assert "takes {:.2f} and {:.2f} of full fine-tuning's time".format(*halves) in README.read_text()


def compared(name: str, pair: str) -> Pair:
    """The experiments that "one < other" names, if it holds: the interval of their difference is below zero, above (>), or about it (~)."""
    one, sign, other = pair.split()
    one, other = (f"{name.removesuffix('_full')}_{method}" for method in (one, other))
    interval = Apart(*said_of(name, one, other, "average_accuracy")[1].split(", ")).interval
    low, high = map(float, interval.split(" to "))
    assert sign == (">" if low > 0 else "<" if high < 0 else "~"), f"{pair}: {interval}"
    return one, other, "average_accuracy"


@pytest.mark.parametrize(
    ("name", "said", "pairs"),  # one, minus other: behind (<), ahead (>) or not told apart (~)
    [
        ("seq_mnist", "Refresh learning gains nothing on ER ({0}) or DER++ ({1}), at", ["er_refresh ~ er", "derpp_refresh ~ derpp"]),
        ("seq_mnist", "Half fine-tuning on ER: {0.mean} ({0.interval}), below ER in all five seeds", ["er_half ~ er"]),
        (
            "seq_mnist",
            "is not told apart from uniform rehearsal ({0}) and is behind exponential rehearsal ({1})",
            ["power_law ~ uniform", "power_law < exponential"],
        ),
        (
            "seq_mnist",
            "All three lose to ER with 500 samples: power law {0.mean} ({0.interval}), uniform {1.mean} ({1.interval}), "
            "exponential {2.mean} ({2.interval}); ER replays",
            ["power_law < er", "uniform < er", "exponential < er"],
        ),
        ("seq_mnist", "That it beats regularisers does appear ({0.mean} over LwF, {0.ends})", ["power_law > lwf"]),
        (
            "seq_mnist",
            "EWC, SI and LwF do not help where classes compete: {0.mean} ({0.interval}), {1.mean} ({1.interval}) and {2.mean} "
            "({2.interval}) beside fine-tuning",
            ["ewc ~ finetune", "si ~ finetune", "lwf ~ finetune"],
        ),
        (
            "perm_mnist",
            "a power law of lag beats exponential environments ({0}) and loses to uniform ones ({1})",
            ["power_law > exponential", "power_law < uniform"],
        ),
        ("perm_mnist", "It is ahead of SI, the best of three regularisers ({0.mean}, {0.ends})", ["power_law > si"]),
        (
            "perm_mnist",
            "beat ER from a buffer of 500 (power law {0.mean}, uniform {1.mean}, exponential {2.mean})",
            ["power_law > er", "uniform > er", "exponential > er"],
        ),
        ("perm_mnist", "half fine-tuning costs ER much ({0}; the same share and granularity)", ["er_half < er"]),
        ("online_cifar10_jpeg", "What replay gains over fine-tuning is there ({0})", ["er > finetune"]),
        ("online_cifar10_jpeg", "DER++ is behind ER ({0})", ["derpp < er"]),
        (
            "online_cifar10_jpeg",
            "Refresh learning does not help: on ER {0.mean} ({0.interval}), on DER++ {1.mean} ({1.interval})",
            ["er_refresh ~ er", "derpp_refresh < derpp"],
        ),
        (
            "online_cifar10_jpeg",
            "View batches show half as many images in a single pass: on ER {0.mean} ({0.interval}), on DER++ {1.mean} ({1.interval})",
            ["er_view_batch ~ er", "derpp_view_batch ~ derpp"],
        ),
        ("online_cifar10_jpeg", "Half fine-tuning on ER is not told apart from ER ({0})", ["er_half ~ er"]),
        ("online_cifar10_jpeg", "are not told apart from each other, nor from fine-tuning (power law {0})", ["power_law ~ finetune"]),
        (
            "online_cifar10_jpeg",
            "LwF, EWC and SI do not help where classes compete: {0.mean} ({0.interval}), {1.mean} ({1.interval}) and {2.mean} "
            "({2.interval}) beside fine-tuning",
            ["lwf ~ finetune", "ewc ~ finetune", "si ~ finetune"],
        ),
        ("online_cifar10_jpeg", "is not told apart from ER ({0}), which sees each image of its memory", ["joint ~ er"]),
        ("online_cifar10_jpeg_full", "Replay is worth {0.mean} points ({0.interval})", ["er > finetune"]),
        (
            "online_cifar10_jpeg_full",
            "now stands apart from fine-tuning ({0}). Whether it is a power law does not show: {1.mean} ({1.interval}) over the "
            "exponential environment",
            ["power_law > finetune", "power_law ~ exponential"],
        ),
        ("online_cifar10_jpeg_full", "is not told apart from ER with three seeds: {0.mean} ({0.interval}), where", ["derpp ~ er"]),
        (
            "online_cifar10_jpeg_full",
            "Refresh learning does not help: on ER {0.mean} ({0.interval}), on DER++ {1.mean} ({1.interval})",
            ["er_refresh ~ er", "derpp_refresh < derpp"],
        ),
        (
            "online_cifar10_jpeg_full",
            "and lose by it: {0.mean} ({0.interval}) on ER, {1.mean} ({1.interval}) on DER++",
            ["er_view_batch < er", "derpp_view_batch < derpp"],
        ),
        ("online_cifar10_jpeg_full", "Half fine-tuning is behind on all three seeds ({0})", ["er_half ~ er"]),
        (
            "online_cifar10_jpeg_full",
            "LwF and EWC do not help where classes compete: {0.mean} ({0.interval}) and {1.mean} ({1.interval}).",
            ["lwf ~ finetune", "ewc ~ finetune"],
        ),
    ],
)
def test_what_is_said_of_two_experiments_on_images_is_in_the_committed_records(name: str, said: str, pairs: list[str]) -> None:
    assert_said(name, said, [compared(name, pair) for pair in pairs])


@pytest.mark.parametrize(
    ("name", "said", "pairs"),
    [
        (
            "seq_mnist",
            "View batches (two of each image) help DER++ and are not told apart from nothing on ER",
            ["derpp_view_batch > derpp", "er_view_batch ~ er"],
        ),
        (
            "perm_mnist",
            "cost DER++ much and ER nothing that five seeds can tell",
            ["derpp_view_batch < derpp", "er_view_batch ~ er"],
        ),
        (
            "perm_mnist",
            "Refresh, with the same gamma, makes no difference that five seeds can tell",
            ["derpp_refresh ~ derpp", "er_refresh ~ er"],
        ),
        (
            "online_cifar10_jpeg",
            "Power-law, uniform and exponential rehearsal are not told apart from each other, nor from fine-tuning",
            [
                *("power_law ~ uniform", "power_law ~ exponential", "uniform ~ exponential"),
                *(f"{environment} ~ finetune" for environment in ("power_law", "uniform", "exponential")),
            ],
        ),
        ("online_cifar10_jpeg_full", "Neither is told apart from joint training", ["derpp ~ joint", "er ~ joint"]),
    ],
)
def test_verdicts_in_words_alone_are_those_of_the_committed_records(name: str, said: str, pairs: list[str]) -> None:
    assert said in prose()
    for pair in pairs:
        compared(name, pair)
        with pytest.raises(AssertionError):
            compared(name, pair.translate(str.maketrans("<>~", "><>")))  # the control: another verdict


@cache
def by_seed(name: str, experiment: str, figure: str, settings: str = "") -> dict[int, float]:
    """A figure of the runs of an experiment, or of those with these settings."""
    runs = [run for run in collect([RESULTS / f"{name}.csv"]).summaries if run["experiment"] == experiment]
    some = [run for run in runs if settings in ("", run["settings"])]
    found = {run["seed"]: run[figure] for run in some if run.get(figure) is not None}
    assert len({run["seed"] for run in some}) == len(some), f"{experiment} was run under several settings"
    return found


def average(name: str, method: str, figure: str = "average_accuracy") -> float:
    """The mean over three seeds or more of a method in a record."""
    values = by_seed(name, f"{name.removesuffix('_full').removesuffix('_retention')}_{method}", figure)
    assert len(values) >= 3
    return mean(values.values())


def experiments_in(name: str) -> list[str]:
    return sorted({run["experiment"] for run in collect([RESULTS / f"{name}.csv"]).summaries})


def test_what_is_said_of_single_experiments_on_images_is_in_the_committed_records() -> None:
    def times_as_long(name: str, method: str) -> float:
        return average(name, f"{method}_refresh", "train_seconds") / average(name, method, "train_seconds")

    def replayed(name: str) -> float:
        return average(name, "er", "samples_replayed") / average(name, "power_law", "samples_replayed")

    environments = ("uniform", "power_law", "er", "exponential", "finetune")
    slopes = [average("perm_mnist", method, "retention_slope") for method in environments]
    rises = [
        mean(by_seed("perm_mnist", experiment, "learning_accuracy_slope").values())
        for experiment in experiments_in("perm_mnist")
        if experiment != "perm_mnist_joint"  # has no learning accuracy
    ]
    assert len(rises) == 15
    full = {
        experiment: by_seed("online_cifar10_jpeg_full", experiment, "average_accuracy")
        for experiment in experiments_in("online_cifar10_jpeg_full")
    }
    highest = max(mean(values.values()) for values in full.values())
    for said, numbers in (
        ("at {:.1f} and {:.1f} times the training time", [times_as_long("seq_mnist", method) for method in ("er", "derpp")]),
        ("at {} and more times the training time", [IN_WORDS[int(min(times_as_long("perm_mnist", method) for method in ("er", "derpp")))]]),
        ("EWC diverged in seed 0 ({:.1f} percent)", [by_seed("seq_mnist", "seq_mnist_ewc", "average_accuracy")[0]]),
        ("ER replays {:.0f} times as many samples, at a rate", [replayed("seq_mnist")]),
        ("ER replays {} times as many samples, they may read all", [IN_WORDS[int(replayed("perm_mnist"))]]),
        (
            "lag to the power of {:.2f} under uniform rehearsal, {:.2f} under a power law, {:.2f} with ER, {:.2f} under exponential "
            "rehearsal and {:.2f} without any",
            slopes,
        ),
        ("nobody's learning accuracy rises by more than {:.2f} points a task in the mean over seeds", [max(rises)]),
        ("the budget is {:.0f} replayed images", [average("online_cifar10_jpeg", "power_law", "samples_replayed")]),
        ("DER++ has the highest average ({:.2f})", [average("online_cifar10_jpeg_full", "derpp")]),
    ):
        assert_numbers(said, numbers)
    assert highest == average("online_cifar10_jpeg_full", "derpp")
    assert {math.floor(replayed(name)) for name in ("online_cifar10_jpeg", "online_cifar10_jpeg_full")} == {12}, "a twelfth of ER's"
    for name, seeds in (("seq_mnist", 5), ("online_cifar10_jpeg_full", 3)):
        half, whole = (by_seed(name, f"{name.removesuffix('_full')}_{method}", "average_accuracy") for method in ("er_half", "er"))
        assert sorted(half) == sorted(whole) == [*range(seeds)] and all(half[seed] < whole[seed] for seed in half)


def test_what_is_said_of_curves_by_lag_is_in_the_committed_records() -> None:
    methods = ("uniform", "power_law", "er", "exponential", "finetune")
    curves: dict[str, list[float]] = {}
    steps: dict[str, list[float]] = {}
    for method in methods:
        for found, figure in ((curves, "retention"), (steps, "steps_to_criterion")):
            runs = by_seed("perm_mnist_retention", f"perm_mnist_{method}", figure)
            assert len(runs) == 5
            found[method] = [mean(values) for values in zip(*runs.values(), strict=True)]
    assert_numbers(
        "Nineteen tasks later accuracy is {:.1f} percent under uniform rehearsal, {:.1f} under a power law, {:.1f} with ER, {:.1f} under "
        "exponential rehearsal",
        [curves[method][19] for method in methods[:4]],
    )
    ahead = [lag for lag in range(20) if curves["exponential"][lag] > curves["er"][lag]]
    assert ahead == [*range(len(ahead))]
    assert_numbers("(ahead of ER up to a lag of {}) and {:.1f} without any", [str(ahead[-1]), curves["finetune"][19]])
    later = [value for curve in steps.values() for value in curve[1:]]
    first = {curve[0] for curve in steps.values()}
    assert len(first) == 1
    said = "the first task takes {:.0f} steps and later ones {:.0f} to {:.0f}, in the means over seeds"
    assert_numbers(said, [*first, min(later), max(later)])


HIDDEN = "model.hidden=[{0}, {0}]"


GRID = {  # settings of the power law beside the two other environments
    "tasks": f"benchmark.tasks=10 {HIDDEN.format(100)} strategies.power_law.budget=0.1",
    "more": f"benchmark.tasks=20 {HIDDEN.format(100)} strategies.power_law.budget=0.5",
    "smaller": f"benchmark.tasks=20 {HIDDEN.format(25)} strategies.power_law.budget=0.1",
    "less": f"benchmark.tasks=20 {HIDDEN.format(100)} strategies.power_law.budget=0.02",
    "larger": f"benchmark.tasks=20 {HIDDEN.format(400)} strategies.power_law.budget=0.1",
}


ENVIRONMENTS = ("uniform", "power_law", "exponential")


def test_what_is_said_of_the_grid_of_environments_is_in_the_committed_records() -> None:
    def of(environment: str, setting: str, figure: str = "average_accuracy") -> dict[int, float]:
        return by_seed("power_law_grid", f"perm_mnist_{environment}", figure, GRID[setting])

    def ahead(one: str, other: str, setting: str) -> list[float]:
        """In the mean, at least and at most."""
        apart = [of(one, setting)[seed] - of(other, setting)[seed] for seed in (0, 1, 2)]
        assert min(apart) > 0, "the order is the same in every setting and seed"
        return [mean(apart), min(apart), max(apart)]

    uniform, power_law = ({setting: ahead(one, other, setting) for setting in GRID} for one, other in pairwise(ENVIRONMENTS))
    rises = {setting: [mean(of(one, setting, "learning_accuracy_slope").values()) for one in ENVIRONMENTS] for setting in GRID}
    newest = [change for one in ENVIRONMENTS for change in of(one, "larger", "facilitation_in_steps").values()]
    spread = "{:.1f} ({:.1f} to {:.1f})"
    assert f"such as `{GRID['more'].split()[-1]}`" in prose()
    for said, numbers in (
        (
            f"uniform is {spread} and {spread} points ahead of the power law with ten tasks and with five times the budget, {spread} with "
            f"a quarter of the width and {spread} with a fifth of the budget, where",
            [number for setting in ("tasks", "more", "smaller", "less") for number in uniform[setting]],
        ),
        ("where exponential rehearsal falls {:.0f} and {:.0f} points further behind", [power_law[at][0] for at in ("smaller", "less")]),
        (
            f"With four times the width it is {spread} points ahead, and exponential rehearsal {spread} behind the power law",
            [*uniform["larger"], *power_law["larger"]],
        ),
        (
            "In the grid below it rises by {:.2f} to {:.2f} with ten tasks and by {:.2f} to {:.2f} with the larger model",
            [end(rises[setting]) for setting in ("tasks", "larger") for end in (min, max)],
        ),
        (
            "in the {} newest runs alone, all of the larger model: they change by {:.2f} to {:+.2f} steps from a task to the next",
            [IN_WORDS[len(newest)], min(newest), max(newest)],
        ),
    ):
        assert_numbers(said, numbers)


def test_how_far_rotated_cells_lie_below_the_printed_ones_is_in_the_committed_records() -> None:
    below = {}
    for file in sorted((ROOT / "experiments" / "papers").glob("rot_mnist_*.yaml")):
        printed = OmegaConf.select(OmegaConf.load(file), "expected.average_accuracy.value")
        if printed is not None:
            below[file.stem] = printed - mean(by_seed("papers", file.stem, "average_accuracy").values())
    least, most = min(below, key=below.__getitem__), max(below, key=below.__getitem__)
    assert len(below) == 8 and least.startswith("rot_mnist_der_") and most.startswith("rot_mnist_agem_")
    said = "and lie below it throughout, by {:.1f} (DER) to {:.1f} points (A-GEM)"
    assert_numbers(said, [below[least], below[most]])


def test_the_optimizer_state_of_half_fine_tuning_is_in_the_committed_record() -> None:
    shares = set()
    for model in ("slim_resnet18", "mlp"):
        whole, half = json.loads((RESULTS / f"bench_strategies_{model}.json").read_text())["half"]
        shares.add(half["state_mib"] / whole["state_mib"])
    assert len(shares) == 1
    assert_numbers("(two runs) and {:.2f} of its optimizer state", [*shares])


@pytest.mark.parametrize(
    ("said", "settings", "times"),  # of an experiment of `experiments/compare/` each; how often README says it
    [
        ("Tried: one gamma here, {}; on digits", ["seq_mnist_er_refresh strategies.refresh.gamma"], 1),
        ("at a rate of {} for their {}.", ["seq_mnist_er optimizer.lr", "seq_mnist_power_law optimizer.lr"], 1),
        (
            "Tried: one weight each ({}, {}, ",
            ["seq_mnist_ewc strategies.ewc.weight", "seq_mnist_si strategies.si.c"],
            1,
        ),
        (
            "Tried: one pair of weights ({}, {}).",
            ["online_cifar10_jpeg_derpp strategies.derpp.alpha", "online_cifar10_jpeg_derpp strategies.derpp.beta"],
            1,
        ),
        ("Tried: one gamma ({}).", ["online_cifar10_jpeg_derpp_refresh strategies.refresh.gamma"], 2),
        ("EWC has a weight of {}: at", ["online_cifar10_jpeg_ewc strategies.ewc.weight"], 1),
    ],
)
def test_settings_that_are_said_to_be_tried_are_those_of_the_committed_files(said: str, settings: list[str], times: int) -> None:
    def value(setting: str) -> str:
        file, key = setting.split()
        found = OmegaConf.select(OmegaConf.load(ROOT / "experiments" / "compare" / f"{file}.yaml"), key)
        assert found is not None, setting
        return f"{found:g}"

    assert prose().count(said.format(*map(value, settings))) == times
    assert_numbers(said, [*map(value, settings)])
