"""Progress in the terminal: one bar over the whole stream, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_framework.listeners import Listener, Progress, RunInfo
from cl_framework.metrics import perplexity
from cl_framework.tables import number

_SECONDS_BETWEEN_READINGS = 0.25  # reading the running accuracy waits for the device
_LONGEST_NOTE = 160  # characters: the names of a hundred classes would fill the screen


class ConsoleListener(Listener):
    """Writes to stderr; what a command gives back goes to stdout."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)
        self._bar: Any = None
        self._task: Any = None
        self._last_reading = 0.0
        self._started = 0.0
        self._event = -1

    def on_start(self, info: RunInfo) -> None:
        self._events = [str(event) for event in info.stream]
        self._gone = info.stream.classes_gone
        self._started = time.monotonic()
        verb = "resuming" if info.resumed else "running"
        self._say(f"{verb} {info.directory.path}: {len(self._events)} events")
        if not info.resumed:
            for name, text in info.notes.items():
                self._say(f"{name}: {textwrap.shorten(text, _LONGEST_NOTE, placeholder=' … (whole in env.json)')}")
        if self._console.is_terminal:
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[accuracy]}"), TimeRemainingColumn())
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task("", total=len(self._events), accuracy="")
            self._bar.start()

    def on_event_start(self, index: int) -> None:
        self._event = index
        if self._bar is not None:
            self._bar.update(self._task, completed=index, description=f"{self._events[index]} ({index + 1}/{len(self._events)})")

    def on_progress(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._bar is None or now - self._last_reading < _SECONDS_BETWEEN_READINGS:
            return
        self._last_reading = now
        phase = progress.position.phase
        done = progress.position.step / max(1, phase.steps) if phase is not None else 0.0
        accuracy = progress.accuracy
        shown = "" if accuracy is None else f"running accuracy {accuracy:.0f} %"
        self._bar.update(self._task, completed=self._event + done, accuracy=shown)

    def on_evaluation(self, index: int, event: str, rows: Sequence[Mapping[str, Any]], scenario: str) -> None:
        if index < 0:
            return
        if self._bar is not None:
            self._bar.update(self._task, completed=index + 1)
            return
        gone = {task: f"test:class!={','.join(map(str, classes))}" for task, classes in self._gone[index].items()}
        parts = {(row["eval_task"], row["split"]) for row in rows}

        def split_of(row: Mapping[str, Any]) -> str:
            """What is left of a task of which classes are gone, as in the matrix; the whole of any other."""
            left = gone.get(row["eval_task"], "test")
            return left if (row["eval_task"], left) in parts and row["metric"] == "accuracy" else "test"

        whole = [row for row in rows if (row["scenario"], row["split"]) == (scenario, split_of(row))]
        found = "accuracy by task " + " ".join(f"{row['value']:.1f}" for row in whole if row["metric"] == "accuracy")
        perplexities = [number(perplexity(row["value"]), places=1) for row in whole if row["metric"] == "loss"]
        if perplexities:
            found += f", perplexity {' '.join(perplexities)}"
        seconds = time.monotonic() - self._started
        self._say(f"event {index + 1}/{len(self._events)} {event}: {found} ({seconds:.1f} s)")

    def on_warning(self, text: str) -> None:
        self._say(f"warning: {text}")

    def on_stop(self, path: Path) -> None:
        self._close()

    def on_failure(self, text: str) -> None:
        self._close()

    def on_finish(self, summary: Mapping[str, Any]) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)
