"""Encoders of text, and every strategy on a stream of texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import load_experiment, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.errors import ConfigurationError
from cl_framework.models.text import TextEncoder
from cl_framework.testing.laboratory import finish, first_difference
from cl_framework.unlearning.audit import audit
from tests.unit.test_text_benchmarks import DOMAINS, write_clinc

COUNTS = {"train": 6, "test": 2}  # texts of each of two labels a task
TEXTS = {
    split: [[f"{label} {n}", label] for labels in DOMAINS.values() for label in labels for n in range(count)]
    for split, count in COUNTS.items()
}
TINY = {"name": "encoder", "width": 16, "layers": 1, "heads": 2}


def experiment(folder: Path, strategies: dict[str, Any], **settings: Any) -> Any:
    if not (folder / "clinc150").exists():
        write_clinc(folder / "clinc150", TEXTS)
    base: dict[str, Any] = {
        "benchmark": {"name": "text_classification", "length": 10, "tokenizer": "bytes"},
        "model": TINY,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "data": {"root": str(folder)},
        "batch_size": 4,
        "strategies": strategies,
        "out": str(folder / "runs"),
        "threads": 1,
        "stream": "L0 L1",
    }
    return load_experiment({**base, **settings})


def test_padding_changes_nothing(tmp_path: Path) -> None:
    benchmark = make_benchmark(experiment(tmp_path, {}))
    model = assemble(experiment(tmp_path, {})).model.eval()
    assert isinstance(model, TextEncoder)
    inputs = benchmark.transform(benchmark.read(benchmark.ids_of(0))[0], None)
    assert isinstance(inputs, dict)
    short = {name: value[:, :7] for name, value in inputs.items()}
    short["attention_mask"] = short["attention_mask"].clone()
    short["attention_mask"][:, 5:] = False
    longer = {name: value.clone() for name, value in inputs.items()}
    longer["attention_mask"][:, 5:] = False
    longer["input_ids"][:, 5:] = 77  # what is not attended to does not count
    with torch.no_grad():
        assert torch.allclose(model.features(short), model.features(longer), atol=1e-6)
        assert not torch.allclose(model.features(inputs), model.features(longer), atol=1e-3)


STACKS: dict[str, dict[str, Any]] = {
    "der": {"der": {"capacity": 8}},
    "derpp": {"derpp": {"capacity": 8}},
    "er_ace": {"er_ace": {"capacity": 8}},
    "mir": {"mir": {"capacity": 8}},
    "agem": {"agem": {"capacity": 8}},
    "gdumb": {"gdumb": {"capacity": 8, "epochs": 20, "cutmix": 0.0}},
    "icarl": {"icarl": {"capacity": 8}},
    "lwf": {"lwf": {}},
    "ewc": {"ewc": {}},
    "si": {"si": {}},
    "refresh": {"refresh": {}, "er": {"capacity": 8}},
    "view_batch": {"view_batch": {"views": 2}, "er": {"capacity": 8}},
    "power_law": {"power_law": {}},
    "half": {"half": {}, "er": {"capacity": 8}},
    "joint": {"joint": {}},
    "cumulative": {"cumulative": {}},
    "replay_share": {"replay_share": {"share": 0.5}, "rewarm": {}},
    "lora": {"lora": {}, "er": {"capacity": 8}, "infinite_rate": {}},
}
EPOCHS = {"lora": 40}  # its encoder stays as it was drawn, so that adapters need more steps; the others learn in six
# Stacks that at the end know the first task, which fine-tuning never names again, at seeds 0 to 2. The others do not, or not at each: agem,
# lwf, ewc and si of so few texts, and power_law, which shows a tenth as many of the old task.
KEEPS = ("der", "derpp", "er_ace", "mir", "gdumb", "icarl", "refresh", "view_batch", "half", "joint", "cumulative", "replay_share", "lora")
UNLEARNERS: dict[str, dict[str, Any]] = {
    "rewind": {},
    "rmu": {},
    "gradient_ascent": {"epochs": 5, "lr": 0.05},
    "grad_diff": {"epochs": 6, "gamma": 0.3},
    "npo": {"epochs": 4, "lr": 0.02},
    "simnpo": {"epochs": 6},
    "ssd": {"alpha": 5.0},
    "reset_head": {},
    "noise": {"norm": 2.0},
    "do_nothing": {},
    "finetune_retain": {},
}
# Which take the other task with them, at seeds 0 to 2: nothing holds it beside gradient_ascent and noise, and rmu drives all features of so
# small an encoder towards its direction, with a memory of 24 and alpha 5 as well (c of 5 spares it at some seeds). The others leave it as
# it was, at each seed.
LOSES_THE_OTHER_TASK = ("rmu", "gradient_ascent", "noise")


def accuracies(folder: Path, strategies: dict[str, Any], **settings: Any) -> list[list[float]]:
    """In percent, after each event of each task."""
    summary = run(experiment(folder, strategies, **{"epochs": 6, **settings})).summary
    assert summary is not None
    matrix: list[list[float]] = summary["accuracy_matrix"]
    return matrix


@pytest.mark.parametrize("name", STACKS)
def test_strategies_learn_texts(name: str, tmp_path: Path) -> None:
    (first, _), (old, new) = accuracies(tmp_path, STACKS[name], epochs=EPOCHS.get(name, 6))
    learned = new if name == "joint" else min(first, new)  # joint learns at the end
    assert learned > 50  # of two classes a task
    assert old >= 50 or name not in KEEPS


@pytest.mark.parametrize("name", [name for name in STACKS if name not in KEEPS or "er" in STACKS[name]])
def test_strategies_that_keep_nothing_of_texts_themselves_do_something(name: str, tmp_path: Path) -> None:
    """Accuracies do not tell them from fine-tuning, or from the replay beside them; the model after the second task does."""
    ours, theirs = (finish(experiment(tmp_path, stack)).weights for stack in (STACKS[name], without(name)))
    assert first_difference(ours, theirs) is not None


def without(name: str) -> dict[str, Any]:
    """The stack of a strategy without it."""
    return {slot: options for slot, options in STACKS[name].items() if slot != name}


@pytest.mark.parametrize("beside", ["", "refresh", "view_batch", "half", "rewarm", "lora"])
def test_what_replays_is_what_keeps_a_task_of_texts(beside: str, tmp_path: Path) -> None:
    """The control of what keeps: without replay the first task is never named again."""
    options = {"view_batch": {"views": 2}}.get(beside, {})
    (first, _), (old, new) = accuracies(tmp_path, {beside: options} if beside else {}, epochs=EPOCHS.get(beside, 6))
    assert (first, old, new) == (100, 0, 100)


@pytest.mark.parametrize("name", UNLEARNERS)
def test_strategies_unlearn_texts(name: str, tmp_path: Path) -> None:
    summary = run(experiment(tmp_path, {"er": {"capacity": 8}, name: UNLEARNERS[name]}, stream="L0 L1 U0 L2", epochs=6)).summary
    assert summary is not None and [entry["event"] for entry in summary["unlearning"]] == ["U0"]
    before, (forgotten, other, _) = (summary["accuracy_matrix"][event] for event in (1, 2))
    assert before[:2] == [100, 100] and (forgotten == 100 if name == "do_nothing" else forgotten <= 50)  # of two classes
    assert other <= 50 if name in LOSES_THE_OTHER_TASK else other == 100


PARTS: dict[str, dict[str, Any]] = {"analytic": {}, "isolation": {"scenario": "task_il"}}


@pytest.mark.parametrize("name", PARTS)
def test_parts_and_heads_of_texts_go_with_their_task_and_leave_the_others_as_they_are(name: str, tmp_path: Path) -> None:
    matrix = run(experiment(tmp_path, {name: {}}, stream="L0 L1 U0 L2", epochs=6, **PARTS[name])).summary["accuracy_matrix"]  # type: ignore[index]
    forgotten = 0 if name == "analytic" else 50  # which names no class that it has no samples of; of two classes, where the task is told
    assert [row[:2] for row in matrix] == [[100, matrix[0][1]], [100, 100], [forgotten, 100], [forgotten, 100]]
    assert matrix[0][1] <= 50 and matrix[3][2] == 100


@pytest.mark.parametrize("name", PARTS)
def test_parts_and_heads_after_a_task_of_texts_is_unlearned_are_those_that_never_learned_it(name: str, tmp_path: Path) -> None:
    def left(stream: str) -> dict[str, Tensor]:
        outcome = finish(experiment(tmp_path, {name: {}}, stream=stream, epochs=6, **PARTS[name]))
        if name == "isolation":
            return outcome.weights
        return {sums: outcome.learner["strategies"]["analytic"][sums] for sums in ("gram", "moment")}

    rounding = 1e-8 if name == "analytic" else 0.0
    never = left("L1")
    assert first_difference(left("L0 L1 U0"), never, rounding=rounding) is None
    assert first_difference(left("L0 L1"), never, rounding=rounding) is not None


@pytest.mark.parametrize("writes", ["all", "head"])
def test_a_hypernetwork_writes_an_encoder_or_its_head_and_unlearns(writes: str, tmp_path: Path) -> None:
    options = {"writes": writes, "hidden": [16], "chunk_size": 400, "unlearning_steps": 40}
    learner = assemble(experiment(tmp_path, {"hypernetwork": options}, scenario="task_il"))
    written = learner.model.hypernetwork.layout.names  # type: ignore[union-attr]
    assert ([name.rpartition("head.")[2] for name in written] == ["weight", "bias"]) == (writes == "head")
    assert all("hypernetwork" in name or "embeddings" in name for name, _ in learner.model.named_parameters())
    settings: dict[str, Any] = {"scenario": "task_il", "epochs": 8}
    _, before, after, last = accuracies(tmp_path, {"hypernetwork": options}, stream="L0 L1 U0 L2", **settings)
    assert before[:2] == [100, 100] and after[0] <= 50 and after[1] == 100  # of two classes a task
    assert last[1:] == [100, 100]  # and the next one is learned
    tiny = {**options, "unlearning_steps": 1, "unlearning_lr": 1e-9}
    _, same, answered = accuracies(tmp_path, {"hypernetwork": tiny}, stream="L0 L1 U0", **settings)
    assert same == before[:2] and answered == [100, 100]  # the request alone takes nothing away: the steps do


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewind", "do_nothing"])
def test_a_stream_of_texts_is_audited_as_any_other(name: str, tmp_path: Path) -> None:
    result = audit(run(experiment(tmp_path, {"er": {"capacity": 8}, name: {}}, stream="L0 L1 U0 L2", epochs=6)).path, seeds=1)
    figures = {figure["name"]: figure for figure in result["requests"][0]["figures"]}
    values, verdicts = ({figure: figures[figure][key] for figure in ("M1", "M4", "M5")} for key in ("value", "verdict"))
    assert all((value == 0.0) == (name == "rewind") for value in values.values()), values
    assert set(verdicts.values()) == ({"PASS"} if name == "rewind" else {"FAIL"}), verdicts


def test_a_model_and_a_benchmark_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="benchmark 'synthetic' has no tokens: models of text need a benchmark of text"):
        assemble(experiment(tmp_path, {}, benchmark={"name": "synthetic"}))


def test_a_pretrained_encoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=258, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, max_position_embeddings=12
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "model")
    model = {"name": "pretrained_encoder", "source": str(tmp_path / "model")}
    for frozen in (False, True):
        learner = assemble(experiment(tmp_path, {}, model={**model, "frozen": frozen}))
        trained = [name for name, _ in learner.model.named_parameters()]
        assert (trained == ["head.weight", "head.bias"]) == frozen
        before = {name: value.clone() for name, value in learner.model.state_dict().items() if "encoder" in name}
        ckpt = run(experiment(tmp_path, {}, model={**model, "frozen": frozen})).path / "ckpt"
        state = torch.load(sorted(ckpt.glob("*.pt"))[-1], weights_only=True)["learner"]["model"]
        assert all(torch.equal(state[name], value) for name, value in before.items()) == frozen
    assert run(experiment(tmp_path, {"er": {"capacity": 8}}, model=model)).status == "done"
    longer = {"name": "text_classification", "length": 13, "tokenizer": "bytes"}
    with pytest.raises(
        ConfigurationError, match=r"benchmark.length=13 is longer than the 12 tokens that .* Set benchmark.length=12 or lower, or take"
    ):
        assemble(experiment(tmp_path, {}, model=model, benchmark=longer))
    text = (
        r"the benchmark's tokenizer has .* token ids, but .* knows 258. Set benchmark.tokenizer to a folder that holds its tokenizer.json."
    )
    with pytest.raises(ConfigurationError, match=text):
        assemble(experiment(tmp_path, {}, model=model, benchmark={**longer, "length": 10, "tokenizer": "bpe", "vocabulary": 300}))
    with pytest.raises(ConfigurationError, match=r"model.source=no/such-model cannot be loaded"):
        assemble(experiment(tmp_path, {}, model={**model, "source": "no/such-model"}))
