"""The LightningModule that hosts a learner. Lightning gives devices, precision and the fit; what a step does is the learner's.

One Lightning batch is a chunk of optimizer steps, so that Lightning's own cost a batch is spread over them.
"""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as lightning
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies import SingleDeviceStrategy

from cl_framework.learner import Learner
from cl_framework.loading import Chunk, PhaseLoader, StepReader
from cl_framework.rng import global_randomness_kept
from cl_framework.strategy import Evaluation, Phase


class _StaysThere(SingleDeviceStrategy):
    """The model stays where the learner has put it: after each fit Lightning would take it to the host, away from what a learner keeps."""

    def model_to_device(self) -> None:
        pass

    def teardown(self) -> None:
        self.precision_plugin.teardown()
        assert self.accelerator is not None
        self.accelerator.teardown()


class Host(lightning.LightningModule):
    """Runs one phase a fit. `after_chunk` hears of every chunk; `stop_requested` is asked before every step."""

    def __init__(self, learner: Learner, after_chunk: Callable[[Evaluation, Any], None], stop_requested: Callable[[], bool]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = learner.model
        self.learner = learner
        self._after_chunk = after_chunk
        self._stop_requested = stop_requested
        self._reader: StepReader | None = None

    def fit_phase(self, phase: Phase, first_step: int) -> None:
        """Train from `first_step` to the end of the phase, or until a stop is requested."""
        learner = self.learner
        loader = PhaseLoader(learner, phase, first_step, learner.run.data.workers)
        if not len(loader) or self._stop_requested():
            return
        self._reader = StepReader(learner, phase)
        self._sigterm = signal.getsignal(signal.SIGTERM)
        with quiet_lightning(), global_randomness_kept(learner.device):
            accelerated = learner.device.type == "cuda"
            trainer = lightning.Trainer(
                accelerator="gpu" if accelerated else "cpu",
                strategy=_StaysThere(learner.device if accelerated else "cpu"),
                devices=1,
                precision=learner.run.precision,
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                plugins=[LightningEnvironment()],  # whatever the cluster: stopping and requeueing are the runner's
            )
            trainer.fit(self, train_dataloaders=loader)

    def on_train_start(self) -> None:
        """Lightning has put its own SIGTERM handler before ours, which would end the fit without our checkpoint: put ours back.

        It does so after `on_fit_start`; this is the first hook that comes later.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._sigterm)

    def training_step(self, chunk: Chunk, batch_index: int) -> None:
        assert self._reader is not None
        evaluation = None
        batch = None
        for step in range(chunk.first, chunk.last):
            if self._stop_requested():
                self.trainer.should_stop = True
                break
            evaluation = batch = None  # so that the step works in the memory of the one before, which is in the cache
            batch = self._reader.batch(step, chunk)
            evaluation = self.learner.step(batch)
        if evaluation is not None:
            self._after_chunk(evaluation, batch)

    def configure_optimizers(self) -> None:
        """The core owns the optimizer: it is rebuilt for each phase and its state is kept in our checkpoints."""

    def transfer_batch_to_device(self, batch: Chunk, device: torch.device, dataloader_idx: int) -> Chunk:
        return batch  # the reader moves a window of rows at once


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence what Lightning says in every fit: devices, tips, worker counts, "max_epochs reached"."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric")]
    names = ("pytorch_lightning.utilities.rank_zero", "lightning.pytorch.utilities.rank_zero")
    loggers += [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            warnings.filterwarnings("ignore", message=".*configure_optimizers.*")
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
