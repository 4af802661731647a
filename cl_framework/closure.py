"""The objective of one step as a closure: lazy passes, named terms, gradients as tensors.

Every pass has random numbers of its own, so dropout repeats whatever else is evaluated, and only the passes that the terms asked for
read are run.
Only a live evaluation, the innermost step's, may leave a trace in BatchNorm statistics; the others put them back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Protocol, overload

import torch
from torch import Tensor, nn

from cl_framework.calls import run_model, untouched
from cl_framework.cost import Cost
from cl_framework.criterion import Criterion
from cl_framework.errors import ContractError
from cl_framework.joining import TASK, JoinedRows, Part, join
from cl_framework.strategy import Batch, Context, Draw, Gradients, Rows, Strategy, Term


class LazyPass:
    """One forward pass over some rows, run when first read."""

    __slots__ = ("_features", "_key", "_logits", "_machinery", "_rows")

    def __init__(self, machinery: Machinery, rows: Rows | JoinedRows, key: str = "") -> None:
        self._machinery: Machinery | None = machinery
        self._rows = rows
        self._key = key
        self._features: Tensor | None = None
        self._logits: Tensor | None = None

    @property
    def rows(self) -> Rows | JoinedRows:
        return self._rows

    @property
    def was_run(self) -> bool:
        return self._logits is not None

    @property
    def logits(self) -> Tensor:
        if self._logits is None:
            self._run()
        assert self._logits is not None
        return self._logits

    @property
    def features(self) -> Tensor:
        if self._logits is None:
            self._run()
        if self._features is None:
            raise ContractError("the features of a batch were read, but the model has no `features` method and `head`.")
        return self._features

    def _run(self) -> None:
        if self._machinery is None:
            raise ContractError("a pass was read after the step, but no term had run it: read it in a term, or use Context.forward.")
        self._machinery.restart_randomness(self._key)
        self._machinery.cost.forward(len(self._rows))
        self._features, self._logits = run_model(self._machinery.model, self._rows)

    def close(self) -> None:
        """Detach what was computed, and refuse to compute anything later."""
        self._machinery = None
        if self._logits is not None:
            self._logits = self._logits.detach()
        if self._features is not None:
            self._features = self._features.detach()


class RowSlice:
    """The part of a joined pass that belongs to some of its rows."""

    __slots__ = ("_first", "_last", "_whole")

    def __init__(self, whole: LazyPass, first: int, last: int) -> None:
        self._whole = whole
        self._first = first
        self._last = last

    @property
    def logits(self) -> Tensor:
        return self._whole.logits[self._first : self._last]

    @property
    def features(self) -> Tensor:
        return self._whole.features[self._first : self._last]


class StepOutput:
    """The passes of one evaluation: the stream's rows joined with the joined draws, and one for every other draw."""

    __slots__ = ("_machinery", "_others", "_parts", "live")

    def __init__(self, machinery: Machinery, joined: Rows | JoinedRows, parts: Mapping[str, Part]) -> None:
        self._machinery: Machinery | None = machinery
        self.live = LazyPass(machinery, joined)
        self._parts = parts
        self._others: dict[str, LazyPass] = {}

    @property
    def logits(self) -> Tensor:
        part = self._parts[TASK]
        return self.live.logits if part.last == len(self.live.rows) else self.live.logits[part.first : part.last]

    @property
    def features(self) -> Tensor:
        part = self._parts[TASK]
        return self.live.features[part.first : part.last]

    def of(self, draw: Draw) -> LazyPass | RowSlice:
        part = self._parts.get(draw.key)
        if part is not None:
            return RowSlice(self.live, part.first, part.last)
        if draw.key not in self._others:
            if self._machinery is None:
                raise ContractError(f"the pass of draw {draw.key!r} was read after the step, but no term had run it.")
            self._others[draw.key] = LazyPass(self._machinery, draw.rows, draw.key)
        return self._others[draw.key]

    def close(self) -> None:
        self._machinery = None
        self.live.close()
        for other in self._others.values():
            other.close()


class StepEvaluation:
    """What one call of a closure gave; everything is detached. Values that the gradients did not need are worked out when read."""

    __slots__ = ("_late", "_loss", "_name_rows", "_values", "gradients", "output")

    def __init__(
        self,
        loss: Tensor,
        gradients: Gradients | None,
        output: StepOutput,
        values: dict[str, Tensor],
        late: Mapping[str, Term],
        name_rows: Callable[[], dict[str, Tensor]],
    ) -> None:
        self._loss = loss  # without the terms in `late`
        self.gradients = gradients
        self.output = output
        self._values = values
        self._late = late
        self._name_rows: Callable[[], dict[str, Tensor]] | None = name_rows

    @property
    def loss(self) -> Tensor:
        self.settle()
        return self._loss

    @property
    def terms(self) -> dict[str, Tensor]:
        self.settle()
        if self._name_rows is not None:
            with torch.no_grad():
                self._values = self._name_rows() | self._values
            self._name_rows = None
        return self._values

    def settle(self) -> None:
        """Work out the values of the terms whose gradient was known without them."""
        if self._late:
            with torch.no_grad():
                self._loss = add(weighted_values(self._late, self._values), self._loss)
            self._late = {}


class Machinery(Protocol):
    """What a closure needs of the host."""

    model: nn.Module
    parameters_in_play: list[nn.Parameter]
    criterion: Criterion
    cost: Cost

    def restart_randomness(self, purpose: str = "") -> None: ...


class StepClosure:
    """See `cl_framework.strategy.Closure`."""

    def __init__(
        self,
        machinery: Machinery,
        batch: Batch,
        losses: Sequence[tuple[str, Strategy, Context]],
        without_task_term: bool,
        maps: tuple[Callable[[Gradients], Gradients], ...] = (),
    ) -> None:
        self._machinery = machinery
        self._batch = batch
        self._losses = losses
        self._without_task_term = without_task_term
        self._maps = maps
        self._joined, self._parts = join(batch)

    # --- what wrappers call ---

    @property
    def names(self) -> tuple[str, ...]:
        """All terms that can be asked for, weighted or not."""
        with torch.no_grad(), untouched(self._machinery.model):
            return tuple(self._terms(self._output()))

    def values(self, *names: str) -> StepEvaluation:
        with torch.no_grad(), untouched(self._machinery.model):
            return self._evaluate(names, want_gradients=False)

    def gradients(self, *names: str) -> StepEvaluation:
        with untouched(self._machinery.model):
            return self._evaluate(names, want_gradients=True)

    def gradients_by_term(self, *names: str) -> dict[str, Gradients]:
        with untouched(self._machinery.model):
            self._machinery.restart_randomness()
            output = self._output()
            terms = self._terms(output)
            wanted = self._select(terms, names)
            values = {name: terms[name].value() for name in wanted if terms[name].plus_gradient is None}
            result = {name: self._differentiate(value, retain=True) for name, value in values.items()}
            nothing = (None,) * len(self._machinery.parameters_in_play)
            result |= {name: with_known(nothing, replace(terms[name], weight=1.0)) for name in wanted if name not in values}
            output.close()
            return {name: result[name] for name in wanted}

    def with_gradients(self, transform: Callable[[Gradients], Gradients]) -> StepClosure:
        return StepClosure(self._machinery, self._batch, self._losses, self._without_task_term, (*self._maps, transform))

    # --- what the innermost step calls ---

    def live(self) -> StepEvaluation:
        """The evaluation whose gradient is applied: mapped by all wrappers, with its trace in BatchNorm statistics kept."""
        evaluation = self._evaluate((), want_gradients=True)
        for transform in self._maps:
            assert evaluation.gradients is not None
            evaluation.gradients = transform(evaluation.gradients)
        return evaluation

    # --- how ---

    def _output(self) -> StepOutput:
        return StepOutput(self._machinery, self._joined, self._parts)

    def _evaluate(self, names: tuple[str, ...], want_gradients: bool) -> StepEvaluation:
        machinery = self._machinery
        if self._losses:  # their terms may use the model's randomness before any pass has started its own
            machinery.restart_randomness()
        output = self._output()
        whole, terms = (None, self._named(output, names)) if names else self._objective(output)
        late = {name: term for name, term in terms.items() if term.weight != 0 and term.plus_gradient is not None}
        if late:
            terms = {name: term for name, term in terms.items() if name not in late}
        values: dict[str, Tensor] = {}  # of the terms that were run one by one, unweighted
        total = add(weighted_values(terms, values), whole)
        if total is None:
            total = torch.zeros((), device=self._batch.targets.device)
        gradients = None
        if want_gradients:
            gradients = self._differentiate(total)
            for term in late.values():
                gradients = with_known(gradients, term)
        output.close()
        evaluation = StepEvaluation(total.detach(), gradients, output, values, late, lambda: self._row_values(output, names, values))
        if not want_gradients:
            evaluation.settle()
        return evaluation

    def _differentiate(self, value: Tensor, retain: bool = False) -> Gradients:
        self._machinery.cost.backward_passes += value.requires_grad
        return differentiate(value, self._machinery.parameters_in_play, retain)

    def _named(self, output: StepOutput, names: tuple[str, ...]) -> dict[str, Term]:
        """The terms of these names, each with weight 1."""
        terms = self._terms(output)
        return {name: replace(terms[name], weight=1.0) for name in self._select(terms, names)}

    def _objective(self, output: StepOutput) -> tuple[Tensor | None, dict[str, Term]]:
        """What to add up: one mean over all joined rows, which is what their weighted terms add up to, where it may, and other terms."""
        strategy_terms = self._strategy_terms(output)
        rows = self._joined
        if self._without_task_term or not len(rows):
            return None, self._row_terms(output) | strategy_terms
        return self._machinery.criterion.mean(output.live.logits, rows), strategy_terms

    def _terms(self, output: StepOutput) -> dict[str, Term]:
        return self._row_terms(output) | self._reference_terms(output) | self._strategy_terms(output)

    def _row_terms(self, output: StepOutput) -> dict[str, Term]:
        """`task` and one term for each joined draw, each the mean loss of its rows, weighted by its share of all joined rows."""
        total = len(self._joined)
        terms = {}
        for name, part in self._parts.items():
            if len(part.rows) and not (name == TASK and self._without_task_term):
                terms[name] = Term(self._mean_of(output, part), len(part.rows) / total)
        return terms

    def _mean_of(self, output: StepOutput, part: Part) -> Callable[[], Tensor]:
        criterion = self._machinery.criterion
        return lambda: criterion.mean(output.live.logits[part.first : part.last], part.rows)

    def _row_values(self, output: StepOutput, names: tuple[str, ...], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of the rows' terms that were run in one mean, the value of each."""
        rows = {} if names else self._row_terms(output)
        return {name: term.value() for name, term in rows.items() if name not in values}

    def _reference_terms(self, output: StepOutput) -> dict[str, Term]:
        criterion = self._machinery.criterion

        def mean(draw: Draw) -> Callable[[], Tensor]:
            return lambda: criterion.mean(output.of(draw).logits, draw.rows)

        draws = [draw for named in self._batch.draws.values() for draw in named.values()]
        return {draw.key: Term(mean(draw), 0.0) for draw in draws if draw.kind == "reference"}

    def _strategy_terms(self, output: StepOutput) -> dict[str, Term]:
        terms: dict[str, Term] = {}
        for slot, strategy, context in self._losses:
            for name, term in strategy.loss(self._batch, output, context).items():
                if name == TASK and not strategy.traits.replaces_task_term:
                    raise ContractError(f"strategy {slot!r} returns a term named 'task' without Traits(replaces_task_term=True).")
                terms[TASK if name == TASK else f"{slot}/{name}"] = term
        return terms

    def _select(self, terms: Mapping[str, Term], names: tuple[str, ...]) -> list[str]:
        if not names:
            return [name for name, term in terms.items() if term.weight != 0]
        missing = [name for name in names if name not in terms]
        if missing:
            raise ContractError(f"a closure was asked for {missing[0]!r}, but this step has only: {', '.join(terms) or 'no terms'}.")
        return list(names)


def weighted_values(terms: Mapping[str, Term], values: dict[str, Tensor]) -> Iterator[Tensor]:
    """Run the terms that have a weight: gives each value times its weight, and notes the values themselves in `values`."""
    for name, term in terms.items():
        if term.weight != 0:
            value = term.value()
            values[name] = value.detach()
            yield value if term.weight == 1 else value * term.weight


@overload
def add(values: Iterable[Tensor], total: Tensor) -> Tensor: ...


@overload
def add(values: Iterable[Tensor], total: Tensor | None) -> Tensor | None: ...


def add(values: Iterable[Tensor], total: Tensor | None) -> Tensor | None:
    """The sum, `total` included; None of nothing."""
    for value in values:
        total = value if total is None else total + value
    return total


@torch.no_grad()
def with_known(gradients: Gradients, term: Term) -> Gradients:
    """With that of the weighted term, whose gradient is known in closed form."""
    assert term.plus_gradient is not None
    return term.plus_gradient(gradients, term.weight)


def differentiate(value: Tensor, parameters: Sequence[nn.Parameter], retain: bool = False) -> Gradients:
    """Gradients of a scalar, None for parameters it does not reach."""
    if not value.requires_grad or not parameters:
        return (None,) * len(parameters)
    return torch.autograd.grad(value, parameters, retain_graph=retain, allow_unused=True)
