"""View batches: the schedule and the consistency term by their definitions, and what they do beside memories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from cl_framework import Batch, ConfigurationError, Context, Draw, Plan, Rows, Setting, recall_intervals
from cl_framework.rng import RandomStream
from strategies.view_batch import ViewBatch, ViewBatchConfig, consistency, divergences, started, viewed_plan, viewed_rows


def host_plan(count: int, batch_size: int, epochs: int, seed: int = 0) -> Plan:
    return Plan.over(torch.arange(100, 100 + count), batch_size, epochs, torch.Generator().manual_seed(seed))


def steps_of(plan: Plan) -> list[list[int]]:
    return [plan.ids[first:last].tolist() for first, last in pairwise(plan.offsets.tolist())]


def runs_of(step: list[int]) -> list[tuple[int, int]]:
    """(id, length) of the runs of equal ids in a step."""
    runs: list[tuple[int, int]] = []
    for sample in step:
        if runs and runs[-1][0] == sample:
            runs[-1] = (sample, runs[-1][1] + 1)
        else:
            runs.append((sample, 1))
    return runs


# --- the schedule ---

SCHEDULES = [(count, size, views) for count in (24, 37, 41, 8) for size, views in ((8, 2), (8, 4), (12, 3), (16, 8))]


@pytest.mark.parametrize(("count", "size", "views"), SCHEDULES)
def test_a_cycle_shows_each_sample_once_with_all_its_views(count: int, size: int, views: int) -> None:
    host = host_plan(count, size, 2 * views)
    plan = viewed_plan(host, views, views, strong=True)
    assert (plan.steps, plan.visits, plan.epochs) == (host.steps, host.visits, host.epochs)
    steps = steps_of(plan)
    for cycle in (steps[: len(steps) // 2], steps[len(steps) // 2 :]):
        runs = [run for step in cycle for run in runs_of(step)]
        assert sorted(runs) == [(sample, views) for sample in range(100, 100 + count)]
    for step, whole in zip(steps, steps_of(host), strict=True):
        assert len(set(step)) == len(step) // views
        assert len(step) == size if len(whole) == size else abs(len(step) - len(whole)) < views
    # The control: the host shows every sample in every epoch, once.
    assert {length for step in steps_of(host) for _, length in runs_of(step)} == {1}


def test_every_view_is_marked() -> None:
    plan = viewed_plan(host_plan(37, 8, 8), 4, 4, strong=True)
    assert plan.view is not None and plan.group is not None and plan.strong is not None
    assert plan.view.tolist() == [0, 1, 2, 3] * (plan.visits // 4)
    assert plan.strong.tolist() == [False, True, True, True] * (plan.visits // 4)
    assert plan.group.bincount().unique().tolist() == [4]
    for step, (first, last) in enumerate(pairwise(plan.offsets.tolist())):
        assert len(set(plan.group[first:last].tolist())) == (last - first) // 4, step
    assert viewed_plan(host_plan(37, 8, 8), 4, 4, strong=False).strong is None


def test_all_recall_intervals_are_stretched_by_the_same_factor() -> None:
    swept = 0
    for views in (2, 4, 8):
        host = host_plan(33, 8, 2 * views)
        stretched = recall_intervals(viewed_plan(host, views, views, strong=False))
        two_epochs = recall_intervals(host.keep(torch.arange(host.visits) < 66))
        assert stretched.tolist() == (views * two_epochs).tolist()
        assert float(stretched.double().mean()) == views * 33
        swept += len(stretched)
    assert swept == 3 * 33


def test_an_interval_of_its_own() -> None:
    host = host_plan(24, 8, 4)
    for views, interval in ((4, 1), (4, 2), (2, 4), (1, 2), (3, 8)):
        plan = viewed_plan(host, views, interval, strong=False)
        assert plan.steps == host.steps and plan.visits == host.visits * views // interval
        assert {length for step in steps_of(plan) for _, length in runs_of(step)} == {views}
        in_steps = recall_intervals(plan) * interval // views  # slots of the host
        expected = recall_intervals(host.keep(torch.arange(host.visits) < host.visits // interval)) * interval
        assert in_steps.tolist() == expected.tolist()
    every = viewed_plan(host, 4, 1, strong=False)
    assert [[sample for sample, _ in runs_of(step)] for step in steps_of(every)] == steps_of(host)
    assert viewed_plan(host, 1, 2, strong=True).group is None


def test_fewer_epochs_than_the_interval_show_a_part_of_the_samples() -> None:
    for epochs, part in ((1, 6), (2, 12), (3, 18), (4, 24)):
        plan = viewed_plan(host_plan(24, 8, epochs), 4, 4, strong=False)
        assert len(plan.ids.unique()) == part
        assert plan.ids.unique(return_counts=True)[1].unique().tolist() == [4]
    assert len(viewed_plan(host_plan(3, 8, 1), 4, 4, strong=False).ids) == 4, "a plan of few rows still shows something"
    counts = viewed_plan(host_plan(24, 8, 6), 4, 4, strong=False).ids.unique(return_counts=True)[1]
    assert sorted(counts.tolist()) == [4] * 12 + [8] * 12


def test_plans_that_others_have_changed() -> None:
    host = host_plan(24, 8, 8)
    two = Plan(host.ids.repeat_interleave(2), host.offsets * 2, group=torch.arange(host.visits).repeat_interleave(2), epochs=8)
    again = viewed_plan(two, 4, 4, strong=False)
    assert steps_of(again) == steps_of(viewed_plan(host, 4, 4, strong=False)), "a group is one visit"
    assert steps_of(again) != steps_of(viewed_plan(replace(two, group=None), 4, 4, strong=False))
    sparse = host.keep(host.ids % 3 != 0)
    plan = viewed_plan(sparse, 4, 4, strong=False)
    assert plan.steps == host.steps and not bool((plan.ids % 3 == 0).any())
    assert {length for step in steps_of(plan) for _, length in runs_of(step)} <= {4, 8} and abs(plan.visits - sparse.visits) < 4
    assert viewed_plan(Plan.empty(), 4, 4, strong=True).steps == 0


def test_one_view_leaves_the_plan_as_it_is() -> None:
    host = host_plan(24, 8, 2)
    context: Any = SimpleNamespace(strongly_augments=True)
    assert ViewBatch(ViewBatchConfig(views=1)).plan(host, context) is host
    assert ViewBatch(ViewBatchConfig(views=2)).plan(host, context) is not host
    for strong, expected in ((None, True), (True, True), (False, False)):
        assert (ViewBatch(ViewBatchConfig(strong=strong)).plan(host, context).strong is not None) == expected
    context.strongly_augments = False
    assert ViewBatch(ViewBatchConfig()).plan(host, context).strong is None


# --- the term ---


def double_loop(logits: Tensor, group: list[int]) -> float:
    """1 / (number of pairs) sum over groups, over their rows after the first, over classes, of p1 (log p1 - log pj)."""
    total, pairs = 0.0, 0
    probabilities = logits.double().softmax(1).tolist()
    for name in dict.fromkeys(group):
        first, *others = [probabilities[row] for row in range(len(group)) if group[row] == name]
        for other in others:
            total += sum(p * (torch.tensor(p).log() - torch.tensor(q).log()).item() for p, q in zip(first, other, strict=True))
            pairs += 1
    return total / max(1, pairs)


def case(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    group = torch.randint(0, 4, (9,), generator=generator) if seed % 2 else torch.arange(3).repeat_interleave(3)
    return 2 * torch.randn(9, 5, generator=generator), group


def test_consistency_is_the_double_loop() -> None:
    values = []
    for seed in range(40):
        logits, group = case(seed)
        values.append(float(consistency([(logits, group)])))
        assert values[-1] == pytest.approx(double_loop(logits, group.tolist()), rel=1e-4)
        assert float(consistency([(logits, group)], "released")) == pytest.approx(values[-1] / 5, rel=1e-5)
    assert min(values) > 0 and len(set(values)) == 40


def test_for_groups_of_one_size_the_mean_is_the_published_one() -> None:
    logits, group = case(0)
    values, count = divergences(logits, group)
    assert int(count) == 3 * (3 - 1)
    assert float(consistency([(logits, group)])) == pytest.approx(float(values.sum()) / (3 * 2))


def test_parts_are_pooled_and_their_groups_kept_apart() -> None:
    one, other = case(0), case(2)
    whole = consistency([(torch.cat([one[0], other[0]]), torch.cat([one[1], other[1] + 3]))])
    assert torch.allclose(consistency([one, other]), whole)
    mixed_up = consistency([(torch.cat([one[0], other[0]]), torch.cat([one[1], other[1]]))])
    assert not torch.allclose(consistency([one, other]), mixed_up)


def test_equal_views_give_exactly_nothing_and_so_do_single_rows() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    equal = logits.repeat_interleave(4, 0).requires_grad_()
    group = torch.arange(3).repeat_interleave(4)
    value = consistency([(equal, group)])
    value.backward()
    assert float(value.detach()) == 0 and equal.grad is not None and float(equal.grad.abs().max()) < 1e-7
    assert float(consistency([(logits, torch.arange(3))])) == 0
    assert float(consistency([(equal.detach() + torch.arange(5) * torch.arange(12).unsqueeze(1), group)])) > 0


def test_no_gradient_flows_through_the_first_view() -> None:
    swept = 0
    for seed in range(20):
        logits, group = case(seed)
        logits.requires_grad_()
        consistency([(logits, group)]).backward()
        assert logits.grad is not None
        first = [group.tolist().index(name) for name in set(group.tolist())]
        others = [row for row in range(9) if row not in first]
        assert not bool(logits.grad[first].any()) and bool(logits.grad[others].any(1).all())
        swept += len(first)
    assert swept > 50


def test_the_gradient_of_a_view_is_its_distance_from_the_teacher() -> None:
    logits, group = case(0)
    logits.requires_grad_()
    consistency([(logits, group)]).backward()
    probabilities = logits.detach().softmax(1)
    assert logits.grad is not None
    for row in (1, 2, 4, 5, 7, 8):
        assert torch.allclose(logits.grad[row], (probabilities[row] - probabilities[row // 3 * 3]) / 6, atol=1e-6)


def test_the_later_views_may_change_places_but_not_with_the_first() -> None:
    logits, group = case(0)
    value = consistency([(logits, group)])
    assert torch.allclose(consistency([(logits[[0, 2, 1, 3, 5, 4, 6, 8, 7]], group)]), value)
    assert torch.allclose(consistency([(logits[[3, 4, 5, 0, 1, 2, 6, 7, 8]], group)]), value)
    assert not torch.allclose(consistency([(logits[[1, 0, 2, 3, 4, 5, 6, 7, 8]], group)]), value)


def test_certain_answers_give_finite_values() -> None:
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    value = consistency([(logits, torch.zeros(2, dtype=torch.int64))])
    value.backward()
    assert float(value.detach()) == pytest.approx(400) and logits.grad is not None and bool(torch.isfinite(logits.grad).all())


def rows_of(count: int, **more: Any) -> dict[str, Any]:
    column = torch.arange(count)
    return {"items": column.unsqueeze(1), "targets": column % 3, "ids": 50 + column, "task_of_row": column % 2, **more}


def test_labels_do_not_decide_what_is_a_group() -> None:
    logits, group = case(0)
    strategy, output = ViewBatch(ViewBatchConfig()), SimpleNamespace(logits=logits)
    context = context_at(0, host_plan(24, 8, 2))

    def value(labels: Tensor, groups: Tensor) -> float:
        batch = Batch(**rows_of(9, group=groups) | {"targets": labels})
        return float(strategy.loss(batch, output, context)["consistency"].value())  # type: ignore[arg-type]

    by_sample = value(torch.arange(3).repeat_interleave(3), group)
    assert value(torch.zeros(9, dtype=torch.int64), group) == by_sample
    assert value(torch.zeros(9, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)) != by_sample, "groups by label differ here"


def test_of_texts_the_term_is_the_mean_over_their_places() -> None:
    """Three views of one text and two of another, of four places that all ask."""
    logits = 2 * torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))
    group, labels = torch.tensor([0, 0, 0, 1, 1]), torch.arange(20).view(5, 4) % 3
    output: Any = SimpleNamespace(logits=logits)
    terms = ViewBatch(ViewBatchConfig()).loss(Batch(**rows_of(5, group=group) | {"targets": labels}), output, context_at(0, 8))
    by_place = [double_loop(logits[..., place], group.tolist()) for place in range(4)]
    assert float(terms["consistency"].value()) == pytest.approx(sum(by_place) / 4, rel=1e-4)
    assert all(one != pytest.approx(sum(by_place) / 4, rel=1e-2) for one in by_place)


# --- when, and on which draws ---


def context_at(step: int, plan: Plan | int, strongly: bool = True) -> Context:
    phase = SimpleNamespace(plan=plan, steps=plan if isinstance(plan, int) else plan.steps)

    def random(purpose: str) -> Any:
        return SimpleNamespace(uniform=lambda count: RandomStream(purpose).uniform(step, count))

    position = SimpleNamespace(phase=phase, step=step)
    return SimpleNamespace(position=position, random=random, strongly_augments=strongly)  # type: ignore[return-value]


def test_the_term_starts_when_the_warm_up_is_over() -> None:
    plan = host_plan(20, 8, 4)  # 3 steps an epoch
    assert [started(context_at(step, plan), 2) for step in range(12)] == [False] * 6 + [True] * 6
    assert all(started(context_at(step, plan), 0) for step in range(12))
    assert not any(started(context_at(step, plan), 4) for step in range(12))
    batch = Batch(**rows_of(9, group=torch.arange(3).repeat_interleave(3)))
    strategy = ViewBatch(ViewBatchConfig(weight=0.5, warm_up=1))
    weights = [strategy.loss(batch, SimpleNamespace(), context_at(step, plan))["consistency"].weight for step in (2, 3)]  # type: ignore[arg-type]
    assert weights == [0.0, 0.5]


def draw_of(count: int, kind: str = "joined", **more: Any) -> Draw:
    rows = Rows(**rows_of(count, extras={"logits": 10.0 * torch.arange(count).unsqueeze(1)}, **more))
    return Draw(rows, kind, "er/replay")


def arranged(draw: Draw, step: int = 0, strongly: bool = True, **options: Any) -> Draw:
    return ViewBatch(ViewBatchConfig(**options)).arrange(draw, Batch(**rows_of(2)), context_at(step, 5, strongly))


@pytest.mark.parametrize("kind", ["joined", "separate", "reference"])
def test_a_draw_keeps_a_part_of_its_rows_with_what_is_stored_beside_them(kind: str) -> None:
    draw = arranged(draw_of(8, kind))
    rows = draw.rows
    assert (draw.kind, draw.key, len(rows)) == (kind, "er/replay", 8)
    kept = rows.ids[::4] - 50
    assert len(set(kept.tolist())) == 2
    assert rows.ids.tolist() == (50 + kept.repeat_interleave(4)).tolist()
    for column, expected in ((rows.items[:, 0], kept), (rows.targets, kept % 3), (rows.extras["logits"][:, 0], 10.0 * kept)):  # type: ignore[index, call-overload]
        assert column.tolist() == expected.repeat_interleave(4).tolist()
    assert rows.task_of_row.tolist() == (kept % 2).repeat_interleave(4).tolist()
    assert rows.view is not None and rows.group is not None and rows.strong is not None
    assert (rows.view.tolist(), rows.group.tolist()) == ([0, 1, 2, 3] * 2, [0] * 4 + [1] * 4)
    assert rows.strong.tolist() == [False, True, True, True] * 2
    assert rows.inputs is None
    assert arranged(draw_of(8, kind), strongly=False).rows.strong is None


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [(6, {}, (2, 8)), (1, {}, (1, 4)), (8, {"interval": 1}, (8, 32)), (8, {"views": 2, "interval": 4}, (2, 4))],
)
def test_how_many_rows_a_draw_has_then(count: int, options: dict[str, Any], expected: tuple[int, int]) -> None:
    rows = arranged(draw_of(count), **options).rows
    assert (len(rows.ids.unique()), len(rows)) == expected


def test_which_draws_stay_as_they_are() -> None:
    plain, grouped, nothing = draw_of(8), draw_of(8, group=torch.arange(8)), draw_of(0)
    assert arranged(plain, replay=False) is plain
    assert arranged(plain, views=1) is plain
    assert arranged(grouped) is grouped
    assert arranged(nothing) is nothing
    assert arranged(plain) is not plain


def test_rows_are_kept_at_random_whatever_their_order() -> None:
    kept = torch.zeros(8)
    for step in range(2000):
        kept[arranged(draw_of(8), step).rows.ids[::4] - 50] += 1
    expected, deviation = 2000 * 2 / 8, (2000 * 0.25 * 0.75) ** 0.5
    assert int(kept.sum()) == 4000 and float((kept - expected).abs().max()) < 4 * deviation


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 0}, "views must be >= 1, got 0"),
        ({"interval": 0}, "interval must be >= 1, got 0"),
        ({"weight": -0.1}, "weight must be >= 0, got -0.1"),
        ({"reduction": "sum"}, "reduction must be one of paper, released, got 'sum'"),
        ({"warm_up": -1}, "warm_up must be >= 0, got -1"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViewBatchConfig(**options)


def asking(batch_size: int, strongly: bool | None) -> Setting:
    return Setting("class_il", batch_size, 1, 0.0, 2, {}, strongly=strongly)


@pytest.mark.parametrize(
    ("options", "batch_size", "strongly", "message"),
    [
        (
            {"views": 3},
            32,
            None,
            r"views: 3 does not divide batch_size 32, .* views to one of 1, 2, 4, 8, 16, 32, or .* multiple of 3\.",
        ),
        (
            {"interval": 4},
            10,
            None,
            r"interval: 4 does not divide batch_size 10, .* interval to one of 1, 2, 5, 10, or .* of 4\.",
        ),
        ({"strong": True}, 8, False, r"strong=true needs a strong augmentation, but this benchmark has none; set strong=false\."),
        (
            {"warm_up": 1},
            8,
            None,
            r"^warm_up=1 is not below epochs=1, so that the consistency term would never start\. Lower it, .* set weight=0\.$",
        ),
    ],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], batch_size: int, strongly: bool | None, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ViewBatch(ViewBatchConfig(**options)).check(asking(batch_size, strongly))


def test_what_can_work_is_not() -> None:
    checks: list[Callable[[], None]] = []
    for options, strongly in (({"strong": True}, True), ({"strong": True}, None), ({}, False), ({"views": 1, "strong": True}, False)):
        checks.append(lambda options=options, strongly=strongly: ViewBatch(ViewBatchConfig(**options)).check(asking(8, strongly)))
    for check in checks:
        check()
    ViewBatch(ViewBatchConfig(views=3, interval=1)).check(asking(7, False))
    assert len(checks) == 4


# --- cost ---


def test_no_step_waits_for_the_device() -> None:
    """Tensors without values: whatever needs one on the host fails."""
    logits, group = (part.to("meta") for part in case(0))
    assert consistency([(logits, group), (logits, group)]).shape == ()
    rows = viewed_rows(Rows(**{name: column.to("meta") for name, column in rows_of(8).items()}), torch.arange(2, device="meta"), 4, True)
    assert rows.items.shape == (8, 1) and rows.strong is not None and rows.group is not None  # type: ignore[union-attr]
    with pytest.raises((RuntimeError, NotImplementedError)):
        bool(group.any())
