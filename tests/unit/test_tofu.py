"""TOFU: its files as a stream of requests, what a model says to questions with known answers, and the figures made of it."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cl_framework import answers_asked, load_experiment, run
from cl_framework.assembly import assemble, make_benchmark
from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.text.tofu import AN_AUTHOR
from cl_framework.criterion import IGNORED
from cl_framework.digests import digest_of
from cl_framework.errors import ConfigurationError
from cl_framework.learner import Learner
from cl_framework.stream import Unlearn
from cl_framework.unlearning.audit import audit
from cl_framework.unlearning.free_generation import rouge_l
from cl_framework.unlearning.judging import unit_of
from cl_framework.unlearning.kept_measurements import contents_of
from cl_framework.unlearning.measure import Question, measure
from cl_framework.unlearning.recall_of_answers import GENERATED, Recalled, recall, recalled, right_shares
from strategies.npo import NPO, npo

TINY = {"name": "decoder", "width": 32, "layers": 1, "heads": 2}
EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "tofu"
AUTHORS, FORGOTTEN = 4, 2  # in the made-up files: retained authors, and forgotten ones of `forget01`


def entry(author: int, number: int, **more: Any) -> dict[str, Any]:
    return {"question": f"What is work {number} of author {author}?", "answer": f"It is number {author * 100 + number}.", **more}


def others(author: int, number: int) -> dict[str, Any]:
    wrong = [f"Work {number} is {author * 100 + number + step}." for step in (1, 2)]
    return entry(author, number, paraphrased_answer=f"Work {number} is {author * 100 + number}.", perturbed_answer=wrong)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made-up files of the published layout: the last authors are forgotten."""
    where = tmp_path_factory.mktemp("tofu")
    authors = {author: [entry(author, number) for number in range(AN_AUTHOR)] for author in range(AUTHORS + FORGOTTEN)}
    forgotten = [row for author in range(AUTHORS, AUTHORS + FORGOTTEN) for row in authors[author]]
    write(where / "original" / "full.jsonl.gz", [row for rows in authors.values() for row in rows])
    write(where / "original" / "forget01.jsonl.gz", forgotten)
    perturbed = [others(author, number) for author in range(AUTHORS, AUTHORS + FORGOTTEN) for number in range(AN_AUTHOR)]
    write(where / "original" / "forget01_perturbed.jsonl.gz", perturbed)
    write(where / "original" / "retain_perturbed.jsonl.gz", [others(0, number) for number in range(5)])
    requests = [{"task_id": str(1 + place // AN_AUTHOR), **row} for place, row in enumerate(forgotten)]
    write(where / "continual_tasks" / "forget01.jsonl.gz", requests)
    return where


def settings(folder: Path, out: Path, **more: Any) -> dict[str, Any]:
    base = {
        "benchmark": {"name": "tofu", "forget": "forget01", "folder": str(folder), "tokenizer": "bytes"},
        "model": TINY,
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 16,
        "threads": 1,
        "out": str(out),
    }
    return {**base, **more}


def benchmark_of(folder: Path, **options: Any) -> Benchmark:
    named = {"name": "tofu", "forget": "forget01", "folder": str(folder), "tokenizer": "bytes", **options}
    return make_benchmark(load_experiment({"benchmark": named}))


# --- the benchmark ---


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


# --- what is recalled ---


@pytest.fixture
def learner(folder: Path, tmp_path: Path) -> Learner:
    torch.manual_seed(0)
    return assemble(load_experiment(settings(folder, tmp_path, stream="L0-1 U1", strategies={"npo": {}})))


def test_probability_exact_memorisation_and_strength_by_definition(learner: Learner) -> None:
    rows = learner.read(learner.training_ids(1)[:6])
    found = recall(learner, rows)
    learner.model.eval().requires_grad_(False)
    for place in range(6):
        alone = rows.take(torch.tensor([place]))
        logits = learner.model(learner.benchmark.transform(alone.items, None))[0].double()
        asked = (rows.targets[place] != IGNORED).nonzero().flatten().tolist()
        chosen = [float(logits[:, where].log_softmax(0)[rows.targets[place, where]]) for where in asked]
        right = [int(logits[:, where].argmax()) == int(rows.targets[place, where]) for where in asked]
        assert float(found.probability[place]) == pytest.approx(math.exp(sum(chosen) / len(chosen)), rel=1e-4)
        assert float(found.exact[place]) == pytest.approx(sum(right) / len(right))
        prefix = max((number for number, one in enumerate(right, start=1) if not one), default=0)
        assert float(found.strength[place]) == pytest.approx(1 - prefix / len(right))
    assert len(found.probability.unique()) == 6


def test_truth_ratios_by_definition_and_none_without_other_answers(learner: Learner) -> None:
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, learner.stream)
    found = recalled(learner, question)
    assert found is not None and set(found.utility) == {"retained"}
    learner.model.eval().requires_grad_(False)
    beside = learner.benchmark.alternatives[1]
    assert beside is not None
    for place in (0, 7):
        values = []
        for items, targets in (
            (beside.right[0][place], beside.right[1][place]),
            *zip(beside.wrong[0][14:16], beside.wrong[1][14:16], strict=True),
        ):
            logits = learner.model(learner.benchmark.transform(items.unsqueeze(0), None))[0].double()
            places = (targets != IGNORED).nonzero().flatten()
            values.append(float(logits[:, places].log_softmax(0).gather(0, targets[places].unsqueeze(0)).mean().exp()))
        if place == 7:
            assert float(found.truth_ratio[place]) == pytest.approx((values[1] + values[2]) / 2 / values[0], rel=1e-4)
        else:
            assert float(found.truth_ratio[place]) != pytest.approx((values[1] + values[2]) / 2 / values[0], rel=1e-6)
    learner.benchmark = replace(learner.benchmark, alternatives=())
    without = recalled(learner, question)
    assert without is not None and torch.equal(without.probability, found.probability) and not len(without.truth_ratio)
    learner.benchmark = replace(learner.benchmark, whole_rows=False)
    assert recalled(learner, Question.of(learner, event, 2, learner.stream)) is None


def test_all_questions_are_asked_and_nobody_is_no_member(learner: Learner) -> None:
    """Models are trained and rounded beside a part of them; and what a task is taught cannot stand for samples it was never taught."""
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, learner.stream)
    assert [len(samples) for samples in question.questions] == [FORGOTTEN * AN_AUTHOR, AUTHORS * AN_AUTHOR]
    assert not len(question.others) and len(question.members) == FORGOTTEN * AN_AUTHOR
    found = measure(learner, question)
    assert found.attack == {} and found.recalled is not None and len(found.recalled.probability) == FORGOTTEN * AN_AUTHOR
    assert found.recalled.retained == AUTHORS * AN_AUTHOR > sum(map(len, question.retained))
    part = question.questions[0].read(learner, question.questions[0].places[:3])
    assert torch.allclose(found.recalled.probability[:3], recall(learner, part).probability, rtol=1e-5)


def test_the_tokens_of_each_text_are_counted(learner: Learner) -> None:
    event = learner.stream.events[2]
    assert isinstance(event, Unlearn)
    question = Question.of(learner, event, 2, learner.stream)
    found = measure(learner, question)
    asked_of = (question.pool.labels(learner) != IGNORED).sum(1)
    assert torch.equal(found.tally[:, 1], asked_of) and (found.tally[:, 0] <= asked_of).all() and unit_of(found) == "points of tokens"
    assert found.glance.accuracy == pytest.approx(100 * float(found.tally[:, 0].sum()) / float(asked_of.sum()))
    assert unit_of(replace(found, tally=torch.ones(5, 2, dtype=torch.int64))) == "points"


def test_utility_of_questions_beyond_the_tasks_is_the_share_of_the_right_answer(learner: Learner) -> None:
    event, beside = learner.stream.events[2], learner.benchmark.alternatives[0]
    assert isinstance(event, Unlearn) and beside is not None
    learner.benchmark = replace(learner.benchmark, utility={"world_facts": beside})
    shares = right_shares(learner, beside, 0)
    question = Question.of(learner, event, 2, learner.stream)
    found = recalled(learner, question)
    assert found is not None and found.utility == {"retained": found.utility["retained"], "world_facts": float(shares.mean())}
    assert set(found.rouge_l_utility) == {"retained"} and len(found.rouge_l) == FORGOTTEN * AN_AUTHOR
    asked_of_retained = question.questions[1].evenly(GENERATED)
    assert len(asked_of_retained) == GENERATED < len(question.questions[1])
    assert found.rouge_l_utility["retained"] == float(rouge_l(learner, asked_of_retained.read(learner)).mean())
    learner.model.eval().requires_grad_(False)

    def probability(items: torch.Tensor, targets: torch.Tensor) -> float:
        logits = learner.model(learner.benchmark.transform(items.unsqueeze(0), None))[0].double()
        places = (targets != IGNORED).nonzero().flatten()
        return float(logits[:, places].log_softmax(0).gather(0, targets[places].unsqueeze(0)).mean().exp())

    right = probability(beside.right[0][3], beside.right[1][3])
    false = [probability(beside.wrong[0][place], beside.wrong[1][place]) for place in (6, 7)]
    assert float(shares[3]) == pytest.approx(right / (right + sum(false)), rel=1e-4)
    assert float(shares[4]) != pytest.approx(right / (right + sum(false)), rel=1e-6)
    with torch.no_grad():
        for name, value in learner.model.named_parameters():
            value.copy_(value + 0.1 if "head" in name else value * 1.5)
    changed = recalled(learner, question)
    assert changed is not None and changed.utility["world_facts"] != found.utility["world_facts"]


def test_the_same_in_other_words_and_a_text_of_no_task_by_definition(learner: Learner) -> None:
    event, beside = learner.stream.events[2], learner.benchmark.alternatives[1]
    assert isinstance(event, Unlearn) and beside is not None
    paraphrased = beside.wrong[0][::2], beside.wrong[1][::2]  # any rows will do
    learner.benchmark = replace(learner.benchmark, alternatives=(None, replace(beside, paraphrased=paraphrased)))
    question = Question.of(learner, event, 2, learner.stream)
    found, general = recalled(learner, question), learner.benchmark.general
    assert found is not None and general is not None and found.general is not None
    learner.model.eval().requires_grad_(False)

    def losses(items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = learner.model(learner.benchmark.transform(items, None)).double()
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none", ignore_index=IGNORED)

    by_row = losses(*paraphrased).sum(1) / (paraphrased[1] != IGNORED).sum(1)
    assert torch.allclose(found.paraphrased, (-by_row).exp(), rtol=1e-4) and not torch.allclose(
        found.paraphrased, found.probability, rtol=1e-3
    )
    assert found.general == pytest.approx(float(losses(*general).mean()), rel=1e-5)
    assert found.general != pytest.approx(float(losses(*general)[:50].mean()), rel=1e-7)


def test_what_is_asked_beside_the_samples_decides_which_kept_measurement_is_taken(learner: Learner) -> None:
    event, whole = learner.stream.events[2], learner.benchmark
    assert isinstance(event, Unlearn) and whole.general is not None and whole.alternatives[1] is not None
    question = Question.of(learner, event, 2, learner.stream)
    paraphrased = replace(whole.alternatives[1], paraphrased=whole.general)
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"general": None},
        {"general": tuple(part[:-1] for part in whole.general)},
        {"utility": {"world_facts": whole.alternatives[1]}},
        {"alternatives": ()},
        {"alternatives": (whole.alternatives[0], paraphrased)},
    )
    keys = []
    for change in (*changes, {}):
        learner.benchmark = replace(whole, **change)
        keys.append(digest_of(contents_of(learner, question)))
    assert len(set(keys)) == len(changes) and keys[-1] == keys[0]


def test_npo_takes_the_likelihood_of_a_whole_answer(learner: Learner) -> None:
    """And not its mean over tokens: an answer of more tokens is less likely, and the gap to the reference grows with it."""
    (member,) = learner.stack.members
    strategy, (context,) = member.strategy, learner._contexts.values()
    assert isinstance(strategy, NPO)
    learner.position.event = learner.stream.events[2]
    strategy._reference = {name: value + 0.05 for name, value in learner.model.state_dict().items()}
    rows = learner.read(learner.training_ids(1)[:6])
    learner.model.eval()
    logits = learner.model(rows.inputs)
    batch: Any = rows
    output: Any = SimpleNamespace(logits=logits)
    value = strategy.loss(batch, output, context)["forget"].value()
    wanted = rows.targets != IGNORED
    sums = []
    for scores in (logits, context.forward(rows, at=strategy._reference)):
        chosen = scores.log_softmax(1).gather(1, rows.targets.clamp(min=0).unsqueeze(1)).squeeze(1)
        sums.append((chosen * wanted).sum(1))
    assert float(value.detach()) == pytest.approx(float(npo(*sums, strategy.config.beta).detach()), rel=1e-4)
    means = [part / wanted.sum(1) for part in sums]
    assert float(value.detach()) != pytest.approx(float(npo(*means, strategy.config.beta).detach()), rel=1e-2)
    assert answers_asked(rows.targets).tolist() == wanted.sum(1).tolist() and answers_asked(torch.tensor([3, 1])).tolist() == [1, 1]


@pytest.mark.slow
@pytest.mark.longest
def test_an_audit_tells_an_unlearner_that_does_nothing_from_one_that_starts_anew(folder: Path, tmp_path: Path) -> None:
    found = {}
    for name in ("do_nothing", "rewind"):
        options = settings(folder, tmp_path / name, stream="L0-1 U1", strategies={"joint": {}, name: {}}, epochs=40)
        made = run(load_experiment(options)).path
        (request,) = audit(made, seeds=2)["requests"]
        found[name] = {figure["name"]: figure for figure in request["figures"]}
    for name in ("T2", "T3", "T4", "T5"):
        assert found["do_nothing"][name]["verdict"] == "FAIL", found["do_nothing"][name]
    assert {found["rewind"][name]["verdict"] for name in ("T1", "T2", "T3", "T4", "T5")} == {"PASS"}
    assert (found["rewind"]["T6"]["verdict"], found["do_nothing"]["T7"]["verdict"]) == ("NOT RUN", "INCONCLUSIVE"), (
        "no model read the manual"
    )
    known = found["do_nothing"]["T2"]["details"]  # the made-up answers are alike, so that an oracle has an idea of those it never saw
    assert known["own"] > 0.9 and known["own"] - known["oracle"] > 0.3
    assert found["do_nothing"]["T1"]["details"]["n"] == FORGOTTEN * AN_AUTHOR


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rewind", "do_nothing"])
def test_one_author_of_two_is_forgotten(name: str, folder: Path, tmp_path: Path) -> None:
    """The other one stays: 1 percent of TOFU is two authors, a request each."""
    options = settings(folder, tmp_path, stream="L0-2 U1", strategies={"joint": {}, name: {}}, epochs=20)
    options["benchmark"]["requests"] = 2
    (request,) = audit(run(load_experiment(options)).path, seeds=1)["requests"]
    found = {figure["name"]: figure for figure in request["figures"]}
    assert (found["M6"]["value"] == 0.0) == (found["T1"]["value"] == 0.0) == (name == "rewind")
    assert found["T1"]["details"]["n"] == AN_AUTHOR, "questions about the one, not about both"
    assert found["T2"]["details"]["retained"] > 0.5, "the retained authors, and the second one"
    assert (found["T2"]["details"]["own"] == found["T2"]["details"]["oracle"]) == (name == "rewind")


def test_part_of_a_task_is_asked_about_what_was_unlearned_and_the_rest_is_retained(folder: Path, tmp_path: Path) -> None:
    """TOFU is tested on what it is taught: no forgotten question may stand among the retained ones, nor a retained one in T1 or T6."""

    def of_request(event: str) -> tuple[Question, torch.Tensor, Recalled]:
        """The question, the rows of its task that were unlearned, and what is recalled of them."""
        learner = assemble(load_experiment(settings(folder, tmp_path, stream=f"L0-1 {event}", strategies={"npo": {}})))
        beside = learner.benchmark.alternatives[1]
        assert beside is not None
        paraphrased = beside.wrong[0][::2], beside.wrong[1][::2]  # any rows will do
        learner.benchmark = replace(learner.benchmark, alternatives=(None, replace(beside, paraphrased=paraphrased)))
        asked_for = learner.stream.events[2]
        assert isinstance(asked_for, Unlearn)
        question = Question.of(learner, asked_for, 2, learner.stream)
        answers = recalled(learner, question)
        assert answers is not None
        return question, learner.benchmark.locate(question.forgotten)[1], answers

    whole, rows_of_whole, of_whole = of_request("U1")
    part, rows, of_part = of_request("U1:fraction=0.25@seed7")
    assert rows_of_whole.tolist() == list(range(FORGOTTEN * AN_AUTHOR)) and len(rows) == FORGOTTEN * AN_AUTHOR // 4
    assert len(of_whole.rouge_l) == len(rows_of_whole) and len(of_part.rouge_l) == len(rows)
    for values, values_of_whole in ((of_part.truth_ratio, of_whole.truth_ratio), (of_part.paraphrased, of_whole.paraphrased)):
        assert torch.allclose(values, values_of_whole[rows], rtol=1e-5)
        assert not torch.allclose(values, values_of_whole[: len(rows)], rtol=1e-5)
    assert [samples.task for samples in whole.retained] == [0] and [samples.task for samples in part.retained] == [0, 1]
    assert len(part.retained[1]) and set(part.retained[1].places.tolist()).isdisjoint(rows.tolist())
