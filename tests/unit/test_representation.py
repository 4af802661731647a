"""Probes of the representation against spectra that are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import load_experiment, run
from cl_framework.assembly import assemble
from cl_framework.config import Named
from cl_framework.criterion import IGNORED, last_asked
from cl_framework.errors import ConfigurationError
from cl_framework.metrics import PROBES as NAMES
from cl_framework.records import RunDirectory
from cl_framework.report import markdown_of_run
from cl_framework.representation import PROBES, alpha_req, probed, rankme, spectrum


def with_spectrum(values: Tensor, samples: int) -> Tensor:
    """Centred features (N, D) whose covariance has these eigenvalues."""
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(samples, len(values), generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(raw - raw.mean(0))
    rotation, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))
    return basis * (values * samples).sqrt() @ rotation


def test_effective_rank_lies_between_one_and_the_dimensions() -> None:
    assert rankme(with_spectrum(torch.ones(12).double(), 50)) == pytest.approx(12, rel=1e-3)
    one = torch.outer(torch.arange(1.0, 21.0), torch.arange(1.0, 9.0))
    assert rankme(one) == pytest.approx(1, abs=1e-3)
    features = with_spectrum(1 / torch.arange(1, 21).double(), 100)
    found = rankme(features)
    shares = (1 / torch.arange(1, 21).double()).sqrt()
    shares = shares / shares.sum()
    assert found == pytest.approx(math.exp(-sum(float(p) * math.log(float(p)) for p in shares)), rel=1e-4)
    assert rankme(features, "covariance") < found
    rotation, _ = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    assert rankme(7 * features @ rotation) == pytest.approx(found, rel=1e-6)
    assert rankme(features[:, :5]) < found
    with pytest.raises(ValueError, match="of must be one of singular, covariance, got 'all'"):
        rankme(features, "all")


@pytest.mark.parametrize("dimensions", [48, 256])
def test_the_exponent_of_a_power_law_is_found(dimensions: int) -> None:
    values = torch.arange(1, dimensions + 1).double() ** -1.3
    features = with_spectrum(values, 2 * dimensions)
    assert torch.allclose(spectrum(features), values, rtol=1e-6)
    assert alpha_req(features) == pytest.approx(1.3, rel=1e-5)
    assert alpha_req(5 * features) == pytest.approx(1.3, rel=1e-5)
    assert alpha_req(torch.cat([features, features])) == pytest.approx(1.3, rel=1e-5)
    assert alpha_req(with_spectrum(values.sqrt(), 2 * dimensions)) == pytest.approx(0.65, rel=1e-5)


SETTINGS: dict[str, Any] = {
    "benchmark": {"name": "synthetic"},
    "model": {"name": "mlp", "hidden": [16]},
    "batch_size": 8,
    "stream": "L0 L1",
    "threads": 1,
}


def test_probes_are_rows_like_any_other_and_move_no_number(tmp_path: Path) -> None:
    assert tuple(PROBES) == NAMES
    plain = run(load_experiment({**SETTINGS, "out": str(tmp_path / "plain")}))
    looked = run(load_experiment({**SETTINGS, "out": str(tmp_path / "looked"), "probes": list(PROBES)}))
    assert plain.summary is not None and looked.summary is not None
    assert looked.summary["accuracy_matrix"] == plain.summary["accuracy_matrix"]
    rows = [row for row in RunDirectory(looked.path).records() if row["metric"] in PROBES]
    assert len(rows) == 3 * 2 * 2  # before the first event and after each, of each task
    learner = assemble(load_experiment({**SETTINGS, "out": str(tmp_path)}))
    source = learner.benchmark.test[1]
    with torch.no_grad():
        features = learner.model.features(learner.benchmark.transform(source.read(torch.arange(len(source))), None))  # type: ignore[operator]
    own = next(row for row in rows if (row["event_index"], row["eval_task"], row["metric"]) == (-1, 1, "rankme"))
    assert own["value"] == pytest.approx(rankme(features), rel=1e-6) and own["n"] == len(source)
    matrix = looked.summary["rankme_matrix"]
    last = [row["value"] for row in rows if (row["event_index"], row["metric"]) == (1, "rankme")]
    assert matrix[-1] == last and matrix[0] != last and looked.summary["rankme"] == pytest.approx(sum(last) / 2)
    assert f"| L1 | {last[0]:.2f} | {last[1]:.2f} |" in markdown_of_run(looked.summary) and "RankMe:" in markdown_of_run(looked.summary)
    assert {"rankme", "alpha_req_matrix"} <= set(looked.summary) and not {"rankme", "alpha_req_matrix"} & set(plain.summary)
    assert own["value"] != pytest.approx(next(row for row in rows[::-1] if row["metric"] == "rankme")["value"], rel=1e-3)


def test_of_a_text_the_last_place_that_asks_is_looked_at_and_not_the_padding_behind_it(tmp_path: Path) -> None:
    options = {"name": "arithmetic", "skills": ["add_plain"], "train": 8, "test": 40}
    model = {"name": "decoder", "width": 16, "layers": 1, "heads": 2}
    settings = {**SETTINGS, "benchmark": options, "model": model, "stream": "L0", "out": str(tmp_path)}
    learner = assemble(load_experiment(settings))
    source = learner.benchmark.test[0]
    found = {name: value for _, name, value, _ in probed(learner, [0], list(PROBES))}
    with torch.no_grad():
        features = learner.model.eval().features(learner.benchmark.transform(source.read(torch.arange(len(source))), None))  # type: ignore[operator]
    ends = [int((row != IGNORED).nonzero()[-1]) for row in source.targets]
    assert len(set(ends)) > 1 and last_asked(source.targets).tolist() == ends
    asked = features[torch.arange(len(source)), torch.tensor(ends)]
    for name, value in found.items():
        assert value == pytest.approx(PROBES[name](asked), rel=1e-5)
        assert value != pytest.approx(PROBES[name](features[:, -1]), rel=1e-3)


def test_what_probes_cannot_look_at_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="probes must be one of rankme, alpha_req, got 'rank'"):
        load_experiment({**SETTINGS, "probes": ["rank"]})
    for probes in ([], ["rankme"]):
        experiment = load_experiment({**SETTINGS, "out": str(tmp_path), "probes": probes})
        model = Named(
            "bare",
            None,
            lambda options, benchmark: nn.Sequential(nn.Flatten(), nn.Linear(math.prod(benchmark.input_shape), benchmark.num_classes)),
        )
        if probes:
            with pytest.raises(ConfigurationError, match=r"model 'bare' has no `features` and `head`. Set probes="):
                assemble(replace(experiment, model=model))
        else:
            assert assemble(replace(experiment, model=model)).run.probes == []
