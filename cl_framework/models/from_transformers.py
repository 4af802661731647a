"""Pretrained models of transformers: from a folder, an installed package or the hub; whether a benchmark's tokens and a wrapper fit."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.text.tokens import Loaded, Trained, folder_of
from cl_framework.errors import ConfigurationError, few_of

_PATIENCE = 10  # seconds in which the hub must answer
_FEW = 8  # tokens: a model that differs on so few is of another kind, not too short
_WEIGHTS = (".safetensors", ".bin")  # how files of weights end
_NAMED = 3  # of tensors that are missing
_TOLERANCE = 1e-3  # share of the largest value by which two answers may differ; more where numbers are coarser


def load_pretrained(auto: Any, source: str, **options: Any) -> Any:
    """The model of `source` by an `Auto…` class; `options` where it knows them.

    ConfigurationError says why it cannot be loaded, or which of its weights are missing, of another shape or not finite: transformers
    draws what is missing at random.
    """
    place = _place_of(source)
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # of other shapes it raises an error that does not name them
    try:
        try:
            model, report = auto.from_pretrained(place, **told, **options)
        except TypeError as error:  # names what it does not know: models without a pooling layer have no option for it
            known = {name: value for name, value in options.items() if f"'{name}'" not in str(error)}
            if len(known) == len(options):
                raise
            model, report = auto.from_pretrained(place, **told, **known)
    except Exception as error:  # of a damaged file each package raises its own
        raise ConfigurationError(f"model.source={source}{_why_not(Path(place), error)}") from error
    _check_weights(model, report, source)
    return model


def _check_weights(model: nn.Module, report: Mapping[str, Any], source: str) -> None:
    """Refuse weights that no file holds, that have another shape or that are not finite, and layers beyond those of config.json; `report`
    is transformers' own.

    It leaves out what is tied to another tensor. Buffers are computed, and no model here has a use for a pooling layer.
    """

    def used(name: str) -> bool:
        return "pooler" not in name.split(".")

    buffers = {name for name, _ in model.named_buffers()}
    missing = sorted(name for name in report["missing_keys"] if used(name) and name not in buffers)
    if missing:
        kind, known = type(model).__name__, getattr(model.config, "architectures", None) or []
        told, remedy = "", "Copy them again, or name another model."
        if known and kind not in known:  # an encoder, say, asked for as a decoder
            told, remedy = f" (by config.json it is a {known[0]})", "Name a model that has them, or copy them again."
        raise ConfigurationError(f"model.source={source}: none of its files holds {few_of(missing, _NAMED)} of a {kind}{told}. {remedy}")
    for name, there, needed in sorted(key for key in report["mismatched_keys"] if used(key[0])):
        raise ConfigurationError(
            f"model.source={source}: {name} has shape {tuple(there)}, but config.json asks for {tuple(needed)}. "
            "Copy both again, or name another model."
        )
    kinds = {_kind(name) for name, _ in model.named_parameters() if _kind(name) != name}
    beyond = [name for name in sorted(report["unexpected_keys"]) if kinds & {_kind(name), _kind(name).partition(".")[2]}]
    if beyond:
        raise ConfigurationError(
            f"model.source={source}: its files hold {beyond[0]}, but by config.json there is no such layer. "
            "Copy both again, or name another model."
        )
    for name, weight in model.named_parameters():
        if used(name) and not weight.isfinite().all():
            raise ConfigurationError(
                f"model.source={source}: {name} has values that are not finite (NaN or infinite). Copy it again, or name another model."
            )


def _kind(name: str) -> str:
    """The name of a tensor without the numbers of layers: the same for all layers of a kind."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "#", name)


def check_fit(benchmark: Benchmark, source: str, known: int, longest: int | None) -> None:
    """Refuse tokens that are not the model's own, and rows longer than it reads; `known` token ids, `longest` None if there is no limit.

    An embedding is often padded: a model may know ids that its tokenizer has not, though never as many again. Where the tokenizer lies
    beside the model, the benchmark's ids must stand for the same words.
    """
    ids, folder = benchmark.vocabulary, folder_of(source)
    assert ids is not None
    own = Loaded(folder) if (folder / "tokenizer.json").is_file() else None
    size = own.size if own is not None else known
    if size > known:
        raise ConfigurationError(
            f"the tokenizer of {source} has {size} token ids, but its model knows {known}. Enlarge its embedding, or name another model."
        )
    remedy = f"Set benchmark.tokenizer{f'={source}' if own is not None else ' to a folder that holds its tokenizer.json'}."
    if ids > size or (ids != size if own is not None else 2 * ids <= size):
        raise ConfigurationError(f"the benchmark's tokenizer has {ids} token ids, but {source} knows {size}. {remedy}")
    if own is not None and benchmark.tokenizer not in ("", own.name):
        raise ConfigurationError(
            f"the benchmark's tokenizer has {ids} token ids, as {source} has, but they stand for other words. {remedy}"
        )
    if benchmark.tokenizer == Trained.name:
        raise ConfigurationError(f"benchmark.tokenizer={Trained.name} is trained here: {source} was trained with other tokens. {remedy}")
    if longest is not None and benchmark.longest_row > longest:
        raise ConfigurationError(
            f"{_what_is_longest(benchmark)} is longer than the {longest} tokens that {source} reads. "
            f"Set benchmark.length={longest} or lower, or take a model that reads more."
        )


@torch.no_grad()
def check_same(
    own_and_ours: Callable[[dict[str, Tensor]], tuple[Tensor, Tensor]], benchmark: Benchmark, source: str, padding: int | None, fault: str
) -> None:
    """Refuse a pretrained model that does not answer alike by itself and as it is used here, on the longest row; `fault` says so.

    It is asked about two rows, of which the second ends early, without the id that its configuration keeps for `padding`. An error is no
    answer: a table of positions may be shorter than its configuration says, and each architecture reads masks in its own way.
    """

    def alike(length: int) -> bool:
        try:
            own, ours = own_and_ours(_two_rows(benchmark, padding, length))
        except Exception:  # each architecture raises its own
            return False
        tolerance = max(_TOLERANCE, 4 * torch.finfo(own.dtype).eps)
        return bool((own - ours).abs().max() <= tolerance * own.abs().max())

    length = benchmark.longest_row
    if alike(length):
        return
    if not alike(min(length, _FEW)):
        raise ConfigurationError(f"model.source={source}: {fault}. Choose another model.")
    longest = bisect_left(range(length), True, lo=_FEW + 1, key=lambda tokens: not alike(tokens)) - 1
    raise ConfigurationError(
        f"{_what_is_longest(benchmark)} is longer than the {longest} tokens that {source} reads whole: its positions or a window of its "
        f"attention end there. Set benchmark.length={longest} or lower, or choose another model."
    )


def _what_is_longest(benchmark: Benchmark) -> str:
    """Rows of tasks, or of answers beside them, which are asked in an audit, after all training."""
    length, longest = benchmark.input_shape[0], benchmark.longest_row
    return f"benchmark.length={length}" if longest == length else f"a row of {longest} tokens, with another answer than the tasks',"


def _two_rows(benchmark: Benchmark, padding: int | None, length: int) -> dict[str, Tensor]:
    """Inputs (2, L) of tokens that are text to the model, which may tell padding by its id."""
    assert benchmark.vocabulary is not None
    ids = torch.arange(benchmark.vocabulary)
    text = ids[ids != padding] if padding is not None else ids
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length - length // 3 :] = False
    return {"input_ids": text[torch.arange(2 * length) % len(text)].view(2, length), "attention_mask": mask}


def _place_of(source: str) -> str:
    """A folder, or a name on the hub if that can be reached."""
    folder = folder_of(source)
    return str(folder) if folder.exists() else source if _hub_answers() else _fetched_before(source)


def _hub_answers() -> bool:
    """Asked once, before the hub's client is: that asks six times for each file, with pauses of up to eight seconds."""
    import huggingface_hub

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # the error is that of the client, which differs by version
        return False
    return True


def _fetched_before(source: str) -> str:
    """The folder in which the hub's client keeps what it once fetched."""
    import huggingface_hub

    try:
        return str(huggingface_hub.snapshot_download(source, local_files_only=True))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"model.source={source} cannot be loaded: there is no such folder, it was never fetched from the hub, and "
            f"{huggingface_hub.constants.ENDPOINT} does not answer. Name a local folder or package:NAME."
        ) from error


def _why_not(place: Path, error: Exception) -> str:
    """What keeps a model from being loaded, and the remedy; `error` is what its reader raised, of which the first line is told."""
    first = f"{str(error).strip().partition(chr(10))[0].rstrip('.')}."
    if not place.exists():
        return f" cannot be loaded: {first} Name a local folder or package:NAME."
    config, remedy = place / "config.json", "Copy it again, or name another folder."
    if not place.is_dir():
        return " is a file. Name the folder that holds it and config.json."
    if not config.is_file():
        return f" holds no config.json. {remedy}"
    try:
        json.loads(config.read_bytes())
    except ValueError as fault:
        return f": {config} is no valid JSON ({fault}). {remedy}"
    if not any(file.suffix in _WEIGHTS for file in place.iterdir()):
        return f" holds no weights, such as model.safetensors. {remedy}"
    damaged = _damaged_weights(place)
    if damaged is not None:
        return f": {damaged} is damaged ({error}). {remedy}"
    return f" cannot be loaded: {first} Copy it again, or name another model."


def _damaged_weights(folder: Path) -> Path | None:
    """The first file of weights that cannot be opened."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), "pt"):
                pass
        except (SafetensorError, OSError):
            return file
    return None
