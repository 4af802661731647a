"""What a process frees it takes again without new pages from the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PIECES = """
import resource, sys
import torch
from cl_framework.allocation import keep_freed_memory

torch.set_num_threads(1)
if sys.argv[1] == "kept":
    assert keep_freed_memory() and keep_freed_memory()
for turn in range(200):
    if turn == 20:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(10 << 20).fill_(1)  # 40 MiB: as it is, a piece that is mapped by itself
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is GNU's")
def test_freed_memory_is_not_mapped_again() -> None:
    def pages(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", PIECES, how], capture_output=True, text=True, check=True).stdout)

    assert pages("kept") < 100  # of 180 turns with 10,240 pages each, or 20 where the system gives large ones
    assert pages("as it is") > 1_000
