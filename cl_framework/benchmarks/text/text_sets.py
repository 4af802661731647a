"""Data sets of text classification, one after another, each with labels of its own: the five-set stream and the fifteen-task one.

Sources: de Masson d'Autume et al. 2019 (AG News, Amazon, Yelp, DBpedia, Yahoo), Razdaibiedina et al. 2023 "Progressive Prompts" (these and
ten of GLUE, SuperGLUE and IMDB), in the files of the O-LoRA repository (Wang et al. 2023).
Differs: Amazon and Yelp, both of five stars, have ten labels here; where a publication gives them one set of five, its class-incremental
    figures compare with none of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cl_framework.benchmarks.base import Benchmark, BenchmarkContext
from cl_framework.benchmarks.text.classification import CorpusOptions, classification
from cl_framework.benchmarks.text.corpora import Corpus, checked
from cl_framework.benchmarks.text.files import COPY, json_members
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
    files = _files(folder)
    wanted = options.sets or STREAMS[options.stream_of]
    missing = [name for name in wanted if not files.get(name, {}).keys() & set(SPLITS)]
    if missing and options.sets:
        raise ConfigurationError(f"{folder} has neither train.json nor test.json of {missing[0]}. Take it out of benchmark.sets.")
    notes = {"missing": f"{', '.join(missing)}: no files in {folder}"} if missing else {}
    undivided: list[str] = []
    parts: dict[str, tuple[Texts, Texts]] = {}
    strange: list[str] = []
    for name in wanted:
        if name not in missing:
            labelled = {split: _labelled(files[name], name, split, folder) for split in SPLITS if split in files[name]}
            strange += [place for _, places in labelled.values() for place in places]
            parts[name] = _split({split: texts for split, (texts, _) in labelled.items()})
            undivided += [name] * (len(labelled) == 1)
    if not parts:
        raise ConfigurationError(
            f"{folder} holds none of {', '.join(wanted)}: expected {ARCHIVE}, or CL_Benchmark/<kind>/<set>/train.json."
        )
    if undivided:
        notes["divided"] = f"{', '.join(undivided)}: one split only, of which every fifth text is a test"
    if strange:
        notes["left out"] = f"{len(strange):,} texts whose label is none of their set's labels.json, the first in {strange[0]}"
    groups = {name: tuple(dict.fromkeys(label for half in halves for _, label in half)) for name, halves in parts.items()}
    train, test = ([pair for halves in parts.values() for pair in halves[place]] for place in (0, 1))
    return classification("text_sets", Corpus(train, test, groups, notes), options, context)


def _split(texts: Mapping[str, Texts]) -> tuple[Texts, Texts]:
    """Training and test texts; where one split alone is there, every fifth text of it is a test."""
    if len(texts) == 2:
        return texts["train"], texts["test"]
    (whole,) = texts.values()
    return [pair for place, pair in enumerate(whole) if place % 5], whole[::5]


def _labelled(files: Mapping[str, Any], name: str, split: str, folder: Path) -> tuple[Texts, list[str]]:
    """The texts of a split with labels that no other set has, and the rows that were left out since their label is none of the set's."""
    where = f"{folder}: {name}/{split}.json"
    labels = files.get("labels")
    if not (isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels)):
        raise ConfigurationError(f"{folder}: {name}/labels.json is missing, empty or no list of labels. {COPY}")
    if not isinstance(files[split], list):
        raise ConfigurationError(f"{where} must hold a list of texts. {COPY}")
    rows, strange = [], []
    for row, entry in enumerate(files[split]):
        text, label = (entry.get("sentence"), entry.get("label")) if isinstance(entry, dict) else (None, None)
        place = f"{where}: row {row}"
        if isinstance(label, str) and label.strip() and label not in labels:
            strange.append(place)
        else:
            rows.append((place, text, label))
    return [(text, f"{name}/{label}") for text, label in checked(where, rows, columns=("sentence", "label"))], strange


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    """What the JSON files hold, by set and by name: train, test, labels."""
    files: dict[str, dict[str, Any]] = {}
    for path, content in json_members(folder, "CL_Benchmark/*/*/*.json", ARCHIVE, "cl_benchmark"):
        name, file = path.split("/")[-2:]
        files.setdefault(name, {})[file.removesuffix(".json")] = content
    return files
