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

from cl_framework.errors import ConfigurationError
from cl_framework.inputs import Inputs

PAD = 0  # token id that fills rows up; no text has it
START = 1  # begins every row of our own tokenizers
_RESERVED = 2
PACKAGE = "package:"  # package:NAME is the folder of an installed package


class Tokens(Protocol):
    """Texts to token ids."""

    @property
    def size(self) -> int: ...  # number of token ids, `PAD` included

    def ids(self, texts: Sequence[str]) -> list[list[int]]: ...  # of each text, without padding


class Bytes:
    """One token a byte of UTF-8; nothing is learned."""

    size = 256 + _RESERVED

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [[START, *(byte + _RESERVED for byte in text.encode())] for text in texts]


class Trained:
    """Byte-level BPE of the `tokenizers` package; ids are moved behind the reserved ones."""

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
        return [[START, *(one + _RESERVED for one in encoding.ids)] for encoding in self._tokenizer.encode_batch(list(texts))]


class Loaded:
    """The tokenizer of a pretrained model, with its own special tokens. Its padding must be token 0, as ours."""

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json" if folder.is_dir() else folder
        if not file.is_file():
            raise ConfigurationError(f"benchmark.tokenizer: there is no {file}. Name a folder that holds tokenizer.json, or that file.")
        try:
            self._tokenizer = _tokenizers().Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises a bare Exception for a damaged file
            raise ConfigurationError(f"benchmark.tokenizer: {file} cannot be read: {error}.") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.size = self._tokenizer.get_vocab_size()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(list(texts))]


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
    package = name.removeprefix(PACKAGE)
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ConfigurationError(f"{name}: there is no installed package {package!r}. Install it, or name a folder.")
    root = Path(spec.origin).parent
    return next((file.parent for file in sorted(root.rglob("tokenizer.json"))), root)


def _tokenizers() -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the package warns in every forked worker otherwise
    try:
        import tokenizers
        from tokenizers import decoders, models, pre_tokenizers, trainers  # noqa: F401  (submodules are not there before)
    except ImportError as error:
        raise ConfigurationError("text needs the package tokenizers: pip install 'cl-framework[text]'.") from error
    return tokenizers


@dataclass(frozen=True)
class Encoded:
    """Texts as rows of token ids."""

    ids: Tensor  # (N, L) int32, `PAD` behind each text
    cut: int  # texts that were longer than L


def encode(tokens: Tokens, texts: Sequence[str], length: int) -> Encoded:
    """At most `length` tokens of each text."""
    rows = tokens.ids(texts)
    ids = torch.full((len(rows), length), PAD, dtype=torch.int32)
    for number, row in enumerate(rows):
        kept = row[:length]
        ids[number, : len(kept)] = torch.tensor(kept, dtype=torch.int32)
    return Encoded(ids, sum(len(row) > length for row in rows))


@dataclass(frozen=True)
class TokenInputs:
    """Rows of token ids as a model reads them: ids and which of them are text. Views drop tokens at random."""

    padded: bool = True  # False: every token is text, whatever its id
    dropped: float = 0.15  # share of tokens that a strong view leaves out
    random: bool = False

    def __call__(self, items: Inputs, generator: torch.Generator | None) -> Inputs:
        assert isinstance(items, Tensor)
        ids = items.long()
        return {"input_ids": ids, "attention_mask": self._text(ids)}

    def strong(self, items: Inputs, generator: torch.Generator) -> Inputs:
        """Some tokens after the first are not attended to."""
        assert isinstance(items, Tensor)
        ids = items.long()
        kept = torch.rand(ids.shape, generator=generator).to(ids.device) >= self.dropped
        kept[:, 0] = True
        return {"input_ids": ids, "attention_mask": self._text(ids) & kept}

    def _text(self, ids: Tensor) -> Tensor:
        return ids != PAD if self.padded else torch.ones_like(ids, dtype=torch.bool)
