"""Items and inputs, one tensor or a mapping of them."""

from __future__ import annotations

import torch

from cl_framework.inputs import concatenated, parted


def test_parts_are_views_that_put_together_give_the_whole() -> None:
    whole = torch.arange(12.0).view(6, 2)
    parts = parted(whole, [3, 0, 1, 2])
    assert [len(part) for part in parts] == [3, 0, 1, 2]
    assert torch.equal(concatenated(parts), whole)
    assert not torch.equal(concatenated(parts[::-1]), whole)
    parts[2][0, 1] = -1.0
    assert whole[3, 1] == -1.0


def test_a_mapping_is_parted_name_by_name() -> None:
    whole = {"tokens": torch.arange(5), "mask": torch.arange(5) % 2 == 0}
    first, second = parted(whole, [2, 3])
    assert set(first) == set(second) == {"tokens", "mask"}
    assert first["tokens"].tolist() == [0, 1]
    assert second["mask"].tolist() == [True, False, True]
