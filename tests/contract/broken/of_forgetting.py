"""Mistakes in unlearning: what is left, what is stored without saying so, claims that do not hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from cl_framework.strategy import Batch, Context, Done, Forgotten, Output, Phase, Replay, Term, Traits
from cl_framework.stream import Unlearn
from cl_framework.testing.neighbours import NoOptions
from tests.contract.broken import Mistake, Plain, Rehearsing


class ForgetsNothing(Rehearsing):
    def forget(self, forgotten: Forgotten, context: Context) -> None:
        """Forgets nothing."""


class ForgetsTasksOnly(Rehearsing):
    def forget(self, forgotten: Forgotten, context: Context) -> None:
        if forgotten.event.granularity == "task":
            super().forget(forgotten, context)


class CountsVisits(Rehearsing):
    """Notes which samples it was shown, each under its id as text, as keys of saved dicts often are."""

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._visits: dict[str, int] = {}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        for sample in batch.ids.tolist():
            self._visits[str(sample)] = self._visits.get(str(sample), 0) + 1

    def forget(self, forgotten: Forgotten, context: Context) -> None:
        for sample in forgotten.ids.tolist():
            self._visits.pop(str(sample), None)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._visits)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._visits = dict(state)


class KeepsVisits(CountsVisits):
    def forget(self, forgotten: Forgotten, context: Context) -> None:
        """Forgets nothing."""


class LastBatch(Plain):
    """Keeps of the last batch how many rows it had."""

    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self._kept: dict[str, Any] = {}

    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self._kept = {"rows": len(batch)}

    def state_dict(self) -> dict[str, Any]:
        return dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._kept = dict(state)


class KeepsLastBatch(LastBatch):
    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        self._kept = {"items": batch.items}


class KeepsLastBatchInAnEvent(KeepsLastBatch):
    """Gone before anyone is asked to forget, but in every checkpoint till then."""

    def end(self, context: Context) -> Sequence[Phase]:
        self._kept = {}
        return ()


class KeepsFloats(LastBatch):
    def commit(self, batch: Batch, output: Output, context: Context) -> None:
        assert isinstance(batch.items, Tensor)
        self._kept = {"items": batch.items.float()}


class UnlearnsTasks(Plain):
    traits = Traits(unlearns=frozenset({"task"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase] | Done | Replay:
        return Done()


class ClaimsWithoutAnswer(Plain):
    traits = UnlearnsTasks.traits


class AnswersMoreThanItClaims(UnlearnsTasks):
    def __init__(self, config: NoOptions) -> None:
        super().__init__(config)
        self.traits = replace(self.traits, unlearns=frozenset({"task", "class", "sample"}))


class ReadsWhatGoes(UnlearnsTasks):
    traits = Traits(unlearns=frozenset({"task"}), unlearning_reads=frozenset({"forget"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase] | Done | Replay:
        context.read(context.requested_ids)
        return Done()


class ReadsNothing(UnlearnsTasks):
    traits = ReadsWhatGoes.traits


class SaysUnknownWord(UnlearnsTasks):
    traits = Traits(unlearns=frozenset({"task"}), unlearning_reads=frozenset({"forgotten"}), neutral={})


class Borrows(UnlearnsTasks):
    """Trains on what memories lend it."""

    traits = Traits(unlearns=frozenset({"task"}), unlearning_reads=frozenset({"memory"}), neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase] | Done | Replay:
        return [Phase("borrow", 3)]

    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        if not isinstance(context.position.event, Unlearn):
            return {}
        lent = [draw for named in batch.draws.values() for draw in named.values()]
        return {draw.key.replace("/", "-"): Term(lambda d=draw: context.criterion(output.of(d).logits, d.rows).mean()) for draw in lent}


class BorrowsNothing(Borrows):
    def loss(self, batch: Batch, output: Output, context: Context) -> Mapping[str, Term]:
        return {}


class TrainsAgain(Plain):
    traits = Traits(unlearns=frozenset({"task"}), unlearning_reads=frozenset({"past"}), replays=True, exact=True, neutral={})

    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase] | Done | Replay:
        return Replay()


class ExactInName(TrainsAgain):
    def unlearn(self, event: Unlearn, context: Context) -> Sequence[Phase] | Done | Replay:
        return Done()


MISTAKES = (
    Mistake("nothing_of_a_forgotten_task_is_left", ForgetsNothing, Rehearsing, "after U2 state.* holds a sample"),
    Mistake("nothing_of_a_forgotten_task_is_left", ForgetsTasksOnly, Rehearsing, "after U2:fraction=0.5@seed3 state.* holds a sample"),
    Mistake("nothing_of_a_forgotten_task_is_left", KeepsVisits, CountsVisits, "after U2 state.* holds the id of a sample"),
    Mistake("stores_no_data_as_it_says", KeepsLastBatch, LastBatch, "stores_data=False, but .*items holds a sample"),
    Mistake("stores_no_data_as_it_says", KeepsLastBatchInAnEvent, LastBatch, "stores_data=False, but .*items holds a sample"),
    Mistake("stores_no_data_as_it_says", KeepsFloats, LastBatch, "stores_data=False, but .*items holds a sample"),
    Mistake("unlearns_or_is_refused", ClaimsWithoutAnswer, UnlearnsTasks, "ClaimsWithoutAnswer claims no unlearning"),
    Mistake("unlearns_or_is_refused", AnswersMoreThanItClaims, UnlearnsTasks, "U0:class=0 ran, though .* is not claimed"),
    Mistake("unlearning_reads_what_it_says", ReadsNothing, ReadsWhatGoes, "unlearning_reads has 'forget', but .* not refused"),
    Mistake("unlearning_reads_what_it_says", SaysUnknownWord, ReadsWhatGoes, r"unlearning_reads has \['forgotten'\]; it may have"),
    Mistake("unlearning_reads_what_it_says", BorrowsNothing, Borrows, "with and without memories to borrow from: the weights are equal"),
    Mistake("an_exact_claim_equals_never_learned", ExactInName, TrainsAgain, "after 'L1 L0 U0' and after 'L1' state.weights"),
)
