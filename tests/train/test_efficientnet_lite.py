"""EfficientNet-Lite against its definition: TensorFlow's padding written down literally, published sizes, and timm."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddcat_train.choices import BackboneName
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError
from ddcat_train.networks import Backbone, build_backbone, build_segmenter, load_backbone
from ddcat_train.weight_import import import_checkpoint
from tests.files import needed
from tests.train.test_networks import keeps_its_promise

Stride = Literal[8, 16, 32]

# Kernel and stride of each stage, and the first blocks of the stages that have stride 2
KERNELS = (3, 3, 5, 3, 5, 5, 3)
STRIDES = (1, 2, 2, 2, 1, 2, 1)
BLOCKS: dict[BackboneName, tuple[int, ...]] = {
    "efficientnet_lite0": (1, 2, 2, 3, 3, 4, 1),
    "efficientnet_lite2": (1, 3, 3, 4, 4, 5, 1),
}


def same_convolution(maps: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
    """TensorFlow's padding "SAME": ceil(n / stride) places, what it takes shared out, the odd one at the end."""
    padding: list[int] = []
    for size, kernel in ((maps.shape[3], weight.shape[3]), (maps.shape[2], weight.shape[2])):
        places = -(-size // stride)
        total = max((places - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
        padding += [total // 2, total - total // 2]
    groups = maps.shape[1] // weight.shape[1]
    return F.conv2d(F.pad(maps, padding), weight, stride=stride, dilation=dilation, groups=groups)


def literal(tensors: dict[str, Tensor], images: Tensor, name: BackboneName, output_stride: int) -> dict[str, Tensor]:
    """The network as its file of weights has it; the maps at the end of each stage but the first."""

    def layer(maps: Tensor, convolution: str, norm: str, stride: int = 1, dilation: int = 1) -> Tensor:
        maps = same_convolution(maps, tensors[f"{convolution}.weight"], stride, dilation)
        mean, variance, weight, bias = (tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(maps, mean, variance, weight, bias, eps=1e-3)

    maps = layer(images, "_conv_stem", "_bn0", 2).clamp(0, 6)
    reached, dilation, block, found = 2, 1, 0, {}
    for stage, count in enumerate(BLOCKS[name]):
        for index in range(count):
            stride, own = (STRIDES[stage] if index == 0 else 1), dilation
            if stride == 2 and reached == output_stride:
                stride, dilation = 1, 2 * dilation
            reached *= stride
            key, before = f"_blocks.{block}", maps
            if f"{key}._expand_conv.weight" in tensors:
                maps = layer(maps, f"{key}._expand_conv", f"{key}._bn0").clamp(0, 6)
            assert tensors[f"{key}._depthwise_conv.weight"].shape[2:] == (KERNELS[stage],) * 2
            maps = layer(maps, f"{key}._depthwise_conv", f"{key}._bn1", stride, own).clamp(0, 6)
            maps = layer(maps, f"{key}._project_conv", f"{key}._bn2")
            maps = maps + before if maps.shape == before.shape else maps
            block += 1
        found[str(stage)] = maps
    assert f"_blocks.{block}._bn2.weight" not in tensors
    return found


def like_its_file(body: Backbone) -> dict[str, Tensor]:
    """Random weights by the keys of efficientnet_lite_pytorch: those of the stem, the blocks and what is left out."""
    generator = torch.Generator().manual_seed(0)
    names = {"expand.0": "_expand_conv", "expand.1": "_bn0", "depthwise.0": "_depthwise_conv", "depthwise.1": "_bn1",
             "project.0": "_project_conv", "project.1": "_bn2"}  # fmt: skip
    tensors = {}
    for key, value in body.state_dict().items():
        theirs = key.replace("stem.0.", "_conv_stem.").replace("stem.1.", "_bn0.").replace("blocks.", "_blocks.")
        for ours, name in names.items():
            theirs = theirs.replace(f".{ours}.", f".{name}.")
        if value.ndim == 4:
            drawn = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif value.ndim == 0:
            drawn = value
        else:
            drawn = torch.rand(value.shape, generator=generator) + (0.5 if key.endswith(("var", "weight")) else -0.5)
        tensors[theirs] = drawn
    return tensors | {"_conv_head.weight": torch.zeros(1280, body.channels, 1, 1), "_fc.weight": torch.zeros(1000, 1280)}


@pytest.fixture(params=["efficientnet_lite0", pytest.param("efficientnet_lite2", marks=pytest.mark.slow)])
def weights(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[BackboneName, dict[str, Tensor], Path]:
    name: BackboneName = request.param
    tensors, path = like_its_file(build_backbone(ModelConfig(backbone=name))), tmp_path / "file.safetensors"
    save_file(tensors, path)
    return name, tensors, path


@pytest.mark.parametrize("output_stride", [8, pytest.param(16, marks=pytest.mark.slow), 32])
def test_every_size_is_padded_as_tensorflow_pads_it(
    output_stride: Stride, weights: tuple[BackboneName, dict[str, Tensor], Path]
) -> None:
    name, tensors, path = weights
    body = build_backbone(ModelConfig(backbone=name, output_stride=output_stride)).eval()
    load_backbone(body, path)
    body.double()
    exact = {key: value.double() for key, value in tensors.items()}
    for size in ((64, 96), (33, 34), (65, 47), (58, 35)):
        images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(size[0]))
        with torch.no_grad():
            stages = body(images)
            wanted = literal(exact, images, name, output_stride)
        for maps, stage in zip((*stages.earlier, *stages[:2]), "1246", strict=True):
            torch.testing.assert_close(maps, wanted[stage], rtol=1e-9, atol=1e-9 * float(wanted[stage].std()))


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_it_keeps_its_promise(output_stride: Stride) -> None:
    body = build_backbone(ModelConfig(backbone="efficientnet_lite0", output_stride=output_stride)).eval()
    assert body.stride == output_stride
    keeps_its_promise(body)
    assert tuple(maps.shape[1] for maps in body(torch.zeros(1, 3, 33, 33)).earlier) == body.earlier_channels


@pytest.mark.parametrize(
    ("size", "parameters"), [(0, 4_652_008), (1, 5_416_680), (2, 6_092_072), (3, 8_197_096), (4, 13_006_568)]
)
def test_each_has_its_published_size(size: int, parameters: int) -> None:
    with torch.device("meta"):
        body = build_backbone(ModelConfig(backbone=f"efficientnet_lite{size}"))
    classifier = body.channels * 1280 + 2 * 1280 + 1281 * 1000
    assert sum(parameter.numel() for parameter in body.parameters()) + classifier == parameters


def test_the_network_normalises_as_its_weights_were_trained() -> None:
    network = build_segmenter(ModelConfig(backbone="efficientnet_lite0", output_stride=16), classes=3)
    assert network.normalise(torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)).flatten().tolist() == [-1, 0, 1]
    assert network.normalise(torch.ones(1, 3, 1, 1)).flatten().tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", BLOCKS)
def test_the_pretrained_files_give_what_their_definition_gives(name: BackboneName) -> None:
    path = needed(f"weights/{name}_imagenet.safetensors")
    body = build_backbone(ModelConfig(backbone=name, output_stride=16)).eval()
    load_backbone(body, path)
    images = torch.rand(1, 3, 97, 130, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        maps = body.double()(images.double()).last
        wanted = literal({key: value.double() for key, value in load_file(path).items()}, images.double(), name, 16)["6"]
    assert float(maps.std()) > 0.1
    torch.testing.assert_close(maps, wanted, rtol=1e-9, atol=1e-9 * float(wanted.std()))


def test_what_does_not_fit_is_named(weights: tuple[BackboneName, dict[str, Tensor], Path], tmp_path: Path) -> None:
    name, tensors, _ = weights
    del tensors["_blocks.3._bn1.weight"]
    save_file(tensors | {"_blocks.0._se.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(
        CheckpointError, match=r"blocks\.3\.depthwise\.1\.weight is missing; _blocks\.0\._se\.weight is not a key"
    ):
        load_backbone(build_backbone(ModelConfig(backbone=name)), tmp_path / "x.safetensors")
    other: BackboneName = "efficientnet_lite4"
    with pytest.raises(CheckpointError, match="does not fit a EfficientNetLite of this form"):
        load_backbone(build_backbone(ModelConfig(backbone=other)), tmp_path / "x.safetensors")


def test_a_torch_file_becomes_one_to_start_from(weights: tuple[BackboneName, dict[str, Tensor], Path], tmp_path: Path) -> None:
    name, tensors, path = weights
    torch.save(tensors, tmp_path / "x.pth")
    said = import_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert said.splitlines()[0].endswith(f"{name}; left out: _conv_head, _fc")
    direct, imported = (build_backbone(ModelConfig(backbone=name)) for _ in range(2))
    load_backbone(direct, path)
    load_backbone(imported, tmp_path / "x.safetensors")
    assert all(torch.equal(value, imported.state_dict()[key]) for key, value in direct.state_dict().items())


def timms(name: str, **options: object) -> torch.nn.Module:
    try:
        import timm  # noqa: PLC0415
    except Exception as cause:  # its torchvision may be built for another torch
        pytest.skip(f"needs timm and a torchvision of this torch: {cause}")
    return timm.create_model(name, pretrained=False, **options).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", ["0", "3"])
@pytest.mark.parametrize("output_stride", [16, 32])
def test_it_is_timms(size: str, output_stride: Stride, tmp_path: Path) -> None:
    torch.manual_seed(0)
    peer = timms(f"tf_efficientnet_lite{size}")
    features = timms(f"tf_efficientnet_lite{size}", features_only=True, output_stride=output_stride)
    for module in peer.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    features.load_state_dict(peer.state_dict(), strict=False)
    save_file(peer.state_dict(), tmp_path / "timm.safetensors")
    body = build_backbone(ModelConfig(backbone=f"efficientnet_lite{size}", output_stride=output_stride)).eval()
    load_backbone(body, tmp_path / "timm.safetensors")
    run: Callable[[Tensor], list[Tensor]] = features
    for shape in ((64, 64), (97, 65)):
        images = torch.randn(1, 3, *shape)
        with torch.no_grad():
            stages = body(images)
            wanted = run(images)[1:]
        for maps, peers in zip((*stages.earlier, *stages[:2]), wanted, strict=True):
            torch.testing.assert_close(maps, peers, rtol=1e-4, atol=1e-4 * float(peers.std()))


def test_the_keys_of_timm_are_known(weights: tuple[BackboneName, dict[str, Tensor], Path], tmp_path: Path) -> None:
    name, tensors, path = weights
    blocks = [(stage, block) for stage, count in enumerate(BLOCKS[name]) for block in range(count)]
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    inverted |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    theirs = {}
    for key, value in tensors.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            stage, block = blocks[int(parts[1])]
            layer = (inverted if stage else separable)[parts[2]]
            theirs[".".join(["blocks", str(stage), str(block), layer, *parts[3:]])] = value
        else:
            stem = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_fc": "classifier"}[parts[0]]
            theirs[".".join([stem, *parts[1:]])] = value
    save_file(theirs, tmp_path / "timm.safetensors")
    one, other = (build_backbone(ModelConfig(backbone=name)) for _ in range(2))
    load_backbone(one, path)
    load_backbone(other, tmp_path / "timm.safetensors")
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())
