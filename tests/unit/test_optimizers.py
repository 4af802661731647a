"""The core's optimizers: the short way of plain SGD is torch's own, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cl_framework.optimizers import apply_plain_sgd, build_optimizer, is_plain_sgd, laid_out_as
from cl_framework.schema import OptimizerConfig


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((7, 5), (5,), (3, 5))]


def gradients(step: int) -> list[Tensor | None]:
    """The last parameter is reached in every second step only."""
    generator = torch.Generator().manual_seed(step)
    made: list[Tensor | None] = [torch.randn(*shape, generator=generator) for shape in ((7, 5), (5,), (3, 5))]
    return made if step % 2 else [*made[:2], None]


def test_plain_sgd_is_torchs_bit_for_bit() -> None:
    ours, theirs, slower = parameters(), parameters(), parameters()
    optimizer = torch.optim.SGD(theirs, lr=0.1)
    for step in range(6):
        apply_plain_sgd(0.1, ours, tuple(gradients(step)))
        apply_plain_sgd(0.0999, slower, tuple(gradients(step)))
        for parameter, gradient in zip(theirs, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert not any(torch.equal(one, other) for one, other in zip(slower, theirs, strict=True))
    assert all(parameter.grad is None for parameter in ours)


def test_plain_sgd_moves_nothing_where_nothing_is_reached() -> None:
    ours, before = parameters(), parameters()
    apply_plain_sgd(0.1, ours, (None, None, None))
    apply_plain_sgd(0.1, [], ())
    assert all(torch.equal(one, other) for one, other in zip(ours, before, strict=True))


@pytest.mark.parametrize(
    ("config", "plain"),
    [
        (OptimizerConfig(name="sgd", lr=0.1), True),
        (OptimizerConfig(name="sgd", lr=0.1, momentum=0.9), False),
        (OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.01), False),
        (OptimizerConfig(name="adam", lr=0.1), False),
        (OptimizerConfig(name="adamw", lr=0.1), False),
    ],
)
def test_what_counts_as_plain(config: OptimizerConfig, plain: bool) -> None:
    some = parameters()
    assert is_plain_sgd(build_optimizer(config, {}, some, ["a", "b", "c"], {})) is plain
    if plain:
        assert not is_plain_sgd(build_optimizer(config, {"momentum": 0.5}, some, ["a", "b", "c"], {}))


@pytest.mark.parametrize("decoupled", [False, True])
def test_adam_and_adamw_are_the_published_updates(decoupled: bool) -> None:
    config = OptimizerConfig(name="adamw" if decoupled else "adam", lr=0.05, weight_decay=0.1)
    ours = parameters()[:2]
    theirs = [parameter.detach().double() for parameter in ours]
    untouched = [value.clone() for value in theirs]
    first, second = [torch.zeros_like(value) for value in theirs], [torch.zeros_like(value) for value in theirs]
    optimizer = build_optimizer(config, {}, ours, ["a", "b"], {})
    for step in range(1, 6):
        for place, (parameter, gradient) in enumerate(zip(ours, gradients(step)[:2], strict=True)):
            assert gradient is not None
            parameter.grad = gradient
            slope = gradient.double() if decoupled else gradient.double() + 0.1 * theirs[place]
            if decoupled:
                theirs[place] *= 1 - 0.05 * 0.1
            first[place] = 0.9 * first[place] + 0.1 * slope
            second[place] = 0.999 * second[place] + 0.001 * slope**2
            mean, spread = first[place] / (1 - 0.9**step), second[place] / (1 - 0.999**step)
            theirs[place] -= 0.05 * mean / (spread.sqrt() + 1e-8)
        optimizer.step()
    for one, other, before in zip(ours, theirs, untouched, strict=True):
        torch.testing.assert_close(one.detach().double(), other, rtol=1e-5, atol=1e-6)
        assert float((other - before).abs().max()) > 0.1


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "a slice": lambda numbers: numbers[:, :5],
    "a transpose": lambda numbers: numbers.t()[:7].contiguous().t()[:7, :5],
    "an expansion": lambda numbers: numbers[:, :1].expand(7, 5),
    "as it should be": lambda numbers: numbers[:7, :5].contiguous(),
}


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("view", VIEWS)
def test_a_gradient_that_is_a_view_moves_the_entries_it_belongs_to(view: str, name: str) -> None:
    """Autograd hands on views as gradients; on a host the fused update reads them as if they were not."""
    gradient = VIEWS[view](torch.randn(7, 10, generator=torch.Generator().manual_seed(1)))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]

    def moved(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, given: Tensor | None) -> Tensor:
        for _ in range(3):
            parameter.grad = given
            optimizer.step()
        return parameter.detach()

    plain, ours, raw = (parameters()[0] for _ in range(3))
    expected = moved(kind([plain], lr=0.1, weight_decay=0.01, fused=False, foreach=False), plain, gradient)
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.01)
    laid_out = laid_out_as(ours, gradient)
    assert laid_out is not None and laid_out.stride() == ours.stride()
    assert (laid_out is gradient) == (view == "as it should be")
    torch.testing.assert_close(moved(build_optimizer(config, {}, [ours], ["a"], {}), ours, laid_out), expected)
    if view == "a transpose":
        mistaken = moved(build_optimizer(config, {}, [raw], ["a"], {}), raw, gradient)
        assert float((mistaken - expected).abs().max()) > 0.1, "the fused update minds layouts now: laid_out_as can go"
    assert laid_out_as(ours, None) is None


def test_a_parameter_that_is_a_part_of_a_tensor_is_moved_entry_by_entry() -> None:
    whole, gradient = (
        torch.randn(6, 6, generator=torch.Generator().manual_seed(0)),
        torch.randn(6, 3, generator=torch.Generator().manual_seed(1)),
    )

    def moved(optimizer_of: Callable[[nn.Parameter], torch.optim.Optimizer]) -> Tensor:
        parameter = nn.Parameter(whole.clone()[:, :3])
        assert parameter.stride() == (6, 1)
        parameter.grad = laid_out_as(parameter, gradient)
        optimizer_of(parameter).step()
        return parameter.detach()

    plain = moved(lambda parameter: torch.optim.Adam([parameter], lr=0.1, fused=False, foreach=False))
    ours = moved(lambda parameter: build_optimizer(OptimizerConfig(name="adam", lr=0.1), {}, [parameter], ["a"], {}))
    mistaken = moved(lambda parameter: torch.optim.Adam([parameter], lr=0.1, fused=True))
    torch.testing.assert_close(ours, plain)
    assert float((mistaken - plain).abs().max()) > 0.1
