"""Networks: sizes against the published ones, pooling against adaptive pooling, and what is computed for which head."""

import math
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ddcat_train.choices import BACKBONE_GROUP, BackboneName, ContextName, Head, Stem
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks import (
    BACKBONES,
    CONTEXTS,
    Backbone,
    ComposedSegmenter,
    Segmenter,
    Stages,
    build_backbone,
    build_segmenter,
    load_backbone,
)
from ddcat_train.networks.fusion import UPerNet
from ddcat_train.networks.layers import pool_to_bins
from tests.files import needed

HEADS: tuple[Head, ...] = get_args(Head)


def small(context: ContextName = "pyramid", backbone: BackboneName = "resnet10") -> Segmenter:
    torch.manual_seed(0)
    width = 8 if backbone == "resnet10" else 64
    model = ModelConfig(backbone=backbone, context=context, width=width)
    return build_segmenter(model, classes=5, heads=HEADS).eval()


def keeps_its_promise(body: Backbone) -> None:
    """See `Backbone`: the channels and the size that it states."""
    for height, width in ((33, 33), (65, 97), (70, 40)):
        stages = body(torch.zeros(1, 3, height, width))
        assert stages.last.shape == (1, body.channels, math.ceil(height / body.stride), math.ceil(width / body.stride))
        assert stages.intermediate.shape[:2] == (1, body.intermediate_channels)


@pytest.mark.parametrize(
    ("context", "heads", "parameters"),
    [
        ("pyramid", ("main", "deep"), 49_081_578),
        ("pyramid", HEADS, 86_844_161),
        ("aspp", ("main", "deep"), 39_440_362),
        ("aspp", HEADS, 40_102_657),
    ],
)
def test_the_papers_networks_have_their_published_sizes(context: ContextName, heads: tuple[Head, ...], parameters: int) -> None:
    with torch.device("meta"):
        network = build_segmenter(ModelConfig(backbone="resnet50", context=context), classes=21, heads=heads)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_every_name_is_built() -> None:
    assert set(BACKBONES) == set(get_args(BackboneName))
    assert set(CONTEXTS) == set(get_args(ContextName))


@pytest.mark.parametrize("stem", get_args(Stem))
@pytest.mark.parametrize(("backbone", "blocks"), [("resnet18", 8), ("resnet34", 16), ("resnet50", 16), ("resnet101", 33)])
def test_resnets_have_their_blocks_behind_either_stem(backbone: BackboneName, blocks: int, stem: Stem) -> None:
    body = build_backbone(ModelConfig(backbone=backbone, width=8, stem=stem)).eval()
    keeps_its_promise(body)
    assert sum(len(getattr(body, f"layer{stage}")) for stage in (1, 2, 3, 4)) == blocks
    assert {key.partition(".")[0] for key in body.state_dict()} == {f"layer{stage}" for stage in range(5)}


def test_the_plain_stem_is_torchvisions() -> None:
    body = build_backbone(ModelConfig(backbone="resnet50", stem="plain"))
    shapes = {key: tuple(value.shape) for key, value in body.state_dict().items() if key.startswith("layer0.")}
    assert shapes.pop("layer0.0.weight") == (64, 3, 7, 7)
    assert {key.partition(".1.")[0] for key in shapes} == {"layer0"}
    assert body.state_dict()["layer1.0.conv1.weight"].shape == (64, 64, 1, 1)
    kinds = [type(module).__name__ for module in body.layer0]  # type: ignore[attr-defined]
    assert kinds == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]


@pytest.mark.parametrize("stride", [8, 16])
def test_mobilenet_keeps_the_size_that_is_asked_for(stride: Literal[8, 16]) -> None:
    body = build_backbone(ModelConfig(backbone="mobilenet_v2", output_stride=stride)).eval()
    assert body.stride == stride
    keeps_its_promise(body)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("stem", get_args(Stem))
def test_a_resnets_stride_is_the_one_that_is_asked_for(stem: Stem, stride: Literal[8, 16, 32]) -> None:
    body = build_backbone(ModelConfig(backbone="resnet18", width=8, stem=stem, output_stride=stride)).eval()
    assert body.stride == stride
    keeps_its_promise(body)
    stages = body(torch.zeros(1, 3, 65, 70))
    assert [maps.shape[1:] for maps in stages.earlier] == [(8, 17, 18), (16, 9, 9)]
    assert body.earlier_channels == (8, 16)


@pytest.mark.parametrize("context", ["upernet", "segformer", "deeplabv3plus"])
@pytest.mark.parametrize(
    "model",
    [
        {"backbone": "resnet18", "width": 8, "output_stride": 32},
        {"backbone": "mobilenet_v2", "output_stride": 8},
        {"backbone": "efficientnet_lite0", "output_stride": 32},
        {"backbone": "convnext_tiny", "output_stride": 32, "align_corners": False},
        {"backbone": "mit_b0", "output_stride": 32},
    ],
)
def test_contexts_of_several_stages_have_the_size_of_the_finest(context: ContextName, model: dict[str, Any]) -> None:
    network = build_segmenter(ModelConfig(context=context, context_width=8, **model), classes=3, heads=HEADS).eval()
    for height, width in ((33, 33), (64, 71)):
        images = torch.rand(1, 3, height, width)
        with torch.no_grad():
            low = network.low_resolution_logits("main", network.features(images))
            assert low.shape == (1, 3, math.ceil(height / 4), math.ceil(width / 4))
            found = network(images, heads=HEADS)
        assert {head: tuple(logits.shape) for head, logits in found.items()} == {
            head: (1, 2 if head == "mask" else 3, height, width) for head in HEADS
        }
        assert all(bool(logits.isfinite().all()) for logits in found.values())


class Plain(Backbone):
    """One of a package, which knows of no earlier stages."""

    stride, intermediate_channels, channels = 8, 4, 8

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.last = torch.nn.Conv2d(4, 8, 3, stride=2, padding=1)

    def forward(self, images: torch.Tensor) -> Stages:
        intermediate = self.first(images)
        return Stages(intermediate, self.last(intermediate))


def test_a_backbone_of_two_stages_has_an_upernet_as_well() -> None:
    context = UPerNet((4, 8), width=8, align_corners=True)
    network = ComposedSegmenter(Plain(), context, classes=3, heads=("main",))
    assert network(torch.rand(2, 3, 40, 50)).shape == (2, 3, 40, 50)


def test_the_rates_of_layers_follow_the_depth_of_a_convnext() -> None:
    body = build_backbone(ModelConfig(backbone="convnext_tiny", output_stride=32, align_corners=False))
    layers = body.layers()
    parameters = [parameter for layer in layers for parameter in layer.parameters()]
    assert len(layers) == 4 + 18
    assert {id(p) for p in parameters} == {id(p) for p in body.parameters()}
    assert len(parameters) == len(list(body.parameters()))
    assert [next(layer.parameters()).shape[0] for layer in layers[:2]] == [48, 96]  # stem, first block


def test_stochastic_depth_passes_blocks_over_in_training_alone() -> None:
    torch.manual_seed(0)
    model = ModelConfig(backbone="convnext_tiny", output_stride=32, align_corners=False, drop_path=0.9)
    body = build_backbone(model)
    for name, parameter in body.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(body.eval()(images).last, body(images).last)
        assert not torch.equal(body.train()(images).last, body(images).last)
    torch.manual_seed(0)
    block = body.stages[0][2]  # type: ignore[index, operator]
    block.drop_path = 0.25
    maps = torch.randn(400, 96, 2, 2)
    with torch.no_grad():
        residual = block.eval()(maps) - maps
        found = block.train()(maps) - maps
    kept = found.flatten(1).any(1)
    assert 0.65 < float(kept.float().mean()) < 0.85
    torch.testing.assert_close(found[kept], residual[kept] / 0.75, rtol=1e-4, atol=1e-4)


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 2, 3, 6]))
@settings(deadline=None)
def test_pooling_is_exact_for_every_size(height: int, width: int, bins: int) -> None:
    maps = torch.rand(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(height))
    torch.testing.assert_close(pool_to_bins(maps, bins), F.adaptive_avg_pool2d(maps, bins))


@pytest.mark.parametrize(("height", "width", "equal"), [(12, 18, True), (13, 18, False), (12, None, False)])
def test_an_export_for_one_size_pools_equal_bins_without_matrices(height: int, width: int | None, equal: bool) -> None:
    class Pool(torch.nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return pool_to_bins(maps, 6)

    maps = torch.rand(1, 4, height, width or 24)
    free = None if width else ({3: torch.export.Dim("width", min=2)},)
    program = torch.export.export(Pool(), (maps,), dynamic_shapes=free)
    assert ("avg_pool2d" in str(program.graph)) is equal
    torch.testing.assert_close(program.module()(maps), F.adaptive_avg_pool2d(maps, 6))


@pytest.mark.parametrize("context", get_args(ContextName))
@given(height=st.integers(33, 80), width=st.integers(33, 80))
@settings(deadline=None, max_examples=3)
@torch.no_grad()
def test_every_size_from_33_on_is_taken(context: ContextName, height: int, width: int) -> None:
    logits = small(context)(torch.rand(1, 3, height, width), HEADS)
    assert {head: value.shape[1:] for head, value in logits.items()} == {
        head: (2 if head == "mask" else 5, height, width) for head in HEADS
    }


@pytest.mark.parametrize("context", get_args(ContextName))
def test_only_the_heads_that_are_asked_for_are_computed(context: ContextName) -> None:
    network, computed = small(context), []
    for name, head in network.heads.items():
        head.register_forward_hook(lambda module, inputs, output, name=name: computed.append(name))
    images = torch.rand(1, 3, 49, 41)
    main = network(images)
    assert computed == ["main"]
    both = network(images, ("mask", "main"))
    assert computed[1:] == ["mask", "main"]
    assert torch.equal(both["main"], main)


def test_images_are_normalised_inside() -> None:
    network = small()
    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    noise = torch.randn(1, 3, 33, 33)
    torch.testing.assert_close(network.normalise(noise * std + mean), noise, atol=1e-5, rtol=0)


def test_pretrained_weights_are_loaded_to_the_last_tensor() -> None:
    body = build_backbone(ModelConfig(backbone="mobilenet_v2", output_stride=16))
    weights = needed("weights/mobilenet_v2_imagenet.safetensors")
    load_backbone(body, weights)
    file = load_file(weights)
    state = body.state_dict()
    assert {key for key in file if not key.startswith("features.18.")} == set(state)
    assert all(torch.equal(state[key], file[key]) for key in state)


def test_every_mismatch_of_a_weight_file_is_named(tmp_path: Path) -> None:
    body = build_backbone(ModelConfig(backbone="resnet10", width=8))
    weights = dict(body.state_dict())
    del weights["layer1.0.conv1.weight"]
    weights["layer9.weight"] = torch.zeros(1)
    weights["layer0.0.weight"] = torch.zeros(1, 3, 3, 3)
    weights["fc.weight"] = torch.zeros(10, 64)  # of the classifier: passed over
    save_file(weights, tmp_path / "weights.safetensors")
    before = {key: value.clone() for key, value in body.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_backbone(body, tmp_path / "weights.safetensors")
    message = str(caught.value)
    assert "layer1.0.conv1.weight is missing" in message
    assert "layer9.weight is not a key of the network" in message
    assert "layer0.0.weight has shape (1, 3, 3, 3) instead of (8, 3, 3, 3)" in message
    assert "fc.weight" not in message
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"not weights"])
def test_a_weight_file_that_is_none_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_backbone(build_backbone(ModelConfig(backbone="resnet10", width=8)), path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


class Silent(Backbone):
    """A backbone that does not say what it hands on, but for its stride."""

    stride = 8

    def forward(self, images: torch.Tensor) -> Stages:
        raise AssertionError("it is refused before it is called")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("one:make", "two:make"), "several packages bring the backbone brought: one:make, two:make"),
        (("no_such_module:make",), "brought is not at no_such_module:make, as its package says: No module named"),
        (("math:no_such_name",), "brought is not at math:no_such_name, as its package says: .* no attribute"),
        (("builtins:str",), "builtins:str gives no Backbone but a str"),
        ((f"{__name__}:silent",), "the Silent of .*:silent does not say its intermediate_channels and channels$"),
    ],
)
def test_what_a_package_brings_must_be_one_backbone(
    targets: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(*, group: str, name: str) -> list[EntryPoint]:
        assert group == BACKBONE_GROUP
        return [EntryPoint(name, target, group) for target in targets]

    monkeypatch.setattr("ddcat_train.networks.entry_points", found)
    model = ModelConfig.model_construct(backbone="brought")  # which asks what is installed, in truth
    with pytest.raises(ConfigError, match=message) as caught:
        build_backbone(model)
    assert "\n" not in str(caught.value)


def silent(model: ModelConfig) -> Backbone:
    return Silent()
