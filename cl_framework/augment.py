"""Augmentation of whole batches: pure functions on images (B, C, H, W), floats in [0, 1], on the device where they lie.

Each change comes as a function of stated sizes, one a row, and as a random one that draws those sizes. Random numbers come from a
generator on the CPU, always, and move to the images: a batch is augmented alike on every device, and no step waits for one.
Nothing is done sample by sample: a row that a change leaves alone gets the size that changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, avg_pool2d, grid_sample, pad

from cl_framework.benchmarks.base import Scale
from cl_framework.checks import check_range
from cl_framework.inputs import Inputs

_LUMA = (0.299, 0.587, 0.114)  # share of red, green and blue in brightness (ITU-R BT.601)


# --- changes of stated sizes ---


def crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """The window of the images' own size that starts at (top, left), (B,) each in 0 .. 2 * padding, of the images padded with zeros."""
    height, width = images.shape[-2:]
    windows = pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # views: (B, C, 2p + 1, 2p + 1, H, W)
    return windows[torch.arange(images.shape[0], device=images.device), :, top, left]


def flip(images: Tensor, which: Tensor) -> Tensor:
    """Left and right exchanged in the rows where `which` (B,) bool."""
    return torch.where(_as_column(which), images.flip(3), images)


def affine(images: Tensor, degrees: Tensor, right: Tensor, down: Tensor, scale: Tensor, shear: Tensor | None = None) -> Tensor:
    """Turned clockwise by degrees, magnified and then moved by parts of the width and height, (B,) each; zeros from outside.

    `shear` (B, 2) leans columns and rows: by how many pixels a pixel. Bilinear.
    """
    if not images.shape[0]:
        return images
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees)
    cosine, sine = angle.cos() / scale, angle.sin() / scale
    lean_x, lean_y = (torch.zeros_like(right),) * 2 if shear is None else shear.unbind(1)
    # Where each pixel of the result comes from, in pixels about the centre: first back by the move, then turned back and leant.
    back_x, back_y = -right * width, -down * height
    a, b = cosine + lean_x * -sine, sine + lean_x * cosine
    c, d = lean_y * cosine - sine, lean_y * sine + cosine
    to_x = torch.stack([a, b * height / width, (a * back_x + b * back_y) * 2 / width], 1)
    to_y = torch.stack([c * width / height, d, (c * back_x + d * back_y) * 2 / height], 1)
    grid = affine_grid(torch.stack([to_x, to_y], 1).to(images.dtype), list(images.shape), align_corners=False)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with black: factor (B,) >= 0; 1 changes nothing."""
    return (images * _as_column(factor)).clamp(0, 1)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with the image's mean grey: factor (B,) >= 0; 1 changes nothing."""
    mean = grey(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, _as_column(factor)).clamp(0, 1)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with the image in grey: factor (B,) >= 0; 1 changes nothing."""
    return torch.lerp(grey(images), images, _as_column(factor)).clamp(0, 1)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Mixed with the mean of each pixel's 3x3 neighbourhood: factor (B,) >= 0; 1 changes nothing."""
    blurred = avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    return torch.lerp(blurred, images, _as_column(factor)).clamp(0, 1)


def solarise(images: Tensor, threshold: Tensor) -> Tensor:
    """Pixels above the threshold (B,) inverted; 1 changes nothing."""
    return torch.where(images > _as_column(threshold), 1 - images, images)


def posterise(images: Tensor, levels: Tensor, which: Tensor) -> Tensor:
    """Values rounded to this many steps above black, levels (B,) >= 1, in the rows where `which` (B,) bool."""
    steps = _as_column(levels)
    return torch.where(_as_column(which), (images * steps).round() / steps, images)


def cut_out(images: Tensor, row: Tensor, column: Tensor, size: Tensor, fill: float = 0.0) -> Tensor:
    """A square of `size` pixels about (row, column) filled, (B,) each; what lies outside the image is cut off, and 0 changes nothing."""
    height, width = images.shape[-2:]
    distance_y = torch.arange(height, device=images.device).view(1, 1, height, 1) + 0.5 - _as_column(row)
    distance_x = torch.arange(width, device=images.device).view(1, 1, 1, width) + 0.5 - _as_column(column)
    half = _as_column(size) / 2
    return images.masked_fill((distance_y.abs() < half) & (distance_x.abs() < half), fill)


def grey(images: Tensor) -> Tensor:
    """(B, 1, H, W): the brightness of colour images, the mean of the channels of others."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.split(1, dim=1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _as_column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


# --- random changes ---


def uniform(low: float, high: float, shape: tuple[int, ...], images: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform in [low, high), drawn on the CPU, where the images are."""
    return (low + (high - low) * torch.rand(shape, generator=generator)).to(images.device, non_blocking=True)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Moved by up to `padding` pixels in each direction, by whole pixels; zeros from outside. Of any dtype."""
    starts = torch.randint(0, 2 * padding + 1, (2, images.shape[0]), generator=generator).to(images.device, non_blocking=True)
    return crop(images, padding, starts[0], starts[1])


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Left and right exchanged in each row with probability one half. Of any dtype."""
    return flip(images, uniform(0, 1, (images.shape[0],), images, generator) < 0.5)


def random_affine(images: Tensor, generator: torch.Generator, degrees: float, shift: float, scale: float = 0.0) -> Tensor:
    """Turned by up to +-degrees, moved by up to +-shift of each side, magnified by 1 +- scale."""
    draws = uniform(-1, 1, (4, images.shape[0]), images, generator)
    return affine(images, degrees * draws[0], shift * draws[1], shift * draws[2], 1 + scale * draws[3])


def cutout(images: Tensor, generator: torch.Generator, size: float) -> Tensor:
    """A square of `size` times the shorter side, anywhere with its centre inside, set to 0."""
    height, width = images.shape[-2:]
    draws = uniform(0, 1, (2, images.shape[0]), images, generator)
    side = torch.full_like(draws[0], size * min(height, width))
    return cut_out(images, height * draws[0], width * draws[1], side)


def drop_pixels(images: Tensor, generator: torch.Generator, share: float) -> Tensor:
    """Each pixel set to 0 in all its channels with probability `share`, on its own."""
    count, _, height, width = images.shape
    return images.masked_fill(uniform(0, 1, (count, 1, height, width), images, generator) < share, 0.0)


def add_noise(images: Tensor, generator: torch.Generator, deviation: float) -> Tensor:
    """Normal noise on every value, cut to [0, 1]."""
    noise = torch.randn(images.shape, generator=generator).to(images.device, non_blocking=True)
    return torch.add(images, noise, alpha=deviation).clamp_(0, 1)


# --- policies: strong augmentation for `Scale.strengthen` and `Augmented.strengthen` ---


def digit_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """For handwriting: moved by up to 8 % of a side, turned by up to 15 degrees, with a little noise. Nothing that makes a 6 of a 9."""
    return add_noise(random_affine(images, generator, degrees=15.0, shift=0.08), generator, 0.1)


def pixel_views(images: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter of the pixels dropped, with noise. It treats all pixels alike, so that it means the same under any permutation."""
    return add_noise(drop_pixels(images, generator, 0.25), generator, 0.1)


_CHANGES = ("brightness", "contrast", "saturation", "sharpness", "solarise", "posterise", "turn", "lean", "move")


def strong_colour(images: Tensor, generator: torch.Generator, changes: int = 2) -> Tensor:
    """For natural images: in each row `changes` different ones of nine, each of random size, then a square of half the side cut out.

    A policy of our own in the spirit of RandAugment (Cubuk et al. 2020), not AutoAugment: the sizes and the list are ours, and changes
    are made in the order of the list, whatever was drawn. The list: brightness, contrast, saturation and sharpness (factors from 0.1 to
    1.9), solarise (threshold 0 to 1), posterise (2 to 16 steps), turn (30 degrees), lean and move (0.3 of a side, both ways).
    """
    count = images.shape[0]
    ranks = torch.rand(count, len(_CHANGES), generator=generator).argsort(1).argsort(1)
    chosen = dict(zip(_CHANGES, (ranks < changes).to(images.device, non_blocking=True).unbind(1), strict=True))
    draws = uniform(-1, 1, (len(_CHANGES) + 2, count), images, generator)
    size = dict(zip(_CHANGES, draws.unbind(), strict=False))
    for name, change in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation), ("sharpness", sharpness)):
        images = change(images, torch.where(chosen[name], 1 + 0.9 * size[name], 1.0))
    images = solarise(images, torch.where(chosen["solarise"], (1 + size["solarise"]) / 2, 1.0))
    images = posterise(images, (9 + 7 * size["posterise"]).round(), chosen["posterise"])
    turn, lean, move = (size[name] * chosen[name] for name in ("turn", "lean", "move"))
    shear = 0.3 * torch.stack([lean, draws[-1] * chosen["lean"]], 1)
    images = affine(images, 30 * turn, 0.3 * move, 0.3 * draws[-2] * chosen["move"], torch.ones_like(turn), shear)
    return cutout(images, generator, 0.5)


# --- the transform of a benchmark ---


@dataclass(frozen=True)
class Augmented:
    """uint8 images (B, C, H, W) to inputs: in training moved by a random crop and flipped, then scaled and normalised a channel."""

    padding: int = 0  # pixels, >= 0: a random crop of the image padded so; 0: none
    flip: bool = False  # left and right, with probability one half
    mean: tuple[float, ...] = ()  # of each channel, of inputs in [0, 1]; empty: not normalised
    deviation: tuple[float, ...] = ()  # of each channel
    strengthen: Callable[[Tensor, torch.Generator], Tensor] | None = None  # what strong rows get besides, on inputs in [0, 1]

    def __post_init__(self) -> None:
        check_range("padding", self.padding, low=0)
        if len(self.mean) != len(self.deviation):
            raise ValueError(f"mean and deviation must have one value a channel each, got {len(self.mean)} and {len(self.deviation)}")

    @property
    def random(self) -> bool:
        """Whether training batches are augmented."""
        return bool(self.padding) or self.flip

    def __call__(self, items: Inputs, generator: torch.Generator | None) -> Inputs:
        assert isinstance(items, Tensor)
        return self._scale(items if generator is None else self._moved(items, generator), None)

    def scaled(self, items: Inputs) -> Inputs:
        """In [0, 1], neither augmented nor normalised."""
        return self._scale.scaled(items)

    def strong(self, items: Inputs, generator: torch.Generator) -> Inputs:
        """As in training, with the strong augmentation before normalising."""
        assert isinstance(items, Tensor)
        return self._scale.strong(self._moved(items, generator), generator)

    @property
    def _scale(self) -> Scale:
        return Scale(mean=self.mean, deviation=self.deviation, strengthen=self.strengthen)

    def _moved(self, items: Tensor, generator: torch.Generator) -> Tensor:
        # On the raw bytes: a quarter of the traffic.
        items = random_crop(items, self.padding, generator) if self.padding else items
        return random_flip(items, generator) if self.flip else items
