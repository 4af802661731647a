"""SIGTERM and Ctrl-C ask for a stop at the next step, so that a checkpoint is written first."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cl_framework.errors import FrameworkError


@contextmanager
def stop_on_signals(report: Callable[[str], None]) -> Iterator[Callable[[int], bool]]:
    """While open, SIGTERM and SIGINT ask for a stop at the next step instead of ending the process; a second one ends it."""
    asked: list[int] = []

    def handle(number: int, frame: object) -> None:
        if asked:
            raise FrameworkError(f"stopped by a second {signal.Signals(number).name} before a checkpoint was written.")
        asked.append(number)
        report(f"{signal.Signals(number).name}: writing a checkpoint, then stopping.")

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda stream_step: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
