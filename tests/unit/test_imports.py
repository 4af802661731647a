"""Who may import whom, read from the source of every file; and that what is optional may be absent."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

import cl_framework

ROOT = Path(__file__).parents[2]
FILES = sorted([*ROOT.glob("cl_framework/**/*.py"), *ROOT.glob("strategies/**/*.py")])

# package -> the files of cl_framework that may import it; a folder ends with "/"
HOMES: Mapping[str, tuple[str, ...]] = {
    "pytorch_lightning": ("host.py", "runner.py", "loggers/"),
    "lightning": (),
    "wandb": ("loggers/wandb.py",),
    "avalanche": ("benchmarks/avalanche.py", "bench_sides.py"),
    "transformers": ("models/", "benchmarks/text"),
    "peft": ("models/", "benchmarks/text"),
    "omegaconf": ("config.py", "structured.py", "cli.py"),
    "strategies": (),
}
HEAVY = ("pytorch_lightning", "wandb", "avalanche", "transformers", "peft", "sklearn", "matplotlib", "torchvision", "scipy", "rich")
EAGER = {"cl_framework/host.py": ("pytorch_lightning",)}  # itself imported when a run starts, and then needed
OF_STRATEGIES = {"torch", "torchvision", *sys.stdlib_module_names}


@dataclass(frozen=True)
class Import:
    module: str  # "torch.nn"
    names: tuple[str, ...]  # of `from module import names`
    line: int
    eager: bool  # runs when the file is imported

    @property
    def package(self) -> str:
        return self.module.split(".")[0]


def imports_of(source: str, package: str) -> Iterator[Import]:
    """All imports of a file that lies in `package`, those inside functions and under TYPE_CHECKING included."""
    waiting: list[tuple[ast.AST, bool]] = [(ast.parse(source), True)]
    while waiting:
        node, eager = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, (), node.lineno, eager) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield Import(module, tuple(alias.name for alias in node.names), node.lineno, eager)
        inside = eager and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend((child, False) for child in node.body)
            waiting.extend((child, inside) for child in node.orelse)
        else:
            waiting.extend((child, inside) for child in ast.iter_child_nodes(node))


def violations(path: str, source: str) -> list[str]:
    """What a file (its path from the repository's root) imports against the rules."""
    found = []
    for one in imports_of(source, path.removesuffix(".py").rpartition("/")[0].replace("/", ".")):
        where = f"{path}:{one.line} imports {one.module}"
        if path.startswith("strategies/"):
            if one.module == "cl_framework":
                hidden = sorted(set(one.names) - set(cl_framework.__all__))
                found += [f"{where}: not public: {', '.join(hidden)}"] if hidden or not one.names else []
            elif one.package not in OF_STRATEGIES:
                found.append(f"{where}: strategies import public names of cl_framework, torch, torchvision and the standard library")
            continue
        homes = tuple(f"cl_framework/{home}" for home in HOMES.get(one.package, ("",)))
        if not path.startswith(homes):
            found.append(f"{where}: allowed only in {', '.join(homes) or 'no file'}")
        elif one.eager and one.package in HEAVY and one.package not in EAGER.get(path, ()):
            found.append(f"{where} when it is imported itself: move it into the function that needs it")
    return found


def test_every_file_keeps_the_import_rules() -> None:
    found = [text for file in FILES for text in violations(file.relative_to(ROOT).as_posix(), file.read_text())]
    assert found == []
    assert len(FILES) >= 50, "the walk lost files"
    folders = {file.relative_to(ROOT).parent.as_posix() for file in FILES}
    assert folders >= {"cl_framework", "cl_framework/benchmarks", "cl_framework/loggers", "cl_framework/models", "strategies"}


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("cl_framework/stack.py", "import strategies.er", "allowed only in no file"),
        ("cl_framework/stack.py", "def f():\n    from strategies import er", "stack.py:2 imports strategies: allowed only in no file"),
        ("cl_framework/stack.py", "import pytorch_lightning", "allowed only in cl_framework/host.py"),
        ("cl_framework/stack.py", "import lightning.pytorch", "allowed only in no file"),
        ("cl_framework/loggers/console.py", "def f():\n    import wandb", "allowed only in cl_framework/loggers/wandb.py"),
        ("cl_framework/loggers/wandb.py", "import wandb", "move it into the function"),
        (
            "cl_framework/bench_sides.py",
            "class A:\n    import avalanche.training",
            "bench_sides.py:2 imports avalanche.training when it is",
        ),
        ("cl_framework/runner.py", "if x:\n    import pytorch_lightning", "move it into the function"),
        (
            "cl_framework/learner.py",
            "from omegaconf import OmegaConf",
            "allowed only in cl_framework/config.py, cl_framework/structured.py, cl_framework/cli.py",
        ),
        ("cl_framework/report.py", "import matplotlib.figure", "move it into the function"),
        ("strategies/er.py", "from cl_framework.memory import Memory", "strategies import public names"),
        ("strategies/er.py", "import cl_framework", "not public"),
        ("strategies/er.py", "from cl_framework import Memory, Learner", "not public: Learner"),
        ("strategies/er.py", "from strategies.der import DER", "strategies import public names"),
        ("strategies/er.py", "from .der import DER", "er.py:1 imports strategies.der"),
        ("strategies/er.py", "def f():\n    import pytorch_lightning", "strategies import public names"),
    ],
)
def test_a_file_that_breaks_a_rule_is_found(path: str, source: str, message: str) -> None:
    (found,) = violations(path, source)
    assert message in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("cl_framework/host.py", "import pytorch_lightning as lightning"),
        ("cl_framework/loggers/wandb.py", "if TYPE_CHECKING:\n    from pytorch_lightning.loggers import WandbLogger"),
        ("cl_framework/benchmarks/avalanche.py", "def f():\n    import avalanche"),
        ("cl_framework/report.py", "def f():\n    from matplotlib.figure import Figure"),
        ("cl_framework/config.py", "from omegaconf import OmegaConf"),
        ("strategies/er.py", "import math\nimport torch\nfrom torch.nn import functional\nfrom cl_framework import Memory, Strategy"),
    ],
)
def test_what_the_rules_allow_passes(path: str, source: str) -> None:
    assert violations(path, source) == []


def test_no_file_moves_the_process_or_its_search_path() -> None:
    for file in FILES:
        calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if call in ("os.chdir", "chdir") or call.startswith("sys.path.")], file


# --- what a fresh process loads, and can do without ---


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300, check=False
    )


LOADED = """
import importlib, sys
importlib.import_module(sys.argv[1])
print(" ".join(name for name in sys.argv[2:] if name in sys.modules))
"""


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("cl_framework", (*HEAVY, "torch", "omegaconf")),
        ("cl_framework.cli", (*HEAVY, "torch", "omegaconf")),
        ("cl_framework.runner", HEAVY),
        ("cl_framework.loggers.wandb", HEAVY),
        ("strategies", HEAVY),
    ],
)
@pytest.mark.slow
def test_a_fresh_import_loads_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    result = python(LOADED, module, *heavy)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


@pytest.mark.slow
def test_a_heavy_import_would_be_seen() -> None:
    assert python(LOADED, "torch", "torch", "wandb").stdout.split() == ["torch"]


TRAIN = """
import importlib.metadata as metadata, sys
absent = sys.argv[2:]
sys.modules.update(dict.fromkeys(absent))   # importing one of these now fails, as where it is not installed
known = metadata.distribution

def distribution(name):   # and nobody is told that it is there
    if name in absent:
        raise metadata.PackageNotFoundError(name)
    return known(name)

metadata.distribution = distribution
from cl_framework import load_experiment, run
experiment = load_experiment({
    "experiment": "absent", "benchmark": {"name": "synthetic"}, "strategies": {"er": {"capacity": 20}},
    "epochs": 1, "threads": 1, "out": sys.argv[1],
})
result = run(experiment)
print(result.status, result.summary["average_accuracy"] > 0)
"""


@pytest.mark.slow
def test_a_machine_without_the_optional_packages_trains(tmp_path: Path) -> None:
    result = python(TRAIN, str(tmp_path), "avalanche", "wandb", "transformers", "peft", "sklearn")
    assert result.stdout.split() == ["done", "True"], result.stderr


@pytest.mark.slow
def test_a_package_that_is_needed_would_be_missed(tmp_path: Path) -> None:
    result = python(TRAIN, str(tmp_path), "omegaconf")
    assert result.returncode != 0
    assert "omegaconf" in result.stderr
