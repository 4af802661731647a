"""The samples that a file of ids names, and what is said of a number that names none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cl_framework import ConfigurationError
from cl_framework.assembly import make_benchmark
from cl_framework.requests import requested_ids
from cl_framework.stream import Unlearn
from cl_framework.testing.laboratory import experiment_of


@pytest.mark.parametrize(
    ("text", "first", "line"),
    [
        ("36 37\n99999999999999999999999 0\n", "99999999999999999999999", 2),  # 23 digits: more than a tensor's number holds
        ("36\n\n-99999999999999999999999\n", "-99999999999999999999999", 3),
        ("-1", "-1", 1),
        ("36 9223372036854775808", "9223372036854775808", 1),  # the first that overflows
        ("36\n50 35\n9\n", "35", 2),  # of the task before
    ],
)
def test_a_number_that_is_no_sample_of_the_task_is_named_with_file_line_and_range(text: str, first: str, line: int, tmp_path: Path) -> None:
    benchmark = make_benchmark(experiment_of({}, tmp_path))  # 36 samples a task
    file = tmp_path / "ids.txt"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as refused:
        requested_ids(Unlearn(1, ids_file=str(file)), benchmark, benchmark.ids_of(1))
    assert str(refused.value) == (
        f"U1:ids={file} lists sample {first} in line {line} of {file}, which is not in task 1: its ids run from 36 to 71. "
        "Name samples of that task alone."
    )


def test_the_samples_of_a_file_are_sorted_and_each_counts_once(tmp_path: Path) -> None:
    benchmark = make_benchmark(experiment_of({}, tmp_path))
    file = tmp_path / "ids.txt"
    file.write_text("71 40\n40\n\n36")
    found = requested_ids(Unlearn(1, ids_file=str(file)), benchmark, benchmark.ids_of(1))
    assert torch.equal(found, torch.tensor([36, 40, 71])) and found.dtype == torch.int64
    assert not torch.equal(found, requested_ids(Unlearn(1), benchmark, benchmark.ids_of(1)))
    kept = benchmark.ids_of(1)[::2]  # where boundaries are blurred, a task does not show all ids between the ends of its range
    file.write_text("36\n37\n")
    with pytest.raises(ConfigurationError, match=r"lists sample 37 in line 2 of .*: its ids run from 36 to 70\."):
        requested_ids(Unlearn(1, ids_file=str(file)), benchmark, kept)
