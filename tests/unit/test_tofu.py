"""TOFU: its files as a stream of requests, and what is wrong in them."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from cl_framework import load_experiment
from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.text.tofu import AN_AUTHOR
from cl_framework.criterion import IGNORED
from cl_framework.errors import ConfigurationError
from tests.unit.made_up_tofu import AUTHORS, FORGOTTEN, benchmark_of, entry, others, settings, write, write_tofu

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "tofu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tofu(tmp_path_factory.mktemp("tofu"))


def test_requests_divide_whole_authors_and_the_rest_is_retained(folder: Path) -> None:
    one, two, published = benchmark_of(folder), benchmark_of(folder, requests=2), benchmark_of(folder, continual=True)
    assert [len(source) for source in one.train] == [AUTHORS * AN_AUTHOR, FORGOTTEN * AN_AUTHOR]
    assert [len(source) for source in two.train] == [AUTHORS * AN_AUTHOR, AN_AUTHOR, AN_AUTHOR] == [len(part) for part in published.train]
    assert [len(source) for source in benchmark_of(folder, authors=1).train] == [AN_AUTHOR, FORGOTTEN * AN_AUTHOR]
    rows = [{tuple(row) for row in source.read(torch.arange(len(source))).tolist()} for source in two.train]
    assert not rows[0] & rows[1] and not rows[1] & rows[2] and not rows[0] & rows[2]
    assert one.objective == "language_modelling" and one.whole_rows


def test_other_answers_belong_to_their_questions(folder: Path) -> None:
    retained, request = benchmark_of(folder).alternatives
    assert retained is not None and request is not None
    assert (len(retained.right[0]), len(retained.owner)) == (5, 10)
    assert request.owner == tuple(place for place in range(FORGOTTEN * AN_AUTHOR) for _ in range(2))
    start = int((request.right[1][3] != IGNORED).nonzero()[0])  # the question is the same up to its answer
    assert torch.equal(request.right[0][3, : start + 1], request.wrong[0][6, : start + 1])
    assert not torch.equal(request.right[0][3], request.wrong[0][6])
    split = benchmark_of(folder, requests=2).alternatives[2]
    assert split is not None and torch.equal(split.right[0][0, :20], request.right[0][AN_AUTHOR, :20])


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    """The same files, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "tofu"))


def test_other_answers_are_found_in_whichever_file_they_stand(copied: Path) -> None:
    """Requests of the continual variant ask about authors of other splits."""
    first, second = ([others(author, number) for number in range(AN_AUTHOR)] for author in (AUTHORS, AUTHORS + 1))
    write(copied / "original" / "forget01_perturbed.jsonl.gz", first)
    found = benchmark_of(copied, continual=True)
    assert [beside is not None for beside in found.alternatives] == [True, True, False]
    assert found.notes["other answers"] == "retained 5 of 80, request 1 20 of 20, request 2 0 of 20"
    write(copied / "original" / "forget10_perturbed.jsonl.gz", [{**one, "paraphrased_answer": "Another."} for one in first] + second)
    both = benchmark_of(copied, continual=True)
    assert both.notes["other answers"] == "retained 5 of 80, request 1 20 of 20, request 2 20 of 20"
    assert torch.equal(both.alternatives[1].right[0], found.alternatives[1].right[0])  # type: ignore[union-attr]  # of the split's own file


def test_questions_in_other_words_keep_their_own_answers(copied: Path) -> None:
    """Where every question with other answers has them; the same row is their answer's without."""
    rows = [others(author, number) for author in range(AUTHORS, AUTHORS + FORGOTTEN) for number in range(AN_AUTHOR)]
    asked_anew = [{**row, "paraphrased_question": f"Tell me: {row['question']}"} for row in rows]
    assert benchmark_of(copied).alternatives[1].paraphrased is None  # type: ignore[union-attr]
    write(copied / "original" / "forget01_perturbed.jsonl.gz", asked_anew)
    found = benchmark_of(copied)
    retained, request = found.alternatives
    assert retained is not None and request is not None and retained.paraphrased is None and request.paraphrased is not None
    items, targets = request.paraphrased
    assert found.tokens is not None and len(items) == len(rows)
    assert found.tokens.texts([items[3].tolist()])[0].startswith(f"Tell me: {rows[3]['question']}")
    assert found.tokens.texts([targets[3][targets[3] != IGNORED].tolist()]) == [rows[3]["answer"]]
    assert found.longest_row == items.shape[1] > found.input_shape[0]
    assert found.notes["asked in other words"] == "retained 0 of 80, request 1 40 of 40"
    assert benchmark_of(copied, length=33).alternatives[1].paraphrased is None  # type: ignore[union-attr]  # no room for an answer
    write(copied / "original" / "forget01_perturbed.jsonl.gz", [*asked_anew[:-1], rows[-1]])
    with pytest.raises(
        ConfigurationError,
        match=r"forget01_perturbed.jsonl.gz: row 39 has no 'paraphrased_question' that is a text, which other rows have",
    ):
        benchmark_of(copied)


def test_a_text_of_no_task_stands_beside_the_questions(folder: Path, tmp_path: Path) -> None:
    """And it changes nothing that is trained: neither the data's digest nor, where it is the usual one, the run's fingerprint."""
    without, found = benchmark_of(folder, general="none"), benchmark_of(folder)
    assert without.general is None and without.notes["general text"] == "none"
    assert found.general is not None and found.general[0].shape[1] == found.input_shape[0]
    assert found.notes["general text"] == f"manual, {found.general[1].numel():,} tokens" and found.digest == without.digest

    def fingerprint(**more: Any) -> str:
        told = settings(folder, tmp_path)
        return load_experiment({**told, "benchmark": {**told["benchmark"], **more}}).fingerprint

    assert fingerprint() == fingerprint(general="manual") != fingerprint(general="none")


def test_two_authors_may_be_asked_the_same(copied: Path) -> None:
    """One author who is retained and one who is to be forgotten, as in the published files; each has other answers of their own."""
    shared = {"question": "What is the full name of the author?"}

    def named(path: str, place: int, author: int, **more: Any) -> None:
        rows = [json.loads(line) for line in gzip.decompress((copied / path).read_bytes()).splitlines()]
        rows[place] |= {**shared, "answer": f"Author number {author}.", **more}
        write(copied / path, rows)

    for author, place in ((0, 0), (AUTHORS, AUTHORS * AN_AUTHOR)):
        named("original/full.jsonl.gz", place, author)
    for path in ("original/forget01.jsonl.gz", "continual_tasks/forget01.jsonl.gz"):
        named(path, 0, AUTHORS)
    for path, author in (("original/retain_perturbed.jsonl.gz", 0), ("original/forget01_perturbed.jsonl.gz", AUTHORS)):
        named(path, 0, author, paraphrased_answer=f"They call it author {author}.")
    found = benchmark_of(copied, continual=True)
    assert [len(source) for source in found.train] == [AUTHORS * AN_AUTHOR, AN_AUTHOR, AN_AUTHOR]
    said = []
    for beside in found.alternatives[:2]:
        assert beside is not None and beside.asked_by[0] == 0
        said.append(bytes(token - 2 for token in beside.right[1][0].tolist() if token > 2).decode())
    assert said == ["They call it author 0.", f"They call it author {AUTHORS}."]
    write(copied / "original" / "forget01_perturbed.jsonl.gz", [others(AUTHORS, number) for number in range(1, AN_AUTHOR)])
    assert benchmark_of(copied, continual=True).notes["other answers"].endswith("request 1 19 of 20, request 2 0 of 20")


def test_utility_is_asked_beyond_the_tasks_where_the_files_are_there(copied: Path) -> None:
    assert benchmark_of(copied).utility == {}
    assert benchmark_of(copied).notes["utility"] == "no real_authors_perturbed.jsonl.gz, no world_facts_perturbed.jsonl.gz"
    fact = {"question": "Where is the Eiffel Tower?", "answer": "Paris", "perturbed_answer": ["Berlin", "London", "Madrid"]}
    write(copied / "original" / "world_facts_perturbed.jsonl.gz", [fact, {**fact, "question": "Where is the Louvre?"}])
    found = benchmark_of(copied)
    assert found.notes["utility"] == "no real_authors_perturbed.jsonl.gz, world_facts 2"
    assert set(found.utility) == {"world_facts"} and found.utility["world_facts"].owner == (0, 0, 0, 1, 1, 1)
    assert [len(source) for source in found.train] == [AUTHORS * AN_AUTHOR, FORGOTTEN * AN_AUTHOR]


def test_the_three_splits_load_from_each_file_of_experiments(copied: Path) -> None:
    authors = {author: [entry(author, number) for number in range(AN_AUTHOR)] for author in range(AUTHORS + FORGOTTEN)}
    for forget, count in (("forget05", 3), ("forget10", 4)):
        forgotten = [row for author in range(AUTHORS + FORGOTTEN - count, AUTHORS + FORGOTTEN) for row in authors[author]]
        write(copied / "original" / f"{forget}.jsonl.gz", forgotten)
        write(copied / "continual_tasks" / f"{forget}.jsonl.gz", [{"task_id": place, **row} for place, row in enumerate(forgotten)])
    paths = sorted(EXPERIMENTS.glob("*.yaml"))
    assert len(paths) == 22 and sum("continual" in path.name for path in paths) == 11
    sizes = {}
    for path in paths:
        for forget in ("forget01", "forget05", "forget10"):
            experiment = load_experiment(path, [f"benchmark.forget={forget}", f"benchmark.folder={copied}"])
            assert experiment.benchmark.options.forget == forget
            assert experiment.benchmark.options.length == (180 if "continual" in path.name else None)
            if path.stem in ("tofu_npo", "tofu_continual_npo"):
                sizes[path.stem, forget] = [len(source) for source in make_benchmark(experiment).train]
        assert path.read_text().startswith(f"# clu run experiments/tofu/{path.name} ") and "benchmark.forget=" in path.read_text()
    assert [sizes["tofu_npo", f"forget{share}"] for share in ("01", "05", "10")] == [[80, 40], [60, 60], [40, 80]]
    assert [len(sizes["tofu_continual_npo", f"forget{share}"]) for share in ("01", "05", "10")] == [3, 61, 81]


def test_how_many_answers_are_cut_is_said(folder: Path) -> None:
    """As many as ask something behind the length given, where none is cut."""
    length, names = 45, ("retained", "request 1")
    whole, cut = benchmark_of(folder), benchmark_of(folder, length=length)
    assert "cut answers" not in whole.notes
    rows = {name: source.targets for name, source in zip(names, whole.train, strict=True)}
    for name, beside in zip(names, whole.alternatives, strict=True):
        assert beside is not None
        rows |= {f"{name} in other words": beside.right[1], f"{name} false": beside.wrong[1]}
    longer = {name: int((targets[:, length:] != IGNORED).any(1).sum()) for name, targets in rows.items()}
    assert 0 < longer["request 1"] < len(rows["request 1"]) and longer["retained in other words"] == 0
    told = ", ".join(f"{name} {count} of {len(rows[name])}" for name, count in longer.items() if count)
    assert cut.notes["cut answers"] == f"{told}; set benchmark.length higher"


def test_how_many_other_answers_are_longer_than_what_is_trained_on_is_said(copied: Path) -> None:
    whole = benchmark_of(copied)
    (trained,) = whole.input_shape
    assert "longer answers" not in whole.notes and whole.longest_row == trained
    rows = [others(AUTHORS, number) for number in range(AN_AUTHOR)]
    for row in rows[:3]:
        row["perturbed_answer"][0] += " As all the world is said to know."
    write(copied / "original" / "forget01_perturbed.jsonl.gz", rows)
    found = benchmark_of(copied)
    assert found.notes["longer answers"] == (
        f"request 1 false 3 of 40 have more tokens than was ever trained: rows that are trained on have {trained} at most, "
        f"and benchmark.length={trained} cuts the others there"
    )
    assert found.input_shape == (trained,) and found.longest_row > trained
    cut = benchmark_of(copied, length=trained)
    assert "longer answers" not in cut.notes and cut.longest_row == trained


def test_what_is_longer_is_cut_where_a_length_is_given(folder: Path) -> None:
    whole, cut = benchmark_of(folder), benchmark_of(folder, length=40)
    (width,) = whole.input_shape
    assert width > 40 and cut.input_shape == (40,)
    assert torch.equal(cut.train[0].targets, whole.train[0].targets[:, :40])
    with pytest.raises(ConfigurationError, match=r"original/full\.jsonl\.gz: row 0: the question has \d+ tokens, which leaves no room"):
        benchmark_of(folder, length=10)


def test_errors_name_file_row_and_remedy(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"forget01.jsonl.gz does not exist. Set data.root \(or CL_DATA\) to the folder that holds tofu"
    ):
        benchmark_of(folder / "nowhere")
    with pytest.raises(ConfigurationError, match="requests is for continual=false"):
        benchmark_of(folder, requests=2, continual=True)
    with pytest.raises(ConfigurationError, match=r"forget must be one of forget01, forget05, forget10, got 'forget02'"):
        benchmark_of(folder, forget="forget02")
    for name, rows in (("no 'answer'", [entry(0, 0), {"question": "Who?"}]), ("no 'question'", [entry(0, 0), {"answer": "He."}])):
        write(tmp_path / "original" / "full.jsonl.gz", rows)
        write(tmp_path / "original" / "forget01.jsonl.gz", rows[:1])
        with pytest.raises(ConfigurationError, match=f"full.jsonl.gz: row 1 has {name}"):
            benchmark_of(tmp_path)
    (tmp_path / "original" / "full.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigurationError, match=r"full.jsonl.gz cannot be read"):
        benchmark_of(tmp_path)
    (tmp_path / "original" / "full.jsonl.gz").write_bytes(gzip.compress(b"{"))
    with pytest.raises(ConfigurationError, match=r"full.jsonl.gz: row 0 is no valid JSON: column 2 "):
        benchmark_of(tmp_path)


GOOD = json.dumps(entry(0, 0)).encode()
WRONG = {
    "a question that is a number": (b'{"question": 5, "answer": "He."}', "row 1 has no 'question' that is a text"),
    "a blank answer": (b'{"question": "Who?", "answer": " "}', "row 1 has no 'answer' that is a text"),
    "an answer that shows nothing": (rb'{"question": "Who?", "answer": "\u200b"}', "row 1 has no 'answer' that is a text"),
    "half a character": (rb'{"question": "Who?", "answer": "\ud800"}', "row 1 has no 'answer' that is a text"),
    "a list": (b'["Who?", "He."]', "row 1 is no mapping of columns to texts"),
    "another encoding": (
        '{"question": "Wer?", "answer": "Ren\u00e9"}'.encode("latin-1"),
        rf"is not written in utf-8: byte {len(GOOD) + 1 + 35} in line 2\.",
    ),
    "no JSON": (b"{", "row 1 is no valid JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_row_that_is_wrong_is_named_with_the_remedy(copied: Path, name: str) -> None:
    line, message = WRONG[name]
    (copied / "original" / "full.jsonl.gz").write_bytes(gzip.compress(GOOD + b"\n" + line + b"\n"))
    remedy = "Convert it to utf-8." if "encoding" in name else "Correct it, or copy the file from where the data came from."
    with pytest.raises(ConfigurationError, match=rf"full.jsonl.gz:? {message}.*{remedy}$"):
        benchmark_of(copied)
    (copied / "original" / "full.jsonl.gz").write_bytes(gzip.compress(GOOD + b"\n" + GOOD + b"\n"))
    assert len(benchmark_of(copied).train[0]) == 2


@pytest.mark.parametrize("false", ["Seven", [], ["It is 7.", " "], [7], None])
def test_false_answers_are_a_list_of_texts(copied: Path, false: Any) -> None:
    write(copied / "original" / "retain_perturbed.jsonl.gz", [others(0, 0), {**others(0, 1), "perturbed_answer": false}])
    with pytest.raises(ConfigurationError, match=r"retain_perturbed.jsonl.gz: row 1 has no 'perturbed_answer' that is a list of texts\."):
        benchmark_of(copied)


def test_a_separator_within_a_text_ends_no_row(copied: Path) -> None:
    rows = [{**entry(0, number), "answer": f"One\u2028two\x85three {number}."} for number in range(3)]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)  # and no end of line after the last
    assert len(text.splitlines()) == 9
    (copied / "original" / "full.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert len(benchmark_of(copied).train[0]) == 3


def test_a_damaged_file_is_named(copied: Path) -> None:
    path = copied / "original" / "full.jsonl.gz"
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[:60] + bytes(60) + whole[120:]):
        path.write_bytes(damaged)
        with pytest.raises(ConfigurationError, match=r"full.jsonl.gz cannot be read \(.*\)\. Copy it from where the data came from\.$"):
            benchmark_of(copied)


@pytest.mark.parametrize(
    "name",
    [
        "original/full",
        "original/forget01",
        "continual_tasks/forget01",
        "original/forget01_perturbed",
        "original/retain_perturbed",
        "original/world_facts_perturbed",
    ],
)
def test_a_file_without_questions_is_named(copied: Path, name: str) -> None:
    write(copied / f"{name}.jsonl.gz", [])
    with pytest.raises(ConfigurationError, match=rf"{name}.jsonl.gz holds 0 questions\. Copy it from where the data came from\.$"):
        benchmark_of(copied, continual=name.startswith("continual"))


def test_authors_that_are_fewer_than_the_requests_are_refused(copied: Path) -> None:
    path = copied / "original" / "forget01.jsonl.gz"
    for count, whole in ((5, 1), (AN_AUTHOR, 1), (AN_AUTHOR + 5, 1), (2 * AN_AUTHOR, 2)):
        write(path, [entry(AUTHORS, number) for number in range(count)])
        assert [len(source) for source in benchmark_of(copied).train[1:]] == [count]
        if whole == 2:
            assert [len(source) for source in benchmark_of(copied, requests=2).train[1:]] == [AN_AUTHOR, AN_AUTHOR]
            continue
        text = rf"forget01.jsonl.gz holds {count} questions, 20 an author: too few authors for 2 requests\. Set benchmark.requests=1\.$"
        with pytest.raises(ConfigurationError, match=text):
            benchmark_of(copied, requests=2)


def test_questions_must_be_left_to_retain(copied: Path) -> None:
    forgotten = [entry(author, number) for author in range(AUTHORS, AUTHORS + FORGOTTEN) for number in range(AN_AUTHOR)]
    write(copied / "original" / "full.jsonl.gz", forgotten)
    for continual in (False, True):
        with pytest.raises(
            ConfigurationError, match=r"full.jsonl.gz: all of its 40 questions are to be forgotten, so that none is retained\. Copy it"
        ):
            benchmark_of(copied, continual=continual)
    write(copied / "original" / "full.jsonl.gz", [entry(0, 0), *forgotten])
    assert len(benchmark_of(copied).train[0]) == 1
