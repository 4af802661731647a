"""The task-conditioned model: what is written for a task, how it starts, whose statistics a pass uses, against loops."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from cl_framework import BenchmarkContext, TaskConditionedModel, mean_squared_distance, random_subset
from cl_framework.benchmarks.synthetic import SyntheticOptions, synthetic
from cl_framework.models.hypernetwork import WeightLayout, starts
from cl_framework.models.mlp import MLP
from cl_framework.models.resnet import SlimResNetOptions, slim_resnet18

TASKS = 3
SHAPE = (1, 3, 4)


class SmallConvolution(nn.Module):
    """Convolution, BatchNorm with statistics, GroupNorm without, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(2, 4)
        )
        self.head = nn.Linear(4, 5)

    def features(self, inputs: Tensor) -> Tensor:
        pooled: Tensor = self.body(inputs).mean((2, 3))
        return pooled

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(inputs))
        return logits


def small(target: nn.Module | None = None, *, chunk_size: int = 16, tasks: int = TASKS, seed: int = 0) -> TaskConditionedModel:
    torch.manual_seed(seed)
    return TaskConditionedModel(target or MLP(SHAPE, 5, (6,)), tasks, embedding=4, chunk_embedding=3, hidden=(8, 7), chunk_size=chunk_size)


def inputs_of(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


def written_by_a_loop(model: TaskConditionedModel, task: int) -> Tensor:
    """W_t chunk by chunk and tensor by tensor."""
    hypernetwork = model.hypernetwork
    chunks = [
        hypernetwork.output(gain * hypernetwork.trunk(torch.cat([model.embeddings[task], chunk]).unsqueeze(0)))[0]
        for chunk, gain in zip(hypernetwork.chunks, hypernetwork.gains, strict=True)
    ]
    numbers = torch.cat(chunks).tolist()
    weights = []
    scales, offsets = hypernetwork.scales.tolist(), hypernetwork.offsets.tolist()
    for shape, scale, offset in zip(hypernetwork.layout.shapes, scales, offsets, strict=True):
        weights += [number * scale + offset for number in numbers[: shape.numel()]]
        numbers = numbers[shape.numel() :]
    assert len(numbers) < hypernetwork.output.out_features  # padding of the last chunk only
    return torch.tensor(weights)


# --- the maths ---


def test_every_subset_is_drawn_equally_often() -> None:
    """Over a grid on which each pick takes each value equally often; the first pick of a subset of 2 of 4 has 3 values, the second 4."""
    seen = Counter(
        tuple(sorted(random_subset([(first + 0.5) / 3, (second + 0.5) / 4], 4))) for first, second in product(range(3), range(4))
    )
    assert len(seen) == 6 and set(seen.values()) == {2}
    assert sorted(random_subset([0.99, 0.0, 0.99], 3)) == [0, 1, 2]
    assert random_subset([], 5) == []


def test_the_distance_is_the_mean_over_tasks_of_squares() -> None:
    now, then = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[0.0, 2.0], [2.0, 1.0]])
    assert float(mean_squared_distance(now, then)) == ((1 + 0) + (4 + 9)) / 2
    assert float(mean_squared_distance(now, then, "mean")) == (1 + 0 + 4 + 9) / 4
    twice = mean_squared_distance(now.repeat(2, 1), then.repeat(2, 1))
    assert torch.equal(twice, mean_squared_distance(now, then)), "a task counted twice changes a mean over tasks"
    assert not torch.equal(mean_squared_distance(now[:1], then[:1]), mean_squared_distance(now, then))


# --- what is written ---


@pytest.mark.parametrize("chunk_size", [1, 16, 40, 100_000])
def test_weights_are_those_of_a_loop_over_chunks(chunk_size: int) -> None:
    model = small(chunk_size=chunk_size)
    total = 12 * 6 + 6 + 6 * 5 + 5
    weights = model.weights_of([2, 0])
    assert weights.shape == (2, total)
    assert model.hypernetwork.chunks.shape[0] == -(-total // min(chunk_size, total))
    torch.testing.assert_close(weights[0], written_by_a_loop(model, 2))
    torch.testing.assert_close(weights[1], written_by_a_loop(model, 0))
    assert not torch.allclose(weights[0], weights[1])


def test_weights_lie_in_the_targets_own_order_and_shapes() -> None:
    target = MLP(SHAPE, 5, (6,), batch_norm=True)
    layout = WeightLayout.of(target)
    named = layout.named(torch.cat([parameter.detach().flatten() for parameter in target.parameters()]))
    assert list(named) == [name for name, _ in target.named_parameters()] and len(named) == 6
    assert all(torch.equal(named[name], parameter) for name, parameter in target.named_parameters())


def test_a_constant_tensor_starts_around_its_value() -> None:
    target = MLP(SHAPE, 5, (6,), batch_norm=True)
    offsets = dict(zip(WeightLayout.of(target).names, starts(target)[0].tolist(), strict=True))
    assert offsets["body.2.weight"] == 1.0  # a gain
    assert [offsets[name] for name in ("body.1.weight", "body.1.bias", "body.2.bias", "head.bias")] == [0.0] * 4


@pytest.mark.parametrize("wide", [(784, (100, 100)), (64, (300,))])
def test_written_weights_have_the_variance_of_the_targets_initialisation(wide: tuple[int, tuple[int, ...]]) -> None:
    """Within 20 % on average over ten tasks, for each weight matrix, at four seeds."""
    inputs, hidden = wide
    found: dict[str, list[Tensor]] = {}
    for seed in range(4):
        torch.manual_seed(seed)
        target = MLP((inputs,), 10, hidden)
        wanted = {name: parameter.detach().var() for name, parameter in target.named_parameters() if parameter.ndim == 2}
        model = TaskConditionedModel(target, num_tasks=10)
        weights = model.weights_of(range(10)).detach()
        for name, part in zip(model.hypernetwork.layout.names, weights.split(model.hypernetwork.layout.sizes, 1), strict=True):
            if (own := name.removeprefix("model.")) in wanted:
                found.setdefault(own, []).append(part.var(1).mean() / wanted[own])
    assert len(found) == len(hidden) + 1
    for name, ratios in found.items():
        assert len(ratios) == 4 and all(0.8 < float(ratio) < 1.2 for ratio in ratios), f"{name}: {ratios}"


def test_padding_is_in_no_distance() -> None:
    model = small(chunk_size=16)
    before = model.shared_parameters()
    with torch.no_grad():
        model.hypernetwork.output.bias.add_(1.0)
        distance = mean_squared_distance(model.weights_of([0]), model.weights_of([0], before))
    layout = model.hypernetwork.layout
    moved = sum(size * scale**2 for size, scale in zip(layout.sizes, model.hypernetwork.scales.tolist(), strict=True))
    torch.testing.assert_close(distance, torch.tensor(moved))
    padding = model.hypernetwork.chunks.shape[0] * 16 - layout.total
    assert padding == 15  # that many squares of the last tensor's scale are left out


def test_all_that_tasks_share_is_trained_chunk_embeddings_included() -> None:
    model = small()
    logits = model(inputs_of(4), torch.zeros(4, dtype=torch.int64))
    gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()), allow_unused=True)
    reached = {name for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True) if gradient is not None}
    assert "hypernetwork.chunks" in reached and "hypernetwork.output.weight" in reached
    assert {name for name, _ in model.named_parameters()} - reached == {"embeddings.1", "embeddings.2"}
    assert all(name.partition(".")[0] in ("embeddings", "hypernetwork") for name, _ in model.named_parameters())


# --- passes ---


def test_rows_of_several_tasks_are_answered_as_each_task_alone() -> None:
    model = small()
    inputs, tasks = inputs_of(7), torch.tensor([2, 0, 2, 1, 0, 2, 2])
    features, logits = model.features_and_logits(inputs, tasks)
    assert features is not None and features.shape == (7, 6) and logits.shape == (7, 5)
    for row in range(7):
        alone = model(inputs[row : row + 1], tasks[row : row + 1])
        torch.testing.assert_close(logits[row : row + 1], alone)
    other = model(inputs, torch.tensor([0, 0, 2, 1, 0, 2, 2]))
    assert not torch.allclose(other[0], logits[0]) and torch.allclose(other[1:], logits[1:])


def test_a_pass_is_the_target_with_the_written_weights() -> None:
    torch.manual_seed(0)
    target = SmallConvolution()
    bare = copy.deepcopy(target)
    model = small(target)
    inputs, tasks = inputs_of(4), torch.full((4,), 1)
    weights = dict(zip(dict(bare.named_parameters()), model.hypernetwork.layout.named(model.weights_of([1])[0]).values(), strict=True))
    assert torch.equal(model(inputs, tasks), functional_call(bare, weights, (inputs,)))
    assert not torch.allclose(model(inputs, torch.full((4,), 2)), functional_call(bare, weights, (inputs,)))


def slim() -> nn.Module:
    """The framework's own, 2 wide, for pictures of 3 channels and 6 classes."""
    images = synthetic(SyntheticOptions(tasks=3, classes_per_task=2), BenchmarkContext(Path(), False, 0, ""))
    return slim_resnet18(SlimResNetOptions(width=2), replace(images, input_shape=(3, 8, 8)))


SLIM = {"conv.weight", "stages.0.1.norm2.bias", "stages.3.0.shortcut.0.weight", "head.bias"}  # some of the first, middle and last


def test_all_of_a_slim_resnet18_is_written() -> None:
    """Each of its tensors is a task's, none is trained itself, and a pass is that network's."""
    torch.manual_seed(0)
    bare = slim()
    model = small(copy.deepcopy(bare), chunk_size=500).train()
    layout = model.hypernetwork.layout
    own = [name.removeprefix("model.") for name in layout.names]
    assert own == [name for name, _ in bare.named_parameters()] and len(own) == 62 and set(own) >= SLIM
    assert layout.total == sum(parameter.numel() for parameter in bare.parameters())
    assert all(name.partition(".")[0] in ("embeddings", "hypernetwork") for name, _ in model.named_parameters())

    inputs, tasks = torch.rand(6, 3, 8, 8), torch.tensor([0, 2, 0, 2, 0, 2])
    logits = model(inputs, tasks)
    for task in (0, 2):
        written = dict(zip(own, layout.named(model.weights_of([task])[0]).values(), strict=True))
        bare.load_state_dict(written, strict=False)  # its statistics stay as they begin: in training a batch's own count
        torch.testing.assert_close(logits[tasks == task], bare(inputs[tasks == task]), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(logits[tasks == task], model(inputs[tasks == task], torch.full((3,), 2 - task)), rtol=1e-2)
    means = model.get_buffer("target.model.stages.3.1.norm2.running_mean")
    assert means.shape == (TASKS, 16) and means.any(1).tolist() == [True, False, True]


def test_a_slim_resnet18_is_learned_through_what_writes_it_and_one_task_leaves_the_other() -> None:
    torch.manual_seed(0)
    model = small(slim(), chunk_size=500).train()
    inputs, labels = torch.rand(10, 3, 8, 8), torch.arange(10) % 2
    inputs[labels == 1, 0] += 1.0  # one class is redder
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(30):
        loss = functional.cross_entropy(model(inputs, torch.zeros(10, dtype=torch.int64)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0], losses
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in (model.embeddings[0], model.hypernetwork.chunks))
    assert model.embeddings[1].grad is None


def test_a_target_without_features_gives_logits_alone() -> None:
    model = small(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)))
    features, logits = model.features_and_logits(inputs_of(2), torch.tensor([0, 1]))
    assert features is None and logits.shape == (2, 5)


def test_normalisation_statistics_belong_to_a_task() -> None:
    model = small(SmallConvolution())
    mean = model.get_buffer("target.model.body.1.running_mean")
    assert mean.shape == (TASKS, 4) and model.get_buffer("target.model.body.1.num_batches_tracked").shape == (TASKS,)
    model.train()
    model(inputs_of(6), torch.tensor([0, 0, 0, 2, 2, 2]))
    seen = mean.abs().sum(1)
    assert float(seen[0]) > 0 and float(seen[2]) > 0 and float(seen[1]) == 0
    assert model.get_buffer("target.model.body.1.num_batches_tracked").tolist() == [1, 0, 1]
    kept = mean[0].clone()
    model.reset_statistics(2)
    assert float(mean[2].abs().sum()) == 0 and torch.equal(mean[0], kept)
    model.eval()
    before = mean.clone()
    model(inputs_of(6), torch.zeros(6, dtype=torch.int64))
    assert torch.equal(mean, before)


def test_a_tasks_only_row_is_normalised_by_running_statistics() -> None:
    model = small(MLP(SHAPE, 5, (6,), batch_norm=True)).train()
    inputs, tasks = inputs_of(4), torch.tensor([0, 0, 0, 1])
    logits = model(inputs, tasks)
    assert model.get_buffer("target.model.body.2.num_batches_tracked").tolist() == [1, 0, 0]
    assert all(module.training for module in model.modules()), "the mode did not come back"
    model.eval()
    torch.testing.assert_close(model(inputs[3:], tasks[3:]), logits[3:])
    assert not torch.allclose(model(inputs[:3], tasks[:3]), logits[:3])


@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_single_rows_by_vmap(training: bool) -> None:
    """With the task held fixed, as for the diagonal of the Fisher information."""
    model = small(MLP(SHAPE, 5, (6,), batch_norm=True)).train(training)
    names = [name for name, _ in model.named_parameters()]
    values = tuple(parameter.detach() for parameter in model.parameters())
    inputs, targets, task = inputs_of(3), torch.tensor([0, 4, 2]), torch.tensor([1])

    def loss(parameters: tuple[Tensor, ...], row: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(model, dict(zip(names, parameters, strict=True)), (row.unsqueeze(0), task))
        return functional.cross_entropy(logits, target.unsqueeze(0))

    together = vmap(grad(loss), in_dims=(None, 0, 0))(values, inputs, targets)
    for row in range(3):
        one = functional.cross_entropy(model(inputs[row : row + 1], task), targets[row : row + 1])
        alone = torch.autograd.grad(one, list(model.parameters()), allow_unused=True)
        for part, gradient in zip(together, alone, strict=True):
            torch.testing.assert_close(part[row], torch.zeros_like(part[row]) if gradient is None else gradient, rtol=1e-4, atol=1e-5)
    assert float(together[names.index("embeddings.1")].abs().sum()) > 0


# --- the regulariser ---


def test_nothing_has_moved_right_after_the_snapshot() -> None:
    model = small()
    before = model.shared_parameters()
    distance = mean_squared_distance(model.weights_of([0, 1]), model.weights_of([0, 1], before))
    assert distance.item() == 0.0
    with torch.no_grad():
        model.hypernetwork.chunks.mul_(1.01)
    assert mean_squared_distance(model.weights_of([0, 1]), model.weights_of([0, 1], before)).item() > 0.0


def test_the_distance_of_old_tasks_does_not_pull_at_the_new_ones_embedding() -> None:
    model = small()
    before = model.shared_parameters()
    with torch.no_grad():
        model.hypernetwork.output.weight.add_(0.1)
        then = model.weights_of([0, 1], before)
    distance = mean_squared_distance(model.weights_of([0, 1]), then)
    gradients = torch.autograd.grad(distance, [model.embeddings[2], model.embeddings[0]], allow_unused=True)
    assert gradients[0] is None and gradients[1] is not None


def test_a_copy_is_a_model_of_its_own() -> None:
    model = small(SmallConvolution()).train()
    twin = copy.deepcopy(model)
    inputs, tasks = inputs_of(4), torch.tensor([0, 0, 1, 2])
    assert torch.equal(twin(inputs, tasks), copy.deepcopy(model)(inputs, tasks))
    assert float(model.get_buffer("target.model.body.1.running_mean").abs().sum()) == 0
    state = model.state_dict()
    other = small(SmallConvolution(), seed=5)
    assert not torch.equal(other.eval()(inputs, tasks), model.eval()(inputs, tasks))
    other.load_state_dict(state)
    assert torch.equal(other(inputs, tasks), model(inputs, tasks))
