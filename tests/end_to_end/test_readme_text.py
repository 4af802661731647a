"""What README says in prose of streams of text: each figure follows from a committed record."""

from __future__ import annotations

import json
from statistics import mean

import pytest

from cl_framework.bench_text import TARGET, by_rounds, rounds_in_words
from cl_framework.collected import collect
from cl_framework.metrics import confidence_interval
from cl_framework.records import Row
from tests.end_to_end.readme_records import README, ROOT, Apart, Pair, assert_said, said_of

RATES = ("cosine", "rewarm", "infinite")


LOSSES = OLD, NEWEST = ("loss_of_old_tasks", "loss_of_newest_task")


def encoders(one: str, other: str, figure: str = "average_accuracy") -> list[Pair]:
    """Both encoders of CLINC150, MiniLM first."""
    return [(f"clinc150_{encoder}_{one}", f"clinc150_{encoder}_{other}", figure) for encoder in ("minilm", "scratch")]


def shift(one: str, other: str, figure: str) -> Pair:
    """Rates of the shift between languages with a share of replay ("constant 0.05", "cosine": none), or other experiments of it."""

    def named(name: str) -> str:
        rate, _, share = name.partition(" ")
        replays = rate in (*RATES, "constant")
        return f"language_shift_{rate}" + (f" strategies.replay_share.share={share or '0.0'}" if replays else "")

    return named(one), named(other), figure


@pytest.mark.parametrize(
    ("name", "said", "pairs"),
    [
        (
            "clinc150",
            "Five percent replayed leave MiniLM {0.size} points behind joint training ({0.interval}), the encoder from scratch {1.size} "
            "({1.interval})",
            encoders("joint", "er_5"),
        ),
        ("clinc150", "1 percent is {0.size} and {1.size} points worse", encoders("er_5", "er_1")),
        ("clinc150", "nor is half fine-tuning on ER ({0} and {1})", encoders("er_5_half", "er_5")),
        (
            "clinc150",
            "is ahead of ER with 1 percent with MiniLM ({0}); it may draw from all that was seen. From scratch that does not show ({1})",
            encoders("power_law", "er_1"),
        ),
        (
            "clinc150",
            "EWC does not help where classes compete: {0.mean} ({0.interval}) and {1.mean} ({1.interval}) over fine-tuning",
            encoders("ewc", "finetune"),
        ),
        ("clinc150", "where the task is known it does (task-IL {0}, and {1})", encoders("ewc", "finetune", "average_accuracy_task_il")),
        (
            "clinc150",
            "where the task is known it is ahead (task-IL {0})",
            encoders("half", "finetune", "average_accuracy_task_il")[1:],  # from scratch
        ),
        (
            "language_shift",
            "5 percent lower the loss on old languages by {0.size} nats ({0.ends}) and cost the newest nothing that shows ({1}); 1 percent "
            "lower it by {2.size} ({2.ends}); 25 percent lower it by {3.size} and cost {4.size} ({4.ends})",
            [
                shift("constant", "constant 0.05", OLD),
                shift("constant 0.05", "constant", NEWEST),
                shift("constant", "constant 0.01", OLD),
                shift("constant", "constant 0.25", OLD),
                shift("constant 0.25", "constant", NEWEST),
            ],
        ),
        (
            "language_shift",
            "Training on all together is another {0.size} better on the old ones; with 25 percent and an infinite rate {1.size} "
            "({1.ends}), and then the newest language is not behind ({2})",
            [
                shift("constant 0.25", "joint", OLD),
                shift("infinite 0.25", "joint", OLD),
                shift("infinite 0.25", "joint", NEWEST),
            ],
        ),
        (
            "language_shift",
            "it holds, on old languages ({0}) and on the newest ({1}), and beside re-warming with no replay ({2.mean} and {3.mean}), "
            "with 5 percent ({4.mean} and {5.mean}) and with 25 ({6.mean} and {7.mean})",
            [
                shift(f"infinite {share}", f"{rate} {share}", loss)
                for rate, share in (("cosine", "0.0"), ("rewarm", "0.0"), ("rewarm", "0.05"), ("rewarm", "0.25"))
                for loss in LOSSES
            ],
        ),
        (
            "language_shift",
            "By accuracy it forgets more than cosine without replay ({0.mean} points, {0.interval}) and with 1 percent ({1})",
            [shift(f"infinite {share}", f"cosine {share}", "forgetting") for share in ("0.0", "0.01")],
        ),
        (
            "language_shift",
            "it is behind a constant rate with 1 percent of replay ({0}) and with 5 ({1}), and not told apart without replay ({2}) and "
            "with 25 percent ({3})",
            [shift(f"rewarm {share}", f"constant {share}", NEWEST) for share in ("0.01", "0.05", "0.0", "0.25")],
        ),
        (
            "language_shift",
            "told apart in one (cosine with 5 percent, {0.size} behind, {0.ends})",
            [shift("cosine 0.05", "constant 0.05", OLD)],
        ),
        (
            "language_shift",
            "ends better on old languages ({0}) and on the newest ({1}), because it learns",
            [shift("half", "constant", loss) for loss in LOSSES],
        ),
        (
            "language_shift_rate_replay",
            "5 percent lower the loss on old languages by {0.size} nats ({0.ends}) and cost the newest nothing that shows ({1}); "
            "25 percent lower it by {2.size} ({2.ends}) and cost {3.size} ({3.ends}). Training on all together is then another {4.size} "
            "better on the old ones ({4.ends}) and {5.size} behind on the newest ({5.ends})",
            [
                shift("constant", "constant 0.05", OLD),
                shift("constant 0.05", "constant", NEWEST),
                shift("constant", "constant 0.25", OLD),
                shift("constant 0.25", "constant", NEWEST),
                shift("constant 0.25", "joint", OLD),
                shift("joint", "constant 0.25", NEWEST),
            ],
        ),
        (
            "language_shift_rate_replay",
            "than the infinite one with 5 percent (old languages {0.size}, {0.ends}, the newest {1.size}, {1.ends}) and with 25 ({2.size}, "
            "{2.ends}, and {3.size}, {3.ends}), than cosine with 5 ({4.size}, {4.ends}, and {5.size}, {5.ends}) and with 25 ({6.size}, "
            "{6.ends}, and {7.size}, {7.ends}), and than the re-warmed one with 5 ({8.size}, {8.ends}, and {9.size}, {9.ends}) and with 25 "
            "({10.size}, {10.ends}, and {11.size}, {11.ends})",
            [
                shift(f"{rate} {share}", f"constant {share}", loss)
                for rate in ("infinite", "cosine", "rewarm")
                for share in ("0.05", "0.25")
                for loss in LOSSES
            ],
        ),
        (
            "language_shift_rate_replay",
            "An infinite rate beats repeated cosines with 5 percent on old languages ({0}); on the newest it does not show ({1}), "
            "nor on either with 25 ({2} and {3}). It is ahead of the re-warmed rate on old languages with both ({4} and {5})",
            [
                *(shift(f"infinite {share}", f"cosine {share}", loss) for share in ("0.05", "0.25") for loss in LOSSES),
                *(shift(f"infinite {share}", f"rewarm {share}", OLD) for share in ("0.05", "0.25")),
            ],
        ),
        (
            "language_shift_rate",
            "on old languages it holds here too, on the newest it does not show ({0})",
            [("language_shift_infinite", "language_shift_cosine", NEWEST)],
        ),
    ],
)
def test_what_is_said_of_two_experiments_is_in_the_committed_records(name: str, said: str, pairs: list[Pair]) -> None:
    assert_said(name, said, pairs)


def test_what_is_said_of_probes_is_in_the_committed_records() -> None:
    encoders_ = ("clinc150_scratch_er_5", "clinc150_scratch_finetune")
    said = "(RankMe {0}), and their spectrum decays more slowly (alpha-ReQ {1})"
    assert_said("probes", said, [(*encoders_, figure) for figure in ("rankme", "alpha_req")])
    looked, plain = (
        {(run["experiment"], run["seed"]): run for run in collect([ROOT / "experiments" / "results" / f"{name}.csv"]).summaries}
        for name in ("probes", "clinc150")
    )
    apart = ("rankme", "alpha_req", "train_seconds", "eval_seconds", "peak_rss_mib", "settings", "fingerprint")
    for key in [(experiment, seed) for experiment in encoders_ for seed in (0, 1, 2)]:
        assert {name: value for name, value in looked[key].items() if name not in apart} == {
            name: value for name, value in plain[key].items() if name not in apart
        }
        assert looked[key] != plain[key]
    facts = [run for (experiment, _), run in looked.items() if experiment == "facts"]
    left, gap = (mean(run[figure] for run in facts) for figure in ("retained_share", "stability_gap"))
    words = "After one more chapter {:.2f} of what the facts and the chapter before them had taken off their loss is left, and {:.2f} nats"
    assert len(facts) == 3 and words.format(left, gap) in " ".join(README.read_text().split())


def test_what_is_said_of_forgetting_languages_is_in_the_committed_records() -> None:
    """What no table of differences shows: which rate and which share of the parameters lose least."""
    text = " ".join(README.read_text().split()).replace(" points", "").replace(" nats", "")

    def apart(rate: str, share: str, figure: str) -> tuple[float, str]:
        names = (f"language_shift_{name} strategies.replay_share.share={share}" for name in (rate, "constant"))
        return said_of("language_shift", *names, figure)

    shares = ("0.0", "0.01", "0.05", "0.25")
    rises = {(rate, share): apart(rate, share, "loss_rise") for rate in ("cosine", "rewarm", "infinite") for share in shares}
    others = [rise for (rate, _), rise in rises.items() if rate != "infinite"]
    assert sum(mean < 0 for mean, _ in others) == 7 and all(", -" in words and " to +" in words for _, words in others)
    assert "never told apart from it, and seven of eight differences have the other sign" in text
    for rate, share, figure in (
        ("cosine", "0.0", "forgetting"),
        ("cosine", "0.01", "forgetting"),
        ("infinite", "0.01", "loss_rise"),
        ("infinite", "0.25", "loss_rise"),
    ):
        _, words = apart(rate, share, figure)
        assert f"({words})" in text, (rate, share)
    ends = [apart(rate, share, OLD) for rate in ("cosine", "rewarm") for share in shares]
    assert all(mean > 0 for mean, _ in ends) and sum(", +" in words for _, words in ends) == 1, "best in all eight, told apart in one"
    assert all(" to -" in apart("infinite", share, NEWEST)[1] for share in shares), "ahead on the newest language with any share"
    half, full = "language_shift_half", "language_shift_constant strategies.replay_share.share=0.0"
    for figure in ("loss_rise", "forgetting"):
        assert f"({said_of('language_shift', half, full, figure)[1]})" in text, figure
    for figure in ("loss_of_old_tasks", "forgetting", "loss_of_newest_task"):
        assert f"({said_of('language_shift_reset', half, 'language_shift', figure)[1]})" in text, figure
    assert f"({said_of('language_shift_gap', 'language_shift_rewarm', 'language_shift_constant', 'stability_gap')[1]})" in text
    assert f"({said_of('clinc150', 'clinc150_scratch_half', 'clinc150_scratch_finetune', 'forgetting')[1]})" in text
    assert f"({said_of('language_shift', full, half, 'forgetting')[1]})" not in text  # the control: the other way round


def test_what_is_said_of_the_level_of_the_rate_is_in_the_committed_records() -> None:
    text, constant = " ".join(README.read_text().split()), "language_shift_constant"

    def by_seed(name: str, experiment: str, settings: str = "") -> dict[int, Row]:
        runs = collect([ROOT / "experiments" / "results" / f"{name}.csv"]).summaries
        return {run["seed"]: run for run in runs if run["experiment"] == experiment and run["settings"] == settings}

    lower, plain = by_seed("language_shift_rate", constant), "strategies.replay_share.share=0.0"
    others = {
        "infinite": by_seed("language_shift", "language_shift_infinite", plain),
        "constant": by_seed("language_shift", constant, plain),
        "half": by_seed("language_shift", "language_shift_half"),
    }
    for name, other in others.items():
        for figure in ("loss_of_old_tasks", "loss_of_newest_task"):
            assert sorted(lower) == sorted(other) == [0, 1, 2]
            apart = [lower[seed][figure] - other[seed][figure] for seed in (0, 1, 2)]
            low, high = confidence_interval(apart) or (0.0, 0.0)
            words = f"{mean(apart):+.3f}, {low:+.3f} to {high:+.3f}"
            assert name == "constant" or words in text, (name, figure)
            assert f"{-mean(apart):+.3f}, {-high:+.3f} to {-low:+.3f}" not in text
    level = [mean(lower[seed][figure] - others["constant"][seed][figure] for seed in (0, 1, 2)) for figure in LOSSES]
    assert "and than a constant 0.003 ({:+.3f} and {:+.3f})".format(*level) in text
    rises = [float(said_of("language_shift_rate", f"language_shift_{rate}", constant, "loss_rise")[0]) for rate in RATES]
    assert f"by what is lost it forgets most, by {-max(rises):.3f} to {-min(rises):.3f} nats" in text

    def apart_by(one: str, other: str, figure: str) -> tuple[str, float, float]:
        mean_apart, interval = said_of("language_shift_rate", one, other, figure)[1].split(", ")
        low, high = map(float, interval.split(" to "))
        return mean_apart, low, high

    half = [apart_by("language_shift_half", constant, figure) for figure in (*LOSSES, "loss_rise")]
    assert all(low < 0 < high for _, low, high in half)
    exact = [said_of("language_shift_rate", "language_shift_half", constant, figure)[0] for figure in (*LOSSES, "loss_rise")]
    assert (
        "not told apart from all parameters on old languages, on the newest or by what is lost ({:+.3f}, {:+.3f} and {:+.3f}".format(*exact)
        in text
    )
    (old, _, _), (new, low, high) = (apart_by(constant, "language_shift_joint", figure) for figure in LOSSES)
    assert f"another {float(old):.3f} nats better on old languages than a constant rate without replay" in text
    assert f"and {-float(new):.3f} behind it on the newest ({-high:.3f} to {-low:.3f})" in text
    assert f"and {-float(new):.3f} behind it on the newest ({-low:.3f} to {-high:.3f})" not in text  # the control: the other way round


HALVED = (  # record, with half fine-tuning, without
    ("language_shift", "language_shift_half", "language_shift_constant strategies.replay_share.share=0.0"),
    ("language_shift_reset", "language_shift_half", "language_shift"),
    ("clinc150", "clinc150_scratch_half", "clinc150_scratch_finetune"),
    ("clinc150", "clinc150_scratch_er_5_half", "clinc150_scratch_er_5"),
    ("clinc150", "clinc150_minilm_er_5_half", "clinc150_minilm_er_5"),
)


def test_what_half_fine_tuning_saves_in_time_is_in_the_committed_records() -> None:
    text = " ".join(README.read_text().split())
    for name, half, whole in HALVED:
        mean_apart, interval = said_of(name, half, whole, "train_seconds")[1].split(", ")
        assert f"{mean_apart} ({interval})" in text
        mean_apart, interval = said_of(name, whole, half, "train_seconds")[1].split(", ")
        assert f"{mean_apart} ({interval})" not in text
    for name, half, whole in (
        ("language_shift_reset", "language_shift_half", "language_shift"),
        ("clinc150", "clinc150_scratch_er_5_half", "clinc150_scratch_er_5"),
    ):
        runs = collect([ROOT / "experiments" / "results" / f"{name}.csv"]).summaries
        seconds = mean(run["train_seconds"] for run in runs if run["experiment"] == whole)
        saved = Apart(*said_of(name, half, whole, "train_seconds")[1].split(", "))
        assert f"{saved.mean} ({saved.interval}) of {seconds:.0f}, " in text


def test_thirty_percent_of_time_are_saved_by_the_mean_in_no_stream() -> None:
    """And where the interval of a stream does not exclude it, README says so."""
    assert (
        "By the mean thirty percent are reached in none and twenty in one; on the two streams of languages the intervals do not"
        in " ".join(README.read_text().split())
    )
    means, reach = [], []
    for name, half, whole in HALVED:
        apart, interval = said_of(name, half, whole, "train_seconds")[1].split(", ")
        runs = collect([ROOT / "experiments" / "results" / f"{name}.csv"]).summaries
        seconds = mean(run["train_seconds"] for run in runs if f"{run['experiment']} {run['settings']}".strip() == whole)
        means.append(float(apart) / seconds)
        reach.append((name.startswith("language"), float(interval.split(" to ")[0]) / seconds < -0.3))
    assert sum(share <= -0.2 for share in means) == 1 and min(means) > -0.3
    assert all(language == reaches for language, reaches in reach)


def test_what_half_fine_tuning_saves_in_memory_is_in_the_committed_records() -> None:
    text = " ".join(README.read_text().split())

    def shares(name: str, half: str, whole: str, column: str) -> list[str]:
        runs = collect([ROOT / "experiments" / "results" / f"{name}.csv"]).summaries
        held = {(f"{run['experiment']} {run['settings']}".strip(), run["seed"]): run[column] for run in runs}
        return sorted(f"{held[half, seed] / held[whole, seed]:.2f}" for seed in (0, 1, 2))

    kept, anew, scratch, replayed = (shares(*stream, "optimizer_bytes") for stream in HALVED[:4])
    assert len({*scratch, *replayed}) == len({*anew}) == 1
    said = "{} on CLINC150 from scratch, {} on languages with a new optimizer for each, and {} to {} with one that is kept"
    assert said.format(scratch[0], anew[0], kept[0], kept[-1]) in text
    assert said.format(anew[0], scratch[0], kept[0], kept[-1]) not in text  # the control: taken for each other
    whole = [share for stream in HALVED[:4] for share in shares(*stream, "peak_rss_mib")]
    assert f"the memory of the whole process is {min(whole)} to {max(whole)} of it: nothing saved" in text


def test_joint_training_is_set_beside_the_committed_floor_with_its_interval() -> None:
    strong, weak = (ROOT / "experiments" / "results" / "tfidf_floor.txt").read_text().splitlines()
    floor, weaker = (float(line.split()[1]) for line in (strong, weak))
    runs = collect([ROOT / "experiments" / "results" / "clinc150.csv"]).summaries
    joint = [run["average_accuracy"] for run in runs if run["experiment"] == "clinc150_minilm_joint"]
    interval = confidence_interval([value - floor for value in joint])
    assert len(joint) == 3 and interval is not None
    text = " ".join(README.read_text().split())
    said = "reaches {:.2f} percent with MiniLM, {:.2f} above the {:.2f} of a logistic regression"
    assert said.format(mean(joint), mean(joint) - floor, floor) in text and f"{weaker:.2f} with `--weak 1`" in text
    assert "Student's interval of three seeds ({:+.2f} to {:+.2f}) that is not told apart".format(*interval) in text
    again = collect([ROOT / "experiments" / "results" / "clinc150_two_cores.csv"]).summaries
    others = [run["average_accuracy"] for run in again]
    assert [(run["experiment"], run["seed"]) for run in again] == [("clinc150_minilm_joint", seed) for seed in (0, 1, 2)]
    interval, seconds = confidence_interval([value - floor for value in others]), mean(run["train_seconds"] for run in again)
    assert interval is not None and interval[0] > 0 and f"{seconds:.0f} s each" in text
    assert "it reaches {:.2f}, {:.2f} above ({:+.2f} to {:+.2f})".format(mean(others), mean(others) - floor, *interval) in text
    scratch = mean(run["average_accuracy"] for run in runs if run["experiment"] == "clinc150_scratch_joint")
    assert scratch < floor and f"From scratch it reaches {scratch:.2f}, below that floor" in text
    slower = {}
    for encoder in ("minilm", "scratch"):
        derpp, er = (
            mean(run["train_seconds"] for run in runs if run["experiment"] == f"clinc150_{encoder}_{name}") for name in ("derpp", "er_5")
        )
        slower[encoder] = derpp / er
    assert f"and takes {slower['scratch']:.1f} to {slower['minilm']:.0f} times as long" in text


def test_what_is_said_of_tokens_a_second_is_the_committed_record() -> None:
    record = json.loads((ROOT / "experiments" / "results" / "bench_text.json").read_text())
    rows, text = record["results"], " ".join(README.read_text().split())
    assert [row["batch"] for row in rows] == [8, 32] and f"clu bench --text --repeats {record['repeats']} --steps 50" in text
    ratios = [by_rounds(row["each"]["text"], row["each"]["bare_text"]) for row in rows]
    assert ratios == [row["ratio_by_rounds"] for row in rows]
    said = (
        "ours shows {} and {} of the bare loop's tokens a second for batches of 8 and 32 rows: the means are above the target of {:.2f}, "
        "the intervals, on a host that is shared with other machines, reach below it"
    )
    assert said.format(*map(rounds_in_words, ratios), TARGET) in text
    assert all(ratio["interval"][0] < TARGET < ratio["mean"] for ratio in ratios)
    fastest = [max(row["each"]["text"]) / max(row["each"]["bare_text"]) for row in rows]
    assert "The fastest of ours beside the fastest of the bare ones are {:.2f} and {:.2f}.".format(*fastest) in text
    halves = [row["half"] for row in rows]
    times = [by_rounds(row["each"]["text"], row["each"]["half_text"]) for row in rows]
    assert times == [half["time_by_rounds"] for half in halves] and min(time["interval"][0] for time in times) > 0.7, (
        "30 percent are excluded"
    )
    saved = (
        "of which {:.0f} percent of the parameters learn, takes {} and {} of the time of full fine-tuning in such rounds, {:.2f} of its "
        "optimizer's memory, and {:.2f} and {:.2f} of the memory of the whole process"
    )
    small, large = halves
    assert small["trained"] == large["trained"] and small["moments"] == large["moments"]
    sizes = (small["moments"], small["peak_rss_mib"], large["peak_rss_mib"])
    assert saved.format(100 * small["trained"], *map(rounds_in_words, times), *sizes) in text
    assert saved.format(100 * small["trained"], *map(rounds_in_words, reversed(times)), *sizes) not in text
