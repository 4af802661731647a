"""Figures of unlearning as functions: known answers, brute-force definitions, and the errors that public metric code is known for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cl_framework.models.freezing import give_up_training
from cl_framework.unlearning.attacks import SCORES, auc, membership_scores, modified_entropy, tpr_at_fpr
from cl_framework.unlearning.divergences import (
    LN2,
    agreement,
    class_geometry_leak,
    jensen_shannon,
    kl_divergence,
    ks_interval,
    ks_statistic,
    total_variation,
)
from cl_framework.unlearning.probes import linear_probe, nearest_neighbours, probe_leakage
from cl_framework.unlearning.quantization import quantized, quantized_weights, rounded_weights
from cl_framework.unlearning.recall_of_answers import extraction_strength

UNIFORM = torch.full((1, 4), 0.25).log()
SURE = torch.tensor([[0.0, -1e9, -1e9, -1e9]])
OTHER = torch.tensor([[-1e9, 0.0, -1e9, -1e9]])
SATURATED = torch.tensor([[500.0, 0.0, -500.0, 0.0]]).log_softmax(1)


def random_rows(seed: int, rows: int = 20, classes: int = 5, scale: float = 2.0) -> Tensor:
    return (scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed))).log_softmax(1)


# --- divergences ---


def test_equal_answers_are_nowhere_apart() -> None:
    for rows in (UNIFORM, SURE, SATURATED, random_rows(1)):
        assert kl_divergence(rows, rows).abs().max() < 1e-6
        assert jensen_shannon(rows, rows).abs().max() < 1e-6
        assert agreement(rows, rows) == 1.0


def test_opposite_answers_are_as_far_apart_as_can_be() -> None:
    assert float(jensen_shannon(SURE, OTHER)) == pytest.approx(LN2)
    assert float(kl_divergence(SURE, UNIFORM)) == pytest.approx(math.log(4))
    assert float(kl_divergence(SURE, OTHER)) > 1e8 and math.isfinite(float(kl_divergence(SURE, OTHER)))
    assert agreement(SURE, OTHER) == 0.0


def test_divergences_by_their_definitions() -> None:
    p, q = random_rows(1), random_rows(2)
    for row in range(len(p)):
        a, b = p[row].exp().tolist(), q[row].exp().tolist()
        kl = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
        js = sum(0.5 * x * math.log(2 * x / (x + y)) + 0.5 * y * math.log(2 * y / (x + y)) for x, y in zip(a, b, strict=True))
        assert float(kl_divergence(p, q)[row]) == pytest.approx(kl, rel=1e-4)
        assert float(jensen_shannon(p, q)[row]) == pytest.approx(js, rel=1e-4)
    assert not torch.allclose(kl_divergence(p, q), kl_divergence(q, p), rtol=0.05)  # the arguments are not reversed by accident
    assert torch.allclose(jensen_shannon(p, q), jensen_shannon(q, p), atol=1e-6)


@given(st.integers(0, 10**6), st.floats(0.1, 300.0))
@settings(max_examples=50, deadline=None)
def test_jensen_shannon_is_bounded_and_finite_however_saturated(seed: int, scale: float) -> None:
    """The public "ZRF" divides reversed KLs by batch times classes: bounded by nothing, and NaN on saturated answers."""
    found = jensen_shannon(random_rows(seed, scale=scale), random_rows(seed + 1, scale=scale))
    assert bool(found.isfinite().all()) and float(found.min()) >= 0 and float(found.max()) <= LN2 + 1e-6


def test_the_number_of_rows_and_classes_does_not_shrink_a_divergence() -> None:
    many = 100
    p = torch.full((50, many), -1e9).index_fill_(1, torch.tensor([0]), 0.0)
    q = torch.full((50, many), -1e9).index_fill_(1, torch.tensor([1]), 0.0)
    assert torch.allclose(jensen_shannon(p, q), torch.full((50,), LN2))


def test_class_geometry_looks_at_the_other_classes_only() -> None:
    own = torch.tensor([True, False, False, False])
    p = torch.tensor([[0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3]]).log()
    q = torch.tensor([[0.1, 0.3, 0.3, 0.3]]).log()
    assert class_geometry_leak(p, q, own) == pytest.approx(0, abs=1e-6)
    leaning = torch.tensor([[0.1, 0.9, 1e-12, 1e-12]]).log()
    assert class_geometry_leak(leaning, q, own) == pytest.approx(2 / 3, abs=1e-4)
    assert total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])) == 1.0
    with pytest.raises(ValueError, match="no other classes"):
        class_geometry_leak(p, q, torch.ones(4, dtype=torch.bool))


def test_ks_by_its_definition() -> None:
    generator = torch.Generator().manual_seed(4)
    one, other = torch.randint(0, 9, (30,), generator=generator).float(), torch.randint(2, 12, (17,), generator=generator).float()
    brute = max(abs(float((one <= x).float().mean() - (other <= x).float().mean())) for x in [*one.tolist(), *other.tolist()])
    assert ks_statistic(one, other) == pytest.approx(brute)
    assert ks_statistic(one, one) == 0.0 and ks_statistic(torch.zeros(3), torch.ones(5)) == 1.0


@pytest.mark.parametrize(
    ("predicted", "strength"), [([1, 2, 3, 4], 1.0), ([0, 2, 3, 4], 0.75), ([1, 2, 0, 4], 0.25), ([1, 2, 3, 0], 0.0), ([0, 0, 0, 0], 0.0)]
)
def test_extraction_strength(predicted: list[int], strength: float) -> None:
    """A wholly wrong answer has 0, and not 1 / L. Places that ask nothing, before and behind the answer, do not count."""
    right = torch.tensor([[False, *(one == other for one, other in zip(predicted, [1, 2, 3, 4], strict=True)), False]])
    wanted = torch.tensor([[False, True, True, True, True, False]])
    assert extraction_strength(right, wanted).tolist() == [strength]


def test_the_interval_of_a_ks_statistic_holds_it_and_narrows_with_more_samples() -> None:
    generator = torch.Generator().manual_seed(7)
    widths = []
    for count in (30, 300):
        one, other = torch.randn(count, generator=generator), 0.8 + torch.randn(count, generator=generator)
        low, high = ks_interval(one, other, torch.Generator().manual_seed(0))
        assert 0 <= low < ks_statistic(one, other) < high <= 1
        assert (low, high) == ks_interval(one, other, torch.Generator().manual_seed(0))
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    assert ks_interval(torch.zeros(5), torch.ones(5), torch.Generator()) == (1.0, 1.0)


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_the_interval_of_a_ks_statistic_holds_it_where_two_models_are_nearly_alike(noise: float) -> None:
    """Of the same questions: drawn apart for each model, samples of equal ones would differ."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        one = torch.rand(40, generator=generator)
        other = one + noise * torch.randn(40, generator=generator)
        low, high = ks_interval(one, other, torch.Generator().manual_seed(0))
        assert low <= ks_statistic(one, other) <= high and (high == 0) is (noise == 0)


def test_the_interval_of_a_ks_statistic_covers_what_it_estimates() -> None:
    """Pairs of correlated normals, 0 and 0.5 apart: the distance of the two distributions is known. In 500 trials 93 and 98 % held it."""
    generator, trials = torch.Generator().manual_seed(11), 100
    for apart in (0.0, 0.5):
        distance, held, held_by_half = math.erf(apart / 2 / 2**0.5), 0, 0
        for _ in range(trials):
            common = torch.randn(200, generator=generator)
            one, other = (shift + 0.5**0.5 * (common + torch.randn(200, generator=generator)) for shift in (0.0, apart))
            low, high = ks_interval(one, other, generator, draws=200)
            held += low <= distance <= high
            held_by_half += abs(ks_statistic(one, other) - distance) <= (high - ks_statistic(one, other)) / 2
        assert held >= 88, "two standard errors of 100 trials below 93"
        assert held_by_half < 88, "an interval of half the width does not hold it"


# --- attacks ---


def test_auc_by_its_definition_with_ties() -> None:
    generator = torch.Generator().manual_seed(5)
    members, others = torch.randint(0, 6, (13,), generator=generator).float(), torch.randint(0, 5, (9,), generator=generator).float()
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(members.tolist(), others.tolist())]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs))
    assert auc(others, members) == pytest.approx(1 - sum(pairs) / len(pairs))
    assert auc(torch.ones(4), torch.zeros(3)) == 1.0 and auc(torch.zeros(4), torch.zeros(3)) == 0.5


def test_tpr_at_a_low_fpr() -> None:
    others = torch.arange(100).float()
    assert tpr_at_fpr(torch.tensor([98.5, 99.5, 100.0, 0.0]), others) == 0.75  # one of a hundred may be taken for a member
    assert tpr_at_fpr(torch.tensor([98.5, 99.5, 100.0, 0.0]), others, fpr=0.0) == 0.5
    assert tpr_at_fpr(torch.zeros(4), torch.zeros(50)) == 0.0
    with pytest.raises(ValueError, match="no members"):
        tpr_at_fpr(torch.zeros(0), others)


def test_modified_entropy_by_its_definition_and_row_by_row() -> None:
    """Public code has p in place of 1 - p, and indexes labels across rows."""
    rows, targets = random_rows(6, rows=7, classes=4), torch.tensor([0, 1, 2, 3, 0, 1, 2])
    for row in range(7):
        p, y = rows[row].exp().tolist(), int(targets[row])
        expected = -(1 - p[y]) * math.log(p[y]) - sum(p[c] * math.log(1 - p[c]) for c in range(4) if c != y)
        assert float(modified_entropy(rows, targets)[row]) == pytest.approx(expected, rel=1e-4)
        assert float(modified_entropy(rows[row : row + 1], targets[row : row + 1])) == pytest.approx(expected, rel=1e-4)


def test_scores_of_sure_answers_are_finite_and_ordered() -> None:
    right, wrong = torch.tensor([0]), torch.tensor([1])
    for rows in (SURE, SATURATED, UNIFORM):
        for values in membership_scores(rows, right).values():
            assert bool(values.isfinite().all())
    assert set(membership_scores(SURE, right)) == set(SCORES)
    assert float(modified_entropy(SURE, right)) == pytest.approx(0, abs=1e-5)
    for name in ("loss", "modified_entropy"):  # these two know the label
        assert (
            membership_scores(SATURATED, right)[name] > membership_scores(UNIFORM, right)[name] > membership_scores(SATURATED, wrong)[name]
        )


# --- quantization ---


def weights(seed: int, *shape: int) -> Tensor:
    return 0.02 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("group", [None, 7, 64])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_rounding_by_its_definition(bits: int, group: int | None) -> None:
    weight = weights(0, 6, 50)
    found = quantized(weight, bits, group)
    for row in range(6):
        size = group or 50
        for first in range(0, 50, size):
            part = weight[row, first : first + size]
            scale = float(part.abs().max()) / (2 ** (bits - 1) - 1)
            assert torch.allclose(found[row, first : first + size], (part / scale).round() * scale, atol=1e-7)
    assert torch.allclose(quantized(found, bits, group), found, atol=1e-7)


def test_sixteen_bits_change_next_to_nothing_and_filters_keep_their_shape() -> None:
    weight = weights(1, 5, 3, 3, 3)
    assert torch.allclose(quantized(weight, 16), weight, atol=1e-5) and quantized(weight, 4).shape == weight.shape
    assert not torch.allclose(quantized(weight, 4), weight, atol=1e-5)
    assert quantized(torch.zeros(3, 4), 4).eq(0).all()
    with pytest.raises(ValueError, match="bits must lie between 2 and 16, got 1"):
        quantized(weight, 1)


def test_biases_and_statistics_are_left_alone() -> None:
    named = {"w": weights(2, 4, 4), "b": weights(3, 4), "steps": torch.tensor([[3]])}
    found = quantized_weights(named, 4)
    assert torch.equal(found["b"], named["b"]) and torch.equal(found["steps"], named["steps"]) and not torch.equal(found["w"], named["w"])


def test_statistics_of_every_shape_keep_their_values_while_weights_are_rounded() -> None:
    """A model for several tasks stacks its statistics, (T, C), which then look like a matrix."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].register_buffer("running_var", torch.tensor([[0.01, 0.02, 0.1, 1.0]] * 2))
    frozen = nn.Linear(4, 2)
    give_up_training(frozen)
    model.append(frozen)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with rounded_weights(model, 4):
        changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "2.weight"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_update_too_small_for_the_grid_comes_back() -> None:
    """Class 0 is unlearned by a change of a twentieth of a step in every weight: in four bits it is known again. A larger change stays."""
    generator = torch.Generator().manual_seed(6)
    inputs = 1 + 0.02 * torch.randn(200, 40, generator=generator)
    known = torch.randint(-6, 7, (2, 40), generator=generator).float()  # on the grid, whose step is 1
    known[1] = known[0]
    known[1, 5] -= 1  # class 0 is ahead by about 1
    known[:, 0] = 7

    def accuracy(weight: Tensor) -> float:
        return float(((inputs @ weight.T).argmax(1) == 0).float().mean())

    tiny, large = known.clone(), known.clone()
    tiny[0, 1:] -= 0.05
    large[0, 1:4] -= 1
    assert accuracy(known) == accuracy(quantized(known, 4)) == 1.0
    assert accuracy(tiny) == accuracy(large) == 0.0
    assert accuracy(quantized(tiny, 4)) == 1.0 and accuracy(quantized(tiny, 8)) == 0.0
    assert accuracy(quantized(large, 4)) == 0.0


# --- probes ---


def blobs(seed: int, apart: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(120) % 3 + 4
    centres = apart * torch.eye(3, 8)
    return centres[labels - 4] + torch.randn(120, 8, generator=generator), labels


def test_probes_tell_what_features_tell_and_nothing_more() -> None:
    for probe in (linear_probe, nearest_neighbours):
        assert probe(*blobs(0, 12.0), *blobs(1, 12.0)) == 100.0
        assert 15 < probe(*blobs(0, 0.0), *blobs(1, 0.0)) < 55
    assert linear_probe(*blobs(0, 3.0), *blobs(1, 3.0)) == linear_probe(*blobs(0, 3.0), *blobs(1, 3.0))


def test_a_probe_does_not_mind_constant_or_scaled_features() -> None:
    train, labels = blobs(0, 4.0)
    test, answers = blobs(1, 4.0)
    plain = linear_probe(train, labels, test, answers)
    stretched = [torch.cat([1e4 * part, torch.ones(120, 1)], 1) for part in (train, test)]
    assert linear_probe(stretched[0], labels, stretched[1], answers) == pytest.approx(plain, abs=1.0)


@pytest.mark.parametrize(("unlearned", "leak"), [(60.0, 0.0), (90.0, 1.0), (75.0, 0.5), (50.0, -1 / 3)])
def test_leakage_lies_between_oracle_and_the_model_that_knows(unlearned: float, leak: float) -> None:
    assert probe_leakage(unlearned, 60.0, 90.0) == pytest.approx(leak)
    assert probe_leakage(unlearned, 60.0, 60.5) is None
    assert probe_leakage(unlearned, 90.0, 60.0) is None  # a probe of the model that knows which tells less than the oracle's
    assert probe_leakage(unlearned, 60.0, 90.0, rows=25) == pytest.approx(leak)  # three standard errors are less than 30 points
    assert probe_leakage(unlearned, 60.0, 90.0, rows=24) is None
