"""README is a test: what it prints as a command or as Python runs as it stands, and its tables say what the records say.

Blocks run one after another, as a reader would run them, in a temporary folder that links to the repository's `experiments/` and
`scripts/`: what they write under `runs/` lands there. Lines marked `# long` are left out and counted.
"""

from __future__ import annotations

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

import pytest

from cl_framework.cli import main
from cl_framework.forking import forked
from cl_framework.report import report
from cl_framework.sweep import clu
from tests.end_to_end.readme_records import README, ROOT

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
