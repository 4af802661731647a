"""An embedded text: chapters of Python's manual as the standard library holds them for `help()`, by subject. No download.

What they say differs from version to version, so figures on them are no results: they are for first runs and tests.
"""

from __future__ import annotations

from importlib import import_module

from cl_framework.errors import ConfigurationError

_SUBJECTS = {
    "statements": ("compound", "assignment", "import", "augassign", "assert", "raise", "execmodel", "naming", "global", "nonlocal", "del"),
    "objects": ("specialnames", "types", "objects", "callable-types", "bltin-type-objects", "specialattrs"),
    "text": ("string-methods", "formatstrings", "strings"),
    "debugger": ("debugger",),
}
_EVERY = 10  # one paragraph in so many of a subject is held out
_REMEDY = "Use a Python with its whole standard library, or another benchmark."


def topics() -> dict[str, tuple[list[str], list[str]]]:
    """Paragraphs of each subject, to learn and held out. A paragraph that stands in several chapters counts once.

    ConfigurationError if this Python has no manual, or too little of it.
    """
    try:
        chapters: dict[str, str] = import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise ConfigurationError(f"this Python has no pydoc_data, the manual that benchmarks topics and facts read. {_REMEDY}") from error
    seen: set[str] = set()
    subjects = {}
    for subject, names in _SUBJECTS.items():
        paragraphs = []
        for name in names:
            for paragraph in chapters.get(name, "").split("\n\n"):
                text = paragraph.strip()
                if text and text not in seen:
                    seen.add(text)
                    paragraphs.append(text)
        if len(paragraphs) < _EVERY:
            raise ConfigurationError(
                f"this Python's manual, pydoc_data.topics, has {len(paragraphs)} of the {_EVERY} paragraphs on {subject} that are needed "
                f"to hold one out (chapters {', '.join(names)}). {_REMEDY}"
            )
        held_out = paragraphs[_EVERY - 1 :: _EVERY]
        subjects[subject] = [text for place, text in enumerate(paragraphs) if place % _EVERY != _EVERY - 1], held_out
    return subjects
