"""Probes of the representation against spectra that are known."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cl_framework import load_experiment, representation, run
from cl_framework.assembly import assemble
from cl_framework.config import Named
from cl_framework.criterion import IGNORED, last_asked
from cl_framework.errors import ConfigurationError
from cl_framework.evaluation import evenly
from cl_framework.metrics import PROBES as NAMES
from cl_framework.records import RunDirectory
from cl_framework.report import figures_line, markdown_of_run
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
    assert found is not None
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


@pytest.mark.parametrize("dimensions", [48, 256])
def test_no_exponent_is_fitted_on_rounding_errors(dimensions: int) -> None:
    last = {48: 24, 256: 100}[dimensions]  # of the ranks
    scales = torch.arange(1, dimensions + 1).double() ** -0.65
    for seed in range(5):
        raw = torch.randn(4 * dimensions, dimensions, generator=torch.Generator().manual_seed(seed)).double() * scales
        assert [alpha_req(raw[:samples]) for samples in (2, last // 2, last)] == [None] * 3  # of rank N - 1 at most
        assert alpha_req((100 + raw[:last]).float()) is None  # far from the origin
        fitted = [alpha_req(raw[:samples]) for samples in (last + 1, 4 * dimensions)]
        assert fitted[0] is not None and fitted[1] == pytest.approx(1.3, abs=0.25)  # noisy, but of samples
    assert alpha_req(raw @ torch.diag((torch.arange(dimensions) < last - 1).double())) is None  # of many samples, and few directions
    assert alpha_req(raw @ torch.diag((torch.arange(dimensions) < last).double())) is not None
    assert alpha_req(raw[:, :1]) is None and alpha_req(raw[:, :2]) is not None


def test_collapsed_features_have_no_effective_rank_where_their_spectrum_has_no_entropy() -> None:
    """A constant that is not zero has one singular value; about its mean it has none."""
    zero, constant = torch.zeros(50, 6), torch.tensor([0.1, 3.0, -70.0]).expand(50, 3)
    assert [rankme(zero, of) for of in ("singular", "covariance")] == [None, None]
    assert rankme(constant) == pytest.approx(1, abs=1e-4) and rankme(constant, "covariance") is None
    assert alpha_req(zero) is None and alpha_req(constant) is None
    varied = constant + torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) / 100
    measured = rankme(varied, "covariance")
    assert measured is not None and 2.5 < measured <= 3
    assert rankme(varied) == pytest.approx(1, abs=0.01)  # the mean is one singular value, larger than all others


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


def test_a_large_test_split_is_looked_at_from_first_to_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first samples may be all of one class."""
    learner = assemble(load_experiment({**SETTINGS, "out": str(tmp_path)}))
    source = learner.benchmark.test[1]
    with torch.no_grad():
        features = learner.model.features(learner.benchmark.transform(source.read(torch.arange(len(source))), None))  # type: ignore[operator]
    monkeypatch.setattr(representation, "SAMPLES", 7)
    ((_, _, value, count),) = probed(learner, [1], ["rankme"])
    assert count == 7 < len(source) and value == pytest.approx(rankme(features[evenly(len(source), 7)]), rel=1e-6)
    assert value != pytest.approx(rankme(features[:7]), rel=1e-6)


@pytest.mark.parametrize("gone", [0.0, math.nan])
def test_what_a_probe_cannot_say_is_null_in_records_and_a_dash_in_reports(gone: float, tmp_path: Path) -> None:
    settings = {**SETTINGS, "stream": "L0", "out": str(tmp_path), "probes": list(PROBES)}
    found = run(load_experiment(settings)).summary
    assert found is not None and found["rankme"] is not None and "| L0 | –" not in markdown_of_run(found).partition("RankMe:")[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(representation, "_of_rows", lambda features, targets: features * gone)
        lost = run(load_experiment({**settings, "seed": 1}))
    assert lost.status == "done" and lost.summary is not None
    rows = [row for row in RunDirectory(lost.path).records() if row["metric"] in PROBES]
    assert len(rows) == 2 * len(PROBES) * lost.summary["num_tasks"] and {row["value"] for row in rows} == {None}
    assert lost.summary["rankme"] is lost.summary["alpha_req"] is None
    assert "| L0 | –" in markdown_of_run(lost.summary).partition("RankMe:")[2] and "RankMe" not in figures_line(lost.summary)


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
