"""A user's own data: any map-style data set; memory and workers alike, errors that help."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cl_framework import (
    ConfigurationError,
    FrameworkError,
    from_datasets,
    from_task_datasets,
    load_experiment,
    run,
)
from cl_framework.assembly import given
from cl_framework.benchmarks import sources
from cl_framework.benchmarks.own_data import Unchanged
from cl_framework.benchmarks.sources import DatasetSource, fits_in_memory, materialise, targets_of


def all_rows(source: Any) -> torch.Tensor:
    return source.read(torch.arange(len(source)))


# --- own data ---


class Pairs:
    """A map-style data set without `targets`."""

    def __init__(self, count: int, classes: int = 4, shift: int = 0) -> None:
        generator = torch.Generator().manual_seed(count)
        self.items = torch.randint(0, 256, (count, 1, 3, 3), dtype=torch.uint8, generator=generator)
        self.labels = (torch.arange(count) % classes + shift).tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return self.items[row], self.labels[row]


def test_any_map_style_data_set() -> None:
    benchmark = from_datasets(Pairs(40), Pairs(8), tasks=2)
    assert benchmark.classes == ((0, 1), (2, 3))
    assert benchmark.input_shape == (1, 3, 3)
    assert torch.equal(all_rows(benchmark.train[1])[0], Pairs(40).items[2])


def test_workers_read_what_memory_holds() -> None:
    held, read = (from_datasets(Pairs(40), Pairs(8), tasks=2, in_memory=how) for how in ("always", "never"))
    assert held.train[0].in_memory
    assert not read.train[0].in_memory
    for task in range(2):
        assert torch.equal(all_rows(held.train[task]), all_rows(read.train[task]))
        assert torch.equal(held.train[task].targets, read.train[task].targets)
    assert not torch.equal(all_rows(held.train[0]), all_rows(read.train[1]))


def test_auto_holds_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits_in_memory(1)
    assert not fits_in_memory(1 << 60)
    assert from_datasets(Pairs(40), Pairs(8), tasks=2).train[0].in_memory
    monkeypatch.setattr(sources, "fits_in_memory", lambda size: size < 40 * 9)  # the training set is one byte too large
    benchmark = from_datasets(Pairs(40), Pairs(8), tasks=2)
    assert (benchmark.train[0].in_memory, benchmark.test[0].in_memory) == (False, True)


def test_pil_images_become_channels_first() -> None:
    from PIL import Image

    class Pictures(Pairs):
        def __getitem__(self, row: int) -> tuple[Any, int]:
            return Image.fromarray(self.items[row, 0].numpy()).convert("RGB"), self.labels[row]

    benchmark = from_datasets(Pictures(8), Pictures(8), tasks=2)
    assert benchmark.input_shape == (3, 3, 3)
    items = all_rows(benchmark.train[0])
    assert items.dtype == torch.uint8
    assert torch.equal(items, Pairs(8).items[[0, 1, 4, 5]].expand(-1, 3, -1, -1))


def test_float_items_are_taken_as_they_are() -> None:
    class Floats(Pairs):
        def __getitem__(self, row: int) -> tuple[Any, int]:
            return self.items[row].float() * 3, self.labels[row]

    benchmark = from_datasets(Floats(8), Floats(8), tasks=2)
    items = all_rows(benchmark.train[0])
    assert torch.equal(benchmark.transform(items, None), items)
    scaled = from_datasets(Pairs(8), Pairs(8), tasks=2)
    assert float(scaled.transform(all_rows(scaled.train[0]), None).max()) <= 1.0


class Typed(Pairs):
    """Samples of a dtype; those from `other_from` on of another."""

    def __init__(self, count: int, dtype: torch.dtype, other: torch.dtype | None = None, other_from: int = 0, **options: Any) -> None:
        super().__init__(count, **options)
        self.dtypes = [other if other is not None and row >= other_from else dtype for row in range(count)]

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return (self.items[row] / 255).to(self.dtypes[row]).numpy(), self.labels[row]


@pytest.mark.parametrize("how", ["always", "never"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_floats_of_any_width_are_read_as_float32(dtype: torch.dtype, how: str) -> None:
    split = from_datasets(Typed(8, dtype), Typed(8, dtype), tasks=2, in_memory=how)
    by_task = from_task_datasets([(Typed(8, dtype), Typed(8, torch.float32))], in_memory=how)
    expected = (Pairs(8).items / 255).to(dtype).to(torch.float32)
    read = ((split.train[0], [0, 1, 4, 5]), (split.test[1], [2, 3, 6, 7]), (by_task.train[0], [*range(8)]))
    for items, rows in ((all_rows(source), rows) for source, rows in read):
        assert items.dtype == torch.float32
        assert torch.equal(items, expected[rows])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool])
def test_integers_other_than_uint8_are_refused(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    text = rf"items have dtype {name}, which models do not take. Convert to uint8 in 0 .. 255 or to float\."
    with pytest.raises(ConfigurationError, match=text):
        from_datasets(Typed(8, dtype), Typed(8, dtype), tasks=2)
    with pytest.raises(ConfigurationError, match=text):
        from_task_datasets([(Typed(8, dtype), Typed(8, dtype))])
    own = from_datasets(Typed(8, dtype), Typed(8, dtype), tasks=2, transform=Unchanged())  # a transform of one's own knows what it takes
    assert all_rows(own.train[0]).dtype == dtype


@pytest.mark.parametrize("how", ["always", "never"])
def test_samples_of_mixed_dtypes_are_refused(how: str) -> None:
    mixed = Typed(8, torch.uint8, torch.float32, 5)
    assert torch.equal(all_rows(materialise(mixed, targets_of(mixed), "never").select(torch.arange(5))), torch.zeros(5, 1, 3, 3).byte())
    with pytest.raises(FrameworkError, match=r"sample 5 has dtype float32, sample 0 uint8: all must have one dtype. Convert to uint8"):
        all_rows(materialise(mixed, targets_of(mixed), how))


def test_sets_of_different_dtypes_are_refused() -> None:
    pixels, floats = Typed(8, torch.uint8), Typed(8, torch.float32)
    with pytest.raises(FrameworkError, match="task 1's first training sample has dtype float32, task 0's first training sample uint8"):
        from_task_datasets([(pixels, pixels), (floats, floats)])
    with pytest.raises(FrameworkError, match="task 1's first test sample has dtype uint8, task 0's first training sample float32"):
        from_task_datasets([(floats, floats), (floats, pixels)])
    with pytest.raises(FrameworkError, match="sample 0 of the test set has dtype float32, sample 0 of the training set uint8"):
        from_datasets(pixels, floats, tasks=2)


def test_a_task_is_tested_on_classes_that_it_trains() -> None:
    first = (Pairs(8, 2), Pairs(8, 2))
    with pytest.raises(FrameworkError, match=r"task 1's test set has label 0, which its training set has not. Train on it there, or leave"):
        from_task_datasets([first, (Pairs(8, 2, shift=2), Pairs(8, 2))])
    with pytest.raises(FrameworkError, match="task 0's test set has label 2, which its training set has not"):
        from_task_datasets([(Pairs(8, 2), Pairs(8, 3))])
    assert from_task_datasets([first, (Pairs(8, 3), Pairs(8, 2))]).num_tasks == 2


# --- the digest of a benchmark that is given ---


def digest_of(changed: int | None, how: str, count: int = 3000) -> str:
    data = Pairs(count, 2)
    if changed is not None:
        data.items[changed] += 1
    return given(from_datasets(data, Pairs(8, 2), tasks=1, in_memory=how)).options.given


def test_every_sample_in_memory_counts_in_the_digest() -> None:
    digests = {changed: digest_of(changed, "always") for changed in (None, 0, 64, 1023, 1024, 1500, 2999)}
    assert len(set(digests.values())) == len(digests)
    assert digest_of(None, "always") == digests[None]


def test_of_samples_on_disk_the_first_and_last_count_in_the_digest() -> None:
    digests = {changed: digest_of(changed, "never") for changed in (None, 0, 63, 64, 1500, 2935, 2936, 2999)}
    same = {changed for changed, digest in digests.items() if digest == digests[None]}
    assert same == {None, 64, 1500, 2935}


def test_what_is_given_must_be_a_benchmark() -> None:
    with pytest.raises(ConfigurationError, match=r"benchmark= takes a Benchmark, such as that of from_datasets\(train, test\); got Pairs"):
        run(load_experiment({"benchmark": {"name": "synthetic"}}), benchmark=Pairs(8))  # type: ignore[arg-type]


def test_task_by_task() -> None:
    apart = from_task_datasets([(Pairs(8, 2), Pairs(4, 2)), (Pairs(8, 2, shift=2), Pairs(4, 2, shift=2))])
    assert (apart.classes, apart.num_classes, apart.scenarios[0]) == (((0, 1), (2, 3)), 4, "class_il")
    shared = from_task_datasets([(Pairs(8, 2), Pairs(4, 2)), (Pairs(12, 2), Pairs(4, 2))])
    assert (shared.num_classes, shared.scenarios[0]) == (2, "domain_il")


def test_what_own_data_must_be() -> None:
    class Ragged(Pairs):
        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return (self.items[row] if row else self.items[row, :, :2]), self.labels[row]

    with pytest.raises(FrameworkError, match=r"sample 1 has shape \(1, 3, 3\), sample 0 \(1, 2, 3\): all must have one shape"):
        materialise(Ragged(4), targets_of(Ragged(4)), "always")
    with pytest.raises(FrameworkError, match="the test set has label 4, but the training set ends at 3"):
        from_datasets(Pairs(8), Pairs(8, shift=1), tasks=2)
    with pytest.raises(FrameworkError, match="the data set Pairs has no samples"):
        from_datasets(Pairs(0), Pairs(8))
    with pytest.raises(FrameworkError, match=r"task 0 \(classes 0\) has no training samples. Number the labels 0 .. C - 1 without a gap"):
        from_datasets(Pairs(8, shift=1), Pairs(8, shift=1))
    gap = labelled([0, 2])
    with pytest.raises(
        FrameworkError, match=r"no training sample has label 1, but labels go up to 2\. Number the labels 0 .. C - 1 without"
    ):
        from_datasets(gap, gap, tasks=1)
    with pytest.raises(FrameworkError, match=r"task 1 \(classes 2, 3\) has no test samples"):
        from_datasets(Pairs(8), Pairs(8, classes=2), tasks=2)
    with pytest.raises(ConfigurationError, match="in_memory must be one of auto, always, never, got 'perhaps'"):
        from_datasets(Pairs(8), Pairs(8), in_memory="perhaps")
    with pytest.raises(ConfigurationError, match="own_data: there are no tasks"):
        from_task_datasets([])
    with pytest.raises(ConfigurationError, match=r"a data set must have len\(data\) and data\[i\] -> item, label; got int"):
        from_datasets(5, 6)
    with pytest.raises(ConfigurationError, match="own_data: tasks must be between 1 and the number of classes 4, got 9"):
        from_datasets(Pairs(8), Pairs(8), tasks=9)
    for wrong in (2.0, "2", True):
        with pytest.raises(ConfigurationError, match=f"own_data: classes_per_task must be a whole number, got {wrong!r}"):
            from_datasets(Pairs(8), Pairs(8), classes_per_task=wrong)  # type: ignore[arg-type]
    with pytest.raises(
        ConfigurationError, match=r"own_data: tasks and classes_per_task both say how classes are divided. Give one of them"
    ):
        from_datasets(Pairs(8), Pairs(8), tasks=2, classes_per_task=2)


@pytest.mark.parametrize("transform", [3, lambda items, generator: items])
def test_a_transform_says_whether_it_draws(transform: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"transform must be an object that is called with \(items, generator\) and says by `random`"
    ):
        from_datasets(Pairs(8), Pairs(8), transform=transform)


class Odd(Pairs):
    """One sample is not as the others; what is made of it is given."""

    def __init__(self, made: Any) -> None:
        super().__init__(8)
        self.made = made
        self.targets = torch.tensor(self.labels)

    def __getitem__(self, row: int) -> Any:
        item, label = super().__getitem__(row)
        return (self.made(item), label) if row == 5 else (item, label)


def broken(item: torch.Tensor) -> torch.Tensor:
    raise ValueError("bad jpeg")


@pytest.mark.parametrize("in_memory", ["always", "never"])
@pytest.mark.parametrize(
    ("made", "text"),
    [
        (broken, "sample 5 of Odd cannot be read: ValueError: bad jpeg"),
        (lambda item: None, "sample 5 of Odd cannot be read: "),
        (lambda item: item.double() / 0, "sample 5 has dtype float32, sample 0 uint8"),
    ],
)
def test_a_sample_that_cannot_be_read_is_named(made: Any, text: str, in_memory: str) -> None:
    def read_all() -> None:
        for source in from_datasets(Odd(made), Pairs(8), in_memory=in_memory).train:
            source.read(torch.arange(len(source)))

    with pytest.raises(FrameworkError, match=text):
        read_all()


def test_what_is_no_finite_number_is_named() -> None:
    items = torch.rand(6, 1, 2, 2)
    items[4, 0, 1, 1] = float("nan")
    whole, broken_set = (torch.utils.data.TensorDataset(one, torch.arange(6) % 2) for one in (torch.rand(6, 1, 2, 2), items))
    assert len(from_datasets(whole, whole).train) == 2
    with pytest.raises(FrameworkError, match=r"sample 4 holds a value that is no finite number\. Mend it, or leave the sample out"):
        from_datasets(broken_set, whole)


def test_items_that_have_no_label_or_no_dimension() -> None:
    alone = torch.utils.data.TensorDataset(torch.rand(6, 1, 2, 2))
    with pytest.raises(FrameworkError, match=r"sample 0 of TensorDataset has no label to be read .*: data\[i\] must be \(item, label\)"):
        from_datasets(alone, alone)
    numbers = torch.utils.data.TensorDataset(torch.rand(6), torch.arange(6) % 2)
    with pytest.raises(ConfigurationError, match=r"items are single numbers, such as .* Give each at least one dimension"):
        from_datasets(numbers, numbers)


def labelled(labels: Any) -> Pairs:
    pairs = Pairs(2)
    pairs.labels = labels
    return pairs


def test_what_labels_must_be() -> None:
    assert targets_of(labelled([torch.tensor([1]).numpy(), torch.tensor([0]).numpy()])).tolist() == [1, 0]
    narrow = torch.tensor([1, 0], dtype=torch.int16).numpy().astype("uint16")
    assert targets_of(labelled(list(narrow))).tolist() == [1, 0]
    for wrong, text in (([0, -1], "got -1 for sample 1"), ([0.5, 1.0], "got 0.5 for sample 0"), (["ant", "bee"], "got 'ant' for sample 0")):
        with pytest.raises(FrameworkError, match=rf"labels must be whole numbers 0 .. C - 1, {text}"):
            targets_of(labelled(wrong))
    with pytest.raises(FrameworkError, match=r"2 samples, but targets of shape \(2, 2\): one label a sample is needed"):
        targets_of(labelled([(0, 1), (1, 0)]))


def test_tasks_of_different_shapes_are_refused() -> None:
    class Wide(Pairs):
        def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
            return self.items[row].repeat(1, 1, 2), self.labels[row]

    with pytest.raises(FrameworkError, match=r"task 1's first training sample has shape \(1, 3, 6\), task 0's .* \(1, 3, 3\)"):
        from_task_datasets([(Pairs(4), Pairs(4)), (Wide(4), Wide(4))])


def test_dataset_source_selects_rows() -> None:
    pairs = Pairs(6)
    chosen = DatasetSource(pairs, targets_of(pairs)).select(torch.tensor([4, 1]))
    assert torch.equal(all_rows(chosen), pairs.items[[4, 1]])
    assert chosen.targets.tolist() == [0, 1]
