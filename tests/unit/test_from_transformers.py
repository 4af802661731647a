"""Pretrained models of text: damaged files, a hub that does not answer, tokens that are not the model's own."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from cl_framework.cli import main
from cl_framework.errors import ConfigurationError
from cl_framework.models.from_transformers import check_fit, load_pretrained
from tests.unit.test_language_modelling import write_texts
from tests.unit.test_text_benchmarks import write_clinc

transformers = pytest.importorskip("transformers")
huggingface_hub = pytest.importorskip("huggingface_hub")
SIZES = {"vocab_size": 258, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_model(folder: Path) -> Path:
    """A decoder, which serves as an encoder too."""
    transformers.LlamaForCausalLM(transformers.LlamaConfig(max_position_embeddings=12, **SIZES)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "benchmark"), [("pretrained_encoder", "text_classification"), ("pretrained_decoder", "language_modelling")]
)
def test_damaged_weights_are_named_and_nothing_is_written(
    name: str, benchmark: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = write_model(tmp_path / "model") / "model.safetensors"
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


def test_other_files_that_are_wrong_are_told_by_their_reader(tmp_path: Path) -> None:
    config = write_model(tmp_path) / "config.json"
    whole = config.read_text()
    for text in (
        whole[:50],
        whole.replace('"hidden_size": 16', '"hidden_size": 32'),
        whole.replace('"hidden_size": 16', '"hidden_size": "x"'),
    ):
        config.write_text(text)
        with pytest.raises(ConfigurationError, match=r"model.source=.* cannot be loaded: .* Name a local folder or package:NAME\."):
            load_pretrained(transformers.AutoModel, str(tmp_path))
    config.write_text(whole)
    assert isinstance(load_pretrained(transformers.AutoModel, str(tmp_path), add_pooling_layer=False), nn.Module)  # it knows no such option


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


def test_tokens_that_are_not_the_models_own_are_refused_with_a_remedy_that_can_be_had(tmp_path: Path) -> None:
    benchmark: Any = SimpleNamespace(vocabulary=300, input_shape=(12,))
    for source in ("no/such-model", str(tmp_path)):  # of the second there is no tokenizer either
        text = rf"the benchmark's tokenizer has 300 token ids, but {source} knows 258\. Set benchmark.tokenizer to a folder that holds its"
        with pytest.raises(ConfigurationError, match=text + r" tokenizer\.json\."):
            check_fit(benchmark, source, 258, None)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=rf"knows 258\. Set benchmark.tokenizer={tmp_path}\."):
        check_fit(benchmark, str(tmp_path), 258, None)
    with pytest.raises(ConfigurationError, match=rf"benchmark.length=12 is longer than the 11 tokens that {tmp_path} reads\."):
        check_fit(benchmark, str(tmp_path), 300, 11)
    check_fit(benchmark, str(tmp_path), 300, 12)
