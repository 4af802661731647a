"""Published cells: what the files claim, and four of them run on one seed against their tolerance."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import pytest

from cl_framework import load_experiment, run
from cl_framework.reproduce import PAPERS, Published, find_cells, published, row, table_from_record

ROOT = Path(__file__).parents[2]
COUNT = 109
CELLS = ("seq_mnist_sgd", "seq_mnist_er_200", "seq_mnist_der_200", "seq_mnist_derpp_500")
NAMES = {
    "seq_mnist": "split_mnist",
    "perm_mnist": "perm_mnist",
    "rot_mnist": "rot_mnist",
    "seq_cifar10": "split_cifar10",
    "seq_cifar100": "split_cifar100",
    "seq_tinyimagenet": "split_tiny_imagenet",
}
SETTINGS = {"sgd", "released", "weak", "untied"}  # parts of a name that say how, not what


def mnist_cells() -> list[str]:
    return [path.stem for path in find_cells([]) if "_mnist_" in path.stem]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
def test_every_cell_is_what_its_name_says() -> None:
    paths = find_cells([])
    assert len(paths) == COUNT
    for path in paths:
        experiment = load_experiment(path)
        stream = "_".join(path.stem.split("_")[:2])
        method = path.stem.removeprefix(f"{stream}_")
        assert experiment.benchmark.name == NAMES[stream]
        names = {slot.name: slot for slot in experiment.strategies}
        schedule = names.pop("milestones", None)  # of the stream, not of the method
        assert (schedule is not None) is (stream == "seq_cifar100") or "gdumb" in method, path.stem  # GDumb trains on its own
        said = set(method.replace("er_ace", "erace").replace("view_batch", "viewbatch").split("_"))
        numbers = {int(part) for part in said if part.isdigit()}
        methods = {part for part in said if not part.isdigit()} - SETTINGS
        assert methods == {name.replace("_", "") for name in names}, path.stem
        assert numbers == {slot.options.capacity for slot in experiment.strategies if hasattr(slot.options, "capacity")}, path.stem
        assert path.read_text().startswith(f"# clu run experiments/papers/{path.name}")
        figures = published(path)
        assert {figure.figure for figure in figures} <= {"average_accuracy", "average_accuracy_task_il"}
        assert figures and all(figure.source for figure in figures)
        if stream == "rot_mnist":
            assert "reconstructed" in path.read_text()


def test_a_figure_may_have_been_published_more_than_once(tmp_path: Path) -> None:
    text = (PAPERS / "seq_mnist_er_200.yaml").read_text()
    once = published(PAPERS / "seq_mnist_er_200.yaml")
    path = tmp_path / "cell.yaml"
    path.write_text(text.partition("expected:")[0] + "expected:\n  x: [{value: 1.0, source: a}, {value: 2.0, deviation: 0.5, source: b}]\n")
    assert published(path) == [Published("x", 1.0, None, "a"), Published("x", 2.0, 0.5, "b")] and len(once) == 1
    rows = [row(path, figure, {0: 2.0}, [0]) for figure in (Published("x", 5.0, None, "a"), Published("x", 2.0, 0.5, "b"))]
    assert [line[5] for line in rows] == ["no", "yes"]


def test_tolerances() -> None:
    assert Published("x", 80.0, 0.5, "s").tolerance == 2.5
    assert Published("x", 80.0, 2.0, "s").tolerance == 4.0
    assert Published("x", 80.0, None, "s").tolerance == 2.5
    cell, figure = Path("cell.yaml"), Published("average_accuracy", 80.0, 0.5, "s")
    assert row(cell, figure, {}, [0, 1, 2])[3:6] == ["not run", "", ""]
    assert row(cell, figure, {0: 81.0}, [0, 1, 2])[3:6] == ["81.00", "1 of 3", "yes"]
    assert row(cell, figure, {0: 82.0, 1: 84.0, 2: 83.0}, [0, 1, 2])[3:6] == ["83.00 ± 1.00", "0, 1, 2", "no"]
    assert row(cell, Published("x", None, None, "s"), {0: 1.0}, [0])[2:6] == ["none", "1.00", "0", ""]


def test_the_readmes_table_is_made_from_the_committed_record() -> None:
    block = (ROOT / "README.md").read_text().partition("<!-- table: papers -->\n")[2].partition("\n<!-- end -->")[0]
    assert block == table_from_record(ROOT / "experiments" / "results" / "papers.csv", [0, 1, 2], mnist_cells())
    for line in block.splitlines()[2:]:
        method = line.split(" | ")[0].partition("_mnist_")[2].partition("_")[0]
        assert "not run" not in line, method


def test_the_other_cells_stand_beside_their_files() -> None:
    block = (PAPERS / "README.md").read_text().partition("<!-- table: papers -->\n")[2].partition("\n<!-- end -->")[0]
    others = [path.stem for path in find_cells([]) if path.stem not in mnist_cells()]
    assert block == table_from_record(ROOT / "experiments" / "results" / "papers.csv", [0, 1, 2], others)


def mnist_root(folder: Path) -> Path | None:
    """MNIST in torchvision's layout, from CL_DATA or unpacked from a copy beside the checkout; None if there is none."""
    given = os.environ.get("CL_DATA")
    if given and (Path(given) / "MNIST" / "raw").is_dir():
        return Path(given)
    packed = sorted((ROOT.parent / "shared" / "data" / "mnist" / "MNIST" / "raw").glob("*.gz"))
    if not packed:
        return None
    target = folder / "MNIST" / "raw"
    target.mkdir(parents=True, exist_ok=True)
    for path in packed:
        with gzip.open(path) as source, (target / path.stem).open("wb") as unpacked:
            shutil.copyfileobj(source, unpacked)
    return folder


@pytest.fixture(scope="module")
def mnist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = mnist_root(tmp_path_factory.mktemp("mnist"))
    if root is None:
        pytest.skip("MNIST is neither in CL_DATA nor beside the checkout; test_golden.py runs these cells' settings on the digits")
    return root


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_a_published_cell_on_one_seed(cell: str, mnist: Path, tmp_path: Path) -> None:
    path = PAPERS / f"{cell}.yaml"
    result = run(load_experiment(path, [f"data.root={mnist}", f"out={tmp_path}", "seed=0"]))
    (figure,) = published(path)
    assert result.summary is not None
    assert figure.value is not None
    assert abs(result.summary[figure.figure] - figure.value) <= figure.tolerance
