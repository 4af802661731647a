"""README is a test: what it prints as a command or as Python runs as it stands, and its tables say what the records say.

Blocks run one after another, as a reader would run them, in a temporary folder that links to the repository's `experiments/` and
`scripts/`: what they write under `runs/` lands there. Lines marked `# long` are left out and counted.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from statistics import mean, median

import pytest

from cl_framework.bench import step_table
from cl_framework.bench_strategies import strategies_table
from cl_framework.bench_text import by_rounds, rounds_in_words
from cl_framework.cli import main
from cl_framework.collected import FIGURES, collect
from cl_framework.forking import forked
from cl_framework.metrics import confidence_interval
from cl_framework.paired import differences
from cl_framework.records import Row
from cl_framework.report import report
from cl_framework.sweep import clu
from cl_framework.tables import markdown
from cl_framework.unlearning.audit_report import UNLEARNED, costs, read_csv

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
LONG = "# long"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the file it begins at."""

    language: str
    text: str
    line: int


def blocks_of(markdown: str) -> list[Block]:
    """The fenced blocks of a Markdown text, those without a language included."""
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", markdown, re.MULTILINE | re.DOTALL)
    return [Block(fence[1], fence[2], markdown.count("\n", 0, fence.start()) + 1) for fence in fences]


def runnable(block: Block) -> str:
    """The block without the lines that take long."""
    return "".join(line for line in block.text.splitlines(keepends=True) if LONG not in line)


def run_block(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a block in `folder`, its commands those of this interpreter's environment."""
    commands = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(
        [*commands[block.language], runnable(block)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        timeout=300,
        check=False,
    )


def run_forked(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """The same for a block of `clu` commands alone, each forked from a process that has imported what it needs, which takes longest."""
    log = folder / "log.txt"
    for line in runnable(block).splitlines():
        words = [sorted(glob(word)) or [word] for word in shlex.split(line)]
        process = forked(clu, ([word for some in words for word in some][1:],), log)
        process.join(300)
        if process.exitcode != 0:
            break
    return subprocess.CompletedProcess(runnable(block), process.exitcode or 0, log.read_text(), "")


def run_program_forked(block: Block, folder: Path) -> subprocess.CompletedProcess[str]:
    """A program, likewise."""
    log = folder / "log.txt"
    process = forked(execute, (block.text,), log)
    process.join(300)
    return subprocess.CompletedProcess(block.text, process.exitcode or 0, log.read_text(), "")


def execute(program: str) -> None:
    """As `python -c PROGRAM`."""
    exec(compile(program, "<README>", "exec"), {"__name__": "__main__"})


def how_to_run(block: Block, begun: set[str]) -> Callable[[Block, Path], subprocess.CompletedProcess[str]]:
    """The first program in a new interpreter and commands that stand alone in the shell, as a reader runs them; the others forked."""
    if block.language == "python":
        return run_program_forked if "python" in begun else run_block
    lines = runnable(block).splitlines()
    return run_forked if len(lines) > 1 and all(line.startswith("clu ") for line in lines) else run_block


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("experiments", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.slow
@pytest.mark.longest
def test_every_command_and_every_program_of_the_readme_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    ways = []
    begun: set[str] = set()
    for block in blocks_of(README.read_text()):
        if runnable(block).strip():
            way = how_to_run(block, begun)
            result = way(block, folder)
            assert result.returncode == 0, f"README.md:{block.line}\n{block.text}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
            ways.append(way.__name__)
            begun.add(block.language)
    assert Counter(ways) == {"run_block": 4, "run_forked": 3, "run_program_forked": 3}
    assert len(list(folder.glob("runs/*/*/DONE"))) >= 8, "the runs were not written where they are looked for"


def test_only_bash_and_python_are_fenced_and_only_the_long_commands_are_left_out() -> None:
    blocks = blocks_of(README.read_text())
    assert {block.language for block in blocks} == {"bash", "python"}
    left_out = [line for block in blocks for line in block.text.splitlines() if LONG in line]
    long = ["bash scripts/quickstart.sh", "bash scripts/test.sh", "bash scripts/quickstart.sh text"]
    assert [line.split("#")[0].strip() for line in left_out] == long


@pytest.mark.slow
def test_a_command_that_fails_would_be_seen(folder: Path) -> None:
    (failing,) = blocks_of("text\n```bash\nfalse\necho reached\n```\n")
    assert failing == Block("bash", "false\necho reached\n", 2)
    result = run_block(failing, folder)
    assert (result.returncode, result.stdout) == (1, "")
    forked_too = run_forked(Block("bash", "clu show nothing.yaml\nclu list strategies\n", 1), folder)
    assert forked_too.returncode == 2 and "nothing.yaml" in forked_too.stdout and "derpp" not in forked_too.stdout
    (left_out,) = blocks_of("```bash\nfalse  # long: never ends\necho reached\n```\n")
    assert run_block(left_out, folder).stdout == "reached\n"
    (program,) = blocks_of("```python\nraise SystemExit(3)\n```\n")
    assert run_block(program, folder).returncode == run_program_forked(program, folder).returncode == 3
    (unknown,) = blocks_of("```python\nimport no_such_module\n```\n")
    told = run_program_forked(unknown, folder)
    assert told.returncode == 1 and "No module named 'no_such_module'" in told.stdout


def test_every_file_the_readme_links_to_exists() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    assert len(targets) >= 3
    assert [target for target in targets if not (ROOT / target).exists()] == []


VISION = ("digits", "seq_mnist", "perm_mnist", "perm_mnist_retention", "power_law_grid", "online_cifar10_jpeg", "online_cifar10_jpeg_full")


@pytest.mark.parametrize(
    "name",
    [
        *VISION,
        "clinc150",
        "language_shift",
        "language_shift_reset",
        "language_shift_rate",
        "language_shift_rate_replay",
        "language_shift_gap",
        "probes",
        "unlearn_perm_mnist",
    ],
)
def test_tables_are_made_from_the_committed_records(name: str, tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    copy.write_text(README.read_text())
    report([ROOT / "experiments" / "results" / f"{name}.csv"], into=f"{copy}#{name}")
    assert copy.read_text() == README.read_text()
    empty = re.sub(rf"(<!-- table: {name} -->\n).*?(?=<!-- end -->)", r"\1", README.read_text(), flags=re.DOTALL)
    copy.write_text(empty)
    report([ROOT / "experiments" / "results" / f"{name}.csv"], into=f"{copy}#{name}")
    assert copy.read_text() == README.read_text() != empty  # the control: a table that is gone is written anew


@pytest.mark.parametrize(
    "name",
    ["seq_mnist", "perm_mnist", "online_cifar10_jpeg", "online_cifar10_jpeg_full", "clinc150", "language_shift", "language_shift_rate"],
)
def test_differences_are_made_from_the_committed_records(name: str, tmp_path: Path) -> None:
    copy, block = tmp_path / "README.md", f"{name}_differences"
    copy.write_text(re.sub(rf"(<!-- table: {block} -->\n).*?(?=<!-- end -->)", r"\1", README.read_text(), flags=re.DOTALL))
    rows = re.search(rf"<!-- table: {block} -->\n.*?\n.*?\n(.*?)<!-- end -->", README.read_text(), re.DOTALL)
    assert rows is not None
    pairs = [(cells[1].strip(), cells[2].strip()) for line in rows[1].splitlines() if (cells := line.split("|"))]
    assert len(pairs) >= 5 and copy.read_text() != README.read_text()
    losses = ["loss_of_old_tasks", "loss_of_newest_task"]
    figures = {"language_shift": losses, "language_shift_rate": [*losses, "loss_rise"]}.get(name, ["average_accuracy"])
    report([ROOT / "experiments" / "results" / f"{name}.csv"], into=f"{copy}#{block}", pairs=pairs, figures=figures)
    assert copy.read_text() == README.read_text()


SEEDS = {"seq_mnist": "0, 1, 2, 3, 4", "perm_mnist": "0, 1, 2, 3, 4"}  # of the records that have more than three


def said_of(name: str, one: str, other: str, figure: str) -> tuple[float, str]:
    """The mean difference of two experiments in a figure, and in words: mean, then Student's interval over their seeds."""
    committed = collect([ROOT / "experiments" / "results" / f"{name}.csv"])
    ((*_, apart, interval, seeds),) = differences(committed.summaries, [(one, other)], [figure], FIGURES)[1]
    assert seeds == SEEDS.get(name, "0, 1, 2")
    places = 2 if figure in ("loss_rise", "stability_gap") else None  # of nats; else as a table of differences has it
    shown = [number if places is None else f"{float(number):+.{places}f}" for number in (apart, *interval.split(" to "))]
    return float(apart), f"{shown[0]}, {shown[1]} to {shown[2]}"


@dataclass(frozen=True)
class Apart:
    """A difference in words: "+0.61" and "-0.56 to +1.77", `size` and `ends` without a plus."""

    mean: str
    interval: str

    def __str__(self) -> str:
        return f"{self.mean}, {self.interval}"

    @property
    def size(self) -> str:
        return self.mean.removeprefix("+")

    @property
    def ends(self) -> str:
        return self.interval.replace("+", "")


Pair = tuple[str, str, str]  # one, minus other, in this figure
RATES = ("cosine", "rewarm", "infinite")
LOSSES = OLD, NEWEST = ("loss_of_old_tasks", "loss_of_newest_task")


def assert_said(name: str, said: str, pairs: list[Pair]) -> None:
    """README says this of the differences of these pairs, and not of those the other way round."""
    text = " ".join(README.read_text().split())
    apart, reversed_ = (
        [Apart(*said_of(name, *pair, figure)[1].split(", ")) for *pair, figure in some]
        for some in (pairs, [(other, one, figure) for one, other, figure in pairs])
    )
    assert said.format(*apart) in text
    assert said.format(*reversed_) not in text  # the control: the other way round


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
            "{2.ends}, and {3.size}, {3.ends}), and than cosine with 5 ({4.size}, {4.ends}, and {5.size}, {5.ends})",
            [
                shift(f"{rate} {share}", f"constant {share}", loss)
                for rate, share in (("infinite", "0.05"), ("infinite", "0.25"), ("cosine", "0.05"))
                for loss in LOSSES
            ],
        ),
        (
            "language_shift_rate_replay",
            "An infinite rate beats repeated cosines with 5 percent on old languages ({0}); on the newest it does not show ({1})",
            [shift("infinite 0.05", "cosine 0.05", loss) for loss in LOSSES],
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
    assert ratios == [row["ratio_by_rounds"] for row in rows] and min(ratio["interval"][0] for ratio in ratios) >= 0.95
    said = "ours shows {} and {} of the bare loop's tokens a second for batches of 8 and 32 rows (target at least 0.95"
    assert said.format(*map(rounds_in_words, ratios)) in text
    fastest = [max(row["each"]["text"]) / max(row["each"]["bare_text"]) for row in rows]
    assert "the fastest of ours beside the fastest of the bare ones {:.2f} and {:.2f}.".format(*fastest) in text
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


APPROXIMATE = ("grad_diff", "gradient_ascent", "npo", "rmu", "simnpo", "ssd")  # the rest are exact, or controls


@pytest.mark.parametrize(
    ("block", "name", "options"),
    [
        ("audit_fashion_mnist", "audit_fashion_mnist", []),
        ("audit_fashion_by_task", "audit_fashion_by_task", []),
        ("audit_digits_orders", "audit_digits_orders", []),
        ("audit_perm_mnist", "audit_perm_mnist", []),
        ("audit_perm_mnist_standard", "audit_perm_mnist_standard", []),
        ("cost_fashion_mnist", "audit_fashion_mnist", ["--costs"]),
        ("audit_tofu", "audit_tofu", []),
        ("answers_tofu", "audit_tofu", ["--answers"]),
        ("audit_tofu_continual", "audit_tofu_continual", []),
        ("answers_tofu_continual", "audit_tofu_continual", ["--answers"]),
    ],
)
def test_tables_of_audits_are_made_from_the_committed_rows(block: str, name: str, options: list[str], tmp_path: Path) -> None:
    copy = tmp_path / "README.md"
    empty = re.sub(rf"(<!-- table: {block} -->\n).*?(?=<!-- end -->)", r"\1", README.read_text(), flags=re.DOTALL)
    copy.write_text(empty)
    assert main(["audit", str(ROOT / "experiments" / "results" / f"{name}.csv"), *options, "--into", f"{copy}#{block}"]) == 0
    assert copy.read_text() == README.read_text() != empty


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


def figures_in(name: str, strategies: str, figure: str) -> list[Row]:
    """The rows of committed audits about the models that a stack has unlearned, of one figure."""
    rows = read_csv(ROOT / "experiments" / "results" / f"{name}.csv")
    return [row for row in rows if (row["model"], row["name"], " ".join(row["strategies"])) == (UNLEARNED, figure, strategies)]


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
            "An oracle of another seed is {:.2f} from the oracle in truth ratios ({:.2f} to {:.2f}, n {:.0f}) and passes all but M6, in "
            "two seeds of three",
            [mean(row[column] for row in distances) for column in ("value", "low", "high", "n")],
        ),
    ):
        assert said.format(*numbers) in text, said
        assert said.format(*(1.1 * number + 1 for number in numbers)) not in text


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
    for (name, strategies, count), names in ((fashion, equal), (digits, equal), (("audit_digits_orders", "isolation", 3), equal[:-1])):
        for figure in names:
            assert [row["value"] for row in figures_in(name, strategies, figure)] == [0.0] * count, (strategies, figure)
    costs: dict[str, set[str]] = {}
    for row in figures_in(*fashion[:2], "M12"):
        costs.setdefault(row["granularity"], set()).add(f"{row['details']['samples'] / row['details']['oracle_samples']:.2f}")
    assert costs == {"task": {"1.00"}, "class": {"1.00"}, "sample": {"0.35"}}
    assert "samples shown over the suffix's: 1.00 for tasks, 1.00 for classes, 0.35 for samples" in text


def test_the_sentence_that_a_mistake_ends_with_is_the_one_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = re.findall(r"^    \$ clu (.*)\n    (clu: .*)$", README.read_text(), re.MULTILINE)
    assert len(shown) == 1
    monkeypatch.chdir(folder)
    for command, sentence in shown:
        assert main(command.split()) == 2
        assert capsys.readouterr().err == f"{sentence}\n"


def test_tables_stand_between_markers() -> None:
    """`clu report` and `clu reproduce` write them; a marker that is lost would leave a table stale."""
    found = re.findall(r"^<!-- table: (\w+) -->\n(.*?)^<!-- end -->$", README.read_text(), re.MULTILINE | re.DOTALL)
    assert [name for name, _ in found] == [
        "digits",
        "papers",
        "bench_step",
        "bench_strategies",
        "seq_mnist",
        "seq_mnist_differences",
        "perm_mnist",
        "perm_mnist_differences",
        "perm_mnist_retention",
        "power_law_grid",
        "online_cifar10_jpeg",
        "online_cifar10_jpeg_differences",
        "online_cifar10_jpeg_full",
        "online_cifar10_jpeg_full_differences",
        "unlearn_perm_mnist",
        "audit_perm_mnist",
        "audit_perm_mnist_standard",
        "audit_fashion_mnist",
        "audit_fashion_by_task",
        "cost_fashion_mnist",
        "audit_digits_orders",
        "clinc150",
        "clinc150_differences",
        "language_shift",
        "language_shift_differences",
        "language_shift_reset",
        "language_shift_rate",
        "language_shift_rate_differences",
        "language_shift_rate_replay",
        "language_shift_gap",
        "probes",
        "audit_tofu",
        "answers_tofu",
        "audit_tofu_continual",
        "answers_tofu_continual",
    ]
