"""An embedded corpus: paragraphs of docstrings of packages that this one needs, labelled by module. No download, no import of them.

What there is differs from version to version, so its figures are no results: it is for first runs and tests.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from cl_framework.benchmarks.text.corpora import Corpus
from cl_framework.errors import ConfigurationError

MODULES = (
    "scipy.stats",
    "matplotlib.axes",
    "sklearn.linear_model",
    "torch.nn",
    "scipy.optimize",
    "numpy.polynomial",
    "scipy.signal",
    "sklearn.metrics",
    "scipy.sparse",
    "networkx.algorithms",
)
TRAIN, TEST = 300, 60  # paragraphs of a module, at most
_INSTALLED_AS = {"sklearn": "scikit-learn"}  # where a package has another name
_SHORTEST = 60  # characters of a paragraph


def docstrings() -> Corpus:
    """Paragraphs by module, two modules a task; all of one object are in the same split, since they resemble one another.

    ConfigurationError if a module has none to train on, or none to test on.
    """
    found: dict[str, tuple[list[str], list[str]]] = {}
    seen: dict[str, str] = {}
    for module in MODULES:
        train: list[str] = []
        test: list[str] = []
        for name, paragraph in _paragraphs(module):
            if seen.setdefault(paragraph, module) != module or paragraph in train or paragraph in test:
                continue
            split, most = (test, TEST) if hashlib.sha256(name.encode()).digest()[0] % 5 == 0 else (train, TRAIN)
            if len(split) < most:
                split.append(paragraph)
            if len(train) == TRAIN and len(test) == TEST:
                break
        if not (train and test):
            raise ConfigurationError(
                f"benchmark docstrings: paragraphs in the sources of {module}: {len(train)} to train on, {len(test)} to test on; it needs "
                f"both. Install these sources again: pip install --force-reinstall --no-deps -c constraints.txt {_pip(module)}."
            )
        found[module] = train, test
    pairs = list(zip(MODULES[::2], MODULES[1::2], strict=True))
    return Corpus(
        [(text, module) for module in MODULES for text in found[module][0]],
        [(text, module) for module in MODULES for text in found[module][1]],
        {" and ".join(pair): pair for pair in pairs},
    )


def _paragraphs(module: str) -> Iterator[tuple[str, str]]:
    """(object, paragraph) of all docstrings below a module's folder, read from the source."""
    package, _, below = module.partition(".")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            f"benchmark docstrings reads the sources of {package}, which is not installed: pip install {_pip(module)}."
        )
    root = Path(spec.origin).parent
    for path in sorted((root / below).rglob("*.py")):
        if {"tests", "test"} & set(path.relative_to(root).parts):  # Python itself may lie below a folder of that name
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                name = f"{path.name}:{getattr(node, 'name', '')}"
                for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                    words = " ".join(paragraph.split())
                    if len(words) >= _SHORTEST and not words.startswith(">>>"):
                        yield name, words


def _pip(module: str) -> str:
    """What pip calls the package of a module."""
    package = module.partition(".")[0]
    return _INSTALLED_AS.get(package, package)
