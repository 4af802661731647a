"""Registries: built-ins and strangers, broken plug-ins, clashes, misspelt seams."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cl_framework import ConfigurationError, FrameworkError, Strategy, Traits, register, registry

GOOD = """
from dataclasses import dataclass
from cl_framework import Strategy, Traits
@dataclass(frozen=True)
class Config:
    pass
class Thing(Strategy):
    '''A thing.'''
    Config = Config
    traits = Traits(no_neutral="a test")
"""


@dataclass(frozen=True)
class NoOptions:
    pass


def install(site: Path, distribution: str, points: dict[str, str], modules: dict[str, str]) -> None:
    """Make a distribution with entry points in a folder, as pip would leave it."""
    info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {place}" for name, place in points.items()]
    (info / "entry_points.txt").write_text("[cl_framework.strategies]\n" + "\n".join(lines) + "\n")
    for name, text in modules.items():
        (site / f"{name}.py").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def status(name: str) -> str:
    return {entry.name: entry.status for entry in registry.strategies.entries()}[name]


def test_built_ins_arrive_through_entry_points() -> None:
    entries = {entry.name: entry for entry in registry.strategies.entries()}
    for name in ("er", "der", "derpp", "joint", "cumulative"):
        assert entries[name].status == "ok"
        assert entries[name].origin.startswith("cl-framework ")
        assert entries[name].summary
    assert {entry.name for entry in registry.benchmarks.entries()} >= {
        "split_digits",
        "split_mnist",
        "perm_mnist",
        "rot_mnist",
        "synthetic",
    }


def test_a_strangers_plug_in(site: Path) -> None:
    install(site, "stranger", {"thing": "stranger_things:Thing"}, {"stranger_things": GOOD})
    assert status("thing") == "ok"
    assert registry.strategies.get("thing").__name__ == "Thing"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_like_this", "ModuleNotFoundError"),
        ("class Thing: pass", "no subclass of cl_framework.Strategy"),
        (
            GOOD + "    def comit(self, batch, output, context): pass\n",
            "has a public method 'comit', which is no seam. Did you mean 'commit'?",
        ),
        (GOOD.replace("frozen=True", "frozen=False"), "are no frozen dataclass"),
        ("raise SystemError('boom')", "SystemError: boom"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_broken_plug_in_is_listed_and_stops_nobody_else(site: Path, text: str, reason: str) -> None:
    install(site, "broken-one", {"thing": "broken_things:Thing"}, {"broken_things": text})
    assert status("thing").startswith("broken: ")
    assert reason in status("thing")
    assert status("er") == "ok"
    with pytest.raises(FrameworkError, match=r"strategy 'thing' of broken-one cannot be loaded.*Mend it, or uninstall broken-one\."):
        registry.strategies.get("thing")


def test_a_clash_names_both_distributions(site: Path) -> None:
    install(site, "first", {"thing": "things_one:Thing"}, {"things_one": GOOD})
    install(site, "second", {"thing": "things_two:Thing", "other": "things_two:Thing"}, {"things_two": GOOD})
    assert status("thing") == "clash: first 1.0 and second 1.0"
    assert status("other") == "ok"
    with pytest.raises(ConfigurationError, match=r"strategy 'thing' is claimed by first 1.0 and second 1.0. Uninstall one of them."):
        registry.strategies.get("thing")


def test_the_same_distribution_seen_twice_is_no_clash(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("one", "two"):
        install(site / folder, "twin", {"thing": "twin_things:Thing"}, {"twin_things": GOOD})
        monkeypatch.syspath_prepend(str(site / folder))
    assert status("thing") == "ok"


def test_registering_in_a_process() -> None:
    class Mine(Strategy):
        """Mine."""

        Config = NoOptions
        traits = Traits(no_neutral="a test")

    class Other(Strategy):
        Config = NoOptions
        traits = Traits(no_neutral="a test")

    try:
        assert register("mine")(Mine) is Mine
        register("mine")(Mine)
        assert registry.strategies.get("mine") is Mine
        with pytest.raises(ConfigurationError, match=r"strategy 'mine' is registered twice: by .*Mine and by .*Other"):
            register("mine")(Other)
    finally:
        registry.strategies.remove("mine")
    with pytest.raises(ConfigurationError, match="there is no strategy named 'mine'"):
        registry.strategies.get("mine")


def test_a_misspelt_seam_is_refused_at_registration() -> None:
    class Misspelt(Strategy):
        Config = NoOptions

        def lose(self) -> None:
            pass

    with pytest.raises(ConfigurationError, match=r"public method 'lose', which is no seam. Did you mean 'loss'\?"):
        register("misspelt")(Misspelt)
