"""Augmentation of batches: each change against its definition or torchvision's, policies by what they promise, the transform."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from cl_framework import BenchmarkContext, ContractError, augment
from cl_framework.augment import Augmented
from cl_framework.benchmarks.base import Scale, strong_of
from cl_framework.benchmarks.digits import SplitOptions, split_digits
from cl_framework.benchmarks.mnist import DomainOptions, SplitMNISTOptions, perm_mnist, rot_mnist, split_fashion_mnist, split_mnist
from tests.unit.made_up import write_mnist

Change = Callable[[Tensor, torch.Generator], Tensor]

RANDOM: dict[str, Change] = {
    "random_crop": lambda images, generator: augment.random_crop(images, 2, generator),
    "random_flip": augment.random_flip,
    "random_affine": lambda images, generator: augment.random_affine(images, generator, 20, 0.1, 0.2),
    "cutout": lambda images, generator: augment.cutout(images, generator, 0.5),
    "drop_pixels": lambda images, generator: augment.drop_pixels(images, generator, 0.3),
    "add_noise": lambda images, generator: augment.add_noise(images, generator, 0.1),
    "digit_views": augment.digit_views,
    "pixel_views": augment.pixel_views,
    "strong_colour": augment.strong_colour,
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(count: int = 6, channels: int = 3, height: int = 8, width: int = 10) -> Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(7))


def test_every_random_change_keeps_shape_range_and_argument_and_repeats_by_its_generator() -> None:
    for channels in (1, 3):
        for name, change in RANDOM.items():
            images = images_of(channels=channels)
            before = images.clone()
            one, same, other = change(images, seeded(1)), change(images, seeded(1)), change(images, seeded(2))
            assert torch.equal(images, before), name
            assert one.shape == images.shape and one.dtype == images.dtype, name
            assert float(one.min()) >= 0 and float(one.max()) <= 1, name
            assert torch.equal(one, same) and not torch.equal(one, other), name
            assert not torch.equal(one, images), name
            assert change(images[:0], seeded()).shape == (0, channels, 8, 10), name
    assert len(RANDOM) == 9


def test_rows_get_sizes_of_their_own() -> None:
    same = images_of(1).expand(16, -1, -1, -1)
    for name, change in RANDOM.items():
        distinct = {tuple(row.flatten().tolist()) for row in change(same, seeded())}
        assert len(distinct) >= (2 if name == "random_flip" else 8), name


# --- geometry ---


def test_a_crop_is_a_window_of_the_padded_image() -> None:
    images = images_of(5)
    top, left = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([4, 0, 2, 1, 3])
    cropped = augment.crop(images, 2, top, left)
    padded = torch.nn.functional.pad(images, [2] * 4)
    for row in range(5):
        by_hand = padded[row, :, top[row] : top[row] + 8, left[row] : left[row] + 10]
        assert torch.equal(cropped[row], by_hand)
    assert torch.equal(cropped[2], images[2]) and not torch.equal(cropped[0], images[0])


def test_a_random_crop_reaches_every_place_and_a_flip_takes_half() -> None:
    one = torch.zeros(400, 1, 5, 5)
    one[:, :, 2, 2] = 1
    places = augment.random_crop(one, 1, seeded()).flatten(1).argmax(1)
    counts = {place: int((places == place).sum()) for place in places.unique().tolist()}
    assert sorted(counts) == [6, 7, 8, 11, 12, 13, 16, 17, 18]
    assert min(counts.values()) > 20
    column = torch.zeros(400, 1, 1, 2)
    column[..., 0] = 1
    assert 150 < float(augment.random_flip(column, seeded())[..., 1].sum()) < 250


def test_affine_is_torchvisions() -> None:
    images = images_of(4, height=9, width=14)
    ones = torch.ones(4)
    tried = 0
    for degrees, right, down, scale in ((0.0, 3, -2, 1.0), (25.0, 0, 0, 1.0), (25.0, 3, -2, 1.3), (-140.0, 1, 2, 0.8)):
        ours = augment.affine(images, degrees * ones, right / 14 * ones, down / 9 * ones, scale * ones)
        theirs = reference.affine(images, degrees, [right, down], scale, [0.0, 0.0], InterpolationMode.BILINEAR)
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert not torch.allclose(ours, images, atol=0.1)
        tried += 1
    assert tried == 4
    still = augment.affine(images, 0 * ones, 0 * ones, 0 * ones, ones, torch.zeros(4, 2))
    assert torch.allclose(still, images, atol=1e-5)


def test_a_lean_moves_each_row_by_its_height() -> None:
    image = torch.zeros(1, 1, 5, 7)
    image[..., 3] = 1  # a column through the centre
    zero, one = torch.zeros(1), torch.ones(1)
    leant = augment.affine(image, zero, zero, zero, one, torch.tensor([[1.0, 0.0]]))
    assert leant[0, 0].argmax(1).tolist() == [5, 4, 3, 2, 1]


# --- colour ---


def test_colour_changes_are_torchvisions() -> None:
    images = images_of()
    changes: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, float], Tensor]]] = {
        "brightness": (augment.brightness, reference.adjust_brightness),
        "contrast": (augment.contrast, reference.adjust_contrast),
        "saturation": (augment.saturation, reference.adjust_saturation),
        "solarise": (augment.solarise, reference.solarize),
    }
    for name, (ours, theirs) in changes.items():
        for size in (0.2, 0.7):
            changed = ours(images, torch.full((6,), size))
            assert torch.allclose(changed, theirs(images, size), atol=1e-3), name  # torchvision rounds 0.114 to 0.110 and so on
            assert not torch.allclose(changed, images, atol=1e-2), name
        assert torch.allclose(ours(images, torch.ones(6)), images, atol=1e-6), name
    assert len(changes) == 4


def test_sharpness_mixes_with_the_neighbourhood_and_posterise_rounds() -> None:
    images = images_of(2)
    blurred = augment.sharpness(images, torch.tensor([0.0, 1.0]))
    assert torch.allclose(blurred[0, :, 3, 4], images[0, :, 2:5, 3:6].mean((1, 2)))
    assert torch.allclose(blurred[0, :, 0, 0], images[0, :, :2, :2].mean((1, 2)))
    assert torch.allclose(blurred[1], images[1])
    rounded = augment.posterise(images, torch.tensor([4.0, 4.0]), torch.tensor([True, False]))
    assert rounded[0].unique().tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(rounded[1], images[1])


# --- what is taken away ---


def test_a_cut_out_is_a_square_of_its_size() -> None:
    cut = augment.cut_out(
        torch.ones(3, 2, 6, 8), torch.tensor([3.0, 0.0, 3.0]), torch.tensor([4.0, 8.0, 4.0]), torch.tensor([4.0, 4.0, 0.0])
    )
    expected = torch.ones(3, 2, 6, 8)
    expected[0, :, 1:5, 2:6] = 0
    expected[1, :, :2, 6:] = 0  # about a corner: a quarter is left of it
    assert torch.equal(cut, expected)


def test_dropped_pixels_are_a_share_and_go_in_all_channels() -> None:
    dropped = augment.drop_pixels(torch.ones(50, 3, 20, 20), seeded(), 0.3)
    assert torch.equal(dropped[:, 0], dropped[:, 1]) and torch.equal(dropped[:, 0], dropped[:, 2])
    assert abs(1 - float(dropped.mean()) - 0.3) < 0.01


def test_noise_has_its_deviation() -> None:
    noise = augment.add_noise(torch.full((40, 1, 20, 20), 0.5), seeded(), 0.1) - 0.5
    assert abs(float(noise.std()) - 0.1) < 0.002
    assert abs(float(noise.mean())) < 0.002


# --- policies ---


def test_pixel_views_mean_the_same_under_a_permutation_and_digit_views_do_not() -> None:
    """What becomes of a pixel depends on its value alone: its mean and spread over many views are those of any other place."""
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:4, 3:5] = 1
    order = torch.randperm(64, generator=seeded(3))
    permuted = image.flatten(1)[:, order].view(1, 1, 8, 8)

    def mean_of(policy: Change, source: Tensor) -> Tensor:
        return policy(source.expand(4000, -1, -1, -1), seeded()).mean(0).flatten()

    for policy, indifferent in ((augment.pixel_views, True), (augment.digit_views, False)):
        difference = (mean_of(policy, image)[order] - mean_of(policy, permuted)).abs().max()
        assert (float(difference) < 0.05) is indifferent


def test_strong_colour_makes_as_many_changes_as_asked() -> None:
    images = images_of(64, height=12, width=12)
    weak, strong = (augment.strong_colour(images, seeded(), changes=count) for count in (0, 9))
    kept = ((weak - images).abs() < 1e-5).flatten(1).float().mean(1)
    assert float(kept.min()) >= 0.75  # only the square, a quarter at most
    assert float((kept < 1).float().mean()) == 1
    assert float(((strong - images).abs() < 1e-5).float().mean()) < 0.1


# --- transforms ---


def test_without_a_generator_the_transform_only_scales() -> None:
    items = (images_of() * 255).to(torch.uint8)
    before = items.clone()
    moved = Augmented(padding=2, flip=True, mean=(0.5, 0.4, 0.3), deviation=(0.2, 0.3, 0.4))
    plain = Scale(mean=moved.mean, deviation=moved.deviation)
    assert moved.random and not Augmented(strengthen=augment.strong_colour).random
    assert torch.equal(moved(items, None), plain(items, None))  # type: ignore[arg-type]
    assert not torch.equal(moved(items, seeded()), plain(items, None))  # type: ignore[arg-type]
    assert torch.equal(Augmented()(items, seeded()), Augmented()(items, None))  # type: ignore[arg-type]
    by_hand = plain(augment.random_flip(augment.random_crop(items, 2, generator := seeded(5)), generator), None)
    assert torch.equal(moved(items, seeded(5)), by_hand)  # type: ignore[arg-type]
    assert torch.equal(items, before)


def test_strong_rows_are_moved_then_strengthened_then_normalised() -> None:
    items = (images_of() * 255).to(torch.uint8)
    transform = Augmented(padding=1, mean=(0.5,) * 3, deviation=(0.5,) * 3, strengthen=lambda inputs, generator: 1 - inputs)
    weak, strong = transform(items, seeded()), transform.strong(items, seeded())
    assert isinstance(weak, Tensor) and isinstance(strong, Tensor)
    assert torch.allclose(strong, -weak, atol=1e-6)
    assert strong_of(transform) is not None and strong_of(Augmented(padding=1)) is None
    with pytest.raises(ContractError, match="strongly augmented rows were asked for, but this benchmark has no strong augmentation"):
        Augmented().strong(items, seeded())


def test_options_of_the_transform() -> None:
    with pytest.raises(ValueError, match=r"padding must be >= 0, got -1"):
        Augmented(padding=-1)
    with pytest.raises(ValueError, match=r"mean and deviation must have one value a channel each, got 1 and 0"):
        Augmented(mean=(0.5,))


def test_which_strong_views_the_benchmarks_have(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    write_mnist(tmp_path, "FashionMNIST")
    context = BenchmarkContext(tmp_path, False, 0, "")
    split = SplitMNISTOptions()
    policies = {
        "split_digits": (split_digits(SplitOptions(), context), augment.digit_views),
        "split_mnist": (split_mnist(split, context), augment.digit_views),
        "split_fashion_mnist": (split_fashion_mnist(split, context), augment.digit_views),
        "rot_mnist": (rot_mnist(DomainOptions(tasks=2), context), augment.digit_views),
        "perm_mnist": (perm_mnist(DomainOptions(tasks=2), context), augment.pixel_views),
    }
    for name, (benchmark, policy) in policies.items():
        assert benchmark.name == name
        assert isinstance(benchmark.transform, Scale) and benchmark.transform.strengthen is policy
        assert not benchmark.transform.random
    assert len(policies) == 5
