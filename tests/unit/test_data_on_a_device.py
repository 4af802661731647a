"""Data that fits is held where the model is. The device `meta` stands for an accelerator: what is read from there lies there."""

from __future__ import annotations

from dataclasses import replace

import torch

from cl_framework.assembly import make_benchmark, on_device
from cl_framework.benchmarks.sources import DatasetSource, LazySource, TensorSource, Turns, held_on
from cl_framework.testing.laboratory import ThroughWorkers, experiment_of

META = torch.device("meta")
ROOM = 1 << 20


def images(count: int = 6) -> TensorSource:
    return TensorSource(torch.arange(count * 4, dtype=torch.uint8).view(count, 1, 2, 2), torch.arange(count) % 2)


def test_tensors_move_and_labels_stay() -> None:
    (moved,) = held_on([images()], META, ROOM)
    assert moved.read(torch.tensor([4, 1])).device == META
    assert moved.targets.tolist() == [0, 1, 0, 1, 0, 1]
    assert images().read(torch.tensor([0])).device.type == "cpu"  # the control: it is not so by itself


def test_what_is_shared_is_shared_there_too() -> None:
    base, turns = images(), Turns()
    sources = [LazySource(base, lambda part: part + 1, turns), LazySource(base, lambda part: part + 2, turns), base]
    first, second, third = held_on(sources, torch.device("cpu"), ROOM)
    assert first.base is second.base is third
    assert third is not base
    rows = torch.tensor([3, 0])
    for source, moved in zip(sources, (first, second, third), strict=True):
        for _ in range(2):  # changed for these rows, then for all
            assert torch.equal(moved.read(rows), source.read(rows))
    (away,) = held_on(sources[:1], META, ROOM)
    assert [away.read(rows).device, away.read(rows).device] == [META, META]


def test_what_does_not_fit_or_is_read_by_workers_stays() -> None:
    held, read = images(), DatasetSource([(torch.zeros(1), 0)], torch.tensor([0]))
    assert held_on([held, read], META, 23) == [held, read]  # 24 bytes of images
    moved = held_on([held, read], META, 24)
    assert moved[1] is read
    assert moved[0].read(torch.tensor([0])).device == META


def test_a_benchmark_gives_the_same_rows_from_there(tmp_path) -> None:  # type: ignore[no-untyped-def]
    benchmark = make_benchmark(experiment_of({}, tmp_path))
    moved = on_device(benchmark, torch.device("cpu"), ROOM)
    ids = torch.tensor([40, 3, 20])
    for one, other in zip(benchmark.read(ids), moved.read(ids), strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    assert on_device(benchmark, META, ROOM).read(ids)[0].device == META  # type: ignore[union-attr]
    through = replace(benchmark, train=[ThroughWorkers(source) for source in benchmark.train])
    assert on_device(through, META, ROOM).read(ids)[0].device.type == "cpu"  # type: ignore[union-attr]
