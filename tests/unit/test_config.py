"""Configuration: defaults, overrides, round trips, fingerprints, and the text of every refusal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cl_framework import LATER, ConfigurationError, Strategy, Traits, load_experiment, registry
from cl_framework.checks import check_range
from cl_framework.collected import read_csv
from cl_framework.config import _without_later

BASE: dict[str, Any] = {"benchmark": {"name": "synthetic"}, "strategies": {"er": {"capacity": 50}}}


@dataclass(frozen=True)
class PullConfig:
    strength: float = 0.5  # >= 0
    layers: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        check_range("strength", self.strength, low=0)


class Pull(Strategy):
    """A strategy for these tests."""

    Config = PullConfig
    traits = Traits(no_neutral="a test")


@pytest.fixture(autouse=True)
def _pull() -> Iterator[None]:
    registry.strategies.add("pull", Pull)
    yield
    registry.strategies.remove("pull")


def test_defaults_are_written_out_and_survive_a_round_trip(tmp_path: Path) -> None:
    experiment = load_experiment(BASE, ["strategies.pull.strength=0.25"])
    path = tmp_path / "again.yaml"
    path.write_text(experiment.to_yaml())
    again = load_experiment(path)
    assert again == experiment
    assert again.fingerprint == experiment.fingerprint
    assert experiment.strategies[1].options == PullConfig(0.25, (1, 2))
    assert experiment.run.strategies["er"]["capacity"] == 50
    assert load_experiment(BASE) != experiment


def test_the_name_of_the_file_is_the_experiment(tmp_path: Path) -> None:
    path = tmp_path / "my_trial.yaml"
    path.write_text("benchmark: {name: synthetic}\n")
    assert load_experiment(path).run.experiment == "my_trial"


def test_overrides() -> None:
    words = [
        "seed=3",
        "optimizer.lr=1e-3",
        "stream=L0-1 L0",
        "strategies.pull={}",
        "benchmark.tasks=4",
        "model.hidden=[5,6]",
        "data.root=x",
    ]
    experiment = load_experiment(BASE, words)
    run = experiment.run
    assert (run.seed, run.optimizer.lr, run.stream, run.data.root) == (3, 0.001, "L0-1 L0", "x")
    assert [slot.slot for slot in experiment.strategies] == ["er", "pull"]  # a new slot is innermost
    assert experiment.benchmark.options.tasks == 4
    assert experiment.model.options.hidden == (5, 6)
    assert load_experiment(BASE, ["~strategies.er"]).strategies == ()
    assert load_experiment(BASE, ["strategies.second={use: er}"]).strategies[1].name == "er"


def test_the_fingerprint_covers_what_changes_numbers_and_nothing_else() -> None:
    base = load_experiment(BASE).fingerprint
    same = [
        "seed=5",
        "out=x",
        "data.root=y",
        "data.workers=2",
        "logger=wandb",
        "wandb.project=z",
        "threads=1",
        "checkpoint.every_seconds=1",
    ]
    other = [
        "batch_size=7",
        "optimizer.lr=0.2",
        "strategies.er.capacity=51",
        "model.hidden=[3]",
        "stream=L0",
        "benchmark.noise=1",
        "epochs=2",
    ]
    assert {load_experiment(BASE, [word]).fingerprint for word in same} == {base}
    changed = {load_experiment(BASE, [word]).fingerprint for word in other}
    assert len(changed | {base}) == len(other) + 1
    swapped = {**BASE, "strategies": {"pull": {}, "er": {"capacity": 50}}}
    straight = {**BASE, "strategies": {"er": {"capacity": 50}, "pull": {}}}
    assert load_experiment(swapped).fingerprint != load_experiment(straight).fingerprint
    assert load_experiment(swapped).differing_keys(load_experiment(straight)) == ["the order of strategies differs"]


def test_what_a_file_of_ids_holds_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    file = tmp_path / "forget.txt"
    words = [f"stream=L0 U0:ids={file}"]
    without_file = load_experiment(BASE, words).fingerprint
    seen = set()
    for ids in ("1 2", "1 3", "1 2"):
        file.write_text(ids)
        seen.add(load_experiment(BASE, words).fingerprint)
    assert len(seen) == 2 and without_file not in seen


def test_differing_keys_are_named() -> None:
    differing = load_experiment(BASE, ["optimizer.lr=0.2", "seed=4"]).differing_keys(load_experiment(BASE))
    assert differing == ["optimizer.lr is 0.2, was 0.1"]


REFUSED = [
    (["sed=1"], "sed: unknown option. Did you mean 'seed'?"),
    (["lr=1"], "lr: unknown option. Did you mean optimizer.lr?"),
    (["optimizer.lrr=1"], "optimizer.lrr: unknown option. Did you mean 'lr'?"),
    (["strategies.er.capasity=1"], "strategies.er.capasity: unknown option of 'er'. Did you mean 'capacity'?"),
    (["strategies.erx={}"], "there is no strategy named 'erx'. Did you mean 'er'?"),
    (["benchmark.name=split_digit"], "there is no benchmark named 'split_digit'. Did you mean 'split_digits'?"),
    (["model.name=mpl"], "there is no model named 'mpl'. Did you mean 'mlp'?"),
    (["~benchmark.name"], "benchmark.name is missing. `clu list benchmarks` shows what there is."),
    (["benchmark.name=split_digits", "benchmark.noise=3"], "remove it with ~benchmark.noise"),
    (["seed=x"], "seed must be a whole number, got 'x'."),
    (["seed=-1"], "seed must be >= 0, got -1."),
    (["optimizer.lr=0"], "optimizer.lr must be > 0, got 0.0."),
    (["optimizer.name=sdg"], "optimizer.name must be one of sgd, adam, adamw, got 'sdg'."),
    (["optimizer.name=adam", "optimizer.momentum=0.9"], "optimizer.momentum is an option of sgd"),
    (["experiment=../else"], "experiment must be the name of one folder, got '../else'. Set out=DIR for where it lies."),
    (["batch_size=0"], "batch_size must be >= 1 and <= 1e+09, got 0."),
    (["threads=1000000"], "threads must be >= 0 and <= 512, got 1000000."),
    ([".seed=3"], "'.seed=3': a name is missing in '.seed'. Write key=value"),
    (["optimizer.lr=${nope}"], "'optimizer.lr=${nope}' refers to something that is not there: Interpolation key 'nope' not found."),
    (["blurry=1.5"], "blurry must be >= 0 and <= 1, got 1.5."),
    (["scenario=class"], "scenario must be one of class_il, task_il, domain_il, got 'class'."),
    (["online=true", "epochs=2"], "online=true shows every sample once, but epochs is 2. Set epochs=1 or online=false."),
    (["strategies.pull.strength=-1"], "strategies.pull.strength must be >= 0, got -1.0."),
    (["strategies.pull.strength=nan"], "strategies.pull.strength must be a finite number, got nan."),
    (["optimizer.lr=inf"], "optimizer.lr must be a finite number, got inf."),
    (["strategies=[er]"], "strategies must be options, each `name: value`, but got a list."),
    (["optimizer=[sgd]"], "optimizer: expected options, got ['sgd']. Known: name, lr"),
    (["strategies.pull.layers=3"], "strategies.pull.layers must be a list, each a whole number, got 3."),
    (["optimizer.lr=fast"], "optimizer.lr must be a number, got 'fast'."),
    (["optimizer.clip=hard"], "optimizer.clip must be a number or null, got 'hard'."),
    (["online=perhaps"], "online must be true or false, got 'perhaps'."),
    (["model.hidden=[a]"], "model.hidden must be a list, each a whole number, got ['a']."),
    (["strategies.er=3"], "strategies.er must be options such as {} or {capacity: 500}, got 3."),
    (["optimizer=3"], "optimizer: expected options, got 3."),
    (["seed"], "cannot read the override 'seed'. Write key=value"),
    (["seed=[1"], "cannot read the value of 'seed=[1'."),
    (["~strategies.derpp"], "~strategies.derpp: there is nothing to remove."),
]


@pytest.mark.parametrize(("overrides", "text"), REFUSED, ids=lambda value: value[-1] if isinstance(value, list) else None)
def test_refusals_name_the_key_and_the_remedy(overrides: list[str], text: str) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(text)) as caught:
        load_experiment(BASE, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("- a\n- b\n", "must hold keys and values, not a list"),
        ("a: [1\nb: 2\n", "is no valid YAML at line"),
        ("null: 3\n", "Incompatible key type 'NoneType'. Put quotes around a key that YAML takes for something else."),
        ("experiment: ${name}\n", "experiment: Interpolation key 'name' not found."),
        ("benchmark: {name: synthetic}\nstrategys: {}\n", "strategys: unknown option. Did you mean 'strategies'?"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=re.escape(text)):
        load_experiment(path)


def test_a_missing_file() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no experiment file nowhere\.yaml. `clu list experiments`"):
        load_experiment("nowhere.yaml")


# --- options that came later ---


@dataclass(frozen=True)
class Younger:
    old: int = 1
    new: list[int] = field(default_factory=list, metadata=LATER)
    better: float = field(default=0.1, metadata={**LATER, "before": 0.0})


def test_an_option_that_came_later_is_no_part_of_the_fingerprint_at_its_default() -> None:
    assert _without_later(Younger(), {"use": "x", "old": 1, "new": []}) == {"use": "x", "old": 1}
    assert _without_later(Younger(new=[2]), {"use": "x", "old": 1, "new": [2]}) == {"use": "x", "old": 1, "new": [2]}
    assert _without_later(Younger(better=0.0), {"old": 1, "better": 0.0}) == {"old": 1}
    assert _without_later(Younger(), {"old": 1, "better": 0.1}) == {"old": 1, "better": 0.1}
    base = load_experiment(BASE)
    assert {"without", "evaluate_every", "probes"} & set(base.numbers) == set()
    assert load_experiment(BASE, ["evaluate_every=5"]).differing_keys(base) == ["evaluate_every is 5, was 'absent'"]


@pytest.mark.parametrize("name", ["seq_mnist", "perm_mnist", "online_cifar10_jpeg", "papers", "digits"])
def test_committed_records_are_of_the_settings_that_stand_in_their_files(name: str) -> None:
    """So that a sweep adds seeds to them, and a table can be made again: an option that changes a fingerprint must be marked as LATER."""
    root = Path(__file__).parents[2] / "experiments"
    folder = {"papers": root / "papers", "digits": root}.get(name, root / "compare")
    recorded = {(summary["experiment"], summary["fingerprint"]) for summary in read_csv(root / "results" / f"{name}.csv")}
    here = {(path.stem, load_experiment(path).fingerprint) for path in folder.glob("*.yaml")}
    assert len(recorded) >= 3
    assert {(experiment, fingerprint[:8]) for experiment, fingerprint in here} >= recorded
    changed = {(path.stem, load_experiment(path, ["optimizer.lr=0.123"]).fingerprint[:8]) for path in folder.glob("*_er*.yaml")}
    assert not changed & recorded
