"""Pretrained models of text: damaged files, a hub that does not answer, tokens that are not the model's own, models of another kind."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework.assembly import assemble
from cl_framework.benchmarks.base import Alternatives, Benchmark
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.benchmarks.text.tokens import PAD, START, Bytes, Loaded, TokenInputs
from cl_framework.cli import main
from cl_framework.config import load_experiment
from cl_framework.criterion import row_losses
from cl_framework.errors import ConfigurationError
from cl_framework.models.decoder import Decoder, PretrainedDecoderOptions, pretrained_decoder
from cl_framework.models.from_transformers import check_fit, load_pretrained
from cl_framework.models.text import PretrainedEncoderOptions, pretrained_encoder
from cl_framework.testing.laboratory import outcome_of
from tests.unit.test_language_modelling import GERMAN, write_texts
from tests.unit.test_text_benchmarks import write_clinc, write_words

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")
huggingface_hub = pytest.importorskip("huggingface_hub")
SIZES = {"vocab_size": 258, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_model(folder: Path, name: str = "pretrained_decoder") -> Path:
    """A small Llama, or a BERT as an encoder."""
    kind = "Llama" if name == "pretrained_decoder" else "Bert"
    return write_of(folder, kind, name, max_position_embeddings=12)


def write_of(folder: Path, kind: str, name: str = "pretrained_decoder", **settings: Any) -> Path:
    """A model of some architecture with weights so large that what it attends to shows; always the same, since some attend to little."""
    torch.manual_seed(0)
    auto = transformers.AutoModelForCausalLM if name == "pretrained_decoder" else transformers.AutoModel
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "initializer_range": 0.5, **settings})
    auto.from_config(config).save_pretrained(folder)
    return folder


def made_of(folder: Path, name: str, length: int, vocabulary: int = 258) -> nn.Module:
    """The model that a benchmark of some length gets."""
    benchmark: Any = SimpleNamespace(
        vocabulary=vocabulary,
        tokenizer="bytes",
        input_shape=(length,),
        longest_row=length,
        num_classes=4,
        objective="language_modelling" if name == "pretrained_decoder" else "classification",
        name="made up",
    )
    if name == "pretrained_decoder":
        return pretrained_decoder(PretrainedDecoderOptions(str(folder)), benchmark)
    return pretrained_encoder(PretrainedEncoderOptions(str(folder)), benchmark)


@pytest.mark.parametrize(
    ("name", "benchmark"), [("pretrained_encoder", "text_classification"), ("pretrained_decoder", "language_modelling")]
)
def test_damaged_weights_are_named_and_nothing_is_written(
    name: str, benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_model(tmp_path / "model", name) / "model.safetensors"
    path = tmp_path / "trial.yaml"
    path.write_text(f"benchmark: {{name: {benchmark}, tokenizer: bytes, length: 12}}\nmodel: {{name: {name}, source: {weights.parent}}}\n")
    texts = [f"benchmark.folder={write_clinc(tmp_path / 'texts')}"]
    if benchmark == "language_modelling":
        texts = [f"benchmark.folder={write_texts(tmp_path / 'texts')}", "benchmark.corpus=folder"]
    whole, command = weights.read_bytes(), ["run", str(path), f"out={tmp_path / 'runs'}", *texts]
    for damaged in (whole[:-100], b"no weights" + whole[10:], b""):
        weights.write_bytes(damaged)
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"model.source={weights.parent}: {weights} is damaged (" in said and "Copy it again, or name another folder." in said
        assert "Traceback" not in said and not (tmp_path / "runs").exists()
    weights.write_bytes(whole)
    assert main([*command, "stream=L0", "batch_size=512"]) == 0


def test_what_is_missing_or_wrong_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    config, weights = folder / "config.json", folder / "model.safetensors"
    whole = config.read_text()
    for text, message in (
        (whole[:50], r": \S+/config\.json is no valid JSON \(.*\)\. Copy it again, or name another folder\.$"),
        (
            whole.replace('"hidden_size": 16', '"hidden_size": 32'),
            r": \S+ has shape \(258, 16\), but config\.json asks for \(258, 32\)\. Copy both again, or name another model\.$",
        ),
        (whole.replace('"hidden_size": 16', '"hidden_size": "x"'), r" cannot be loaded: .* Copy it again, or name another model\.$"),
        (whole.replace('"llama"', '"nonsense"'), r" cannot be loaded: .*`nonsense`.* Copy it again, or name another model\.$"),
    ):
        config.write_text(text)
        with pytest.raises(ConfigurationError, match=rf"^model.source={folder}{message}"):
            load_pretrained(transformers.AutoModel, str(folder))
    config.write_text(whole)
    assert isinstance(load_pretrained(transformers.AutoModel, str(folder), add_pooling_layer=False), nn.Module)  # it knows no such option
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is a file\. Name the folder that holds it and config\.json\.$"):
        load_pretrained(transformers.AutoModel, str(weights))
    for file, message in ((weights, "no weights, such as model.safetensors"), (config, "no config.json")):
        file.unlink()
        with pytest.raises(ConfigurationError, match=rf"^model.source={folder} holds {message}\. Copy it again, or name another folder\.$"):
            load_pretrained(transformers.AutoModel, str(folder))


def changed(weights: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """A file of weights with other tensors in it."""
    state = safetensors.load_file(weights)
    change(state)
    safetensors.save_file(state, weights, metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["pretrained_decoder", "pretrained_encoder"])
def test_weights_that_would_be_drawn_at_random_are_refused(name: str, tmp_path: Path) -> None:
    weights = write_model(tmp_path, name) / "model.safetensors"
    whole, kind = weights.read_bytes(), "LlamaForCausalLM" if name == "pretrained_decoder" else "BertModel"
    assert isinstance(made_of(tmp_path, name, 12), nn.Module)
    unused = {key for key in safetensors.load_file(weights) if "pooler" in key}
    key = max(safetensors.load_file(weights).keys() - unused)
    infinite = rf"{key} has values that are not finite \(NaN or infinite\)\. Copy it again, or name another model\.$"
    for change, text in (
        (lambda state: state.pop(key), rf"none of its files holds {key} of a {kind}\. Copy them again, or name another model\.$"),
        (
            lambda state: (state.clear(), state.update(other=torch.zeros(1))),
            rf"none of its files holds \S+, \S+, \S+ and \d+ more of a {kind}\. Copy them again, or name another model\.$",
        ),
        (
            lambda state: state.update({key: torch.zeros(3, 5)}),
            rf"{key} has shape \(3, 5\), but config\.json asks for \(\d+,.*\)\. Copy both",
        ),
        (lambda state: state[key].view(-1)[:1].fill_(float("nan")), infinite),
        (
            lambda state: state[key].view(-1)[:1].fill_(-float("inf")),
            rf"{key} has values that are not finite \(NaN or infinite\)\. Copy it",
        ),
    ):
        weights.write_bytes(whole)
        changed(weights, change)
        with pytest.raises(ConfigurationError, match=rf"^model.source={tmp_path}: {text}"):
            made_of(tmp_path, name, 12)
    weights.write_bytes(whole)
    changed(weights, lambda state: [state.pop(key) for key in unused] + [state.update({"other.weight": torch.zeros(1)})])
    assert isinstance(made_of(tmp_path, name, 12), nn.Module)  # what a pooling layer needs, or another head, is not


@pytest.mark.parametrize("name", ["pretrained_decoder", "pretrained_encoder"])
def test_layers_beyond_those_of_the_configuration_are_refused(name: str, tmp_path: Path) -> None:
    """They would be left out without a word, and the model be another one."""
    folder = write_of(tmp_path / "model", "Llama" if name == "pretrained_decoder" else "Bert", name, num_hidden_layers=2)
    assert isinstance(made_of(folder, name, 12), nn.Module)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    text = r"its files hold \S*layers?\.1\.\S+, but by config\.json there is no such layer\. Copy both again, or name another model\.$"
    for load in (made_of, lambda folder, *_: load_pretrained(transformers.AutoModel, str(folder))):  # a body alone has other names
        with pytest.raises(ConfigurationError, match=rf"^model.source={folder}: {text}"):
            load(folder, name, 12)


def test_an_encoder_asked_for_as_a_decoder_is_told(tmp_path: Path) -> None:
    folder = write_model(tmp_path, "pretrained_encoder")
    assert isinstance(made_of(folder, "pretrained_encoder", 12), nn.Module)
    lacks = r"none of its files holds cls\.\S+, \S+, \S+ and \d+ more of a BertLMHeadModel \(by config\.json it is a BertModel\)"
    with pytest.raises(ConfigurationError, match=rf"^model.source={folder}: {lacks}\. Name a model that has them, or copy them again\.$"):
        made_of(folder, "pretrained_decoder", 12)


def test_what_a_model_makes_of_other_weights_is_not_missed(tmp_path: Path) -> None:
    """A tied head is one matrix with the embedding, under either name; a body alone has no head of its own."""
    for tied in (True, False):
        folder = write_of(tmp_path / str(tied), "Llama", tie_word_embeddings=tied)
        weights, embedding = folder / "model.safetensors", "model.embed_tokens.weight"
        assert (embedding in safetensors.load_file(weights), "lm_head.weight" in safetensors.load_file(weights)) == (True, not tied)
        whole = made_of(folder, "pretrained_decoder", 12)
        changed(weights, lambda state: state.update({"lm_head.weight": state.pop("model.embed_tokens.weight")}))
        if not tied:
            with pytest.raises(ConfigurationError, match=rf"none of its files holds {embedding} of a LlamaForCausalLM"):
                made_of(folder, "pretrained_decoder", 12)
            continue
        renamed = made_of(folder, "pretrained_decoder", 12)
        assert torch.equal(renamed.head.weight, whole.head.weight)  # type: ignore[union-attr, arg-type]
        changed(weights, lambda state: state.pop("lm_head.weight"))
        with pytest.raises(ConfigurationError, match=rf"none of its files holds lm_head.weight, {embedding} of a LlamaForCausalLM"):
            made_of(folder, "pretrained_decoder", 12)
    sizes = {"embedding_size": 16, "num_attention_heads": 4, **{f"{part}_groups": 1 for part in ("q", "k", "v", "intermediate", "output")}}
    config = transformers.SqueezeBertConfig(**{**SIZES, **sizes, "post_attention_groups": 1})
    transformers.SqueezeBertForMaskedLM(config).save_pretrained(tmp_path / "pooled")
    pooled = load_pretrained(transformers.AutoModel, str(tmp_path / "pooled"), add_pooling_layer=False)
    assert hasattr(pooled, "pooler")  # it has one whatever it is told, of which the file holds nothing


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def head(address: str, timeout: float) -> None:
        asked.append((address, timeout))
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"it waited {seconds} s"))
    text = r"model.source=no/such-model cannot be loaded: there is no such folder, it was never fetched from the hub, and https?://\S+ does"
    with pytest.raises(ConfigurationError, match=text + r" not answer\. Name a local folder or package:NAME\."):
        load_pretrained(transformers.AutoModel, "no/such-model", add_pooling_layer=False)
    assert [timeout for _, timeout in asked] == [10]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda source, local_files_only: write_model(tmp_path / "fetched"))
    assert isinstance(load_pretrained(transformers.AutoModel, "no/such-model"), nn.Module)  # what was fetched before needs no hub
    load_pretrained(transformers.AutoModel, str(tmp_path / "fetched"))
    assert len(asked) == 2  # and a folder is not asked for at all


def replaced(benchmark: SimpleNamespace, **changes: str) -> Any:
    return SimpleNamespace(**{**vars(benchmark), **changes})


def test_tokens_that_are_not_the_models_own_are_refused_with_a_remedy_that_can_be_had(tmp_path: Path) -> None:
    benchmark: Any = SimpleNamespace(vocabulary=300, tokenizer="bytes", input_shape=(12,), longest_row=12)
    for source in ("no/such-model", str(tmp_path)):  # of the second there is no tokenizer either
        text = rf"the benchmark's tokenizer has 300 token ids, but {source} knows 258\. Set benchmark.tokenizer to a folder that holds its"
        with pytest.raises(ConfigurationError, match=text + r" tokenizer\.json\."):
            check_fit(benchmark, source, 258, None)
    with pytest.raises(ConfigurationError, match=r"has 300 token ids, but no/such-model knows 600\. Set benchmark.tokenizer to a folder"):
        check_fit(benchmark, "no/such-model", 600, None)  # no embedding is padded to twice its size: these are other tokens
    check_fit(benchmark, "no/such-model", 599, None)
    write_words(tmp_path, [f"word{number}" for number in range(250)])
    for known in (258, 301):
        with pytest.raises(ConfigurationError, match=rf"300 token ids, but {tmp_path} knows 250\. Set benchmark.tokenizer={tmp_path}\."):
            check_fit(benchmark, str(tmp_path), known, None)
    text = rf"the tokenizer of {tmp_path} has 250 token ids, but its model knows 249\. Enlarge its embedding, or name another model\."
    with pytest.raises(ConfigurationError, match=text):
        check_fit(benchmark, str(tmp_path), 249, None)
    words = [f"word{number}" for number in range(300)]
    write_words(tmp_path, words)
    other = Loaded(write_words(tmp_path / "other", [*words[1:], words[0]]))
    assert other.size == 300 and other.name != Loaded(tmp_path).name
    for name in ("bytes", "bpe", other.name):
        text = rf"has 300 token ids, as {tmp_path} has, but they stand for other words\. Set benchmark.tokenizer={tmp_path}\."
        with pytest.raises(ConfigurationError, match=text):
            check_fit(replaced(benchmark, tokenizer=name), str(tmp_path), 300, 12)
    text = r"benchmark.tokenizer=bpe is trained here: no/such-model was trained with other tokens\. Set benchmark.tokenizer to"
    with pytest.raises(ConfigurationError, match=text):
        check_fit(replaced(benchmark, tokenizer="bpe"), "no/such-model", 300, 12)
    benchmark = replaced(benchmark, tokenizer=Loaded(write_words(tmp_path / "copy", words)).name)
    with pytest.raises(ConfigurationError, match=rf"benchmark.length=12 is longer than the 11 tokens that {tmp_path} reads\."):
        check_fit(benchmark, str(tmp_path), 300, 11)
    for known in (300, 320, 700):
        check_fit(benchmark, str(tmp_path), known, 12)


def test_other_answers_that_a_model_cannot_read_are_refused_before_it_is_trained(tmp_path: Path) -> None:
    row = torch.zeros(1, 8, dtype=torch.int32), torch.zeros(1, 8, dtype=torch.int64)
    false = tuple(values.repeat(1, 3) for values in row)
    source = TensorSource(*row)
    benchmark = Benchmark("made up", 258, ((0,),), [source], [source], TokenInputs(), (8,), ("domain_il",), "text", 258)
    beside = Alternatives(row, (false[0], false[1]), (0,), (0,))
    assert benchmark.longest_row == 8
    check_fit(benchmark, "no/such-model", 258, 16)
    text = r"a row of 24 tokens, with another answer than the tasks', is longer than the 16 tokens that .* reads( whole: .*)?\. "
    model = write_of(tmp_path, "Mistral", num_key_value_heads=1, sliding_window=16)
    for longer in (replace(benchmark, alternatives=(None, beside)), replace(benchmark, utility={"world_facts": beside})):
        assert longer.longest_row == 24
        with pytest.raises(ConfigurationError, match=text + r"Set benchmark.length=16 or lower"):
            check_fit(longer, "no/such-model", 258, 16)
        modelled = replace(longer, objective="language_modelling")
        with pytest.raises(ConfigurationError, match=text + r"Set benchmark.length=16 or lower"):  # and so is a model that says nothing
            pretrained_decoder(PretrainedDecoderOptions(str(model)), modelled)
    pretrained_decoder(PretrainedDecoderOptions(str(model)), replace(benchmark, objective="language_modelling"))


def test_only_an_option_that_a_model_does_not_know_is_left_out(tmp_path: Path) -> None:
    class Auto:
        @staticmethod
        def from_pretrained(place: str, *, attn_implementation: str = "sdpa", **told: bool) -> tuple[nn.Module, dict[str, set[Any]]]:
            assert place == str(tmp_path) and "output_loading_info" in told
            if "add_pooling_layer" in told:
                raise TypeError("got an unexpected keyword argument 'add_pooling_layer'")
            if attn_implementation == "none":
                raise TypeError("no such kernel")
            model = nn.Module()
            model.kernel = attn_implementation  # type: ignore[assignment]
            return model, {"missing_keys": set(), "mismatched_keys": set(), "unexpected_keys": set()}

    write_model(tmp_path)
    assert load_pretrained(Auto, str(tmp_path), add_pooling_layer=False, attn_implementation="eager").kernel == "eager"
    with pytest.raises(ConfigurationError, match=r"cannot be loaded: no such kernel"):  # it was not the option's name
        load_pretrained(Auto, str(tmp_path), attn_implementation="none")


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Llama", {"tie_word_embeddings": False}),
        ("Llama", {"tie_word_embeddings": True, "pad_token_id": 270}),
        ("GPTNeoX", {}),
        ("Qwen2", {"num_key_value_heads": 1}),
        ("Phi", {}),  # its head has a bias
    ],
)
def test_ids_behind_the_tokenizers_are_cut_off_a_decoder(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    own = load_pretrained(transformers.AutoModelForCausalLM, str(write_of(tmp_path, kind, vocab_size=300, **settings)))
    made = made_of(tmp_path, "pretrained_decoder", 12).eval()
    assert isinstance(made, Decoder)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        logits = made({"input_ids": tokens, "attention_mask": torch.ones_like(tokens, dtype=torch.bool)})
        expected = own(input_ids=tokens).logits.transpose(1, 2)
    assert expected.shape == (2, 300, 12) and torch.allclose(logits, expected[:, :258], atol=1e-4)
    assert not torch.allclose(logits, expected[:, -258:], atol=1e-2)
    assert (made.head.weight is made.body.get_input_embeddings().weight) == settings.get("tie_word_embeddings", False)  # type: ignore[operator]
    whole = made_of(tmp_path, "pretrained_decoder", 12, vocabulary=300)
    assert whole.head.weight.shape[0] == 300 and made.head.weight.shape[0] == 258  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "kind", "benchmark"),
    [("pretrained_encoder", "Bert", "text_classification"), ("pretrained_decoder", "GPTNeoX", "language_modelling")],
)
def test_a_padded_model_learns_and_answers_with_the_tokenizers_ids(name: str, kind: str, benchmark: str, tmp_path: Path) -> None:
    """Of its embedding the rows of the bytes that were shown move and no others, and so none of what it is padded with."""
    folder = write_of(tmp_path / "model", kind, name, vocab_size=300)
    texts = f"folder: {write_clinc(tmp_path / 'texts')}"
    if benchmark == "language_modelling":
        texts = f"corpus: folder, folder: {write_texts(tmp_path / 'texts')}"
    path = tmp_path / "trial.yaml"
    path.write_text(
        f"benchmark: {{name: {benchmark}, tokenizer: bytes, length: 12, {texts}}}\nmodel: {{name: {name}, source: {folder}}}\n"
        f"strategies: {{er: {{capacity: 8}}, rewind: {{}}}}\nstream: L0 L1 U0\nbatch_size: 32\nepochs: 8\nout: {tmp_path / 'runs'}\n"
        "optimizer: {name: adamw, lr: 0.01, weight_decay: 0}\n"
    )
    assert main(["run", str(path)]) == 0
    (where,) = (file.parent for file in (tmp_path / "runs").rglob("records.jsonl"))
    outcome = outcome_of(where)

    written = safetensors.load_file(folder / "model.safetensors")
    start, learned = (embedding_of(state) for state in (written, outcome.weights))
    moved = set((learned != start[: len(learned)]).any(1).nonzero().flatten().tolist())
    learner = assemble(load_experiment(path))
    rows = [learner.read(learner.training_ids(task)) for task in (0, 1)]
    shown = [set(row.inputs["input_ids"].unique().tolist()) - {PAD} for row in rows]  # type: ignore[index]
    assert moved == shown[1] and not shown[0] <= moved  # the first task is forgotten
    said = {"pretrained_encoder": "please book visa", "pretrained_decoder": "\n".join(GERMAN)}[name].encode()
    assert moved - {START} <= {byte + 2 for byte in said} and len(moved) > 10  # two ids are no byte's
    assert max(moved) < Bytes.size < len(start)

    def losses() -> list[float]:
        with torch.no_grad():
            return [float(row_losses(learner.model.eval()(row.inputs), row.targets).mean()) for row in rows]

    _, untrained = losses()
    learner.model.load_state_dict(outcome.weights)
    forgotten, known = losses()
    assert known < 0.7 * untrained and known < 0.8 * forgotten  # at seeds 0 to 2 at most 0.48 and 0.73 of them
    assert learner.model(rows[1].inputs).shape[1] == {"pretrained_encoder": 6, "pretrained_decoder": Bytes.size}[name]


def embedding_of(state: Mapping[str, Tensor]) -> Tensor:
    (found,) = (value for name, value in state.items() if name.endswith(("word_embeddings.weight", "embed_in.weight")))
    return found


# --- what is made of a model ---

HEAD = r"model.source=.*: its logits are not those of a linear head on its last states under a causal mask, .*\. Choose another model\.$"
MASK = (
    r"model.source=.*: its states under a mask added to the scores of attention, .* are not those under its own mask\. Choose another model"
)
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("pretrained_decoder", "OPT", {"ffn_dim": 32, "word_embed_proj_dim": 16}),
        ("pretrained_decoder", "Bloom", {}),
        ("pretrained_decoder", "Mamba", {"state_size": 4}),
        ("pretrained_decoder", "Gemma2", {"num_key_value_heads": 1, "head_dim": 8, "final_logit_softcapping": 0.5}),
        ("pretrained_encoder", "Deberta", {}),
        ("pretrained_encoder", "DebertaV2", DISENTANGLED),
        ("pretrained_encoder", "Llama", {}),  # its own mask is causal
    ],
)
def test_models_of_another_kind_are_refused(name: str, kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    write_of(tmp_path, kind, name, **settings)
    with pytest.raises(ConfigurationError, match=HEAD if name == "pretrained_decoder" else MASK):
        made_of(tmp_path, name, 12)


@pytest.mark.parametrize(
    ("name", "kind", "longest", "settings"),
    [
        ("pretrained_encoder", "Bert", None, {"max_position_embeddings": 42}),
        ("pretrained_encoder", "Roberta", 40, {"max_position_embeddings": 42, "pad_token_id": 1}),  # positions begin behind padding's id
        ("pretrained_decoder", "GPT2", None, {"n_positions": 42}),
        ("pretrained_decoder", "Llama", None, {"max_position_embeddings": 42}),
        ("pretrained_decoder", "Mistral", 16, {"num_key_value_heads": 1, "sliding_window": 16}),
        ("pretrained_decoder", "Mistral", None, {"num_key_value_heads": 1, "sliding_window": 42}),
        (
            "pretrained_decoder",
            "Gemma2",
            16,
            {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 16, "final_logit_softcapping": None, "num_hidden_layers": 2},
        ),
    ],
)
def test_a_model_is_asked_at_the_benchmarks_length(
    name: str, kind: str, longest: int | None, settings: dict[str, Any], tmp_path: Path
) -> None:
    write_of(tmp_path, kind, name, **settings)
    if longest is None:
        made_of(tmp_path, name, 42)
        return
    made_of(tmp_path, name, longest)
    for length in (longest + 1, 42):
        text = rf"benchmark.length={length} is longer than the {longest} tokens that .* reads whole: .* Set benchmark.length={longest} "
        with pytest.raises(ConfigurationError, match=text):
            made_of(tmp_path, name, length)


def test_an_encoder_in_half_precision_is_as_precise_as_its_head(tmp_path: Path) -> None:
    bert = transformers.BertModel(transformers.BertConfig(**SIZES)).to(torch.bfloat16)
    bert.save_pretrained(tmp_path)
    assert load_pretrained(transformers.AutoModel, str(tmp_path)).dtype == torch.bfloat16
    made = made_of(tmp_path, "pretrained_encoder", 12)
    tokens = torch.arange(24).view(2, 12)
    logits = made({"input_ids": tokens, "attention_mask": torch.ones_like(tokens, dtype=torch.bool)})
    assert logits.shape == (2, 4) and {parameter.dtype for parameter in made.parameters()} == {torch.float32}


def test_a_decoder_in_half_precision_learns_in_single(tmp_path: Path) -> None:
    """A step far below the rounding of bfloat16 still counts."""
    kind = transformers.LlamaForCausalLM
    write_of(tmp_path, "Llama")
    kind.from_pretrained(tmp_path).to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_pretrained(transformers.AutoModelForCausalLM, str(tmp_path)).dtype == torch.bfloat16
    made = made_of(tmp_path, "pretrained_decoder", 12)
    assert {parameter.dtype for parameter in made.parameters()} == {torch.float32}
    for weight, moves in ((made.head.weight, True), (made.head.weight.to(torch.bfloat16), False)):
        assert bool((weight * (1 + 1e-4) != weight).any()) is moves


def test_a_model_of_another_kind_is_told_in_a_sentence_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text(
        f"benchmark: {{name: text_classification, tokenizer: bytes, length: 12, folder: {write_clinc(tmp_path / 'texts')}}}\n"
        f"model: {{name: pretrained_encoder}}\nstream: L0\nout: {tmp_path / 'runs'}\n"
    )
    refused, taken = (write_of(tmp_path / kind, kind, "pretrained_encoder") for kind in ("DebertaV2", "Bert"))
    assert main(["run", str(path), f"model.source={refused}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"clu: model.source={refused}: its states under") and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()
    assert main(["run", str(path), f"model.source={taken}"]) == 0
