"""What a run can be told: the keys that users type, with their defaults. `config` checks them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Metadata of an option that is younger than records of runs without it: where it says how it was then, it is no part of the fingerprint.
# That is its default, or where runs go another way by default now, `{**LATER, "before": VALUE}`.
LATER = {"later": True}


@dataclass
class OptimizerConfig:
    name: str = "sgd"  # sgd, adam or adamw
    lr: float = 0.1  # > 0
    momentum: float = 0.0  # [0, 1), sgd only
    weight_decay: float = 0.0  # >= 0
    reset: str = "event"  # event: a new state each event; never: moments live on
    clip: float | None = None  # largest norm of all gradients together, > 0


@dataclass
class DataConfig:
    root: str | None = None  # else the environment variable CL_DATA, else "data"
    download: bool = False
    workers: int = 0  # data-loader processes for data that is not held in memory
    in_memory: str = "auto"  # auto, always or never


@dataclass
class WandbConfig:
    mode: str = "offline"  # offline or online
    project: str = "cl-framework"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class CheckpointConfig:
    every_seconds: float = 60.0  # between checkpoints within an event; one is always written after an event


@dataclass
class RunConfig:
    experiment: str = ""  # the folder of its runs; default: the name of the YAML file
    stream: str = ""  # "": learn every task once
    without: str = field(
        default="", metadata=LATER
    )  # requests like "U1:class=3": samples that are never shown, as to a model that never saw what they name
    scenario: str = ""  # class_il, task_il, domain_il; "": the benchmark's default
    seed: int = 0
    benchmark: dict[str, Any] = field(default_factory=dict)  # name, and its options
    model: dict[str, Any] = field(default_factory=lambda: {"name": "mlp"})
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    batch_size: int = 32
    epochs: int = 1
    online: bool = False  # every sample is seen once: epochs must be 1
    blurry: float = 0.0  # share of each task's samples that is dealt over all tasks, [0, 1]
    evaluate: str = "all"  # after each event: all tasks of the stream, or those seen
    evaluation_batch_size: int = 1000
    evaluate_every: int = field(default=0, metadata=LATER)  # steps of a Learn between looks at what was seen, for stability gaps; 0: none
    probes: list[str] = field(default_factory=list, metadata=LATER)  # of the representation after each event: rankme, alpha_req
    strategies: dict[str, Any] = field(default_factory=dict)  # slot -> {use: name, options}
    logger: str = "none"  # none or wandb
    wandb: WandbConfig = field(default_factory=WandbConfig)
    data: DataConfig = field(default_factory=DataConfig)
    out: str = "runs"
    again: bool = False  # start a finished or unfinished run anew
    deterministic: bool = False  # torch.use_deterministic_algorithms
    device: str = "auto"  # auto, cpu or cuda
    precision: str = "32-true"  # 32-true or bf16-mixed
    threads: int = 0  # torch threads; 0 leaves torch's own choice
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    expected: dict[str, Any] = field(default_factory=dict)  # published figures: name -> {value, deviation, source}, or a list
