"""Named random streams: pure in key and step, independent of one another, and without a trace in torch's own generator."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cl_framework.rng import BLOCK, RandomStream, seeded

KEY = (0, 1, 0, "er/draw")
OTHER_KEYS = [
    (1, 1, 0, "er/draw"),
    (0, 2, 0, "er/draw"),
    (0, 1, 1, "er/draw"),
    (0, 1, 0, "er/commit"),
    (0, 1, 0, "erdraw"),
    ("0", 1, 0, "er/draw"),
]


def numbers_at(stream: RandomStream, step: int) -> torch.Tensor:
    return torch.rand(4, generator=stream.at(step), dtype=torch.float64)


def numbers_of_phase(stream: RandomStream, step: int) -> torch.Tensor:
    return torch.rand(4, generator=stream.generator(), dtype=torch.float64)


def uniforms_at(stream: RandomStream, step: int) -> torch.Tensor:
    return stream.uniform(step, 4)


READINGS: list[Callable[[RandomStream, int], torch.Tensor]] = [numbers_at, uniforms_at]


@pytest.mark.parametrize("read", READINGS)
@given(history=st.lists(st.integers(0, 200), max_size=6), step=st.integers(0, 200))
def test_numbers_do_not_depend_on_what_was_asked_before(
    read: Callable[[RandomStream, int], torch.Tensor], history: list[int], step: int
) -> None:
    used = RandomStream(*KEY)
    for earlier in history:
        for asked in (*READINGS, numbers_of_phase):
            asked(used, earlier)
    assert torch.equal(read(used, step), read(RandomStream(*KEY), step))


@pytest.mark.parametrize("read", READINGS)
def test_every_step_has_its_own_numbers(read: Callable[[RandomStream, int], torch.Tensor]) -> None:
    stream = RandomStream(*KEY)
    seen = {tuple(read(stream, step).tolist()) for step in range(5 * BLOCK)}
    assert len(seen) == 5 * BLOCK


@pytest.mark.parametrize("read", [*READINGS, numbers_of_phase])
def test_every_part_of_the_key_counts(read: Callable[[RandomStream, int], torch.Tensor]) -> None:
    results = [read(RandomStream(*key), 3) for key in (KEY, *OTHER_KEYS)]
    assert torch.equal(results[0], read(RandomStream(*KEY), 3))
    pairs = list(itertools.combinations(results, 2))
    assert len(pairs) == 21
    assert not any(torch.equal(one, other) for one, other in pairs)


def test_the_streams_of_neighbouring_keys_and_steps_are_uncorrelated() -> None:
    columns = [RandomStream(seed, 0, 0, "p").block(step, 2048).flatten() for seed in (0, 1) for step in (0, BLOCK)]
    correlations = torch.corrcoef(torch.stack(columns))
    assert correlations.shape == (4, 4)
    assert float((correlations - torch.eye(4)).abs().max()) < 5 / (BLOCK * 2048) ** 0.5
    assert float(torch.corrcoef(torch.stack([columns[0], columns[0]]))[0, 1]) == pytest.approx(1.0)


def test_a_block_holds_the_uniforms_of_its_steps() -> None:
    stream = RandomStream(*KEY)
    block = stream.block(BLOCK + 3, 7)
    assert block.shape == (BLOCK, 7)
    assert block.dtype == torch.float64
    assert bool(((block >= 0) & (block < 1)).all())
    for row in range(BLOCK):
        assert torch.equal(RandomStream(*KEY).uniform(BLOCK + row, 7), block[row])
    assert not torch.equal(stream.uniform(2 * BLOCK, 7), block[0])


def test_asking_for_another_count_does_not_move_a_block() -> None:
    stream = RandomStream(*KEY)
    before = stream.block(0, 3).clone()
    stream.block(0, 5)
    assert torch.equal(stream.block(0, 3), before)


def test_a_step_s_generator_is_not_moved_by_its_uniforms() -> None:
    stream = RandomStream(*KEY)
    generator = stream.at(5)
    stream.uniform(5, 3)
    expected = torch.rand(4, generator=RandomStream(*KEY).at(5))
    assert torch.equal(torch.rand(4, generator=generator), expected)
    assert not torch.equal(torch.rand(4, generator=generator), expected)


def test_seeds_are_what_a_generator_takes_and_differ() -> None:
    stream = RandomStream(*KEY)
    seeds = [stream.seed_at(step) for step in range(-100, 1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds) == 1100
    assert stream.at(4).initial_seed() == stream.seed_at(4)


def test_streams_leave_torch_s_own_generator_alone() -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    stream = RandomStream(*KEY)
    torch.rand(3, generator=stream.at(9))
    torch.randperm(10, generator=stream.generator())
    stream.uniform(40, 6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert not torch.equal(torch.get_rng_state(), before)


def test_seeded_repeats_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    results = []
    for key in ((0, "model"), (0, "model"), (1, "model")):
        with seeded(*key):
            results.append(torch.nn.Linear(3, 3).weight.detach().clone())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def fail_while_seeded() -> None:
    with seeded(0, "model"):
        torch.rand(1)
        raise ValueError("inside")


def test_seeded_leaves_no_trace_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="inside"):
        fail_while_seeded()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_numbers_themselves_are_part_of_the_definition() -> None:
    """Published figures depend on them: a change here moves every number of every run."""
    stream = RandomStream(0, 0, 0, "plan")
    assert stream.seed_at(0) == 5137608328708520358
    assert torch.randperm(8, generator=stream.generator()).tolist() == [3, 4, 2, 7, 5, 1, 0, 6]
    assert RandomStream(0, 0, 1, "plan").seed_at(0) != 5137608328708520358
