"""What a language model says to a question by itself, token after token, where other figures put the right beginning into its mouth.

Source: Maini et al. 2024 "TOFU": the recall of ROUGE-L (Lin 2004) of greedy decoding against the right answer, the share of its words that
stand in what is said, in their order. A word here is what stands between spaces, in lower case and without the punctuation around it: the
sign and the decimal point of a number belong to it. Words are not stemmed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cl_framework.calls import evaluation_mode, logits_at, run_model
from cl_framework.criterion import asked, last_asked
from cl_framework.learner import Learner
from cl_framework.rng import global_randomness_kept
from cl_framework.strategy import Rows

_AT_ONCE = 32  # texts in a batch
SILENT = -1  # stands where nothing more is said
_AROUND = ".,;:!?…\"'`“”‘’«»()[]{}"  # punctuation that is no part of a word


def rouge_l(learner: Learner, rows: Rows) -> Tensor:
    """(N,) recall in [0, 1] of each question's right answer. `rows`: N >= 1 of a benchmark of questions, which says what its tokens are."""
    tokens = learner.benchmark.tokens
    assert tokens is not None
    wanted = asked(rows.targets)
    right = tokens.texts([row[places].tolist() for row, places in zip(rows.targets, wanted, strict=True)])
    said = tokens.texts([[token for token in row if token != SILENT] for row in generated(learner, rows).tolist()])
    return torch.tensor([recall_of_words(one, other) for one, other in zip(said, right, strict=True)], dtype=torch.float64)


def recall_of_words(said: str, right: str) -> float:
    """The longest common subsequence of words, over the words of `right`, [0, 1]; 0 where it has none."""
    from torchmetrics.functional.text import rouge_score

    scores = rouge_score(said, right, rouge_keys="rougeL", normalizer=str.lower, tokenizer=_words)
    return float(scores["rougeL_recall"])


def _words(text: str) -> list[str]:
    return [word for word in (part.strip(_AROUND) for part in text.split()) if word]


def generated(learner: Learner, rows: Rows) -> Tensor:
    """(N, L) token ids that greedy decoding puts behind each question (L places in a row), SILENT behind them: up to what ends an answer,
    which is not among them, and no more than the right one and its end have.
    """
    order = last_asked(rows.targets).argsort(stable=True)
    said = torch.full(rows.targets.shape, SILENT, dtype=torch.int64, device=rows.targets.device)
    with torch.no_grad(), evaluation_mode(learner.model), global_randomness_kept(learner.device):
        for places in order.split(_AT_ONCE):
            said[places] = _decoded(learner, rows.take(places))
    return said.cpu()


def _decoded(learner: Learner, rows: Rows) -> Tensor:
    """One batch: (B, L). At each step those are asked that have not ended, up to the place of the farthest."""
    tokens, items, wanted = learner.benchmark.tokens, rows.items, asked(rows.targets)
    assert tokens is not None and isinstance(items, Tensor)
    _, end = tokens.bounds
    first, last = wanted.long().argmax(1), last_asked(rows.targets)
    behind = torch.arange(items.shape[1], device=items.device) > first.unsqueeze(1)
    texts = items.masked_fill(behind, tokens.padding)  # the right answer is nowhere any more
    said = torch.full(items.shape, SILENT, dtype=torch.int64, device=items.device)
    speaking = torch.arange(len(texts), device=items.device)
    for step in range(items.shape[1]):
        place = first[speaking] + step
        chosen = _next(learner, rows.take(speaking), texts[speaking], place)
        speaking, place, chosen = (values[chosen != end] for values in (speaking, place, chosen))
        said[speaking, step] = chosen
        speaking, place, chosen = (values[place < last[speaking]] for values in (speaking, place, chosen))
        if not len(speaking):
            break
        texts[speaking, place + 1] = chosen.to(texts.dtype)
    return said


def _next(learner: Learner, rows: Rows, texts: Tensor, place: Tensor) -> Tensor:
    """(B,) the most probable token behind a place (B,) of each text (B, L)."""
    width = int(place.max()) + 1
    rows.items, rows.targets = texts[:, :width], rows.targets[:, :width]
    rows.inputs = learner.benchmark.transform(rows.items, None)
    if learner.stack.predictor is None:
        return logits_at(learner.model, rows, place).argmax(1)
    scores = learner.stack.predictor(*run_model(learner.model, rows), rows)
    return scores[torch.arange(len(texts), device=texts.device), :, place].argmax(1)
