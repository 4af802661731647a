"""Questions with known answers as rows of tokens: only the answer is asked, place by place, and counts when all of it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cl_framework.benchmarks.base import Benchmark
from cl_framework.benchmarks.sources import TensorSource
from cl_framework.benchmarks.text.tokens import TokenInputs, Tokens
from cl_framework.criterion import IGNORED, last_asked
from cl_framework.errors import ConfigurationError

# Of question and answer, and of those that stand in a file, its name and their row.
Pairs = Sequence[tuple[str, str] | tuple[str, str, str]]


def question_rows(tokens: Tokens, pairs: Pairs, length: int | None, where: str, cut: bool = False) -> tuple[Tensor, Tensor]:
    """Tokens (N, L) int32 and what each place asks for (N, L) int64: the tokens of the answer and the one that ends it, nothing else.

    A row is what begins a text, a question, its answer behind the tokenizer's `gap`, and what ends a text: a row that is right at every
    place asked is one that greedy decoding answers exactly. `length`, None for that of the longest row, is L. Raises ConfigurationError,
    naming file and row, or `where` and the number, for a row that is longer; with `cut` its answer ends at L, without its end.
    """
    start, end = tokens.bounds
    asked = [pair[0] for pair in pairs]
    questions = [[start, *row] for row in tokens.plain(asked)]
    gaps = [tokens.gap if question and not question[-1].isspace() else "" for question in asked]
    answers = tokens.plain([f"{gap}{pair[1]}" for gap, pair in zip(gaps, pairs, strict=True)])
    rows = [[*question, *answer, end] for question, answer in zip(questions, answers, strict=True)]
    if cut and length is not None:
        for number, question in enumerate(questions):
            if len(question) > length:
                raise ConfigurationError(
                    f"{_place(pairs, number, where)}: the question has {len(question)} tokens, which leaves no room for an answer in "
                    f"{length}. Set benchmark.length={max(map(len, questions))} or higher, as other files may ask."
                )
        rows = [row[: length + 1] for row in rows]
    longest = max(map(len, rows), default=1) - 1
    if length is not None and longest > length:
        number = next(number for number, row in enumerate(rows) if len(row) - 1 > length)
        place = _place(pairs, number, where)
        raise ConfigurationError(f"{place} has {len(rows[number]) - 1} tokens. Set benchmark.length={longest}.")
    items = torch.full((len(rows), length or longest), tokens.padding, dtype=torch.int32)
    targets = torch.full(items.shape, IGNORED, dtype=torch.int64)
    ends = torch.tensor([len(row) - 1 for row in rows]).unsqueeze(1)
    firsts = torch.tensor([len(question) - 1 for question in questions]).unsqueeze(1)
    places = torch.arange(items.shape[1])
    items[places < ends] = torch.tensor([token for row in rows for token in row[:-1]], dtype=torch.int32)
    answer_tokens = [token for question, row in zip(questions, rows, strict=True) for token in row[len(question) :]]
    targets[(places >= firsts) & (places < ends)] = torch.tensor(answer_tokens, dtype=torch.int64)
    return items, targets


def fits(tokens: Tokens, questions: Sequence[str], length: int | None) -> bool:
    """Whether `question_rows` of so many tokens, None for any, have room for each of these questions and the first token of its answer."""
    return length is None or all(len(question) < length for question in tokens.plain(questions))


def _place(pairs: Pairs, number: int, where: str) -> str:
    _, _, *placed = pairs[number]
    return placed[0] if placed else f"{where}: row {number}"


def cut_answers(targets: Tensor, end: int) -> int:
    """How many of these rows (N, L) do not end their answer: what they ask for at L is not the token `end`."""
    last = targets[:, -1]
    return int(((last != IGNORED) & (last != end)).sum())


def cut_notes(targets: Mapping[str, Tensor], tokens: Tokens) -> dict[str, str]:
    """What to say of answers that are cut, by the name of the rows; nothing where none is."""
    _, end = tokens.bounds
    cut = {name: cut_answers(values, end) for name, values in targets.items()}
    counts = ", ".join(f"{name} {count:,} of {len(targets[name]):,}" for name, count in cut.items() if count)
    return {"cut answers": f"{counts}; set benchmark.length higher"} if counts else {}


def length_notes(targets: Mapping[str, Tensor], trained: Sequence[Tensor]) -> dict[str, str]:
    """How many of these rows (N, L) end behind every row (M, L') that is trained on, by the name of the rows; nothing where none does."""
    longest = 1 + max(int(last_asked(values).max()) for values in trained)
    longer = {name: int((last_asked(values) >= longest).sum()) for name, values in targets.items()}
    counts = ", ".join(f"{name} {count:,} of {len(targets[name]):,}" for name, count in longer.items() if count)
    remedy = f"rows that are trained on have {longest} at most, and benchmark.length={longest} cuts the others there"
    return {"longer answers": f"{counts} have more tokens than was ever trained: {remedy}"} if counts else {}


def question_benchmark(
    name: str,
    tasks: Sequence[tuple[str, Pairs, Pairs]],
    tokens: Tokens,
    length: int | None,
    where: str,
    notes: dict[str, str],
    cut: bool = False,
) -> Benchmark:
    """A benchmark of tasks (name, training pairs, test pairs); rows are as long as the longest if no length is given."""
    parts: list[tuple[Tensor, Tensor]] = []
    named: dict[str, Tensor] = {}
    for task, train, test in tasks:
        train_rows = question_rows(tokens, train, length, f"{where}, {task}", cut)
        test_rows = train_rows if test is train else question_rows(tokens, test, length, f"{where}, {task}", cut)
        parts += [train_rows, test_rows]
        named |= {task: train_rows[1]} if test is train else {task: train_rows[1], f"{task} (test)": test_rows[1]}
    longest = max(items.shape[1] for items, _ in parts)
    sources = [TensorSource(_widened(items, longest, tokens.padding), _widened(targets, longest, IGNORED)) for items, targets in parts]
    counts = ", ".join(f"{task} {len(train):,} (test {len(test):,})" for task, train, test in tasks)
    return Benchmark(
        name=name,
        num_classes=tokens.size,
        classes=(tuple(range(tokens.size)),) * len(tasks),
        train=sources[::2],
        test=sources[1::2],
        transform=TokenInputs(tokens.padding),
        input_shape=(longest,),
        scenarios=("domain_il",),
        modality="text",
        vocabulary=tokens.size,
        tokenizer=tokens.name,
        objective="language_modelling",
        whole_rows=True,
        tokens=tokens,
        notes={"questions": counts, **cut_notes(named, tokens), **notes},
    )


def _widened(values: Tensor, length: int, filler: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, length - values.shape[1]), value=filler)
