"""Memory that a step frees is kept for the next one.

The C library gives large pieces back to the system at once, which then has to clear and map them again: of a window of rows that is
more than half of the time that reading it takes.
"""

from __future__ import annotations

import ctypes
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT_AT_END = 256 << 20  # freed bytes at the end of the heap beyond which they go back
_OF_THE_HEAP = 64 << 20  # pieces smaller than this come from the heap


@cache
def keep_freed_memory() -> bool:
    """Ask it of this process's C library, once. False where that has no such setting (it is GNU's)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_AT_END)) and bool(mallopt(_M_MMAP_THRESHOLD, _OF_THE_HEAP))
