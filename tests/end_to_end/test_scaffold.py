"""`clu new strategy`: the package it writes passes its own test, the contract suite, as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cl_framework.forking import forked
from cl_framework.scaffold import write_plugin


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False)


def suite_of(folder: Path, *words: str) -> tuple[int, str]:
    """`pytest tests` in a plug-in's folder, forked from a process that has imported what it needs: its exit code and what it printed."""
    log = folder / "pytest.log"
    process = forked(_pytest, (folder, ["-q", "-p", "no:cacheprovider", "tests", *words]), log)
    process.join()
    said = log.read_text()
    log.unlink()
    return process.exitcode or 0, said


def _pytest(folder: Path, words: list[str]) -> None:
    os.chdir(folder)
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(folder))
    sys.exit(pytest.main(words))


def test_what_is_written(tmp_path: Path) -> None:
    folder = write_plugin("my_pull", tmp_path)
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert names == ["README.md", "clu_my_pull.py", "setup.cfg", "setup.py", "tests/test_contract.py", "try_it.yaml"]
    text = "".join((folder / name).read_text() for name in names)
    assert "__NAME__" not in text
    assert "__CLASS__" not in text
    assert "class MyPull(Strategy)" in text
    assert [path.name for path in tmp_path.iterdir()] == ["clu-my-pull"]


@pytest.mark.slow
@pytest.mark.longest
def test_it_passes_its_own_suite_and_runs(tmp_path: Path) -> None:
    folder = write_plugin("my_pull", tmp_path)
    made = python(folder, "setup.py", "-q", "egg_info")  # what an editable install leaves: its entry points
    assert made.returncode == 0, made.stderr
    code, said = suite_of(folder)
    assert code == 0, said
    assert " passed" in said
    listed = python(folder, "-m", "cl_framework", "list", "strategies")
    assert "my_pull" in listed.stdout
    ran = python(folder, "-m", "cl_framework", "run", "try_it.yaml", "epochs=1")
    assert ran.returncode == 0, ran.stderr
    broken = (folder / "clu_my_pull.py").read_text().replace('return {"anchors": self.anchors}', "return {}")
    (folder / "clu_my_pull.py").write_text(broken.replace('dict(state["anchors"])', "{}"))
    code, said = suite_of(folder, "-k", "resumes_exactly_after_a_stop_at_any_step")
    assert code == 1
    assert "resume" in said
