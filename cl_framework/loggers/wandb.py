"""Weights & Biases: one W&B run a stream, on its own step axis, offline unless asked otherwise.

Everything lies under the run directory (`wandb/` and `wandb.json`, which keeps the id under which a resumed run continues).
A row's number in W&B's history is a pure function of the position in the stream, so rows that a resumed run trains again fall on those
that were already there.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cl_framework.errors import ConfigurationError, FrameworkError
from cl_framework.listeners import Listener, Progress, RunInfo
from cl_framework.metrics import average_accuracy, forgetting, is_left, matrices
from cl_framework.records import atomic_write
from cl_framework.stream import Stream

if TYPE_CHECKING:
    from pytorch_lightning.loggers import WandbLogger

    from cl_framework.schema import WandbConfig

TRAINING_INTERVAL = 50  # optimizer steps between two readings of loss and accuracy: each reading waits for the device
FIGURES = (
    "average_accuracy",
    "average_accuracy_task_il",
    "average_anytime_accuracy",
    "forgetting",
    "bwt",
    "fwt",
    "steps",
    "samples",
    "samples_new",
    "samples_replayed",
    "answer_samples",
    "forward_passes",
    "backward_passes",
    "stored_bytes",
    "train_seconds",
    "answer_seconds",
    "eval_seconds",
    "peak_rss_mib",
)


def training_row(progress: Progress) -> dict[str, float]:
    """Loss and accuracy (percent) of the last step's rows. Waits for the device."""
    row = {"stream_step": float(progress.position.stream_step), "train/loss": progress.loss}
    accuracy = progress.accuracy
    return row if accuracy is None else row | {"train/accuracy": accuracy}


def evaluation_row(records: Sequence[Mapping[str, Any]], stream: Stream, num_tasks: int, index: int, scenario: str) -> dict[str, float]:
    """What an evaluation after event `index` (-1: the untrained model) found, percent.

    `records` are all accuracy rows of the run so far. Figures with nothing to average, and values that are no number, are left out.
    """
    row: dict[str, float] = {"event": float(index)}
    for record in records:
        if record["event_index"] == index:
            row["stream_step"] = float(record["stream_step"])
            part = record["split"].removeprefix("test")  # "" or, say, ":class=3"
            if record["value"] is not None:
                row[f"{record['metric']}/{record['scenario']}/task_{record['eval_task']}{part}"] = record["value"]
    if index < 0:
        return row
    splits = {(record["eval_task"], record["split"]) for record in records}
    so_far = Stream(stream.events[: index + 1], num_tasks).knowing(lambda task, classes: is_left(task, classes, splits))
    matrix, at_the_end = matrices([record for record in records if record["event_index"] <= index], scenario, so_far, num_tasks)
    average = average_accuracy(matrix[-1], so_far.live_after[-1])
    figures = {"average_accuracy": average, "forgetting": forgetting(at_the_end, so_far)}
    return row | {name: value for name, value in figures.items() if value is not None}


def history_step(row: Mapping[str, float], index: int, *, evaluation: bool) -> int:
    """A row's number in W&B's history: strictly growing along the stream, whether or not an event takes steps."""
    return int(row["stream_step"]) + index + (1 if evaluation else 0)


def run_id(path: Path) -> str:
    """The id kept in `path`, or a new one that is then kept there."""
    try:
        return str(json.loads(path.read_text())["id"])
    except FileNotFoundError:
        pass
    except (ValueError, TypeError, KeyError) as error:
        raise FrameworkError(f"{path} is damaged ({error}). Remove it to go on under a new W&B run, or resume with logger=none.") from error
    new = secrets.token_hex(4)
    atomic_write(path, json.dumps({"id": new}) + "\n")
    return new


@contextmanager
def files_under(folder: Path) -> Iterator[None]:
    """Keep W&B's staging files, caches and logs in `folder`, not in the user's home."""
    names = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(folder)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class WandbListener(Listener):
    """Sends a run to W&B. Raises ConfigurationError when wandb is missing or, online, has no credentials."""

    def __init__(self, settings: WandbConfig) -> None:
        try:
            import wandb
            from pytorch_lightning.loggers import WandbLogger
        except ImportError as error:
            raise ConfigurationError(
                f"logger=wandb needs wandb, which cannot be imported ({error}). Install it with `pip install wandb`, or use logger=none."
            ) from error
        self._wandb: Any = wandb  # imported here, when it is used
        self._make_logger = WandbLogger
        self._settings = settings
        self._logger: WandbLogger | None = None
        self._open = ExitStack()
        if settings.mode == "online":
            self._require_credentials()

    def _require_credentials(self) -> None:
        try:
            found = self._wandb.login(prompt=False)
        except self._wandb.errors.Error as error:
            raise ConfigurationError(
                f"wandb.mode=online: W&B refused the credentials ({error}). Use `wandb login` or wandb.mode=offline."
            ) from error
        if not found:
            raise ConfigurationError("wandb.mode=online found no W&B credentials. Run `wandb login` first, or use wandb.mode=offline.")

    def on_start(self, info: RunInfo) -> None:
        self._info = info
        self._last_reading: int | None = None
        directory, run = info.directory, info.experiment.run
        identity = run_id(directory.path / "wandb.json")
        self._open.enter_context(files_under(directory.path / "wandb"))
        try:
            wandb_run = self._wandb.init(
                id=identity,
                resume="allow",
                mode=self._settings.mode,
                project=self._settings.project,
                entity=self._settings.entity,
                group=self._settings.group or run.experiment,
                tags=list(self._settings.tags),
                name=f"{run.experiment}/{directory.path.name}",
                dir=directory.path,
                reinit="create_new",  # a W&B run that is open in this process is not ours
                settings=self._wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True),
            )
        except self._wandb.errors.Error as error:
            self._open.close()
            raise FrameworkError(f"W&B could not start ({error}). Resume with wandb.mode=offline or logger=none.") from error
        wandb_run.define_metric("stream_step", hidden=True)
        wandb_run.define_metric("*", step_metric="stream_step")
        self._logger = self._make_logger(experiment=wandb_run)
        self._logger.log_hyperparams(info.experiment.to_dict())

    def on_event_start(self, index: int) -> None:
        self._last_reading = None

    def on_progress(self, progress: Progress) -> None:
        step = progress.position.stream_step
        if self._last_reading is not None and step - self._last_reading < TRAINING_INTERVAL:
            return
        self._last_reading = step
        row = training_row(progress)
        self._log(row, history_step(row, progress.position.event_index, evaluation=False))

    def on_evaluation(self, index: int, event: str, rows: Sequence[Mapping[str, Any]], scenario: str) -> None:
        stream = self._info.stream
        num_tasks = stream.num_tasks or 1 + max(stream.tasks)
        row = evaluation_row(self._info.directory.records(), stream, num_tasks, index, scenario)
        self._log(row, history_step(row, index, evaluation=True))

    def on_stop(self, path: Path) -> None:
        self._close("stopped", exit_code=1)

    def on_failure(self, text: str) -> None:
        self._close("failed", exit_code=1)

    def on_finish(self, summary: Mapping[str, Any]) -> None:
        from cl_framework.plots import matrix_figure, png

        matrix = summary["accuracy_matrix"]
        columns = ["event", *(f"task {task}" for task in range(len(matrix[0])))]
        cells = [[str(event), *row] for event, row in zip(self._info.stream, matrix, strict=True)]
        picture = self._info.directory.plots / "accuracy_matrix.png"
        atomic_write(picture, png(matrix_figure(summary)))
        row = {
            "stream_step": summary["steps"],
            "accuracy_matrix": self._wandb.Table(columns=columns, data=cells),
            "accuracy_matrix_heat_map": self._wandb.Image(str(picture)),
        }
        self._log(row, history_step(row, len(matrix), evaluation=True))
        assert self._logger is not None
        self._logger.experiment.summary.update({name: summary[name] for name in FIGURES if summary.get(name) is not None})
        self._close("done", exit_code=0)

    def _log(self, row: Mapping[str, Any], step: int) -> None:
        assert self._logger is not None
        self._logger.experiment.log(dict(row), step=step, commit=True)

    def _close(self, status: str, exit_code: int) -> None:
        """End the W&B run, whatever the state: a failure may come before it began."""
        with self._open:
            if self._logger is not None:
                self._logger.experiment.summary["status"] = status
                self._logger.experiment.finish(exit_code=exit_code)
                self._logger = None
