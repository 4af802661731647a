"""The objective of a step: terms by name and in sum, lazy passes, no trace but the live one's."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cl_framework.closure import StepClosure
from cl_framework.cost import Cost
from cl_framework.criterion import Criterion
from cl_framework.errors import ContractError
from cl_framework.penalty import WeightedSquares, weighted_squares
from cl_framework.strategy import Batch, Draw, Rows, Strategy, Term, Traits

CLASSES = 4
WIDTH = 6


class Net(nn.Module):
    """Linear features with batch norm and dropout where asked; counts its passes."""

    def __init__(self, batch_norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Linear(3, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH) if batch_norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.passes: list[int] = []

    def features(self, inputs: Tensor) -> Tensor:
        self.passes.append(len(inputs))
        return self.dropout(torch.tanh(self.norm(self.body(inputs))))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


class Bench:
    """What a closure needs of the host."""

    def __init__(self, model: nn.Module, class_mask: Tensor | None = None) -> None:
        self.model = model
        self.parameters_in_play = list(model.parameters())
        self.criterion = Criterion(class_mask)
        self.cost = Cost()

    def restart_randomness(self, purpose: str = "") -> None:
        torch.default_generator.manual_seed(7 + sum(purpose.encode()))


class Pull(Strategy):
    """Half the squared norm of the head's weights, times `weight`."""

    traits = Traits(no_neutral="a fixture")

    def __init__(self, model: Net, weight: float) -> None:
        super().__init__(None)
        self.model = model
        self.weight = weight

    def loss(self, batch: Batch, output: object, context: object) -> Mapping[str, Term]:
        return {"pull": Term(lambda: self.model.head.weight.square().sum() / 2, self.weight)}


class Distance(Strategy):
    """Reads the pass of a separate draw: the mean square of its logits."""

    traits = Traits(no_neutral="a fixture")

    def __init__(self, weight: float) -> None:
        super().__init__(None)
        self.weight = weight

    def loss(self, batch, output, context):  # type: ignore[no-untyped-def]
        draw = batch.draws["far"]["rows"]
        return {"distance": Term(lambda: output.of(draw).logits.square().mean(), self.weight)}


class OwnTask(Strategy):
    """Replaces the task term, where its traits say so, by the mean of all logits."""

    def __init__(self, declared: bool) -> None:
        super().__init__(None)
        self.traits = Traits(replaces_task_term=declared, no_neutral="a fixture")

    def loss(self, batch, output, context):  # type: ignore[no-untyped-def]
        return {"task": Term(lambda: output.logits.mean())}


def rows(count: int, seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 3, generator=generator)
    targets = torch.randint(CLASSES, (count,), generator=generator)
    ids = torch.arange(count) + 100 * seed
    return Rows(inputs, targets, ids, torch.zeros(count, dtype=torch.int64), inputs)


def batch_of(count: int = 5, **draws: Draw) -> Batch:
    """A batch; each draw under its own slot by the name `rows`."""
    stream = rows(count, 1)
    batch = Batch(stream.items, stream.targets, stream.ids, stream.task_of_row, stream.inputs)
    for slot, draw in draws.items():
        draw.key = f"{slot}/rows"
        batch.draws[slot] = {"rows": draw}
    return batch


def closure_of(model: Net, batch: Batch, *strategies: tuple[str, Strategy]) -> StepClosure:
    losses = [(slot, strategy, None) for slot, strategy in strategies]
    replaces = any(strategy.traits.replaces_task_term for _, strategy in strategies)
    return StepClosure(Bench(model), batch, losses, replaces)  # type: ignore[arg-type]


def brute_gradients(model: Net, loss: Tensor) -> list[Tensor]:
    """Gradients through `.backward()`; zero where a parameter is not reached."""
    model.zero_grad()
    loss.backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad(set_to_none=True)
    return gradients


def filled(model: Net, gradients: tuple[Tensor | None, ...]) -> list[Tensor]:
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), gradients, strict=True)]


def assert_same(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net()


# --- terms ---


def test_terms_by_name_sum_with_their_weights_to_the_objective(net: Net) -> None:
    batch = batch_of(joint=Draw.joined(rows(3, 2)), far=Draw.separate(rows(4, 3)))
    closure = closure_of(net, batch, ("pull", Pull(net, 0.25)), ("far", Distance(2.0)))
    assert closure.names == ("task", "joint/rows", "pull/pull", "far/distance")
    by_name = closure.values().terms
    weights = {"task": 5 / 8, "joint/rows": 3 / 8, "pull/pull": 0.25, "far/distance": 2.0}
    total = sum(weights[name] * value for name, value in by_name.items())
    torch.testing.assert_close(closure.values().loss, total)

    cross_entropy = functional.cross_entropy
    drawn = batch.draws["joint"]["rows"].rows
    torch.testing.assert_close(by_name["task"], cross_entropy(net(batch.inputs), batch.targets).detach())
    torch.testing.assert_close(by_name["joint/rows"], cross_entropy(net(drawn.inputs), drawn.targets).detach())
    assert not torch.isclose(by_name["task"], by_name["joint/rows"])


def test_gradients_by_term_match_brute_force_and_add_up(net: Net) -> None:
    batch = batch_of(joint=Draw.joined(rows(3, 2)), far=Draw.separate(rows(4, 3)))
    closure = closure_of(net, batch, ("pull", Pull(net, 0.25)), ("far", Distance(2.0)))
    parts = {name: filled(net, gradients) for name, gradients in closure.gradients_by_term().items()}
    far = batch.draws["far"]["rows"].rows
    assert_same(parts["task"], brute_gradients(net, functional.cross_entropy(net(batch.inputs), batch.targets)))
    assert_same(parts["pull/pull"], brute_gradients(net, net.head.weight.square().sum() / 2))
    assert_same(parts["far/distance"], brute_gradients(net, net(far.inputs).square().mean()))

    weights = {"task": 5 / 8, "joint/rows": 3 / 8, "pull/pull": 0.25, "far/distance": 2.0}
    summed = [sum(weights[name] * parts[name][i] for name in weights) for i in range(len(parts["task"]))]
    evaluation = closure.gradients()
    assert_same(filled(net, evaluation.gradients), summed)
    with pytest.raises(AssertionError):
        assert_same(filled(net, evaluation.gradients), parts["task"])


def test_gradients_of_named_terms_alone(net: Net) -> None:
    batch = batch_of(far=Draw.separate(rows(4, 3)))
    closure = closure_of(net, batch, ("pull", Pull(net, 0.25)), ("far", Distance(2.0)))
    evaluation = closure.gradients("pull/pull")
    head = [name for name, _ in net.named_parameters()].index("head.weight")
    assert [gradient is None for gradient in evaluation.gradients] == [index != head for index in range(4)]
    torch.testing.assert_close(evaluation.gradients[head], net.head.weight.detach())
    assert set(evaluation.terms) == {"pull/pull"}
    assert net.passes == []


def test_asked_for_an_unknown_term_it_names_those_there_are(net: Net) -> None:
    closure = closure_of(net, batch_of(), ("pull", Pull(net, 1.0)))
    with pytest.raises(ContractError, match=r"asked for 'pul', but this step has only: task, pull/pull\."):
        closure.values("pul")


# --- passes ---


def test_joined_draws_share_one_pass_and_one_mean(net: Net) -> None:
    drawn = rows(3, 2)
    batch = batch_of(joint=Draw.joined(drawn))
    evaluation = closure_of(net, batch).gradients()
    assert net.passes == [8]
    both = torch.cat([batch.inputs, drawn.inputs]), torch.cat([batch.targets, drawn.targets])
    expected = functional.cross_entropy(net(both[0]), both[1])
    torch.testing.assert_close(evaluation.loss, expected.detach())
    assert_same(filled(net, evaluation.gradients), brute_gradients(net, expected))
    assert evaluation.output.logits.shape == (5, CLASSES)
    torch.testing.assert_close(evaluation.output.of(batch.draws["joint"]["rows"]).logits, net(drawn.inputs).detach())


@pytest.mark.parametrize(("weight", "passes"), [(0.0, [5]), (0.5, [5, 4])])
def test_a_term_of_weight_zero_skips_its_pass(net: Net, weight: float, passes: list[int]) -> None:
    batch = batch_of(far=Draw.separate(rows(4, 3)))
    closure_of(net, batch, ("far", Distance(weight))).gradients()
    assert net.passes == passes


def test_a_reference_draw_costs_nothing_until_it_is_asked_for_by_name(net: Net) -> None:
    drawn = rows(4, 3)
    closure = closure_of(net, batch_of(memory=Draw.reference(drawn)))
    without = closure.gradients()
    assert net.passes == [5]
    assert "memory/rows" in closure.names and "memory/rows" not in without.terms
    evaluation = closure.gradients("memory/rows")
    assert net.passes == [5, 4]
    assert_same(filled(net, evaluation.gradients), brute_gradients(net, functional.cross_entropy(net(drawn.inputs), drawn.targets)))


def test_joined_and_separate_draws_differ_in_batch_norm_statistics() -> None:
    means = {}
    for kind in (Draw.joined, Draw.separate):
        torch.manual_seed(0)
        model = Net(batch_norm=True)
        batch = batch_of(far=kind(rows(4, 3)))
        strategies = [("far", Distance(1.0))]
        closure_of(model, batch, *strategies).live()
        means[kind.__name__] = model.norm.running_mean.clone()
    hidden = model.body(torch.cat([batch.inputs, batch.draws["far"]["rows"].rows.inputs])).detach()
    torch.testing.assert_close(means["joined"], 0.1 * hidden.mean(0))
    torch.testing.assert_close(means["separate"], 0.9 * 0.1 * hidden[:5].mean(0) + 0.1 * hidden[5:].mean(0))
    assert not torch.allclose(means["joined"], means["separate"])


def test_an_output_refuses_to_run_a_pass_after_its_evaluation(net: Net) -> None:
    batch = batch_of(far=Draw.separate(rows(4, 3)))
    evaluation = closure_of(net, batch).gradients()
    assert not evaluation.output.logits.requires_grad
    with pytest.raises(ContractError, match=r"the pass of draw 'far/rows' was read after the step"):
        evaluation.output.of(batch.draws["far"]["rows"])


def test_a_model_without_features_says_so() -> None:
    model = nn.Linear(3, CLASSES)
    evaluation = StepClosure(Bench(model), batch_of(), [], False).values()
    with pytest.raises(ContractError, match="the model has no `features` method and `head`"):
        _ = evaluation.output.features


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


# --- the task term ---


def test_a_replaced_task_term_takes_the_place_of_the_frameworks_own(net: Net) -> None:
    drawn = rows(3, 2)
    batch = batch_of(joint=Draw.joined(drawn))
    evaluation = closure_of(net, batch, ("own", OwnTask(declared=True))).values()
    memory = functional.cross_entropy(net(drawn.inputs), drawn.targets)
    torch.testing.assert_close(evaluation.terms["task"], net(batch.inputs).mean().detach())
    torch.testing.assert_close(evaluation.loss, (net(batch.inputs).mean() + 3 / 8 * memory).detach())


def test_a_task_term_that_was_not_declared_is_refused(net: Net) -> None:
    with pytest.raises(ContractError, match=r"'own' returns a term named 'task' without Traits\(replaces_task_term=True\)"):
        closure_of(net, batch_of(), ("own", OwnTask(declared=False))).values()


def test_without_rows_the_objective_is_what_the_strategies_say(net: Net) -> None:
    closure = closure_of(net, batch_of(0), ("pull", Pull(net, 0.5)))
    assert closure.names == ("pull/pull",)
    torch.testing.assert_close(closure.values().loss, net.head.weight.square().sum().detach() / 4)
    nothing = closure_of(net, batch_of(0)).gradients()
    assert float(nothing.loss) == 0 and nothing.gradients == (None,) * 4
    assert net.passes == []


# --- the criterion ---


def test_task_incremental_runs_mask_the_classes_of_other_tasks() -> None:
    mask = torch.tensor([[True, True, False, False], [False, False, True, True]])
    logits = torch.tensor([[1.0, 2.0, 9.0, 9.0], [9.0, 9.0, 0.5, 0.0]])
    targets, tasks = torch.tensor([0, 2]), torch.tensor([0, 1])
    expected = torch.stack([-logits[0, :2].log_softmax(0)[0], -logits[1, 2:].log_softmax(0)[0]])
    torch.testing.assert_close(Criterion(mask).rows(logits, targets, tasks), expected)
    torch.testing.assert_close(Criterion(mask).mean(logits, targets, tasks), expected.mean())
    assert float(Criterion(None).mean(logits, targets, tasks)) > float(expected.mean()) + 1
