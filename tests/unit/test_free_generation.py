"""What a language model says by itself: greedy decoding, the recall of ROUGE-L, and a text of no task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import load_experiment
from cl_framework.assembly import assemble
from cl_framework.benchmarks.text.general import ROWS, general_rows
from cl_framework.benchmarks.text.tokens import START, Bytes, Trained
from cl_framework.calls import logits_at, run_model
from cl_framework.criterion import asked, last_asked, row_losses
from cl_framework.errors import ConfigurationError
from cl_framework.learner import Learner
from cl_framework.strategy import Rows
from cl_framework.unlearning.free_generation import SILENT, generated, recall_of_words, rouge_l

QUESTIONS = 40


def settings(out: Path, **more: Any) -> dict[str, Any]:
    base = {
        "benchmark": {"name": "arithmetic", "skills": ["add_plain"], "train": QUESTIONS, "test": QUESTIONS},
        "model": {"name": "decoder", "width": 32, "layers": 1, "heads": 2},
        "optimizer": {"name": "adamw", "lr": 0.01},
        "batch_size": 8,
        "threads": 1,
        "out": str(out),
    }
    return base | more


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    torch.manual_seed(0)
    return assemble(load_experiment(settings(tmp_path)))


def questions(learner: Learner) -> Rows:
    return learner.read(learner.training_ids(0))


def one_at_a_time(learner: Learner, items: Tensor, targets: Tensor) -> list[int]:
    """Greedy decoding of one question, a whole pass a token."""
    places = asked(targets).nonzero().flatten()
    text, said = items[: int(places[0]) + 1].tolist(), []
    learner.model.eval()
    for _ in range(len(places)):
        scores = learner.model(learner.benchmark.transform(torch.tensor([text], dtype=torch.int32), None))
        token = int(scores[0, :, -1].argmax())
        if token == START:
            break
        said.append(token)
        text.append(token)
    return said


# --- greedy decoding ---


def test_batches_of_questions_are_decoded_as_each_by_itself(learner: Learner) -> None:
    rows = questions(learner)
    said = [[token for token in row if token >= 0] for row in generated(learner, rows).tolist()]
    with torch.no_grad():
        alone = [one_at_a_time(learner, items, targets) for items, targets in zip(rows.items, rows.targets, strict=True)]
    assert said == alone and len({len(row) for row in said}) > 1
    moved = [one_at_a_time(learner, items.roll(1), targets.roll(1)) for items, targets in zip(rows.items, rows.targets, strict=True)]
    assert moved != said


def test_the_right_beginning_is_not_put_into_its_mouth(learner: Learner) -> None:
    """A wrong token is what the next one follows, where other figures ask with the right ones before."""
    rows, (first, second) = questions(learner), (70, 71)
    answers = asked(rows.targets)

    class OneWrong(nn.Module):
        """Names a letter, which no question or answer has; behind that, another one, and then the end."""

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            ids = inputs["input_ids"]
            chosen = torch.where(ids == first, second, torch.where(ids == second, START, first))
            return nn.functional.one_hot(chosen, learner.benchmark.num_classes).float().transpose(1, 2)

    learner.model = OneWrong()
    said = generated(learner, rows)
    long_enough = answers.sum(1) >= 3
    assert bool(long_enough.any()) and (said[long_enough][:, :3] == torch.tensor([first, second, SILENT])).all()
    assert (run_model(learner.model, rows)[1].argmax(1)[answers] != second).all(), "asked with the right ones, it never says that"


def test_no_more_is_said_than_the_right_answer_has(learner: Learner) -> None:
    class Endless(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            return nn.functional.one_hot(torch.full_like(inputs["input_ids"], 70), learner.benchmark.num_classes).float().transpose(1, 2)

    rows = questions(learner)
    learner.model = Endless()
    said = generated(learner, rows)
    assert torch.equal((said == 70).sum(1), asked(rows.targets).sum(1)) and set(said.unique().tolist()) == {SILENT, 70}


def test_the_right_answer_is_nowhere_in_what_a_model_reads(learner: Learner) -> None:
    class LooksAhead(nn.Module):
        """Says a letter that goes by all it reads, wherever it is asked."""

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            ids = inputs["input_ids"]
            letters = (70 + ids.sum(1, keepdim=True) % 100).expand_as(ids)
            return nn.functional.one_hot(letters, learner.benchmark.num_classes).float().transpose(1, 2)

    rows = questions(learner)
    begins = asked(rows.targets).long().argmax(1)
    learner.model = LooksAhead()
    assert isinstance(rows.items, Tensor)
    alone = [70 + int(items[: int(begin) + 1].sum()) % 100 for items, begin in zip(rows.items, begins, strict=True)]
    assert generated(learner, rows)[:, 0].tolist() == alone != (70 + rows.items.sum(1) % 100).tolist()


def test_generation_leaves_model_and_randomness_as_they_were(learner: Learner) -> None:
    class Random(nn.Module):
        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            assert not self.training
            return torch.rand(len(inputs["input_ids"]), learner.benchmark.num_classes, inputs["input_ids"].shape[1])

    learner.model = Random().train()
    state = torch.get_rng_state()
    generated(learner, questions(learner))
    assert learner.model.training and torch.equal(torch.get_rng_state(), state)


def test_what_answers_in_the_model_s_place_is_what_speaks(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(features: Tensor | None, scores: Tensor, rows: Rows) -> Tensor:
        assert scores.shape == (len(rows.targets), learner.benchmark.num_classes, rows.targets.shape[1])
        return nn.functional.one_hot(torch.full_like(rows.targets, 70), scores.shape[1]).float().transpose(1, 2)

    monkeypatch.setattr(type(learner.stack), "predictor", property(lambda stack: always))
    assert set(generated(learner, questions(learner)).unique().tolist()) == {SILENT, 70}


def test_what_was_taught_is_said_and_what_was_not_is_not(learner: Learner) -> None:
    rows, optimizer = questions(learner), torch.optim.AdamW(learner.model.parameters(), lr=0.01)
    known, unknown = rows.take(torch.arange(QUESTIONS // 2)), rows.take(torch.arange(QUESTIONS // 2, QUESTIONS))
    known.inputs = learner.benchmark.transform(known.items, None)
    before = rouge_l(learner, known)
    for _ in range(150):
        optimizer.zero_grad()
        row_losses(run_model(learner.model, known)[1], known.targets).mean().backward()
        optimizer.step()
    assert float(before.mean()) < 0.2 and float(rouge_l(learner, known).mean()) == 1.0
    assert float(rouge_l(learner, unknown).mean()) < 0.5


def test_the_head_is_asked_at_one_place_of_each_text(learner: Learner) -> None:
    rows = questions(learner)
    learner.model.eval()
    with torch.no_grad():
        places, all_logits = last_asked(rows.targets), run_model(learner.model, rows)[1]
        chosen = torch.arange(len(places))
        torch.testing.assert_close(logits_at(learner.model, rows, places), all_logits[chosen, :, places])
        assert not torch.allclose(logits_at(learner.model, rows, places - 1), all_logits[chosen, :, places])
        whole = nn.Sequential(learner.model)  # has neither features nor head
        torch.testing.assert_close(logits_at(whole, rows, places), all_logits[chosen, :, places])


# --- words ---


@pytest.mark.parametrize(
    ("said", "right", "share"),
    [
        ("The author is Hina Ameen.", "The author's name is Hina Ameen.", 4 / 6),  # of: the author's name is hina ameen
        ("Ameen Hina is author the", "the author is Hina Ameen", 1 / 5),
        ("it was the WORK, of (Hina Ameen); and others", "“work of hina ameen.”", 1.0),
        ("Это книга Анны", "книга Анны Керн", 2 / 3),
        ("हिंदी किताब", "हिन्दी किताब", 1 / 2),
        ("-12", "12", 0.0),
        ("0.12", "0.98", 0.0),
        ("C++", "C", 0.0),
        ("", "a name", 0.0),
        ("a name", "…", 0.0),
    ],
)
def test_recall_is_of_words_in_their_order(said: str, right: str, share: float) -> None:
    assert recall_of_words(said, right) == pytest.approx(share)


@pytest.mark.parametrize("tokens", [Bytes(), Trained.on(["Who wrote it? Hina Ameen, née Анна."], 400)])
def test_texts_come_back_from_their_tokens(tokens: Bytes | Trained) -> None:
    texts = ["Who wrote it?", "née Анна, Hina", ""]
    assert [text.removeprefix(" ") for text in tokens.texts(tokens.ids(texts))] == texts
    assert [text.removeprefix(" ") for text in tokens.texts([[*row, tokens.padding] for row in tokens.ids(texts)])] == texts
    assert tokens.texts([row[:-1] for row in tokens.ids(texts[:1])]) != texts[:1]


# --- a text of no task ---


def test_a_text_of_no_task_fills_its_rows(tmp_path: Path) -> None:
    file = tmp_path / "prose.txt"
    file.write_text("\n".join(f"This is line {number}." for number in range(2000)))
    rows, said = general_rows(str(file), Bytes(), 16)
    assert rows is not None and said == f"{file}, 1,600 tokens"
    items, targets = rows
    assert items.shape == targets.shape == (ROWS, 16)
    assert torch.equal(items.flatten()[1:], targets.flatten()[:-1]) and bool(asked(targets).all())
    assert Bytes().texts([items[0].tolist()]) == ["This is line 0."]
    assert general_rows("none", Bytes(), 16) == (None, "none")
    manual, words = general_rows("manual", Bytes(), 16)
    assert manual is not None and len(manual[0]) == ROWS and words == "manual, 1,600 tokens"


def test_a_text_of_no_task_that_is_not_there_is_named_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = tmp_path / "short.txt"
    short.write_text("A few words.\n")
    with pytest.raises(ConfigurationError, match=r"short.txt has 13 tokens, which do not fill one row of 64\. Name a longer text, or"):
        general_rows(str(short), Bytes(), 64)
    with pytest.raises(ConfigurationError, match=r"benchmark.general: there is no file no/such\.txt\. Name a text file, manual, or set"):
        general_rows("no/such.txt", Bytes(), 64)
    monkeypatch.setitem(__import__("sys").modules, "pydoc_data.topics", None)
    with pytest.raises(ConfigurationError, match=r"benchmark.general=manual: this Python has no .* set benchmark\.general=none\."):
        general_rows("manual", Bytes(), 64)
