"""`clu new strategy NAME`: a plug-in package that works, to be filled in: card, configuration, test, entry point."""

from __future__ import annotations

import keyword
import re
import shutil
import tempfile
from pathlib import Path

from cl_framework import registry
from cl_framework.errors import ConfigurationError
from cl_framework.records import cannot_write

TEMPLATES = Path(__file__).parent / "templates" / "strategy"


def write_plugin(name: str, into: Path) -> Path:
    """Write the package of a strategy `name` into a new folder of `into`, whole or not at all; returns the folder."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise ConfigurationError(
            f"{name!r} is no strategy name: use lower-case letters, digits and underscores, such as my_replay, and no word of Python's own."
        )
    if name in {entry.name for entry in registry.strategies.entries()}:
        raise ConfigurationError(f"there is a strategy named {name!r} already (see `clu list strategies`). Choose another name.")
    distribution = f"clu-{name.replace('_', '-')}"
    folder = into / distribution
    if folder.exists():
        raise ConfigurationError(f"{folder} exists already. Remove it, or choose another name or --into DIR.")
    words = {"NAME": name, "CLASS": "".join(part.capitalize() for part in name.split("_")), "DISTRIBUTION": distribution}
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into) as aside:
            written = Path(aside) / distribution
            for template in sorted(TEMPLATES.rglob("*.template")):
                target = written / _filled(str(template.relative_to(TEMPLATES)).removesuffix(".template"), words)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_filled(template.read_text(), words))
            shutil.move(written, folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"__{word}__", value)
    return text
