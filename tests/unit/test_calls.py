"""Calls of a model at other weights leave no trace, whatever the model shares with itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cl_framework.calls import call_at, evaluation_mode
from cl_framework.errors import ContractError


class SharedModule(nn.Module):
    """One head under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.head = self.base[2]

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.base[:2](inputs))  # type: ignore[no-any-return]


class SharedParameter(nn.Module):
    """Two modules with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [SharedModule, SharedParameter, lambda: nn.Linear(3, 2)])
@pytest.mark.parametrize("names", ["parameters", "state"])
def test_at_other_weights_it_answers_as_a_model_that_has_them(kind: Callable[[], nn.Module], names: str) -> None:
    torch.manual_seed(0)
    model, other = kind(), kind()
    model.eval(), other.eval()
    inputs = torch.randn(5, 3)
    values = dict(other.named_parameters()) if names == "parameters" else other.state_dict()
    before, own = {name: value.clone() for name, value in model.state_dict().items()}, model(inputs)
    parameters = [id(parameter) for parameter in model.parameters()]
    assert torch.equal(call_at(model, values, inputs), other(inputs))
    assert not torch.equal(own, other(inputs))  # the control
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(inputs), own)


def test_within_a_vmap_nothing_is_left_behind() -> None:
    model = SharedModule().eval()
    values = dict(model.named_parameters())

    def of_row(row: Tensor) -> tuple[Tensor, ...]:
        names = list(values)

        def first(*given: Tensor) -> Tensor:
            return call_at(model, dict(zip(names, given, strict=True)), row[None])[0, 0]

        return torch.func.grad(first, argnums=tuple(range(len(names))))(*values.values())

    found = torch.func.vmap(of_row)(torch.randn(4, 3))
    assert [len(part) for part in found] == [4] * len(values)
    assert all(isinstance(parameter, nn.Parameter) for parameter in model.parameters())
    model.cpu()


def test_a_value_for_what_the_model_does_not_have_is_refused() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ContractError, match="'scale', which is no parameter or buffer of the model"):
        call_at(model, {**model.state_dict(), "scale": torch.ones(1)}, torch.randn(5, 3))


def test_each_name_of_a_tied_parameter_has_its_own_value_where_it_is_given_one() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    own, inputs, double = model[0].weight, torch.randn(5, 3), 2 * torch.eye(3)
    expected = {"both": inputs @ double @ double, "first": inputs @ double @ own.detach().T}
    assert torch.allclose(call_at(model, {"0.weight": double}, inputs), expected["both"])
    assert torch.allclose(call_at(model, {"0.weight": double, "1.weight": own.detach()}, inputs), expected["first"])
    assert not torch.allclose(expected["both"], expected["first"])
    with pytest.raises(RuntimeError):
        call_at(model, {"0.weight": double}, torch.randn(5, 4))
    assert model[0].weight is own is model[1].weight


def test_each_module_has_its_own_mode_again_after_evaluation_mode() -> None:
    model = SharedModule()
    model.base[1].eval()  # frozen statistics
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.base] == [True, False, True] and model.training
