"""Corpora from made-up files in their published formats, tokens, and the streams made of them."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.text.corpora import CORPORA, news20, trec
from cl_framework.benchmarks.text.docstrings import MODULES, TEST, TRAIN, docstrings
from cl_framework.benchmarks.text.files import json_of, text_of
from cl_framework.benchmarks.text.language import stream_of
from cl_framework.benchmarks.text.questions import question_rows
from cl_framework.benchmarks.text.tokens import PAD, START, Bytes, Loaded, TokenInputs, Trained, encode, folder_of, make_tokens
from cl_framework.cli import main
from cl_framework.config import load_experiment
from cl_framework.criterion import IGNORED
from cl_framework.errors import ConfigurationError

DOMAINS = {"banking": ["balance", "pay_bill"], "travel": ["book_flight", "visa"], "home": ["play_music", "lights"]}
TEXTS = [[f"please {label}", label] for labels in DOMAINS.values() for label in labels]
ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def write_clinc(folder: Path, data: dict[str, Any] | None = None, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if data is None:
        data = {
            split: [[f"please {label} number {n}", label] for labels in DOMAINS.values() for label in labels for n in range(count)]
            for split, count in (("train", 6), ("test", 2))
        }
        data["oos_train"] = [["what is the meaning of life", "oos"]]
    text = json.dumps(data).encode()
    if packed:
        (folder / "data_full.json.gz").write_bytes(gzip.compress(text))
    else:
        (folder / "data_full.json").write_bytes(text)
    (folder / "domains.json").write_text(json.dumps(DOMAINS))
    return folder


def benchmark_of(root: Path, name: str = "text_classification", **options: Any) -> Benchmark:
    return make_benchmark(load_experiment({"benchmark": {"name": name, **options}, "data": {"root": str(root)}}))


# --- tokens ---


def test_bytes_are_what_they_are() -> None:
    assert Bytes().ids(["aé", ""]) == [[START, 99, 197, 171], [START]]


def test_trained_tokens_know_every_text_and_nothing_but_the_texts_decides() -> None:
    texts = ["the cat sat on the mat", "the cat ate the rat"] * 5
    one, other = Trained.on(texts, 300), Trained.on(texts, 300)
    assert one.size <= 300 and one.ids(texts) == other.ids(texts)
    assert all(row[0] == START and min(row[1:]) >= 2 for row in one.ids(["völlig neu: 漢字"]))
    assert len(one.ids(["the cat"])[0]) < len(one.ids(["xqz vkw"])[0])  # what was frequent is one token
    assert Trained.on(["something else entirely"] * 5, 300).ids(texts) != one.ids(texts)


def test_rows_are_filled_up_and_cut() -> None:
    encoded = encode(Bytes(), ["abc", "abcdefgh", ""], 5)
    assert encoded.ids.tolist() == [[1, 99, 100, 101, PAD], [1, 99, 100, 101, 102], [1, PAD, PAD, PAD, PAD]]
    assert encoded.cut == 1 and encoded.ids.dtype == torch.int32


def test_what_ends_a_text_for_a_loaded_tokenizer_is_not_cut_off(tmp_path: Path) -> None:
    words = ["[CLS]", "[SEP]", "the", "cat", "sat", "?"]
    texts = ["the cat sat", "the cat sat the cat", "cat"]
    tokens = Loaded(write_words(tmp_path / "ended", words, "[CLS] $A [SEP]"))
    encoded = encode(tokens, texts, 5)
    assert encoded.ids.tolist() == [[0, 2, 3, 4, 1], [0, 2, 3, 4, 1], [0, 3, 1, -1, -1]] and encoded.cut == 1
    open_ended = Loaded(write_words(tmp_path / "open", words, "[CLS] $A"))
    assert encode(open_ended, texts, 5).ids[1].tolist() == [0, 2, 3, 4, 2]  # the control: what ends no text has no place of its own
    assert [one.around for one in (tokens, open_ended, Bytes())] == [(1, 1), (1, 0), (1, 0)]
    assert encode(tokens, texts, 3).ids[1].tolist() == [0, 2, 1]
    with pytest.raises(
        ConfigurationError,
        match=r"benchmark.length=2 leaves no room for a text: the tokenizer puts 2 tokens around each\. Set benchmark.length=3 or higher\.",
    ):
        encode(tokens, texts, 2)


def test_a_tokenizer_is_loaded_from_its_file(tmp_path: Path) -> None:
    trained = Trained.on(["one two three"] * 3, 290)
    trained._tokenizer.save(str(tmp_path / "tokenizer.json"))
    for place in (tmp_path, tmp_path / "tokenizer.json"):
        assert Loaded(place).ids(["one two"]) == [[one - 2 for one in trained.ids(["one two"])[0][1:]]]
    (tmp_path / "tokenizer.json").write_text("{")
    for name, text in (
        (tmp_path, "cannot be read"),
        (tmp_path / "nowhere", "there is no .*nowhere. Name a folder that holds tokenizer.json"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            make_tokens(str(name), 300, [])
    with pytest.raises(
        ConfigurationError,
        match=r"no installed package 'no_such_package'\. Install it \(pip install --no-deps no-such-package\), or name a folder\.$",
    ):
        folder_of("package:no_such_package")
    assert folder_of("package:cl-framework") == folder_of("package:cl_framework"), "as it is installed, or as it is imported"


def write_words(folder: Path, words: Sequence[str], around: str | None = None) -> Path:
    """A tokenizer of whole words, whose ids are their places; `around` is the template of a text, such as "[CLS] $A [SEP]"."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=words[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = [word for word in words if word[0] in "[<" and len(word) > 2]
    tokenizer.add_special_tokens(special)
    if around is not None:
        tokenizer.post_processor = processors.TemplateProcessing(around, special_tokens=[(word, ids[word]) for word in special])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("special", ["true", "false"])  # whether the tokenizer itself knows that they are no words
def test_texts_come_back_from_a_loaded_tokenizer_without_what_begins_and_ends_them(tmp_path: Path, special: str) -> None:
    file = write_words(tmp_path, ["[CLS]", "[SEP]", "the", "cat", "[UNK]"], "[CLS] $A [SEP]") / "tokenizer.json"
    written = file.read_text()
    file.write_text(written.replace('"special": true', f'"special": {special}'))
    assert (file.read_text() == written) == (special == "true")
    tokens = Loaded(tmp_path)
    assert tokens.texts([[*tokens.ids(["the cat the"])[0], tokens.padding], [3]]) == ["the cat the", "cat"]


def test_no_word_of_a_loaded_tokenizer_is_taken_for_padding(tmp_path: Path) -> None:
    tokens = Loaded(write_words(tmp_path, ["the", "cat", "sat", "?"]))
    items = encode(tokens, ["the cat the", "cat"], 4).ids
    inputs = TokenInputs(tokens.padding)(items, None)
    assert isinstance(inputs, dict)
    assert inputs["attention_mask"].tolist() == [[True, True, True, False], [True, False, False, False]]
    assert inputs["input_ids"].tolist() == [[0, 1, 0, 0], [1, 0, 0, 0]]  # ids that a model has embeddings of
    as_ours = TokenInputs()(items.clamp(min=0), None)
    assert isinstance(as_ours, dict) and as_ours["attention_mask"][0].tolist() == [False, True, False, False]  # the control


def test_a_tokenizer_with_gaps_has_ids_up_to_its_last(tmp_path: Path) -> None:
    file = write_words(tmp_path, ["the", "cat", "?"]) / "tokenizer.json"
    assert Loaded(file).size == 3
    file.write_text(file.read_text().replace('"cat": 1', '"cat": 6').replace('"cat":1', '"cat":6'))
    assert Loaded(file).size == 7 and Loaded(file).ids(["cat"]) == [[6]]


WORDS = ["!", '"', "what", "sat", "?"]


@pytest.mark.parametrize(
    ("words", "around", "begins", "ends"),
    [
        ([*WORDS, "<|endoftext|>"], None, "<|endoftext|>", "<|endoftext|>"),  # as GPT-2, which puts nothing around a text
        (["[PAD]", *WORDS, "[CLS]", "[SEP]"], "[CLS] $A [SEP]", "[CLS]", "[SEP]"),  # as BERT
        (["<s>", "</s>", *WORDS], "<s> $A", "<s>", "</s>"),  # as Llama, which does not end a text
    ],
)
def test_questions_in_the_tokens_of_a_pretrained_model(
    words: list[str], around: str | None, begins: str, ends: str, tmp_path: Path
) -> None:
    tokens = Loaded(write_words(tmp_path, words, around))
    items, targets = question_rows(tokens, [("what ?", '" sat !'), ("", "sat")], None, "")
    said = [[words[token] for token in row if token != tokens.padding] for row in items.tolist()]
    asked = [[words[token] for token in row if token != IGNORED] for row in targets.tolist()]
    assert said == [[begins, "what", "?", '"', "sat", "!"], [begins, "sat"]]
    assert asked == [['"', "sat", "!", ends], ["sat", ends]]
    assert targets[0, :2].tolist() == [IGNORED] * 2  # the question is not asked
    framed = [[words[token] for token in row] for row in tokens.ids(["sat"])]
    assert framed == [{None: ["sat"], "[CLS] $A [SEP]": ["[CLS]", "sat", "[SEP]"], "<s> $A": ["<s>", "sat"]}[around]]


def test_questions_need_a_token_that_ends_them(tmp_path: Path) -> None:
    tokens = Loaded(write_words(tmp_path, WORDS))
    text = r"tokenizer.json has none of \[CLS\], <s>, .*, one of which must stand where a text begins or ends. Name another tokenizer, or"
    with pytest.raises(ConfigurationError, match=text):
        question_rows(tokens, [("what ?", "sat")], None, "")
    with pytest.raises(ConfigurationError, match=text):
        stream_of(tokens, ["what ?", "sat"])


@pytest.mark.parametrize(
    ("space", "around", "stream", "row"),
    [
        (False, None, "It ended here.#Next one begins.#", "#Who is the author? Hsiao Yun"),  # as GPT-2
        (True, None, " It ended here.# Next one begins.#", "# Who is the author? Hsiao Yun"),  # as RoBERTa: no second space
        (False, "<|endoftext|> $A", "#It ended here.#Next one begins.", "#Who is the author? Hsiao Yun"),  # it divides texts by itself
    ],
)
def test_texts_of_a_byte_level_tokenizer_stay_apart(space: bool, around: str | None, stream: str, row: str, tmp_path: Path) -> None:
    """What is read is one text, token by token, as a pretrained model has seen it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    end, said = "<|endoftext|>", ["It ended here.", "Next one begins.", "Who is the author? Hsiao Yun"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=space), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(said * 3, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=[end]))
    if around is not None:
        tokenizer.post_processor = processors.TemplateProcessing(around, special_tokens=[(end, tokenizer.token_to_id(end))])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = Loaded(tmp_path)

    def read(ids: Tensor) -> str:
        return str(tokenizer.decode(ids.tolist(), skip_special_tokens=False)).replace(end, "#")

    assert read(stream_of(tokens, said[:2])) == stream
    items, targets = question_rows(tokens, [("Who is the author?", "Hsiao Yun")], None, "")
    assert read(items[0]) == row and items[0, 1:].tolist() == tokens.plain(said[2:])[0]
    assert read(targets[targets != IGNORED]) == " Hsiao Yun#"
    for question in ("", "Who is the author?\n"):  # the control: no word stands right before these answers
        _, targets = question_rows(tokens, [(question, "Hsiao")], None, "")
        assert read(targets[targets != IGNORED]) == (" Hsiao#" if space else "Hsiao#")


# --- corpora ---


@pytest.mark.parametrize("packed", [False, True])
def test_clinc_is_a_stream_of_domains(packed: bool, tmp_path: Path) -> None:
    write_clinc(tmp_path / "clinc150", packed=packed)
    benchmark = benchmark_of(tmp_path, length=8, vocabulary=300)
    assert benchmark.modality == "text" and benchmark.num_classes == 6 and benchmark.input_shape == (8,)
    assert benchmark.classes == ((0, 1), (2, 3), (4, 5))
    assert [len(source) for source in benchmark.train] == [12, 12, 12] and [len(source) for source in benchmark.test] == [4, 4, 4]
    assert benchmark.notes["classes"] == "balance, pay_bill | book_flight, visa | play_music, lights"
    assert benchmark.vocabulary is not None and int(benchmark.train[2].read(torch.arange(12)).max()) < benchmark.vocabulary  # type: ignore[union-attr]
    again = benchmark_of(tmp_path, length=8, vocabulary=300, classes_per_task=4, class_order=[5, 4, 3, 2, 1, 0])
    assert again.classes == ((5, 4, 3, 2), (1, 0))


def test_tokens_are_those_of_task_0_wherever_the_stream_begins(tmp_path: Path) -> None:
    write_clinc(tmp_path / "clinc150")

    def rows(stream: str, **options: Any) -> Tensor:
        named = {"name": "text_classification", "length": 20, "vocabulary": 320, "classes_per_task": 2, **options}
        benchmark = make_benchmark(load_experiment({"benchmark": named, "stream": stream, "data": {"root": str(tmp_path)}}))
        items = benchmark.train[1].read(torch.arange(12))
        assert isinstance(items, Tensor)
        return items

    assert torch.equal(rows("L0-2"), rows("L1 L0"))  # an audit's oracle of a stream is that of every stream that learns the same then
    assert not torch.equal(rows("L0-2"), rows("L0-2", class_order=[4, 5, 2, 3, 0, 1]))


def test_texts_that_are_cut_are_counted_among_those_that_are_used(tmp_path: Path) -> None:
    write_clinc(tmp_path / "clinc150")  # of half of the six intents the texts are longer than 24 bytes
    for options, cut in (({}, 18), ({"train_limit": 6}, 3)):
        benchmark = benchmark_of(tmp_path, tokenizer="bytes", length=24, **options)
        assert benchmark.notes["tokens"] == f"bytes, 258 ids; {cut} training and 6 test texts are longer than 24 and cut there"
        assert sum(map(len, benchmark.train)) == 2 * cut and sum(map(len, benchmark.test)) == 12


def test_other_formats(tmp_path: Path) -> None:
    (tmp_path / "banking77").mkdir()
    for split in ("train", "test"):
        (tmp_path / "banking77" / f"{split}.csv").write_text('text,category\n"a card, please",card\nwhere is it,lost\n')
        folder = tmp_path / "intents_hwu64_snips_atis" / "HWU64" / split
        folder.mkdir(parents=True)
        (folder / "seq.in").write_text("wake me up\nplay a song\n")
        (folder / "label").write_text("alarm\nmusic\n")
    assert CORPORA["banking77"](tmp_path / "banking77").train == [("a card, please", "card"), ("where is it", "lost")]
    with pytest.raises(ConfigurationError, match=r"train.csv has no column 'label'; it has text, category\. Name its columns in the first"):
        CORPORA["folder"](tmp_path / "banking77")
    for split in ("train", "test"):
        (tmp_path / "banking77" / f"{split}.csv").write_text('by,label,text\nme,card,"a card, please"\nyou,lost,where is it\n')
    own = benchmark_of(tmp_path, corpus="folder", folder=str(tmp_path / "banking77"), tokenizer="bytes")
    assert own.name == "folder" and own.notes["classes"] == "card | lost" and [len(source) for source in own.test] == [1, 1]
    with pytest.raises(ConfigurationError, match=r"corpus=folder needs folder, the place of its train.csv and test.csv\."):
        benchmark_of(tmp_path, corpus="folder")
    assert CORPORA["hwu64"](tmp_path / "intents_hwu64_snips_atis").test == [("wake me up", "alarm"), ("play a song", "music")]
    with zipfile.ZipFile(tmp_path / "qc.zip", "w") as archive:
        for split in ("train", "test"):
            archive.writestr(f"qc/{split}.txt", "DESC:manner How did it \xe9 ?\nNUM:date When ?\n".encode("latin-1"))
    assert trec(tmp_path).train == [("How did it é ?", "DESC"), ("When ?", "NUM")]
    with tarfile.open(tmp_path / "20_newsgroups.tar.xz", "w:xz") as file:
        for number in range(10):
            message = f"From: x\nNewsgroups: sci.space\n\nbody {number}\n".encode()
            member = tarfile.TarInfo(f"20_newsgroups/sci.space/{number}")
            member.size = len(message)
            file.addfile(member, io.BytesIO(message))
    found = news20(tmp_path)
    assert len(found.train) == 8 and len(found.test) == 2 and found.train[0] == ("body 1", "sci.space")  # no header names the group


@pytest.mark.slow
def test_the_embedded_corpus() -> None:
    corpus = docstrings()
    assert corpus.labels == MODULES and len(corpus.groups) == 5
    for split, most in ((corpus.train, TRAIN), (corpus.test, TEST)):
        counts = [sum(label == module for _, label in split) for module in MODULES]
        assert max(counts) <= most and min(counts) >= most // 3
    assert not {text for text, _ in corpus.train} & {text for text, _ in corpus.test}
    assert docstrings() == corpus


def test_docstrings_are_found_wherever_their_packages_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a folder called tests, as well; the tests of a package itself are left out."""
    modules = ("made_up_sources.one", "made_up_sources.two")
    root = tmp_path / "tests" / "made_up_sources"
    for place in ("", "one", "two", "two/tests"):
        folder = root / place
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("")
        for number in range(20):
            said = f"What file {number} of {place} says, in a paragraph that is not too short to count."
            (folder / f"file{number}.py").write_text(f'"""{said}"""')
    monkeypatch.syspath_prepend(str(tmp_path / "tests"))
    monkeypatch.setattr("cl_framework.benchmarks.text.docstrings.MODULES", modules)
    found = docstrings()
    texts = [text for text, _ in (*found.train, *found.test)]
    assert found.train and found.test and len(texts) == 40
    assert {text.partition(", ")[0].rpartition(" of ")[2] for text in texts} == {"one says", "two says"}
    for name in range(20):
        (root / "two" / f"file{name}.py").write_text("")  # as where docstrings are stripped
    stripped = r"paragraphs in the sources of made_up_sources\.two: 0 to train on, 0 to test on; it needs both\. "
    with pytest.raises(ConfigurationError, match=stripped + r"Install .*: pip install .* -c constraints\.txt made_up_sources\.$"):
        docstrings()
    (root / "two" / "file0.py").write_text(f'"""{said}"""')
    with pytest.raises(ConfigurationError, match=r"made_up_sources\.two: (1 to train on, 0|0 to train on, 1) to test on"):
        docstrings()
    for absent, text in (
        ("made_up_sources.three", "made_up_sources.three: 0 to train on"),  # of a version without that folder
        ("sklearn.none_such", "sklearn.none_such: 0 to train on, .* scikit-learn[.]$"),
        ("made_up_and_absent.one", "the sources of made_up_and_absent, which is not installed: pip install made_up_and_absent[.]$"),
    ):
        monkeypatch.setattr("cl_framework.benchmarks.text.docstrings.MODULES", (modules[0], absent))
        with pytest.raises(ConfigurationError, match=text):
            docstrings()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda folder: (folder / "data_full.json").unlink(), "data_full.json does not exist. Set data.root"),
        (lambda folder: (folder / "data_full.json").write_text("{"), "data_full.json is no valid JSON: column 2 "),
        (lambda folder: (folder / "data_full.json").write_bytes(b'{"a":\n"\xff"}'), "is not written in utf-8: byte 7 in line 2."),
        (
            lambda folder: write_clinc(folder, {"train": [["hi", "oos"]], "test": []}),
            "row 0 of 'train': its intent, 'oos', is none of domains.json. Add it to a domain there, correct it, or remove that row.",
        ),
        (lambda folder: write_clinc(folder, {"test": []}), "has no list 'train'"),
        (lambda folder: write_clinc(folder, {"train": [["hi", ["visa"]]]}), r"row 0 of 'train': its intent, \['visa'\], is none of dom"),
        (
            lambda folder: write_clinc(folder, {"train": [{"text": "hi"}]}),
            r"row 0 of 'train' is no list of two, \[text, intent\]. Correct it, or remove it.",
        ),
        (
            lambda folder: write_clinc(folder, {"train": [["hi", "visa"], ["  ", "visa"]]}),
            "clinc150/data_full.json: row 1 of 'train': the text is empty. Correct it, or remove that row.",
        ),
        (
            lambda folder: write_clinc(folder, {"train": [["hi", "visa"]], "test": [[5, "visa"]]}),
            "row 0 of 'test': the text is 5, which is no string. Correct it, or remove that row.",
        ),
        (
            lambda folder: write_clinc(folder, {"train": [["\u200b \u00ad", "visa"]]}),
            r"row 0 of 'train': the text is '\\u200b \\xad', which shows nothing. Correct it, or remove that row.",
        ),
        (
            lambda folder: write_clinc(folder, {"train": [["\ud83d", "visa"]]}),
            r"row 0 of 'train': the text is '\\ud83d', which has NUL or half a character. Correct it, or remove that row.",
        ),
        (
            lambda folder: write_clinc(folder, {"train": [["a\0b", "visa"]]}),
            r"row 0 of 'train': the text is 'a\\x00b', which has NUL or half a character. Correct it, or remove that row.",
        ),
        (lambda folder: write_clinc(folder, {"train": [[None, "visa"]]}), "row 0 of 'train': the text is missing. Correct it"),
        (
            lambda folder: write_clinc(folder, {"train": []}),
            "data_full.json: 'train' holds no labelled texts. Copy it from where the data came from.",
        ),
        (
            lambda folder: (folder / "domains.json").write_text('{"travel": "visa"}'),
            r"""domains.json: 'travel' is no list of intents. Write it as \["intent", ...\].""",
        ),
        (
            lambda folder: (folder / "domains.json").write_text("{}"),
            r"clinc150/domains.json holds no domains\. Copy it from where the data",
        ),
        (lambda folder: (folder / "domains.json").write_text('{"travel": 5}'), "domains.json: 'travel' is no list of intents"),
        (
            lambda folder: (folder / "domains.json").write_text(json.dumps({**DOMAINS, "space": ["orbit"]})),
            r"clinc150/domains.json: the intent 'orbit' of 'space' has no text in 'train' of data_full.json\. Add one there, or",
        ),
        (
            lambda folder: write_clinc(folder, {"train": TEXTS, "test": TEXTS[:-1]}),
            r"clinc150/domains.json: the intent 'lights' of 'home' has no text in 'test' of data_full.json\. Add one there, or",
        ),
        (
            lambda folder: (folder / "domains.json").write_text(json.dumps({**DOMAINS, "space": ["orbit", "visa"]})),
            r"clinc150/domains.json: the intent 'visa' stands in 'travel' and again in 'space'\. Remove one of them\.",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(change: Any, text: str, tmp_path: Path) -> None:
    write_clinc(tmp_path / "clinc150", {"train": TEXTS, "test": TEXTS})
    assert benchmark_of(tmp_path, tokenizer="bytes").num_tasks == 3
    change(write_clinc(tmp_path / "clinc150"))
    with pytest.raises(ConfigurationError, match=text):
        benchmark_of(tmp_path)


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    packed = write_clinc(tmp_path / "clinc150", packed=True) / "data_full.json.gz"
    whole = packed.read_bytes()
    assert benchmark_of(tmp_path, tokenizer="bytes").num_tasks == 3
    for content, text in (
        (b"garbage", r"data_full.json.gz cannot be read \(Not a gzipped file .*\)\. Copy it from where the data came from\."),
        (whole[:-20], r"data_full.json.gz cannot be read \(Compressed file ended before .*\)\. Copy it"),
        (whole[:20] + bytes(20) + whole[40:], r"data_full.json.gz cannot be read \(Error -3 .*\)\. Copy it"),
    ):
        packed.write_bytes(content)
        with pytest.raises(ConfigurationError, match=text):
            benchmark_of(tmp_path)
    with zipfile.ZipFile(tmp_path / "qc.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("qc/train.txt", "".join(f"NUM:date When was {number} ?\n" for number in range(50)))
    whole = (tmp_path / "qc.zip").read_bytes()
    for content in (b"garbage", whole[:60] + bytes(20) + whole[80:]):
        (tmp_path / "qc.zip").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"qc.zip cannot be read \(.*\)\. Copy it from where the data came from\."):
            trec(tmp_path)
    local, central = whole.index(b"PK\3\4"), whole.index(b"PK\1\2")  # two bytes of flags, 6 and 8 behind: the lowest bit is a password's
    locked = bytearray(whole)
    locked[local + 6] |= 1
    locked[central + 8] |= 1
    (tmp_path / "qc.zip").write_bytes(locked)
    with pytest.raises(ConfigurationError, match=r"qc.zip cannot be read \(.* is encrypted, password required .*\)\. Copy it from"):
        trec(tmp_path)


def test_an_archive_that_lacks_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"train.txt does not exist\. Set data.root"):
        trec(tmp_path)
    for split in ("train", "test"):
        text = rf"qc.zip holds no {split}.txt, and there is none beside it\. Copy it from where the data came from\."
        with zipfile.ZipFile(tmp_path / "qc.zip", "a") as archive:
            archive.writestr(f"qc/{split}.csv", "DESC:manner How ?\n")
        with pytest.raises(ConfigurationError, match=text):
            trec(tmp_path)
        with zipfile.ZipFile(tmp_path / "qc.zip", "a") as archive:
            archive.writestr(f"qc/{split}.txt", "DESC:manner How ?\nDESC\n" if split == "test" else "DESC:manner How ?\n")
    with pytest.raises(ConfigurationError, match=r"test.txt, line 2: this is no 'CLASS:fine question'\."):
        trec(tmp_path)
    (tmp_path / "test.txt").write_text("DESC:manner How ?\n")  # what lies beside it is read first
    assert trec(tmp_path).test == [("How ?", "DESC")]


def test_a_packed_file_is_named_as_it_lies_there(tmp_path: Path) -> None:
    folder = write_clinc(tmp_path / "clinc150", {"train": [["please balance", "visa"], ["", "visa"]], "test": TEXTS}, packed=True)
    with pytest.raises(ConfigurationError, match=r"clinc150/data_full.json.gz: row 1 of 'train': the text is empty\."):
        benchmark_of(tmp_path)
    write_clinc(folder, {"train": [["", "visa"]], "test": TEXTS})  # the file beside it is read first
    with pytest.raises(ConfigurationError, match=r"clinc150/data_full.json: row 0 of 'train': the text is empty\."):
        benchmark_of(tmp_path)


def test_what_is_wrong_in_json_is_named_with_its_place() -> None:
    assert json_of(text_of('\ufeff{"a": [1]}'.encode(), "x"), "x") == {"a": [1]}
    for text, message in (
        ("", r"^x is no valid JSON: column 1 \(Expecting value\)\. Correct it, or copy the file from where the data came from\.$"),
        ('{"a":\n1 2}', r"^x is no valid JSON: line 2, column 3 \(Expecting ',' delimiter\)\. Correct it"),
        ("9" * 5000, r"^x is JSON that cannot be read \(Exceeds the limit \(4300 digits\) .* has 5000 digits\)\. Correct it"),
        ("[" * 100_000, r"^x is JSON that cannot be read \(maximum recursion depth exceeded .*\)\. Correct it"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            json_of(text, "x")


def test_a_nul_is_named_with_its_line() -> None:
    remedy = r"Remove it, or if the file is UTF-16, convert it to utf-8\.$"
    for content, line in ((b"one\ntw\0o\nthree\0", 2), ("one\ntwo".encode("utf-16-le"), 1), (b"\0", 1), (b"one\n\0", 2)):
        with pytest.raises(ConfigurationError, match=rf"^x is no text: line {line} has the character NUL\. {remedy}"):
            text_of(content, "x")
    with pytest.raises(ConfigurationError, match=r"^x is no text: line 1 .* convert it to latin-1\."):
        text_of(b"caf\xe9\0", "x", "latin-1")
    assert text_of(b"one\n\1two\t", "x") == "one\n\1two\t"  # other control characters are left as they are


def test_columns_lines_and_labels_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "banking77").mkdir()
    (tmp_path / "banking77" / "train.csv").write_text("text,kind\na,b\n")
    with pytest.raises(ConfigurationError, match=r"train.csv has no column 'category'; it has text, kind"):
        benchmark_of(tmp_path, corpus="banking77")
    test = tmp_path / "banking77" / "test.csv"
    (tmp_path / "banking77" / "train.csv").write_text("text,category\na,b\nc,d\n")
    for content, text in (
        ("text,category\na,z\n", "test.csv, line 2: no training text has the label 'z'. Correct it, or remove that row."),
        ('text,category\n"a\nb",b\nc\n', "test.csv, line 4: the category is missing. Correct it, or remove that row."),
        ("text,category\na,b\nc\0,d\n", "test.csv is no text: line 3 has the character NUL."),
        ("text,category\na,b\n,b\n", "test.csv, line 3: the text is empty. Correct it, or remove that row."),
        ("text,category\na, b,b\n", "test.csv, line 2: there are more columns than names. Put a text with commas in quotes."),
        ("text,category\n", "test.csv holds no labelled texts. Copy it from where the data came from."),
        (f"text,category\n{'a' * 200_000},b\n", r"test.csv: the row that begins in line 2 is no CSV \(field larger than field limit"),
        (
            'text,category\na,b\n"c,d\na,b\nc,d\n',
            r"test.csv: the row that begins in line 3 is no CSV \(unexpected end of data\)\. Correct it",
        ),
        (
            'text,category\n"a,b\na,b\nc,"d\na,b\n',
            r"test.csv: the row that begins in line 2 is no CSV \(',' expected after '\"'\)\. Correct it \(a quote in a quoted "
            r"text is written twice\), or remove it\.$",
        ),
        ('text,category\na,b\n"a\nb","b\nz",c\n', "test.csv, line 3: there are more columns than names."),
        ("", "test.csv has no column 'text'; it has none. Name its columns in the first line."),
        ("text,category\na,b\n", r"test.csv: no text has the label 'd', which .*train.csv has\. Add one, or remove that label there\."),
    ):
        test.write_text(content)
        with pytest.raises(ConfigurationError, match=text):
            benchmark_of(tmp_path, corpus="banking77")
    test.write_text("text,category\na,b\nc,d\n")
    assert len(benchmark_of(tmp_path, corpus="banking77", tokenizer="bytes").test[0]) == 1
    with pytest.raises(ConfigurationError, match=r"banking77: tasks must be between 1 and the number of classes 2, got 3\."):
        benchmark_of(tmp_path, corpus="banking77", tasks=3)


def test_the_command_says_what_is_wrong_in_a_file_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "banking77").mkdir()
    (tmp_path / "banking77" / "train.csv").write_text("text,category\na\n")
    (tmp_path / "trial.yaml").write_text("benchmark: {name: text_classification, corpus: banking77}\nmodel: {name: encoder}\n")
    assert main(["run", str(tmp_path / "trial.yaml"), f"out={tmp_path / 'runs'}", f"data.root={tmp_path}"]) == 2
    where = tmp_path / "banking77" / "train.csv"
    assert capsys.readouterr().err == f"clu: {where}, line 2: the category is missing. Correct it, or remove that row.\n"
    assert not list(tmp_path.glob("runs/*/*"))


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_banking(tmp_path / f"{split}.csv", "\ufefftext,category\r\nwhere is it,lost\r\n")
    assert CORPORA["banking77"](tmp_path).train == [("where is it", "lost")]
    write_banking(tmp_path / "train.csv", "\ufffetext,category\nwhere is it,lost\n")
    with pytest.raises(ConfigurationError, match="has no column 'text'"):
        CORPORA["banking77"](tmp_path)


def cut_archive(folder: Path) -> bytes:
    """A folder's files as a tar.xz of which half is missing."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:xz") as file:
        file.add(folder, "20_newsgroups/sci.space")
    return packed.getvalue()[: len(packed.getvalue()) // 2]


def write_banking(path: Path, content: str) -> None:
    path.write_bytes(content.encode())


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    text = "one\u2028two\x0bthree"
    for split in ("train", "test"):
        folder = tmp_path / "HWU64" / split
        folder.mkdir(parents=True)
        (folder / "seq.in").write_bytes(f"{text}\r\nplay".encode())
        (folder / "label").write_bytes(b"alarm\nmusic\n")
        (tmp_path / f"{split}.txt").write_bytes("DESC:manner How\x85did ?\n".encode("latin-1"))
    assert len(text.splitlines()) == 3
    assert CORPORA["hwu64"](tmp_path).train == [(text, "alarm"), ("play", "music")]
    assert trec(tmp_path).test == [("How\x85did ?", "DESC")]


def test_lines_that_do_not_fit_are_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "HWU64" / split).mkdir(parents=True)
        (tmp_path / f"{split}.txt").write_text("DESC:manner How ?\n")
    train, test = tmp_path / "HWU64" / "train", tmp_path / "HWU64" / "test"
    for (trained, tested), text in (
        ((("wake me", "alarm"), ("play\n\n", "alarm\nalarm\n")), "HWU64/test: line 2 of seq.in and label: the text is empty"),
        ((("wake me\nplay", "alarm\n \n"), ("play", "alarm")), "HWU64/train: line 2 of seq.in and label: the label is empty"),
        ((("wake me", "alarm"), ("play", "music")), "HWU64/test: line 1 of seq.in and label: no training text has the label 'music'"),
        ((("wake me", "alarm\nmusic"), ("play", "music")), "HWU64/train: seq.in has 1 lines, label has 2"),
        ((("wake me", "alarm"), ("", "")), "HWU64/test holds no labelled texts"),
    ):
        for folder, (texts, labels) in ((train, trained), (test, tested)):
            (folder / "seq.in").write_text(texts)
            (folder / "label").write_text(labels)
        with pytest.raises(ConfigurationError, match=text):
            CORPORA["hwu64"](tmp_path)
    for content, text in (
        ("DESC:manner How ?\nDESC", "train.txt, line 2: this is no 'CLASS:fine question'. Correct it, or remove it."),
        ("DESC:manner  ", "train.txt, line 1: the text is empty. Correct it, or remove that row."),
        ("NUM:date When ?", "test.txt, line 1: no training text has the label 'DESC'"),
    ):
        (tmp_path / "train.txt").write_text(content)
        with pytest.raises(ConfigurationError, match=text):
            trec(tmp_path)


def test_messages_without_a_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "sci.space").mkdir()
    for number in range(10):
        (tmp_path / "sci.space" / str(number)).write_text("From: x\n\n" + ("" if number in (3, 5) else f"body {number}\n"))
    found = news20(tmp_path)
    assert len(found.train) == 7 and len(found.test) == 1 and found.notes == {"left out": "2 messages without a text below their headers"}
    archive = tmp_path / "20_newsgroups.tar.xz"
    for content, text in (
        (b"garbage", r"20_newsgroups.tar.xz cannot be read \(file could not be opened successfully\)\. Copy it"),
        (cut_archive(tmp_path / "sci.space"), r"20_newsgroups.tar.xz cannot be read \(Compressed file ended before .*\)\. Copy it"),
    ):
        archive.write_bytes(content)
        with pytest.raises(ConfigurationError, match=text):
            news20(tmp_path)
    archive.unlink()
    message = tmp_path / "sci.space" / "1"
    message.write_bytes(b"From: x\r\n\r\nbody\xe9 1\r\n")  # lines may end as on another system
    assert ("body\xe9 1", "sci.space") in news20(tmp_path).train
    message.write_bytes(b"From: x\n\nbody \0\n")
    with pytest.raises(ConfigurationError, match=r"sci.space/1 is no text: line 3 has the character NUL\. .* convert it to latin-1\."):
        news20(tmp_path)
    message.write_text("From: x\n\nbody 1\n")
    (tmp_path / "alt.atheism").mkdir()
    (tmp_path / "alt.atheism" / "1").write_text("From: x\n\nbody\n")
    with pytest.raises(ConfigurationError, match=r"alt.atheism/1: no training text has the label 'alt.atheism'"):
        news20(tmp_path)
    (tmp_path / "alt.atheism").rename(tmp_path / "talk.religion")  # behind the others: message 10 is a test, 11 is none
    (tmp_path / "talk.religion" / "2").write_text("From: x\n\nbody\n")
    assert {group for _, group in news20(tmp_path).test} == {"sci.space", "talk.religion"}
    (tmp_path / "sci.space" / "99").write_text("From: x\n\nbody\n")
    with pytest.raises(ConfigurationError, match=r"every fifth message is a test, but none of 'talk.religion'\. Add messages, or"):
        news20(tmp_path)


def test_inputs_and_views(tmp_path: Path) -> None:
    write_clinc(tmp_path / "clinc150")
    benchmark = benchmark_of(tmp_path, length=8, vocabulary=300)
    items, _, _ = benchmark.read(benchmark.ids_of(0))
    inputs = benchmark.transform(items, None)
    assert isinstance(inputs, dict) and isinstance(items, Tensor) and inputs["input_ids"].dtype == torch.int64
    assert torch.equal(inputs["attention_mask"], items != PAD)
    strong = benchmark.transform.strong(items, torch.Generator().manual_seed(1))  # type: ignore[attr-defined]
    assert torch.equal(strong["input_ids"], inputs["input_ids"]) and bool(strong["attention_mask"][:, 0].all())
    fewer = int(strong["attention_mask"].sum()) / int(inputs["attention_mask"].sum())
    assert 0.7 < fewer < 0.98


def test_bad_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "trial.yaml"
    path.write_text("benchmark: {name: text_classification}\nmodel: {name: encoder}\n")
    for override, text in (
        ("benchmark.corpus=imdb", "benchmark.corpus"),
        ("benchmark.length=1", "benchmark.length"),
        ("model.width=30", "model.width=30 is no multiple of heads=4"),
    ):
        assert main(["run", str(path), override, f"out={tmp_path}", f"data.root={tmp_path}"]) == 2
        assert text in capsys.readouterr().err


def test_classes_are_divided_in_one_way() -> None:
    for option in ("tasks", "classes_per_task"):
        load_experiment({"benchmark": {"name": "docstrings", option: 2}})
    text = r"tasks and classes_per_task both say how classes are divided\. Give one of them\."
    with pytest.raises(ConfigurationError, match=text):
        load_experiment({"benchmark": {"name": "docstrings", "tasks": 2, "classes_per_task": 2}})


@pytest.mark.parametrize("name", ["docstrings", "text_classification", "topics", "facts", "language_modelling", "tofu", "rwku"])
def test_a_vocabulary_is_for_a_tokenizer_that_is_trained(name: str) -> None:
    """Elsewhere it would be ignored."""
    load_experiment({"benchmark": {"name": name, "vocabulary": 500}})
    for tokenizer in ("bytes", "some/folder", "package:some_model"):
        load_experiment({"benchmark": {"name": name, "tokenizer": tokenizer}})
        text = rf"vocabulary=500 is for tokenizer=bpe, which is trained; {tokenizer} has token ids of its own\. Leave it out, or set"
        with pytest.raises(ConfigurationError, match=text + r" benchmark.vocabulary=2000, its default"):
            load_experiment({"benchmark": {"name": name, "tokenizer": tokenizer, "vocabulary": 500}})


def test_a_limit_that_leaves_a_task_without_texts_is_refused(tmp_path: Path) -> None:
    write_clinc(tmp_path / "clinc150")
    assert all(map(len, benchmark_of(tmp_path, tokenizer="bytes", train_limit=6).train))
    with pytest.raises(
        ConfigurationError, match=r"train_limit=2 leaves task \d of 3 no training text\. Set it to 6 or higher: a text of each"
    ):
        benchmark_of(tmp_path, tokenizer="bytes", train_limit=2)


@pytest.mark.slow
def test_the_floor_of_a_corpus_is_that_of_its_texts(tmp_path: Path) -> None:
    def floor(data: dict[str, Any] | None, *words: str) -> subprocess.CompletedProcess[str]:
        folder = str(write_clinc(tmp_path / "clinc150", data))
        command = [sys.executable, str(ROOT / "scripts" / "tfidf_floor.py"), "clinc150", folder, *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert floor(None).stdout == "clinc150: 100.00 percent of 12 test texts, 6 classes, from 36 texts\n"
    labels = [label for labels in DOMAINS.values() for label in labels]
    texts = [[f"please {label}", label] for label in labels]
    moved = [[text, labels[(labels.index(label) + 1) % 6]] for text, label in texts]
    assert floor({"train": texts, "test": moved}).stdout == "clinc150: 0.00 percent of 6 test texts, 6 classes, from 6 texts\n"
    refused = floor({"train": [["hi", "visa"], ["  ", "visa"]]})
    assert refused.returncode == 1 and refused.stdout == ""
    assert refused.stderr.startswith("tfidf_floor: ") and "the text is empty. Correct it, or remove that row." in refused.stderr


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the published files do not lie beside the checkout")
@pytest.mark.parametrize(
    ("corpus", "tasks", "classes", "train", "test"),
    [
        ("clinc150", 10, 150, 15000, 4500),
        ("banking77", 10, 77, 10003, 3080),
        ("hwu64", 10, 64, 8954, 1076),
        ("trec", 6, 6, 5452, 500),
        ("news20", 10, 20, None, None),
    ],
)
def test_the_published_files(corpus: str, tasks: int, classes: int, train: int | None, test: int | None) -> None:
    benchmark = benchmark_of(SHARED, corpus=corpus, tokenizer="bytes")
    assert (benchmark.num_tasks, benchmark.num_classes) == (tasks, classes)
    counts = [sum(map(len, sources)) for sources in (benchmark.train, benchmark.test)]
    assert counts == [train, test] if train is not None else sum(counts) > 19000
