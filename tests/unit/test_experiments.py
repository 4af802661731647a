"""The files of experiments/: every command that stands in their headers can be given as it stands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from cl_framework import ConfigurationError, load_experiment
from cl_framework.sweep import Cell, cells

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command that starts runs in the comments of a file, a line each or continued by a backslash, others behind &&;
    {a,b} as a shell reads it."""
    comments = "\n".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    for line in comments.replace("\\\n", " ").splitlines():
        for command in line.split("&&") if line.startswith("clu ") else ():
            words = shlex.split(command, comments=True)
            if words[:2] != ["clu", "audit"]:
                yield [one for word in words for one in braced(word)]


def braced(word: str) -> list[str]:
    """A word with one {a,b} as a shell expands it; other words as they are."""
    found = re.fullmatch(r"(.*)\{(\w+(?:,\w+)+)\}(.*)", word)
    return [found[1] + part + found[3] for part in found[2].split(",")] if found else [word]


def checked(words: list[str]) -> list[Cell]:
    """The runs that a command would start: its files are there, and all of its overrides are known."""
    assert words[:2] in (["clu", "run"], ["clu", "sweep"]), words
    files = [Path(word) for word in words[2:] if word.endswith(".yaml")]
    return cells(files, [word for word in words[2:] if not word.endswith(".yaml")])


def test_every_command_in_a_header_can_be_given_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    given = [(path, words) for path in FILES for words in commands(path.read_text())]
    assert {path for path, words in given if words[2] == str(path.relative_to(ROOT))} == set(FILES) and len(given) > len(FILES) > 100
    for _, words in given:
        assert checked(words), words


def test_a_command_that_could_not_be_given_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (wrong,) = commands("# clu run experiments/language_shift.yaml 'strategies.rewarm={warmup:0}'\nbatch_size: 16\n# no command\n")
    with pytest.raises(ConfigurationError, match="unknown option"):
        checked(wrong)
    (gone,) = commands("#   clu sweep experiments/{language_shift,nowhere}.yaml \\\n#     seed=0..2  # three seeds\n")
    assert gone == ["clu", "sweep", "experiments/language_shift.yaml", "experiments/nowhere.yaml", "seed=0..2"]
    with pytest.raises(ConfigurationError, match=r"there is no experiment file experiments/nowhere\.yaml"):
        checked(gone)


def test_the_sweep_of_language_shift_makes_the_whole_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rates, each with four shares of replay, and joint training, three seeds; all else alike."""
    monkeypatch.chdir(ROOT)
    files = [path for path in FILES if path.parent.name == "text" and path.stem.startswith("language_shift_")]
    wanted = {tuple(words) for path in files for words in commands(path.read_text()) if words[1] == "sweep"}
    made = [cell for words in wanted for cell in checked(list(words))]
    assert len(files) == 5 and len(wanted) == 2 and len(made) == 4 * 4 * 3 + 3
    others = {load_experiment(path, ["strategies={}"]).fingerprint for path in files}
    assert others == {load_experiment("experiments/language_shift.yaml").fingerprint}
    assert load_experiment("experiments/language_shift.yaml", ["optimizer.lr=0.123"]).fingerprint not in others
