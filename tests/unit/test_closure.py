"""The objective of a step: terms by name and in sum, lazy passes, the task term and its criterion."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from cl_framework.closure import StepClosure
from cl_framework.criterion import Criterion
from cl_framework.errors import ContractError
from cl_framework.strategy import Draw, Rows, Strategy, Term, Traits
from tests.unit.closures import (
    CLASSES,
    Bench,
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


class OwnTask(Strategy):
    """Replaces the task term, where its traits say so, by the mean of all logits."""

    def __init__(self, declared: bool) -> None:
        super().__init__(None)
        self.traits = Traits(replaces_task_term=declared, no_neutral="a fixture")

    def loss(self, batch, output, context):  # type: ignore[no-untyped-def]
        return {"task": Term(lambda: output.logits.mean())}


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
    rows = Rows(torch.empty(2, 1), targets, torch.arange(2), tasks)
    torch.testing.assert_close(Criterion(mask).rows(logits, rows), expected)
    torch.testing.assert_close(Criterion(mask).mean(logits, rows), expected.mean())
    assert float(Criterion(None).mean(logits, rows)) > float(expected.mean()) + 1
