"""The MLP: shapes, initialisation, the relation of forward, features and head."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cl_framework import BenchmarkContext, ConfigurationError, FrameworkError, Rows
from cl_framework.assembly import assemble
from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.synthetic import SyntheticOptions, synthetic
from cl_framework.calls import run_model
from cl_framework.models.mlp import MLP, MLPOptions, mlp
from cl_framework.testing.laboratory import experiment_of, finish
from cl_framework.walk import Walk


def test_forward_is_head_of_features() -> None:
    model = MLP((1, 4, 4), 7, (5, 3))
    inputs = torch.rand(2, 1, 4, 4)
    assert model.features(inputs).shape == (2, 3)
    assert torch.equal(model(inputs), model.head(model.features(inputs)))
    assert model(inputs).shape == (2, 7)


def test_xavier_weights_and_zero_biases() -> None:
    torch.manual_seed(0)
    model = MLP((784,), 10)
    sizes = [(784, 100), (100, 100), (100, 10)]
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for (before, after), layer in zip(sizes, layers, strict=True):
        assert layer.weight.shape == (after, before)
        bound = math.sqrt(6 / (before + after))
        assert 0.95 * bound < float(layer.weight.detach().abs().max()) <= bound
        assert float(layer.bias.detach().abs().max()) == 0.0


def test_the_head_has_room_for_all_classes_of_the_benchmark() -> None:
    benchmark = synthetic(SyntheticOptions(tasks=4, classes_per_task=3, size=5), BenchmarkContext(Path(), False, 0, ""))
    model = mlp(MLPOptions(hidden=(7,)), benchmark)
    assert isinstance(model, MLP)
    assert model.head.weight.shape == (12, 7)
    assert model(torch.rand(2, *benchmark.input_shape)).shape == (2, 12)
    assert MLP((2, 3), 4, ()).features(torch.rand(5, 2, 3)).shape == (5, 6)  # no hidden layer: a linear model


def test_options() -> None:
    model = MLP((4,), 2, (3,), dropout=0.5, batch_norm=True)
    kinds = [type(module) for module in model.body]
    assert kinds == [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout]
    with pytest.raises(ValueError, match=r"dropout must be >= 0 and < 1, got 1.0"):
        MLPOptions(dropout=1.0)


def test_what_a_model_freezes_itself_stays_as_it_was(tmp_path: Path) -> None:
    trained = {}
    for frozen in (True, False):
        experiment = experiment_of({}, tmp_path / str(frozen), stream="L0")

        def built(options: MLPOptions, benchmark: Benchmark, frozen: bool = frozen) -> nn.Module:
            torch.manual_seed(0)
            model = MLP(benchmark.input_shape, benchmark.num_classes, (8,))
            for parameter in model.body.parameters():
                parameter.requires_grad_(not frozen)
            return model

        experiment = replace(experiment, model=replace(experiment.model, builder=built))
        learner = assemble(experiment)
        before = {name: value.clone() for name, value in learner.model.state_dict().items()}
        Walk(learner).event(0, None)
        trained[frozen] = {name for name, value in learner.model.state_dict().items() if not torch.equal(value, before[name])}
    assert trained[True] == {"head.weight", "head.bias"} and len(trained[False]) == 4


def test_a_single_sample_and_batch_norm_are_refused_in_a_sentence(tmp_path: Path) -> None:
    settings = {"stream": "L0", "model": {"name": "mlp", "hidden": [8], "batch_norm": True}}
    remedy = r"Choose a batch_size \(and .* a minibatch and a capacity\) that leaves no single"
    for size, strategies in ((35, {}), (1, {}), (1, {"er": {}}), (35, {"ewc": {}})):
        with pytest.raises(ConfigurationError, match=rf"^batch_size={size}: in L0 a batch of one sample reached a BatchNorm.*\. {remedy}"):
            finish(experiment_of(strategies, tmp_path / "one", batch_size=size, **settings))
    assert not (tmp_path / "one").exists()
    finish(experiment_of({}, tmp_path / "two", batch_size=34, **settings))
    finish(experiment_of({"er": {}}, tmp_path / "joined", batch_size=35, **settings))  # with rows of the memory
    finish(experiment_of({}, tmp_path / "without", batch_size=35, stream="L0"))
    inputs, whole = torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(FrameworkError, match=rf"^a batch of one sample reached a BatchNorm layer.*\. {remedy}"):
        run_model(MLP((4,), 2, (3,), batch_norm=True), Rows(inputs, whole, whole, whole, inputs))


@pytest.mark.parametrize("sparse", [True, False])
def test_sparse_gradients_are_refused_in_a_sentence(sparse: bool, tmp_path: Path) -> None:
    class WithTable(MLP):
        def __init__(self, shape: tuple[int, ...], classes: int) -> None:
            super().__init__(shape, classes, (3,))
            self.table = nn.Embedding(2, 3, sparse=sparse)

        def features(self, inputs: Tensor) -> Tensor:
            return super().features(inputs) + self.table(torch.zeros(1, dtype=torch.int64))

    experiment = experiment_of({}, tmp_path, stream="L0")

    def build(options: object, benchmark: Benchmark) -> nn.Module:
        return WithTable(benchmark.input_shape, benchmark.num_classes)

    experiment = replace(experiment, model=replace(experiment.model, builder=build))
    if sparse:
        text = r"the model's table gives sparse gradients, .*\. Build it with sparse=False\."
        with pytest.raises(ConfigurationError, match=text):
            finish(experiment)
        assert not list(tmp_path.iterdir())
    else:
        finish(experiment)
