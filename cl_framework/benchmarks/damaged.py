"""Files and archives that cannot be read: the one place that says what their libraries raise then."""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cl_framework.errors import ConfigurationError

# RuntimeError: zipfile's word for an archive that has a password, or that is packed in a way it does not know.
_RAISED = (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError, RuntimeError)


@contextmanager
def readable(path: Path, remedy: str) -> Iterator[None]:
    """Around all that reads a file: ConfigurationError names it and its `remedy`, if it is damaged or cannot be opened."""
    try:
        yield
    except _RAISED as error:
        fault = str(error).split("\n")[0].rstrip(":.")
        raise ConfigurationError(f"{path} cannot be read ({fault}). {remedy}") from error
