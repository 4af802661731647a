"""The objective of a step leaves no trace but the live evaluation's, and its closed forms are what would be differentiated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cl_framework.closure import StepClosure
from cl_framework.penalty import WeightedSquares, weighted_squares
from cl_framework.strategy import Draw, Strategy, Term, Traits
from tests.unit.closures import (
    Distance,
    Net,
    Pull,
    assert_same,
    batch_of,
    brute_gradients,
    closure_of,
    filled,
    net_of_one_seed,  # noqa: F401 - the fixture `net`
    rows,
)

# --- purity ---


def test_dropout_repeats_when_the_closure_is_called_again() -> None:
    torch.manual_seed(0)
    model = Net(dropout=0.5)
    closure = closure_of(model, batch_of())
    losses = [float(closure.values().loss), float(closure.gradients().loss), float(closure.live().loss)]
    assert losses[0] == losses[1] == losses[2]
    torch.manual_seed(8)
    assert functional.cross_entropy(model(batch_of().inputs), batch_of().targets).item() != losses[0]


def test_the_dropout_of_a_draws_pass_does_not_depend_on_the_passes_before_it() -> None:
    torch.manual_seed(0)
    model = Net(dropout=0.5)
    batch = batch_of(far=Draw.separate(rows(4, 3)), near=Draw.separate(rows(4, 3)))
    alone = closure_of(model, batch, ("far", Distance(1.0))).values("far/distance")
    together = closure_of(model, batch, ("near", Nearby(None)), ("far", Distance(1.0))).values()
    assert torch.equal(alone.terms["far/distance"], together.terms["far/distance"])
    assert not torch.equal(together.terms["near/distance"], together.terms["far/distance"])


class Nearby(Strategy):
    """As `Distance`, on the draw `near`."""

    traits = Traits(no_neutral="a fixture")

    def loss(self, batch, output, context):  # type: ignore[no-untyped-def]
        draw = batch.draws["near"]["rows"]
        return {"distance": Term(lambda: output.of(draw).logits.square().mean())}


@pytest.mark.parametrize("call", ["values", "gradients", "gradients_by_term", "names"])
def test_only_the_live_evaluation_leaves_a_trace(call: str) -> None:
    torch.manual_seed(0)
    model = Net(batch_norm=True, dropout=0.5)
    closure = closure_of(model, batch_of(), ("eager", Eager(None)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked = getattr(closure, call)
    if call != "names":
        asked()
    assert model.passes
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.grad is None for parameter in model.parameters())
    closure.live()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


class Eager(Strategy):
    """Reads the logits before its term is asked for."""

    traits = Traits(no_neutral="a fixture")

    def loss(self, batch, output, context):  # type: ignore[no-untyped-def]
        mean = output.logits.mean()
        return {"mean": Term(lambda: mean)}


def test_the_values_of_terms_are_those_before_the_update(net: Net) -> None:
    evaluation = closure_of(net, batch_of(), ("pull", Pull(net, 0.5))).live()
    before = net.head.weight.square().sum().detach() / 2
    with torch.no_grad():
        net.head.weight.add_(1.0)
    torch.testing.assert_close(evaluation.terms["pull/pull"], before)


def test_mapped_gradients_reach_only_the_live_evaluation(net: Net) -> None:
    closure = closure_of(net, batch_of())
    plain = filled(net, closure.gradients().gradients)
    doubled = closure.with_gradients(lambda gradients: tuple(2 * gradient for gradient in gradients))
    shifted = doubled.with_gradients(lambda gradients: tuple(gradient + 1 for gradient in gradients))
    assert_same(filled(net, shifted.live().gradients), [2 * gradient + 1 for gradient in plain])
    assert_same(filled(net, shifted.gradients().gradients), plain)


# --- gradients in closed form ---


class Held(Strategy):
    """Weighted squares of all weights: differentiated, or in closed form whose gradient is `factor` times the right one."""

    traits = Traits(no_neutral="a fixture")

    def __init__(self, model: Net, weight: float, closed: bool, factor: float = 1.0) -> None:
        super().__init__(None)
        self.model, self.weight, self.closed, self.factor = model, weight, closed, factor
        self.values_read = 0

    def loss(self, batch, output, context):  # type: ignore[no-untyped-def]
        parameters = list(self.model.parameters())
        fixed = [torch.full_like(parameter, 0.1) for parameter in parameters], [torch.full_like(parameter, 3.0) for parameter in parameters]
        if not self.closed:
            return {"squares": Term(lambda: weighted_squares(parameters, *fixed), self.weight)}
        penalty = WeightedSquares(parameters, *fixed)

        def value() -> Tensor:
            self.values_read += 1
            return penalty.value()

        return {"squares": Term(value, self.weight, lambda given, factor: penalty.plus_gradient(given, self.factor * factor))}


@pytest.mark.parametrize("names", [(), ("held/squares",), ("far/distance", "held/squares"), ("pull/pull",)])
@pytest.mark.parametrize("count", [5, 0])
def test_a_gradient_in_closed_form_is_that_of_the_differentiated_term(net: Net, names: tuple[str, ...], count: int) -> None:
    """Whatever is asked for, with rows and without; and a wrong closed form would be seen."""
    net.double()
    batch = batch_of(count, far=Draw.separate(rows(4, 3)))
    for part in (batch, batch.draws["far"]["rows"].rows):
        part.inputs = part.inputs.double()
    beside = ("pull", Pull(net, 0.25)), ("far", Distance(2.0))

    def closure(closed: bool, factor: float = 1.0) -> StepClosure:
        return closure_of(net, batch, ("held", Held(net, 0.7, closed, factor)), *beside)

    known, differentiated, wrong = closure(True), closure(False), closure(True, 0.9)
    pairs = [(known.gradients(*names), differentiated.gradients(*names)), (known.values(*names), differentiated.values(*names))]
    for one, other in pairs:
        torch.testing.assert_close(one.loss, other.loss, rtol=1e-10, atol=0)
        assert set(one.terms) == set(other.terms)
        for name, value in other.terms.items():
            torch.testing.assert_close(one.terms[name], value, rtol=1e-10, atol=0)
    assert torch.equal(pairs[0][0].loss, pairs[1][0].loss)
    found, expected = filled(net, pairs[0][0].gradients), filled(net, pairs[0][1].gradients)
    parts, expected_parts = known.gradients_by_term(*names), differentiated.gradients_by_term(*names)
    assert list(parts) == list(expected_parts) != []
    for mine, theirs in [(found, expected), *((filled(net, parts[name]), filled(net, expected_parts[name])) for name in parts)]:
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    held = not names or "held/squares" in names
    others = filled(net, wrong.gradients(*names).gradients)
    assert all(torch.allclose(one, other, rtol=1e-3) for one, other in zip(others, expected, strict=True)) is not held
    assert all(parameter.grad is None for parameter in net.parameters())


def test_the_loss_of_a_closed_form_is_read_late_and_is_that_of_before_the_update(net: Net) -> None:
    held = Held(net, 0.7, closed=True)
    closure = closure_of(net, batch_of(), ("held", held))
    eager = closure.values()
    assert held.values_read == 1
    evaluations = [closure.live(), closure.live()]
    assert held.values_read == 1, "nobody has read the loss"
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    for _ in range(2):
        assert torch.equal(evaluations[0].loss, eager.loss)
    assert {name: float(value) for name, value in evaluations[1].terms.items()} == {
        name: float(value) for name, value in eager.terms.items()
    }
    assert held.values_read == 3, "once an evaluation"
    assert not torch.isclose(closure.values().loss, eager.loss)


def test_a_closed_form_costs_no_backward_pass_and_nothing_without_weight(net: Net) -> None:
    closure, without = (closure_of(net, batch_of(), ("held", Held(net, weight, closed=True))) for weight in (0.7, 0.0))
    counted = []
    for one, names in ((closure, ()), (closure, ("held/squares",)), (without, ())):
        before = one._machinery.cost.backward_passes
        found = one.gradients(*names)
        counted.append(one._machinery.cost.backward_passes - before)
    assert counted == [1, 0, 1]
    assert set(found.terms) == {"task"}
    assert_same(filled(net, found.gradients), brute_gradients(net, functional.cross_entropy(net(batch_of().inputs), batch_of().targets)))
