"""A model whose weights are written by a chunked hypernetwork, one set of weights a task.

    W_t = offset + scale * (h([e_t, c_1]), ..., h([e_t, c_N])) without padding       h([e, c_i]) = output(gain_i * trunk([e, c_i]))

e_t is the embedding of task t, c_i that of chunk i, shared by all tasks. A scale and an offset for each tensor of the target make the
written weights start with the mean and variance the target starts with, whatever its initialisation; the gain makes all chunks alike.
Offsets, scales and gains are fixed.
(After von Oswald et al. 2020, "Continual learning with hypernetworks", whose hypernetwork has neither scales nor gains.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from cl_framework.inputs import Inputs
from cl_framework.models.by_task import answer_of, answers_by_task
from cl_framework.models.freezing import give_up_training

CONSTANT_SCALE = 0.1  # of tensors that the target starts as a constant: biases, gains and shifts of normalisation
LEAK = 0.01  # of a negative input, what hidden units let through: those of a plain ReLU die where a constant is to be written


# --- the maths ---


def mean_squared_distance(now: Tensor, then: Tensor, reduction: str = "sum") -> Tensor:
    """Mean over tasks of the squared distance between two sets of weights, (S, d) each: summed or averaged over the weights."""
    squared = (now - then).square()
    return squared.mean() if reduction == "mean" else squared.sum(1).mean()


def random_subset(uniforms: Sequence[float], size: int) -> list[int]:
    """As many distinct numbers below `size` as there are uniforms in [0, 1), uniform as a set (Floyd). The cost is that of the subset."""
    chosen: list[int] = []
    for last, uniform in enumerate(uniforms, start=size - len(uniforms)):
        pick = int(uniform * (last + 1))
        chosen.append(last if pick in chosen else pick)
    return chosen


# --- what is written ---


@dataclass(frozen=True)
class WeightLayout:
    """Where each tensor of a target lies in the vector of its weights."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, target: nn.Module) -> WeightLayout:
        """The parameters of a target, in its own order."""
        named = dict(target.named_parameters())
        return cls(tuple(named), tuple(parameter.shape for parameter in named.values()))

    @property
    def sizes(self) -> list[int]:
        return [shape.numel() for shape in self.shapes]

    @property
    def total(self) -> int:
        return sum(self.sizes)

    def named(self, weights: Tensor) -> dict[str, Tensor]:
        """(d,) weights as the target's tensors by name."""
        parts = weights.split(self.sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}


def starts(target: nn.Module) -> tuple[Tensor, Tensor]:
    """Offsets and scales of a freshly initialised target's tensors, (L,) each: a constant keeps its value, others vary around 0."""
    offsets, scales = [], []
    for parameter in target.parameters():
        values = parameter.detach().flatten()
        constant = bool((values == values[0]).all())
        offsets.append(float(values[0]) if constant else 0.0)
        scales.append(CONSTANT_SCALE if constant else float(values.square().mean().sqrt()))
    return torch.tensor(offsets), torch.tensor(scales)


# --- who writes ---


class ChunkedHypernetwork(nn.Module):
    """Task embeddings to weights, chunk by chunk. Its parameters are all that tasks share, chunk embeddings included."""

    offsets: Tensor
    scales: Tensor
    gains: Tensor

    def __init__(
        self, target: nn.Module, embedding: int, chunk_embedding: int, hidden: Sequence[int], chunk_size: int, leak: float = LEAK
    ) -> None:
        super().__init__()
        self.layout = layout = WeightLayout.of(target)
        offsets, scales = starts(target)
        self.register_buffer("offsets", offsets)
        self.register_buffer("scales", scales)
        size = min(chunk_size, layout.total)
        self.chunks = nn.Parameter(torch.randn(-(-layout.total // size), chunk_embedding))
        widths = [embedding + chunk_embedding, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.LeakyReLU(leak)]
        self.trunk = nn.Sequential(*layers)
        self.register_buffer("gains", torch.ones(self.chunks.shape[0], 1))
        self.output = nn.Linear(widths[-1], size)
        for module in self.trunk:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=leak)
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def calibrate(self, embeddings: Tensor) -> None:
        """Draw the output layer and fix the gains so that every chunk has unit variance on average over these tasks, (T, d_e)."""
        squared_norms = self._hidden(embeddings).square().sum(2).mean(0)  # (N,)
        self.gains = (squared_norms.mean() / squared_norms).sqrt().unsqueeze(1)
        nn.init.normal_(self.output.weight, std=float(squared_norms.mean().rsqrt()))
        nn.init.zeros_(self.output.bias)

    def forward(self, embeddings: Tensor, raw: bool = False) -> Tensor:
        """(S, d_e) -> (S, d) weights; what the last chunk writes beyond them is cut off. In full precision: old ones are held closely.

        `raw`: (S, N * chunk_size), all that is written, in the hypernetwork's own units, in which it starts with variance 1.
        """
        with torch.autocast(self.chunks.device.type, enabled=False):
            written: Tensor = self.output(self._hidden(embeddings)).flatten(1)
            if raw:
                return written
            kept = written[:, : self.layout.total].split(self.layout.sizes, dim=1)
            parts = zip(self.offsets.unbind(), kept, self.scales.unbind(), strict=True)
            return torch.cat([torch.addcmul(offset, part, scale) for offset, part, scale in parts], dim=1)

    def raw_noise(self, generator: torch.Generator, draws: int = 1) -> Tensor:
        """(N * chunk_size,): the mean of `draws` sets of normal numbers in the place of all that is written."""
        return (
            torch.randn(self.chunks.shape[0] * self.output.out_features, generator=generator).to(self.scales, non_blocking=True)
            / draws**0.5
        )

    def fresh_weights(self, generator: torch.Generator, draws: int = 1) -> Tensor:
        """(d,): the mean of `draws` sets of weights that owe nothing to any data, spread as those a target starts with."""
        total = self.layout.total
        normal = torch.randn(total, generator=generator).to(self.scales, non_blocking=True)
        sizes = torch.tensor(self.layout.sizes).to(self.scales.device, non_blocking=True)
        offsets, scales = (each.repeat_interleave(sizes, output_size=total) for each in (self.offsets, self.scales))
        return offsets + scales * normal / draws**0.5

    def start_without_head(self, weights: Tensor, head: str = "model.head.") -> Tensor:
        """(d,) weights with the head's at their offsets, where the mean of all that a target could start with lies: answers without a
        preference. `head` begins the names of its tensors."""
        sizes = torch.tensor(self.layout.sizes, device=weights.device)
        of_head = torch.tensor([name.startswith(head) for name in self.layout.names], device=weights.device)
        places, offsets = (each.repeat_interleave(sizes, output_size=self.layout.total) for each in (of_head, self.offsets))
        return torch.where(places, offsets, weights)

    def _hidden(self, embeddings: Tensor) -> Tensor:
        """(S, d_e) -> (S, N, H)."""
        count, chunks = embeddings.shape[0], self.chunks.shape[0]
        tasks = embeddings.unsqueeze(1).expand(-1, chunks, -1)
        hidden: Tensor = self.trunk(torch.cat([tasks, self.chunks.unsqueeze(0).expand(count, -1, -1)], dim=2))
        return hidden * self.gains


# --- the model ---


class TaskConditionedModel(nn.Module):
    """A target network that owns no weights and keeps normalisation statistics for each task."""

    task_conditioned = True
    one_a_task = "embeddings"  # the list whose entries serve one task each, in their order

    def __init__(
        self,
        target: nn.Module,
        num_tasks: int,
        embedding: int = 32,
        chunk_embedding: int = 32,
        hidden: Sequence[int] = (128, 128),
        chunk_size: int = 9000,
        writes: str = "all",
        leak: float = LEAK,
    ) -> None:
        """writes: all of the target's parameters, or its `head` alone, over a body that stays as it is given, in evaluation mode."""
        super().__init__()
        self._body_rests = writes == "head"
        if self._body_rests:
            head = target.head
            assert isinstance(head, nn.Module)
            give_up_training(target, kept=head.parameters())
        self.embeddings = nn.ParameterList(nn.Parameter(torch.randn(embedding)) for _ in range(num_tasks))
        self.target = WithFeatures(target)
        self.hypernetwork = ChunkedHypernetwork(self.target, embedding, chunk_embedding, hidden, chunk_size, leak)
        self.hypernetwork.calibrate(self._stacked(range(num_tasks)))
        self._statistics = give_up_weights(self.target, num_tasks)
        self._changed: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None  # what is done to written weights before they answer
        self._fresh_statistics = {name: self.target.get_buffer(name)[0].clone() for name in self._statistics}

    def forward(self, inputs: Inputs, tasks: Tensor) -> Tensor:
        """Inputs (B, ...) and the task of each row (B,) -> logits (B, C)."""
        return self.features_and_logits(inputs, tasks)[1]

    def features_and_logits(self, inputs: Inputs, tasks: Tensor) -> tuple[Tensor | None, Tensor]:
        """Features (B, D), None if the target has none, and logits (B, C). Tasks on the host save a wait for the device."""
        present = torch.unique(tasks).tolist()
        weights = dict(zip(present, self.weights_of(present), strict=True))
        return answers_by_task(inputs, tasks, present, lambda rows, task: self._run(rows, task, weights[task]))

    def train(self, mode: bool = True) -> TaskConditionedModel:
        """As in any module, but a body that nothing writes stays in evaluation mode."""
        super().train(mode)
        if self._body_rests:
            self.target.eval()
        return self

    def weights_of(self, tasks: Sequence[int], shared: Mapping[str, Tensor] | None = None, *, raw: bool = False) -> Tensor:
        """(S, d): the weights of these tasks; with other shared parameters (those of a snapshot) if given; `raw` as in `forward`."""
        embeddings = self._stacked(tasks)
        if shared is None:
            weights: Tensor = self.hypernetwork(embeddings, raw)
            return weights
        return functional_call(self.hypernetwork, dict(shared), (embeddings, raw))

    def shared_parameters(self) -> dict[str, Tensor]:
        """A copy of what writes the weights of all tasks: the snapshot that later weights are compared with."""
        return {name: parameter.detach().clone() for name, parameter in self.hypernetwork.named_parameters()}

    def weights_at(self, embeddings: Tensor, *, raw: bool = False) -> Tensor:
        """(S, d_e) -> (S, d): what is written for embeddings that need not be those of any task; `raw` as in `forward`."""
        written: Tensor = self.hypernetwork(embeddings, raw)
        return written

    @torch.no_grad()
    def replace_embedding(self, task: int, embedding: Tensor) -> Tensor:
        """Give a task another embedding (d_e,); returns a copy of the one it had."""
        before = self.embeddings[task].detach().clone()
        self.embeddings[task].copy_(embedding)
        return before

    def task_key(self, task: int) -> dict[str, Tensor]:
        """A copy of what a task is known by: its embedding (d_e,), and its normalisation statistics by name."""
        statistics = {name: self.target.get_buffer(name)[task].clone() for name in self._statistics}
        return {"embedding": self.embeddings[task].detach().clone(), **statistics}

    @contextmanager
    def with_task_key(self, task: int, key: Mapping[str, Tensor]) -> Iterator[None]:
        """Answer for a task from another `task_key` it meanwhile: whether one that was dropped, put back, brings the task back."""
        own = self.task_key(task)
        self._unlock(task, key)
        try:
            yield
        finally:
            self._unlock(task, own)

    @torch.no_grad()
    def _unlock(self, task: int, key: Mapping[str, Tensor]) -> None:
        self.replace_embedding(task, key["embedding"])
        for name in self._statistics:
            self.target.get_buffer(name)[task] = key[name]

    @torch.no_grad()
    def reset_statistics(self, task: int) -> None:
        """Normalisation statistics of a task as if it had never been seen."""
        for name, fresh in self._fresh_statistics.items():
            self.target.get_buffer(name)[task] = fresh

    @contextmanager
    def writing_changed(self, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Iterator[None]:
        """Answer from `change`d weights meanwhile: of those written for a task, by name."""
        before, self._changed = self._changed, change
        try:
            yield
        finally:
            self._changed = before

    def _stacked(self, tasks: Sequence[int]) -> Tensor:
        return torch.stack([self.embeddings[task] for task in tasks])

    def _run(self, inputs: Inputs, task: int, weights: Tensor) -> tuple[Tensor | None, Tensor]:
        statistics = {name: self.target.get_buffer(name)[task] for name in self._statistics}  # views: a live pass updates the task's own
        written = self.hypernetwork.layout.named(weights)
        replaced = (written if self._changed is None else self._changed(written)) | statistics
        with running_statistics_for_one_row(self.target, inputs):
            result: tuple[Tensor | None, Tensor] = functional_call(self.target, replaced, (inputs,), tie_weights=False)
        return result


class WithFeatures(nn.Module):
    """A model that answers with features (None if it has none) and logits of one pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.norms = [module for module in model.modules() if isinstance(module, _NormBase)]

    def forward(self, inputs: Inputs) -> tuple[Tensor | None, Tensor]:
        return answer_of(self.model, inputs)


def give_up_weights(target: nn.Module, num_tasks: int) -> list[str]:
    """Leave a model without parameters of its own, and with `num_tasks` copies of each normalisation statistic, stacked; their names."""
    statistics = []
    for path, module in target.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter is not None:
                module.register_parameter(name, None)
        if isinstance(module, _NormBase):
            for name, buffer in list(module.named_buffers(recurse=False)):
                stacked = buffer.expand(num_tasks, *buffer.shape).clone()
                module.register_buffer(name, stacked, persistent=name not in module._non_persistent_buffers_set)
                statistics.append(f"{path}.{name}")
    return statistics


@contextmanager
def running_statistics_for_one_row(target: WithFeatures, inputs: Inputs) -> Iterator[None]:
    """A single row has no batch statistics: normalise it as in evaluation. Replay brings single rows of many tasks."""
    rows = next(iter(inputs.values())).shape[0] if isinstance(inputs, Mapping) else inputs.shape[0]
    training = [norm for norm in target.norms if norm.training] if rows == 1 else []
    for norm in training:
        norm.training = False
    try:
        yield
    finally:
        for norm in training:
            norm.training = True
