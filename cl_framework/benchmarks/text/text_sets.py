"""Data sets of text classification, one after another, each with labels of its own: the five-set stream and the fifteen-task one.

Sources: de Masson d'Autume et al. 2019 (AG News, Amazon, Yelp, DBpedia, Yahoo), Razdaibiedina et al. 2023 "Progressive Prompts" (these and
ten of GLUE, SuperGLUE and IMDB), in the files of the O-LoRA repository (Wang et al. 2023).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.text.classification import CorpusOptions, classification
from cl_framework.benchmarks.text.corpora import Corpus, json_members
from cl_framework.checks import check_choice
from cl_framework.errors import ConfigurationError
from cl_framework.registry import register_benchmark

FIVE = ("agnews", "amazon", "yelp", "dbpedia", "yahoo")
FIFTEEN = ("MNLI", "CB", "WiC", "COPA", "QQP", "BoolQA", "RTE", "IMDB", "yelp", "amazon", "SST-2", "dbpedia", "agnews", "MultiRC", "yahoo")
STREAMS = {"five": FIVE, "fifteen": FIFTEEN}
ARCHIVE = "CL_Benchmark.tar.xz"
SPLITS = ("train", "test")

Texts = list[tuple[str, str]]  # of (text, label)


@dataclass(frozen=True)
class TextSetsOptions(CorpusOptions):
    stream_of: str = "five"  # five or fifteen: as many of its sets as have files, in its order
    sets: tuple[str, ...] = ()  # instead: these, in this order; one without files is an error

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("stream_of", self.stream_of, STREAMS)
        for name in self.sets:
            check_choice("sets", name, FIFTEEN)
        if len(set(self.sets)) < len(self.sets):
            raise ValueError(f"sets must differ, got {', '.join(self.sets)}")


@register_benchmark("text_sets", TextSetsOptions)
def text_sets(options: TextSetsOptions, context: BenchmarkContext) -> Benchmark:
    """News, reviews, topics, inference: the five-set and the fifteen-task stream, as far as their files are there."""
    folder = Path(options.folder).expanduser() if options.folder else context.root / "cl_benchmark"
    found = _files(folder)
    wanted = options.sets or STREAMS[options.stream_of]
    missing = [name for name in wanted if not found.get(name, {}).keys() & set(SPLITS)]
    if missing and options.sets:
        raise ConfigurationError(f"{folder} has neither train.json nor test.json of {missing[0]}. Take it out of benchmark.sets.")
    notes = {"missing": f"{', '.join(missing)}: no files in {folder}"} if missing else {}
    halves: list[str] = []
    parts: dict[str, tuple[Texts, Texts]] = {}
    left_out = 0
    for name in wanted:
        if name not in missing:
            labelled = {split: _labelled(found[name], name, split, folder) for split in SPLITS if split in found[name]}
            left_out += sum(count for _, count in labelled.values())
            parts[name] = _split({split: texts for split, (texts, _) in labelled.items()})
            halves += [name] * (len(labelled) == 1)
    if not parts:
        raise ConfigurationError(
            f"{folder} holds none of {', '.join(wanted)}: expected {ARCHIVE}, or CL_Benchmark/<kind>/<set>/train.json."
        )
    if halves:
        notes["divided"] = f"{', '.join(halves)}: one split only, of which every fifth text is a test"
    if left_out:
        notes["left out"] = f"{left_out} texts whose label is none of their set's"
    groups = {name: tuple(dict.fromkeys(label for half in halves for _, label in half)) for name, halves in parts.items()}
    train, test = ([one for halves in parts.values() for one in halves[place]] for place in (0, 1))
    benchmark = classification("text_sets", Corpus(train, test, groups), options, context, str(folder))
    return replace(benchmark, notes={**benchmark.notes, **notes})


def _split(texts: Mapping[str, Texts]) -> tuple[Texts, Texts]:
    """Training and test texts; where one split alone is there, every fifth text of it is a test."""
    if len(texts) == 2:
        return texts["train"], texts["test"]
    (whole,) = texts.values()
    return [one for place, one in enumerate(whole) if place % 5], whole[::5]


def _labelled(files: Mapping[str, Any], name: str, split: str, folder: Path) -> tuple[Texts, int]:
    """The texts of a split with labels that no other set has, and how many were left out since their label is none of the set's."""
    where = f"{folder}: {name}/{split}.json"
    labels = set(files.get("labels") or ())
    if not labels:
        raise ConfigurationError(f"{folder}: {name}/labels.json is missing or empty. Copy it from where the others came from.")
    if not isinstance(files[split], list):
        raise ConfigurationError(f"{where} must hold a list of texts.")
    texts, strange = [], 0
    for row, entry in enumerate(files[split]):
        absent = [key for key in ("sentence", "label") if not (isinstance(entry, dict) and isinstance(entry.get(key), str))]
        if absent:
            raise ConfigurationError(f"{where}: row {row} has no {absent[0]!r}.")
        if entry["label"] not in labels:
            strange += 1
            continue
        texts.append((entry["sentence"], f"{name}/{entry['label']}"))
    return texts, strange


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """What the JSON files hold, by set and by name: train, test, labels."""
    found: dict[str, dict[str, Any]] = {}
    for path, raw in json_members(folder, "CL_Benchmark/*/*/*.json", ARCHIVE, "cl_benchmark"):
        name, file = path.split("/")[-2:]
        try:
            found.setdefault(name, {})[file.removesuffix(".json")] = json.loads(raw.decode())
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{folder}: {path} is not written in utf-8 (byte {error.start}). Convert it.") from error
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{folder}: {path} is no valid JSON (line {error.lineno}: {error.msg}).") from error
    return found
