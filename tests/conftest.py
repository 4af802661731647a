"""One torch thread for every test: what is compared bit for bit must not depend on the machine's cores."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports the hub: no test may ask it
# How fast a machine draws examples is no finding about the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: tests that wait behind one are not handed to another process before it has ended."""
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)


@pytest.fixture(scope="session", autouse=True)
def callbacks_of_other_packages_looked_for_once() -> Iterator[None]:
    """Lightning searches all that is installed for them whenever a Trainer is made, a tenth of a small run."""
    from lightning_fabric.utilities import registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
