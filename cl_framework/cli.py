"""The command line `clu`: one small function a subcommand. Heavy imports happen inside them, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from cl_framework.errors import ConfigurationError, FrameworkError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 if it is done, 1 if it failed, 2 if what was asked for cannot be done as asked."""
    arguments = _parsed(argv)
    try:
        return arguments.function(arguments)
    except FrameworkError as error:
        print(f"clu: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # who read has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere, without a complaint at exit
        return 0
    except KeyboardInterrupt:
        print("clu: interrupted.", file=sys.stderr)
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        wanted = re.search(r"tried to allocate [\d.]+ \w+|overflowed?.*", str(error))
        said = f" ({wanted[0]})" if wanted else ""
        print(f"clu: memory ran out{said}. Make the batch, the memory of a strategy or the model smaller.", file=sys.stderr)
        return 1
    except OSError as error:  # a path that no system call takes, as one that is too long
        if error.filename is None:
            raise
        name = str(error.filename)
        print(f"clu: {name if len(name) < 200 else name[:200] + '…'}: {error.strerror}. Name another path.", file=sys.stderr)
        return 1


def _out_of_memory(error: Exception) -> bool:
    """Whether torch or Python could not get the memory that was asked for: torch says so in words, and in a class on a GPU alone."""
    words = ("can't allocate memory", "out of memory", "Storage size calculation overflowed", "numel: integer multiplication overflow")
    return isinstance(error, MemoryError) or any(part in str(error) for part in words)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with words that follow an option counted to those before it: argparse takes the first run of words alone."""
    top = parser()
    arguments, left = top.parse_known_args(argv)
    if left and (arguments.words_are is None or any(word.startswith("-") for word in left)):
        folders = all(Path(word).is_dir() for word in left)
        top.error(f"{'one folder at a time: leave out' if folders else 'unrecognized arguments:'} {' '.join(left)}")
    if left:
        words = getattr(arguments, arguments.words_are)
        kind = Path if any(isinstance(word, Path) for word in words) else str
        setattr(arguments, arguments.words_are, [*words, *map(kind, left)])
    return arguments


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="clu", description="Train models that learn and unlearn in sequence.")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, function: object, help: str, words_are: str | None = None) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(function=function, words_are=words_are)
        return made

    part = command("list", list_command, "what there is, and where it comes from")
    part.add_argument("what", choices=("strategies", "benchmarks", "models", "experiments"))

    part = command("show", show, "the resolved configuration, the step as it will run, the schedule; no training", "overrides")
    _experiment(part)
    part.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw when samples come back")

    part = command("run", run, "run an experiment", "overrides")
    _experiment(part)

    part = command("resume", resume, "continue a stopped run exactly where it stopped", "overrides")
    part.add_argument("run_dir", type=Path)
    part.add_argument("overrides", nargs="*", default=[], help="key=value; only keys that change no numbers")

    part = command("report", report, "tables and plots of runs, over seeds", "paths")
    part.add_argument("paths", nargs="+", type=Path, metavar="RUN_DIR", help="run directories, folders of them, or committed .csv files")
    part.add_argument("--out", type=Path, metavar="FILE", help="also write the table to FILE (.md or .csv)")
    part.add_argument("--into", metavar="FILE.md#BLOCK", help="also put the table between <!-- table: BLOCK --> and <!-- end --> of FILE")
    part.add_argument(
        "--plot", type=Path, metavar="FILE.png", help="also draw accuracy by lag and steps to a criterion; of audits FILE_tradeoff.png"
    )
    part.add_argument(
        "--difference",
        nargs=2,
        action="append",
        default=[],
        metavar=("EXPERIMENT", "OTHER"),
        help="instead: a figure of one less the other's, paired over seeds, with its interval; may be repeated",
    )
    part.add_argument(
        "--figure",
        action="append",
        default=[],
        metavar="COLUMN",
        help="of --difference: the .csv column to compare, such as loss_of_old_tasks (default average_accuracy); may be repeated",
    )

    part = command("verify", verify, "re-check the deletion record of a run")
    part.epilog = (
        "Exit code: 0 if all holds, 1 if a claim does not, 2 if there is nothing to verify, and 3 if none fails, but that no state "
        "descends from what was unlearned, or that no sample is left, could not be checked: the last line says why (a plug-in or the "
        "data are missing)."
    )
    part.add_argument("run_dir", type=Path)
    part.add_argument("--head", metavar="HASH", help="one that this command printed earlier: whether lines were cut since")

    part = command("audit", audit, "measure what was unlearned against models that never saw it", "words")
    part.add_argument(
        "words", nargs="+", metavar="RUN_DIR|FILE.csv|key=value", help="finished runs or folders of them, rows of audits, overrides"
    )
    part.add_argument("--tier", choices=("fast", "standard", "full"), default="standard", help="fast: from its own records")
    part.add_argument("--seeds", type=int, metavar="N", help="oracles a request (default: as an audit that stands has, or 3)")
    part.add_argument("--orders", type=int, metavar="N", help="orders of the events before a request, tier full (default: likewise)")
    part.add_argument("--again", action="store_true", help="also where such an audit stands; trains oracles anew, takes none that is kept")
    part.add_argument(
        "--keep-learned",
        action="store_true",
        help="keep the model before the first request beside the oracles, for audits of runs that differ only in how they unlearn",
    )
    part.add_argument("--out", type=Path, metavar="FILE.csv", help="also write all figures, one row a figure")
    part.add_argument("--into", metavar="FILE.md#BLOCK", help="also put the table between <!-- table: BLOCK --> and <!-- end --> of FILE")
    part.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw what is lost against what is gone")
    tables = part.add_mutually_exclusive_group()
    for table, text in (("costs", "what each answer cost beside training again"), ("answers", "how probable the right answers still are")):
        tables.add_argument(f"--{table}", dest="table", action="store_const", const=table, help=f"the table of all says {text}")
    part.set_defaults(table="verdicts")

    part = command("sweep", sweep, "a grid of runs: skips what is done, resumes what was interrupted", "words")
    part.add_argument("words", nargs="+", metavar="EXPERIMENT|key=a,b,c", help="experiment files, then overrides; seed=0..4 is a range")
    part.add_argument("--jobs", type=int, default=1, help="runs side by side, one thread each")

    part = command("reproduce", reproduce, "published settings: ours beside the paper's number, with the source", "words")
    part.add_argument(
        "words", nargs="*", default=[], metavar="NAME|key=value", help="cells of experiments/papers, all of them by default; then overrides"
    )
    part.add_argument("--seeds", default="0..2", help="seeds, such as 0..2 or 0,3")
    part.add_argument("--jobs", type=int, default=1)
    part.add_argument("--table", type=Path, metavar="FILE", help="also write the table into the block 'papers' of FILE")
    part.add_argument("--record", type=Path, metavar="CSV", help="also write the runs' figures, one row a run")

    part = command("bench", bench, "cost per step beside a bare PyTorch loop and Avalanche")
    part.add_argument("arguments", nargs=argparse.REMAINDER, help="see `clu bench --help`")
    part.prefix_chars = "\0"  # everything after `bench` is the benchmark's own

    part = command("new", new, "write a plug-in to fill in, with its test")
    part.add_argument("what", choices=("strategy",))
    part.add_argument("name")
    part.add_argument("--into", type=Path, default=Path(), metavar="DIR")
    return top


def _experiment(part: argparse.ArgumentParser) -> None:
    part.add_argument("experiment", type=Path, help="a YAML file, such as experiments/digits_er.yaml")
    part.add_argument("overrides", nargs="*", default=[], help="key=value, such as seed=3 strategies.er.capacity=200; ~key removes")


# --- commands ---


def list_command(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from cl_framework import registry
    from cl_framework.tables import table_console

    table = Table()
    if arguments.what == "experiments":
        table.add_column("experiment")
        table.add_column("what")
        paths = sorted(Path("experiments").rglob("*.yaml"))
        if not paths:
            raise ConfigurationError("there is no folder experiments here. Go to the project's root, where it lies.")
        for path in paths:
            first = path.read_text().partition("\n")[0]
            table.add_row(str(path), first.lstrip("# ") if first.startswith("#") else "")
    else:
        needs = ["unlearning reads"] * (arguments.what == "strategies")
        for title in ("name", "from", "status", *needs, "what"):
            table.add_column(title, overflow="fold")
        for entry in getattr(registry, arguments.what).entries():
            told = [entry.load().traits.unlearning_needs if entry.status == "ok" else "" for _ in needs]
            table.add_row(entry.name, entry.origin, entry.status, *told, entry.summary)
    table_console().print(table)
    return 0


def show(arguments: argparse.Namespace) -> int:
    from cl_framework.config import load_experiment
    from cl_framework.show import describe

    print(describe(load_experiment(arguments.experiment, arguments.overrides), arguments.plot))
    return 0


def run(arguments: argparse.Namespace) -> int:
    from cl_framework import runner
    from cl_framework.config import load_experiment
    from cl_framework.launch import finish, listening

    experiment = load_experiment(arguments.experiment, arguments.overrides)
    command = shlex.join(["clu", "run", str(arguments.experiment), *arguments.overrides])
    with listening(experiment) as (listeners, stop_requested):
        return finish(runner.run(experiment, command=command, listeners=listeners, stop_requested=stop_requested))


def resume(arguments: argparse.Namespace) -> int:
    from cl_framework import runner
    from cl_framework.config import load_experiment
    from cl_framework.launch import finish, listening
    from cl_framework.records import RunDirectory

    if "=" in str(arguments.run_dir) and not arguments.run_dir.exists():
        raise ConfigurationError(f"the run directory is missing before {arguments.run_dir}. Write clu resume RUN_DIR [key=value …].")
    others = [word for word in arguments.overrides if "=" not in word and Path(word).is_dir()]
    if others:
        raise ConfigurationError(f"one folder at a time: leave out {' '.join(others)}.")
    directory = RunDirectory(arguments.run_dir)
    if directory.status == "absent":
        raise ConfigurationError(f"{arguments.run_dir} is no run directory (it has no config.yaml). Start a run with `clu run`.")
    if directory.status == "done" and not arguments.overrides:  # printed whether or not the plug-ins that it needed are still there
        return finish(runner.resume(arguments.run_dir))
    experiment = load_experiment(directory.config, arguments.overrides)
    with listening(experiment) as (listeners, stop_requested):
        return finish(runner.resume(arguments.run_dir, arguments.overrides, listeners=listeners, stop_requested=stop_requested))


def report(arguments: argparse.Namespace) -> int:
    from cl_framework import report as reports
    from cl_framework.tables import table_console

    pairs = [(one, other) for one, other in arguments.difference]
    if arguments.figure and not pairs:
        raise ConfigurationError("--figure says what --difference compares. Add --difference EXPERIMENT OTHER.")
    figures = arguments.figure or ["average_accuracy"]
    shown, notes = reports.report(arguments.paths, arguments.out, arguments.into, pairs, arguments.plot, figures)
    console = table_console()
    console.print(shown)
    for note in notes:
        console.print(note, soft_wrap=True)
    return 0


def verify(arguments: argparse.Namespace) -> int:
    from cl_framework.tables import table_console
    from cl_framework.unlearning.deletion import DeletionLog
    from cl_framework.unlearning.verify import FAIL, central_claims_stand_open, shown, unchecked
    from cl_framework.unlearning.verify import verify as check

    findings = check(arguments.run_dir, arguments.head)
    console = table_console()
    console.print(shown(findings))
    fails = any(finding.verdict == FAIL for finding in findings)
    if not fails:
        head = DeletionLog(arguments.run_dir / "deletion").head
        console.print(f"head of the record, to be kept elsewhere for a later `clu verify --head`: {head}", soft_wrap=True)
    if left := unchecked(findings):
        console.print(left, soft_wrap=True)
    return 1 if fails else 3 if central_claims_stand_open(findings) else 0


def audit(arguments: argparse.Namespace) -> int:
    from cl_framework.tables import table_console
    from cl_framework.unlearning.audits import Wanted, audits

    console = table_console()
    wanted = Wanted(arguments.tier, arguments.seeds, arguments.orders, arguments.again, arguments.keep_learned)
    products = (arguments.out, arguments.into, arguments.plot, arguments.table)
    for shown in audits(arguments.words, wanted, *products, tell=lambda text: print(text, file=sys.stderr)):
        console.print(shown, soft_wrap=isinstance(shown, str))
    return 0


def sweep(arguments: argparse.Namespace) -> int:
    from cl_framework.sweep import sweep as run_sweep

    experiments = [word for word in arguments.words if word.endswith((".yaml", ".yml"))]
    overrides = [word for word in arguments.words if word not in experiments]
    if not experiments:
        raise ConfigurationError("clu sweep needs an experiment file, such as experiments/digits_er.yaml.")
    return run_sweep([Path(name) for name in experiments], overrides, arguments.jobs)


def reproduce(arguments: argparse.Namespace) -> int:
    from cl_framework.reproduce import reproduce as run_cells

    overrides = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word]
    return run_cells(names, arguments.seeds, overrides, arguments.jobs, arguments.table, arguments.record)


def bench(arguments: argparse.Namespace) -> int:
    from cl_framework.bench import main as run_bench

    return run_bench(arguments.arguments)


def new(arguments: argparse.Namespace) -> int:
    from cl_framework.scaffold import write_plugin

    path = write_plugin(arguments.name, arguments.into)
    print(f"written: {path}\nInstall it with `pip install -e {path}` and run its tests with `pytest {path}`.")
    return 0
