"""Pretrained models of transformers: from a folder, an installed package or the hub, and whether a benchmark's tokens fit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.text.tokens import folder_of
from cl_framework.errors import ConfigurationError

_PATIENCE = 10  # seconds in which the hub must answer


def load_pretrained(auto: Any, source: str, **options: Any) -> Any:
    """The model of `source` by an `Auto…` class; `options` where it knows them. ConfigurationError says why it cannot be loaded."""
    place = _place_of(source)
    try:
        try:
            return auto.from_pretrained(place, **options)
        except TypeError:  # models without a pooling layer know no such option
            return auto.from_pretrained(place)
    except Exception as error:  # of a damaged file each package raises its own
        damaged = _damaged_weights(Path(place))
        if damaged is not None:
            raise ConfigurationError(
                f"model.source={source}: {damaged} is damaged ({error}). Copy it again, or name another folder."
            ) from error
        first = str(error).strip().partition("\n")[0]
        raise ConfigurationError(f"model.source={source} cannot be loaded: {first} Name a local folder or package:NAME.") from error


def check_fit(benchmark: Benchmark, source: str, known: int, longest: int | None) -> None:
    """Refuse tokens that are not the model's own, and rows longer than it reads; `known` token ids, `longest` None if there is no limit."""
    if benchmark.vocabulary != known:
        own = (folder_of(source) / "tokenizer.json").is_file()
        remedy = f"Set benchmark.tokenizer={source}." if own else "Set benchmark.tokenizer to a folder that holds its tokenizer.json."
        raise ConfigurationError(f"the benchmark's tokenizer has {benchmark.vocabulary} token ids, but {source} knows {known}. {remedy}")
    length = benchmark.input_shape[0]
    if longest is not None and length > longest:
        raise ConfigurationError(
            f"benchmark.length={length} is longer than the {longest} tokens that {source} reads. "
            f"Set benchmark.length={longest} or lower, or take a model that reads more."
        )


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
