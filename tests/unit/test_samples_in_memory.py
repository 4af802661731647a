"""Samples in memory by a hash of each row: all that were unlearned are found, those that may be kept are not named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Context, Done, Strategy, Traits, Unlearn, register, run
from cl_framework.assembly import assemble
from cl_framework.learner import Learner
from cl_framework.testing.laboratory import experiment_of
from cl_framework.testing.neighbours import NoOptions
from cl_framework.unlearning.ancestry import Ancestry
from cl_framework.unlearning.samples import Samples, bytes_by_row, kept_of, row_hashes, samples_in_memory
from tests.unit.deletion_runs import done_in, failures

SETTINGS: dict[str, Any] = {"benchmark": {"name": "split_digits"}, "batch_size": 64, "epochs": 1}


@register("fake_album")
class Album(Strategy):
    """Keeps one sample of what it is to unlearn, or one of the task beside it, and moves all weights a little."""

    Config = NoOptions
    traits = Traits(unlearns=frozenset({"task"}), unlearning_reads=frozenset({"forget", "past"}), neutral={})
    number, of_request = 0, True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.picture = torch.empty(0)

    @torch.no_grad()
    def unlearn(self, event: Unlearn, context: Context) -> Done:
        ids = context.requested_ids if self.of_request else context.ids_of(1)
        items = context.read(ids[self.number : self.number + 1]).items
        assert isinstance(items, Tensor)
        self.picture = items.clone()
        for parameter in context.model.parameters():
            parameter.mul_(0.9)
        return Done()

    def state_dict(self) -> dict[str, Any]:
        return {"picture": self.picture}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.picture = state["picture"]


def numbers(learner: Learner) -> list[int]:
    """Places among the task's samples that the 64 canaries, evenly chosen, leave out."""
    from cl_framework.evaluation import evenly

    count = len(learner.training_ids(0))
    chosen = evenly(count, 64).tolist()
    return [number for number in range(count) if number not in chosen]


@pytest.mark.parametrize("of_request", [True, False])
def test_a_single_sample_is_found_though_it_is_no_canary(of_request: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = experiment_of({"fake_album": {}}, tmp_path, **SETTINGS, stream="L0 L1 U0")
    monkeypatch.setattr(Album, "number", numbers(assemble(experiment))[5])
    monkeypatch.setattr(Album, "of_request", of_request)
    path = run(experiment).path
    assert done_in(path)[0]["contains"] == (["memory.strategies.fake_album.picture"] if of_request else [])
    told = failures(path).get("no state descends from what was unlearned", "")
    assert ("at learner.strategies.fake_album.picture." in told) is of_request


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    return assemble(experiment_of({}, tmp_path, **SETTINGS, stream="L0 L1"))


def test_every_form_is_found_and_what_may_be_kept_is_not_named(learner: Learner) -> None:
    mine, other = learner.training_ids(0), learner.training_ids(1)
    gone, kept = Samples(learner, mine), kept_of(learner, 1, mine, {"memory": {"ids": other[-3:]}})
    items, retained = learner.benchmark.read(mine[7:9])[0], learner.benchmark.read(other[7:9])[0]
    assert isinstance(items, Tensor) and isinstance(retained, Tensor)
    state = {
        "raw": items,
        "floats": [items.float(), items.float() / 255],
        "read": learner.benchmark.transform(items, None),
        "views": torch.stack([retained, items], 1),
        "bits": items.float().view(torch.int32),
        "retained": retained,
        "twice": items.float() * 2,
        "empty": items[:0],
        "one": torch.tensor(3),
    }
    wanted = ["m.raw", "m.floats[0]", "m.floats[1]", "m.read", "m.views", "m.bits"]
    assert samples_in_memory(state, gone, kept, "m") == wanted
    assert samples_in_memory(state, gone, Samples(learner, mine), "m") == [], "what may be kept is not named, were it the same"
    assert bool(kept.cover(bytes_by_row(retained.flatten()[None])).all()), "two samples in a row"
    mixed = torch.cat([retained[0].flatten(), items[0].flatten()])[None]
    assert not bool(kept.cover(bytes_by_row(mixed)).any())


def test_samples_that_may_be_kept_may_be_old(learner: Learner) -> None:
    items = learner.benchmark.read(learner.training_ids(1)[:4])[0]
    assert isinstance(items, Tensor)
    state = {"model": {}, "optimizer_memory": {}, "strategies": {"some": {"shelf": items}}}
    register, kept = Ancestry(), kept_of(learner, 1, learner.training_ids(0), state)
    register.note(0, state)
    assert register.older(0, 1, state, "memory", kept) == []
    assert register.older(0, 1, state, "memory") == ["memory.strategies.some.shelf (made while it was known)"]
    state["strategies"]["some"]["shelf"] = torch.cat([items, items[:1] ^ 1])
    register.note(0, state)
    assert register.older(0, 1, state, "memory", kept), "one of them is no sample"


def test_no_more_is_read_than_the_answer_needs(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, read = learner.training_ids(1), 0
    original = type(learner.benchmark).read

    def counted(self: Any, some: Tensor) -> Any:
        nonlocal read
        read += len(some)
        return original(self, some)

    monkeypatch.setattr(type(learner.benchmark), "read", counted)
    monkeypatch.setattr("cl_framework.unlearning.samples.READ", 8)
    items = original(learner.benchmark, ids[-3:])[0]
    assert isinstance(items, Tensor)
    named = Samples(learner, ids, ids[-3:])
    assert bool(named.cover(bytes_by_row(items)).all()) and read == 9, "one for the lengths, then those that are named"
    assert not bool(named.cover(torch.zeros(2, 7, dtype=torch.uint8)).any()) and read == 9, "no sample has so many bytes"
    assert not bool(named.among(bytes_by_row(items ^ 1)).any()) and read == 1 + len(ids)


def test_hashes_tell_rows_apart_by_any_byte() -> None:
    rows = torch.randint(256, (200, 61), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    hashes = row_hashes(rows)
    assert len(hashes.unique()) == 200 and torch.equal(row_hashes(rows[::2]), hashes[::2])
    one = rows[:1].repeat(61 * 255, 1)
    for place in range(61):
        one[place * 255 : (place + 1) * 255, place] ^= torch.arange(1, 256, dtype=torch.uint8)
    assert len(torch.cat([row_hashes(one), hashes[:1]]).unique()) == 61 * 255 + 1
