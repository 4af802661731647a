"""The controls of unlearning: each does exactly what its name says, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cl_framework import ConfigurationError
from cl_framework.records import RunDirectory
from cl_framework.testing.laboratory import Outcome, experiment_of, finish, first_difference
from strategies.noise import noise_like
from strategies.reset_head import reset_rows
from tests.unit.test_language_modelling import TINY
from tests.unit.test_language_modelling import experiment as on_texts

LENDER = {"er": {"capacity": 30}}


def outcome(folder: Path, strategies: dict[str, Any], stream: str = "L0 L1 U0", **settings: Any) -> Outcome:
    return finish(experiment_of(strategies, folder, stream=stream, epochs=5, **settings))


def weights(found: Outcome) -> dict[str, torch.Tensor]:
    return dict(found.learner["model"])


def test_nothing_is_done(tmp_path: Path) -> None:
    unlearned = weights(outcome(tmp_path / "unlearned", {"do_nothing": {}}))
    learned = weights(outcome(tmp_path / "learned", {"do_nothing": {}}, "L0 L1"))
    assert first_difference(unlearned, learned, "weights") is None
    ids = [
        set(
            outcome(tmp_path / stream, {"do_nothing": {}, **LENDER}, stream)
            .learner["strategies"]["er"]["memory"]["columns"]["ids"]
            .tolist()
        )
        for stream in ("L0 L1", "L0 L1 U0")
    ]
    assert any(sample < 36 for sample in ids[0]) and min(ids[1]) >= 36  # memories forget all the same


@pytest.mark.parametrize(("event", "rows"), [("U0", [0, 1]), ("U1:class=3", [3])])
def test_the_heads_rows_are_drawn_anew_and_nothing_else(event: str, rows: list[int], tmp_path: Path) -> None:
    after = weights(outcome(tmp_path / "after", {"reset_head": {}}, f"L0 L1 {event}"))
    before = weights(outcome(tmp_path / "before", {"reset_head": {}}, "L0 L1"))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["head.weight", "head.bias"]
    for name in changed:
        moved = (before[name] != after[name]).flatten(1).any(1) if before[name].ndim > 1 else before[name] != after[name]
        assert moved.nonzero().flatten().tolist() == rows
    bound = after["head.weight"].shape[1] ** -0.5
    assert after["head.weight"][rows].abs().max() <= bound and after["head.bias"][rows].eq(0).all()


def test_of_a_language_model_the_whole_head_is_drawn_anew_and_nothing_else(tmp_path: Path) -> None:
    """Texts share their tokens."""

    def after(name: str, stream: str) -> dict[str, torch.Tensor]:
        return weights(finish(on_texts(tmp_path, {name: {}}, stream=stream)))

    before, reset = after("reset_head", "L0 L1"), after("reset_head", "L0 L1 U0")
    assert [name for name in before if not torch.equal(before[name], reset[name])] == ["head.weight"] and len(before) > 5
    assert (before["head.weight"] != reset["head.weight"]).any(1).all()
    assert reset["head.weight"].abs().max() == pytest.approx(reset["head.weight"].shape[1] ** -0.5, rel=0.01)
    assert first_difference(after("do_nothing", "L0 L1 U0"), before, "weights") is None


def test_a_head_that_is_the_embedding_too_or_frozen_is_refused(tmp_path: Path) -> None:
    tied = on_texts(tmp_path, {"reset_head": {}}, model={**TINY, "tied": True}, stream="L0 L1 U0")
    with pytest.raises(
        ConfigurationError,
        match=r"^strategies\.reset_head\.head: its matrix is that of body\.embed_tokens too, which would be drawn anew with it\. "
        r"Set model\.tied=false, or choose another control\.$",
    ):
        finish(tied)
    frozen = {"reset_head": {}, "lora": {"train_head": False, "rank": 2}}
    with pytest.raises(
        ConfigurationError,
        match=r"^strategies\.reset_head\.head: it is frozen, so that it holds nothing of what is unlearned\. "
        r"Set strategies\.lora\.train_head=true, or choose another control\.$",
    ):
        finish(on_texts(tmp_path, frozen, stream="L0 L1 U0"))
    trained = {"reset_head": {}, "lora": {"rank": 2}}
    before, after = (weights(finish(on_texts(tmp_path, trained, stream=stream))) for stream in ("L0 L1", "L0 L1 U0"))
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["base.head.weight"]


def test_fresh_rows_are_spread_as_torch_spreads_them() -> None:
    head = nn.Linear(4000, 3)
    reset_rows(head, [0, 2], torch.Generator().manual_seed(0))
    assert float(head.weight[[0, 2]].detach().std()) == pytest.approx(4000**-0.5 / 3**0.5, rel=0.02)


def test_a_model_without_a_linear_head_is_refused(tmp_path: Path) -> None:
    experiment = experiment_of({"reset_head": {}, "hypernetwork": {}}, tmp_path, stream="L0 L1", scenario="task_il")
    with pytest.raises(ConfigurationError, match=r"^strategies\.reset_head\.head: the model has no linear `head` to draw anew"):
        finish(experiment)  # the model as configured has one, what is built of it has not
    assert not list(tmp_path.iterdir())

    class Headless(nn.Module):
        pass

    from strategies.reset_head import ResetHead, ResetHeadConfig

    strategy = ResetHead(ResetHeadConfig())
    setting: Any = type("Setting", (), {"model": Headless()})()
    with pytest.raises(ConfigurationError, match=r"head: the model has no linear `head` to draw anew"):
        strategy.check(setting)


def test_noise_has_the_norm_asked_for(tmp_path: Path) -> None:
    after = weights(outcome(tmp_path / "after", {"noise": {"norm": 0.3}}))
    before = weights(outcome(tmp_path / "before", {"noise": {}}, "L0 L1"))
    moved = {name: float((after[name] - before[name]).norm() / before[name].norm()) for name in before}
    assert moved == pytest.approx(dict.fromkeys(moved, 0.3), rel=1e-4) and len(moved) >= 4
    silent = weights(outcome(tmp_path / "silent", {"noise": {"norm": 0.0}}))
    assert first_difference(silent, before, "weights") is None
    assert noise_like(torch.zeros(5), 0.5, torch.Generator().manual_seed(0)).eq(0).all()


def test_fine_tuning_reads_what_memories_lend_and_only_that(tmp_path: Path) -> None:
    lender = {"er": {"capacity": 30, "minibatch": 24}}
    found = outcome(tmp_path / "tuned", {"finetune_retain": {"steps": 7}, **lender})
    row = RunDirectory(found.path).events()[-1]
    assert (row["steps"], row["samples"], row["forward_passes"], row["backward_passes"]) == (7, 0, 7, 7)
    assert row["samples_drawn"] > 0
    before = weights(outcome(tmp_path / "before", {"finetune_retain": {}, **lender}, "L0 L1"))
    assert first_difference(weights(found), before, "weights") is not None
    with pytest.raises(ConfigurationError, match=r"strategies\.finetune_retain needs samples of what is retained"):
        outcome(tmp_path / "alone", {"finetune_retain": {}})


def test_a_reset_head_cannot_unlearn_samples(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="unlearns at sample level, but no strategy of this stack can do that"):
        outcome(tmp_path, {"reset_head": {}}, "L0 U0:fraction=0.5@seed1")
