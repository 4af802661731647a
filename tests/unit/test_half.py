"""Half fine-tuning: which matrices learn, in which model, and that the others leave the optimizer and stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from cl_framework import SELECTABLE, AdaptedModel, ConfigurationError, Matrix, matrices, trained_share
from cl_framework.assembly import assemble
from cl_framework.models.mlp import MLP
from cl_framework.models.resnet import ResNet18
from cl_framework.records import RunDirectory
from cl_framework.report import figures_line
from cl_framework.strategy import Batch, Context, Output
from cl_framework.summary import rebuild_summary
from cl_framework.testing.laboratory import beside, experiment_of, finish
from cl_framework.testing.neighbours import Neighbour, slot
from strategies.half import GRANULARITIES, chosen_by_size, select


class Attention(nn.Module):
    def __init__(self, width: int, kv: int) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.k_proj, self.v_proj = nn.Linear(width, kv, bias=False), nn.Linear(width, kv, bias=False)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.down_proj = nn.Linear(3 * width, width, bias=False)


class Block(nn.Module):
    def __init__(self, width: int, kv: int) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.self_attn, self.mlp = Attention(width, kv), FeedForward(width)


class Llama(nn.Module):
    """The parameters of a small Llama, by the names that transformers gives them."""

    def __init__(self, layers: int, width: int = 16, kv: int = 16) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(11, width)
        self.layers = nn.ModuleList(Block(width, kv) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, 11, bias=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chosen(model: nn.Module, granularity: str = "category", share: float = 0.5, balance: str = "count", seed: int = 0) -> list[Matrix]:
    return select(matrices(model), granularity, share, balance, generator(seed))


# --- what is what ---


def test_a_llama_by_category_and_layer() -> None:
    found = {matrix.module: (matrix.category, matrix.layer) for matrix in matrices(Llama(2))}
    assert found["embed_tokens"] == ("embedding", "")
    assert found["lm_head"] == ("head", "")
    assert found["norm"] == ("other", "")
    assert found["layers.1.self_attn.k_proj"] == ("attention", "layers.1")
    assert found["layers.0.mlp.down_proj"] == ("feed_forward", "layers.0")
    assert found["layers.0.input_layernorm"] == ("norm", "layers.0")
    assert Counter(category for category, _ in found.values()) == {
        "attention": 8,
        "feed_forward": 6,
        "norm": 4,
        "embedding": 1,
        "head": 1,
        "other": 1,
    }


# --- which half ---


@pytest.mark.parametrize("layers", [2, 4, 5])
def test_counts_a_layer_are_the_published_ones(layers: int) -> None:
    for seed in range(5):
        counts = Counter((matrix.layer, matrix.category) for matrix in chosen(Llama(layers), seed=seed))
        names = [f"layers.{index}" for index in range(layers)]
        assert all(counts[name, "attention"] == 2 and counts[name, "norm"] == 1 for name in names)
        forward = sorted(counts[name, "feed_forward"] for name in names)
        assert set(forward) <= {1, 2}
        assert sum(forward) == layers + layers // 2  # two of three in half of the layers, rounded down


def test_a_single_matrix_learns_half_of_the_time() -> None:
    often = sum(len(chosen(MLP((1, 4, 4), 5, (8,)), seed=seed)) for seed in range(200))
    assert 70 < often < 130


def test_selections_differ_by_seed_and_reach_every_matrix_half_of_the_time() -> None:
    model = Llama(4)
    assert chosen(model, seed=3) == chosen(model, seed=3)
    assert chosen(model, seed=3) != chosen(model, seed=4)
    often: Counter[str] = Counter()
    for seed in range(400):
        often.update(matrix.module for matrix in chosen(model, seed=seed))
    assert len(often) == 4 * 9
    assert all(abs(count / 400 - 0.5) < 0.12 for count in often.values())  # 4.8 standard errors


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_the_ends_of_the_share(granularity: str) -> None:
    model = Llama(3)
    assert len(chosen(model, granularity, 1.0)) == 27
    assert chosen(model, granularity, 0.0) == []
    assert 0 < len(chosen(model, granularity, 0.5)) < 27


def test_layers_are_whole_and_models_are_not() -> None:
    by_layer = Counter(matrix.layer for matrix in chosen(Llama(4), "layer"))
    assert sorted(by_layer.values()) == [9, 9]
    whole = chosen(Llama(4), "model")
    assert len(whole) == 18
    assert any(value not in (0, 9) for value in Counter(matrix.layer for matrix in whole).values())


def test_grouped_queries_by_parameters_and_by_count() -> None:
    model = Llama(4, width=16, kv=4)  # keys and values are a quarter: a fifth of the attention's parameters
    attention = [matrix for matrix in matrices(model) if matrix.category == "attention"]
    total, largest = sum(matrix.size for matrix in attention), max(matrix.size for matrix in attention)
    counted = set()
    for seed in range(20):
        balanced = sum(matrix.size for matrix in chosen(model, balance="params", seed=seed) if matrix.category == "attention")
        assert abs(balanced - total / 2) <= largest
        counted.add(sum(matrix.size for matrix in chosen(model, seed=seed) if matrix.category == "attention") / total)
    assert max(counted) > 0.55 or min(counted) < 0.45  # the control: by count the share of the parameters wanders


def greedy(layers: Sequence[Sequence[Matrix]], share: float, generator: torch.Generator) -> list[Matrix]:
    """The control, and what stood here before: each matrix, the largest first, learns where that brings the share nearer."""
    picked: list[Matrix] = []
    trained = total = 0
    for matrix in sorted((one for layer in layers for one in layer), key=lambda one: -one.size):
        total += matrix.size
        if share * total - trained > matrix.size / 2:
            picked.append(matrix)
            trained += matrix.size
    return picked


def each_alone(layers: Sequence[Sequence[Matrix]], share: float, generator: torch.Generator) -> list[Matrix]:
    return [matrix for layer in layers for matrix in layer if bool(torch.rand(1, generator=generator) < share)]


SIZES = ((100, 64), (40, 40, 20, 9), (300, 30, 30), (7,))  # of the matrices of each layer; the largest is 47 percent of all


def drawn(choose: Callable[..., list[Matrix]], sizes: Sequence[Sequence[int]], share: float, draws: int) -> tuple[list[float], list[float]]:
    """How often each matrix was chosen, and in each draw the share of the entries."""
    layers = [[Matrix(f"{i}.{j}", (), size, "linear", str(i)) for j, size in enumerate(layer)] for i, layer in enumerate(sizes)]
    one, often, shares = generator(), Counter[str](), []
    for _ in range(draws):
        picked = choose(layers, share, one)
        often.update(matrix.module for matrix in picked)
        shares.append(sum(matrix.size for matrix in picked) / sum(map(sum, sizes)))
    return [often[matrix.module] / draws for layer in layers for matrix in layer], shares


@pytest.mark.parametrize("share", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("sizes", [SIZES, ((6400, 10000),)], ids=["layers", "two"])
def test_by_size_each_matrix_learns_at_the_share_of_the_draws(sizes: Sequence[Sequence[int]], share: float) -> None:
    frequencies, shares = drawn(chosen_by_size, sizes, share, draws=500)
    assert len(frequencies) == sum(map(len, sizes))
    assert all(abs(frequency - share) < 0.09 for frequency in frequencies)  # 4 standard errors
    assert abs(sum(shares) / 500 - share) < 0.05
    if share != 0.5:
        assert {0.0, 1.0} & set(drawn(greedy, sizes, share, draws=5)[0])  # the control: some never learn or always do


def test_by_size_the_share_of_a_draw_is_as_near_as_sizes_allow() -> None:
    sizes = [[64, 64, 32, 32, 8, 8, 4, 4, 2, 2, 1, 1]] * 2
    misses = [abs(share - 0.3) for share in drawn(chosen_by_size, sizes, 0.3, draws=100)[1]]
    assert sum(misses) / 100 < 0.02
    misses = [abs(share - 0.3) for share in drawn(each_alone, sizes, 0.3, draws=100)[1]]
    assert sum(misses) / 100 > 0.08  # the control: each drawn by itself


@pytest.mark.parametrize("granularity", ["category", "layer", "model"])
@pytest.mark.parametrize("share", [0.3, 0.75])
def test_by_size_every_matrix_of_a_network_learns_at_some_tasks_and_rests_at_others(granularity: str, share: float) -> None:
    found = [matrix for matrix in matrices(ResNet18(3, 10, width=4)) if matrix.category in SELECTABLE]
    often: Counter[str] = Counter()
    for seed in range(60):
        often.update(matrix.module for matrix in select(found, granularity, share, "params", generator(seed)))
    assert len(often) == len(found) == 40
    assert all(abs(count / 60 - share) < 0.25 for count in often.values())  # 4 standard errors


def test_the_share_that_learns() -> None:
    model = Llama(2)
    frozen = [name for name, _ in model.named_parameters() if "mlp" in name]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert trained_share(model, frozen) == pytest.approx(1 - sum(sizes[name] for name in frozen) / sum(sizes.values()))
    assert trained_share(model, []) == 1.0
    assert trained_share(nn.Identity(), []) == 1.0


# --- low-rank factors ---


def adapted() -> nn.Module:
    """Two layers of attention, feed-forward and norms of which adapters and head can learn."""
    pytest.importorskip("peft")

    class WithHead(Llama):
        @property
        def head(self) -> nn.Module:
            return self.lm_head

    return AdaptedModel(WithHead(2), rank=2, train_head=False)


def split(names: set[str]) -> set[str]:
    """The layers of which one factor is among the names and the other is not."""
    layers = [{name.partition(f".lora_{factor}.")[0] for name in names if f".lora_{factor}." in name} for factor in "AB"]
    return layers[0] ^ layers[1]


def test_low_rank_factors_of_a_layer_are_one_matrix() -> None:
    model = adapted()
    found = matrices(model)
    assert sorted(name for matrix in found for name in matrix.parameters) == sorted(name for name, _ in model.named_parameters())
    assert Counter(matrix.category for matrix in found) == {"attention": 8, "feed_forward": 6}
    by_module = {matrix.module: matrix for matrix in found}
    gate = by_module["base.layers.1.mlp.gate_proj"]
    assert (gate.size, gate.layer) == (2 * (16 + 48), "base.layers.1")
    assert gate.parameters == tuple(f"{gate.module}.lora_{factor}.default.weight" for factor in "AB")
    alone = matrices(AdaptedModel(MLPOfOne(), rank=2))  # its layer is in no list and so one of its own, not one a factor
    assert [(matrix.category, matrix.layer, len(matrix.parameters)) for matrix in alone] == [("linear", "base.hidden", 2), ("head", "", 2)]


class MLPOfOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 8), nn.Linear(8, 2)


@pytest.mark.parametrize("balance", ["count", "params"])
@pytest.mark.parametrize("granularity", ["category", "layer", "model"])
def test_either_both_factors_of_a_layer_learn_or_none(granularity: str, balance: str) -> None:
    model = adapted()
    found = matrices(model)
    apart = [Matrix(name, (name,), one.size // 2, one.category, one.layer) for one in found for name in one.parameters]
    broken = 0
    for seed in range(10):
        picked = chosen(model, granularity, balance=balance, seed=seed)
        names = {name for matrix in picked for name in matrix.parameters}
        assert not split(names)
        if balance == "count":
            assert len(picked) == 7  # of fourteen
        if (granularity, balance) == ("category", "count"):
            counts = Counter((matrix.layer, matrix.category) for matrix in picked)
            assert all(counts[f"base.layers.{layer}", "attention"] == 2 for layer in (0, 1))
            assert sorted(counts[f"base.layers.{layer}", "feed_forward"] for layer in (0, 1)) == [1, 2]
        taken_apart = select(apart, granularity, 0.5, balance, generator(seed))
        broken += len(split({name for matrix in taken_apart for name in matrix.parameters}))
    assert (broken > 10) == (granularity != "layer")  # the control: drawn by themselves, factors part


# --- in a run ---


class Looking(Neighbour):
    """Notes after each step what is in play, what moved since the phase began, and how much state the optimizer has."""

    def mask(self, context: Context) -> dict[str, bool | Tensor]:
        self._before = context.snapshot()
        return {}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        optimizer = context.learner.optimizer  # type: ignore[attr-defined]
        moments = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.ndim)
        moved = {name for name, p in context.model.named_parameters() if not torch.equal(p.detach(), self._before[name])}
        trained = sum(parameter.numel() for parameter in context.parameters)
        self.journal.append((context.position.event_index, set(context.parameter_names), moved, moments, trained))


def looked_at(folder: Path, options: dict[str, Any], **settings: Any) -> list[Any]:
    looking = slot(Looking)
    model = {"name": "mlp", "hidden": [16, 16, 16, 16]}
    finish(beside(experiment_of({"half": options}, folder, model=model, stream="L0 L1 L2", **settings), after=[looking]))
    return looking.strategy_class.journal


def test_what_is_frozen_leaves_the_optimizer_and_stays(tmp_path: Path) -> None:
    adam = {"name": "adam", "lr": 0.01, "weight_decay": 0.1, "clip": 1.0, "reset": "never"}
    journal = looked_at(tmp_path / "half", {}, optimizer=adam)
    assert len(journal) == 15
    for _, in_play, moved, *_ in journal:
        assert {"head.weight", "head.bias"} <= in_play
        assert len(in_play) == 2 + 2 * 2
        assert moved == in_play
    whole = looked_at(tmp_path / "whole", {"share": 1.0}, optimizer=adam)
    assert all(len(in_play) == 10 for _, in_play, *_ in whole)
    for *_, moments, trained in (*journal, *whole):
        assert moments == 2 * trained  # two moments of each entry that learns, none of the others
    assert journal[0][3] < whole[0][3]


def test_every_adapted_layer_that_learns_changes_in_the_first_task(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    looking, model = slot(Looking), {"name": "mlp", "hidden": [16, 16, 16, 16]}
    finish(beside(experiment_of({"lora": {"rank": 2}, "half": {}}, tmp_path, model=model), after=[looking]))
    last = {index: (in_play, moved) for index, in_play, moved, *_ in looking.strategy_class.journal}
    assert set(last) == {0, 1}
    for in_play, moved in last.values():
        assert moved == in_play and len(in_play) == 2 + 2 * 2 and not split(in_play)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_momentum_decay_clipping_and_precision_move_nothing_that_is_frozen(precision: str, tmp_path: Path) -> None:
    sgd = {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, "clip": 0.5, "reset": "never"}
    journal = looked_at(tmp_path, {}, optimizer=sgd, precision=precision)
    assert len(journal) == 15
    assert all(moved == in_play and len(in_play) == 6 for _, in_play, moved, *_ in journal)


def test_without_any_share_only_the_head_moves(tmp_path: Path) -> None:
    journal = looked_at(tmp_path, {"share": 0.0})
    assert len(journal) == 15
    assert {frozenset(moved) for _, _, moved, *_ in journal} == {frozenset({"head.weight", "head.bias"})}


def recorded(folder: Path, options: dict[str, Any], reset: str) -> tuple[list[Any], dict[str, Any]]:
    """What each task's phase says of its parameters and its optimizer, and the summary."""
    model = {"name": "mlp", "hidden": [16, 16, 16, 16]}
    adam = {"name": "adam", "lr": 0.01, "reset": reset}
    outcome = finish(experiment_of({"half": options}, folder, model=model, stream="L0 L1 L2", optimizer=adam))
    phases = [row["phases"] for row in RunDirectory(outcome.path).events()]
    return [(phase["trained_share"], phase["optimizer_bytes"]) for (phase,) in phases], rebuild_summary(outcome.path)


def test_a_run_records_the_share_that_learned_and_the_bytes_of_moments(tmp_path: Path) -> None:
    whole, summary = recorded(tmp_path / "whole", {"share": 1.0}, "event")
    assert [share for share, _ in whole] == [1.0] * 3 and "trained_share" not in summary and "trained" not in figures_line(summary)
    entries, tensors = (whole[0][1] - 10 * 4) // 8, 10  # two moments an entry and a count of steps a tensor, four bytes each
    half, summary = recorded(tmp_path / "half", {}, "event")
    assert all(0.3 < share < 0.8 and bytes_held == 8 * round(share * entries) + 4 * 6 for share, bytes_held in half)
    assert summary["optimizer_bytes"] == max(bytes_held for _, bytes_held in half) < whole[0][1] == 8 * entries + 4 * tensors
    assert summary["trained_share"] == pytest.approx(sum(share for share, _ in half) / 3)
    assert f"trained {summary['trained_share']:.2f}" in figures_line(summary)
    waiting, _ = recorded(tmp_path / "waiting", {}, "never")
    assert [share for share, _ in waiting] == [share for share, _ in half]
    assert half[0][1] == waiting[0][1] < waiting[1][1] <= waiting[2][1] <= whole[0][1]  # moments that wait are held


def test_texts_are_learned_by_half_and_by_all_in_settings_that_differ_in_nothing_else() -> None:
    pairs = (("text/clinc150_scratch_half", "text/clinc150_scratch_finetune"), ("language_shift_half", "language_shift"))
    for half, full in pairs:
        halved, whole = (yaml.safe_load(Path(f"experiments/{name}.yaml").read_text()) for name in (half, full))
        assert halved.pop("strategies") == {"half": {"granularity": "category"}} and halved == whole


@pytest.mark.parametrize(("reset", "kept"), [("never", True), ("event", False)])
def test_moments_wait_until_their_tensor_learns_again(reset: str, kept: bool, tmp_path: Path) -> None:
    model = {"name": "mlp", "hidden": [16, 16, 16, 16]}
    adam = {"name": "adam", "lr": 0.01, "reset": reset}
    outcome = finish(experiment_of({"half": {}}, tmp_path, model=model, stream="L0 L1 L2", optimizer=adam))
    steps = {name: int(state["step"]) for name, state in outcome.learner["optimizer_memory"].items()}
    assert bool(steps) == kept
    if kept:
        hidden = [count for name, count in steps.items() if name.startswith("body") and name.endswith("weight")]
        assert steps["head.weight"] == 15
        assert sum(hidden) == 2 * 15  # two of four matrices in each step, whichever they were


def test_each_task_has_its_own_half(tmp_path: Path) -> None:
    halves = {index: in_play for index, in_play, *_ in looked_at(tmp_path, {})}
    assert len(halves) == 3
    assert len({frozenset(half) for half in halves.values()}) > 1


def test_an_option_that_changes_nothing_is_refused(tmp_path: Path) -> None:
    options = {"granularity": "matrix", "balance": "params"}
    with pytest.raises(ConfigurationError, match=r"balance=params would change nothing with granularity=matrix, .*; leave it out"):
        experiment_of({"half": options}, tmp_path)
    experiment_of({"half": {**options, "granularity": "model"}}, tmp_path)


def test_a_model_with_nothing_to_halve_is_refused(tmp_path: Path) -> None:
    linear = {"name": "mlp", "hidden": []}
    with pytest.raises(ConfigurationError, match=r"half\.share: this model has no matrices beside .* or leave this strategy out\."):
        assemble(experiment_of({"half": {}}, tmp_path, model=linear))
    assemble(experiment_of({"half": {"share": 1.0}}, tmp_path, model=linear))
    assemble(experiment_of({"half": {}}, tmp_path))
