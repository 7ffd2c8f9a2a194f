"""Files of mmsegmentation and of robust UPerNets: every key finds its place, and the network computes what the file does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks import build_backbone, load_backbone
from ddcat_train.networks.convnext import CONVNEXTS
from ddcat_train.weight_import import import_checkpoint
from tests.train import foreign, released
from tests.train.released import saved

R18, R50 = (2, 2, 2, 2), (3, 4, 6, 3)
SMALL = ((1, 1, 2, 1), 16)  # a ConvNeXt


def resnets(stem: str = "v1c", *, bottleneck: bool = True, width: int = 8) -> tuple[released.Shapes, tuple[int, ...]]:
    expansion = 4 if bottleneck else 1
    channels = tuple(width * 2**stage * expansion for stage in range(4))
    return foreign.resnet(width, R50 if bottleneck else R18, bottleneck=bottleneck, stem=stem), channels


def head_of(kind: str, channels: tuple[int, ...], width: int = 32) -> released.Shapes:
    if kind == "psp":
        return foreign.psp_head(channels[-1], width, 19)
    if kind in ("aspp", "aspp_16"):
        return foreign.aspp_head(channels[-1], width, 19)
    if kind == "separable_aspp":
        return foreign.separable_aspp_head(channels[-1], channels[0], 64, 6, 19)
    return foreign.uper_head(channels, width, 19)


def compared(weights: dict[str, Tensor], kind: str, out: Path, *, stride: int = 32, head: str = "main") -> None:
    network = load_checkpoint(out).segmenter()
    reference = foreign.Foreign(weights)
    for size in ((64, 96), (65, 83), (33, 40)):
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
        with torch.inference_mode():
            found = network(images, [head])[head]
            wanted = (
                reference.segment(images, kind, stride=stride) if head == "main" else reference.auxiliary(images, stride=stride)
            )
        assert float(wanted.std()) > 0.01
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


HEADS = [
    ("psp", "pyramid", 8),
    ("psp", "pyramid", 16),
    ("aspp", "deeplabv3", 8),
    ("aspp_16", "deeplabv3", 16),
    ("separable_aspp", "deeplabv3plus", 8),
    ("uper", "upernet", 32),
]
BODIES = [("v1c", True), ("v1d", False), ("v1c", False), ("v1d", True)]  # a stem, and whether blocks are bottlenecks


# Each head on one body, in turn; on all of them when slow.
@pytest.mark.parametrize(
    ("kind", "context", "stride", "stem", "bottleneck"),
    [
        pytest.param(*head, *body, marks=[] if place == index % len(BODIES) else pytest.mark.slow)
        for index, head in enumerate(HEADS)
        for place, body in enumerate(BODIES)
    ],
)
def test_a_file_of_mmsegmentation_computes_the_same(
    kind: str, context: str, stride: int, stem: str, bottleneck: bool, tmp_path: Path
) -> None:
    backbone, channels = resnets(stem, bottleneck=bottleneck)
    weights = released.filled({**backbone, **head_of(kind, channels), **foreign.fcn(channels[2], channels[2] // 4, 19)})
    file, out = saved(tmp_path / "x.pth", {"meta": {"epoch": 3}, "state_dict": weights}), tmp_path / "x.safetensors"
    said = import_checkpoint(file, out, overrides=[f"model.output_stride={stride}"] if stride == 16 else [])
    assert said.splitlines()[0].startswith(f"{out}: resnet{50 if bottleneck else 18} + {context}, 19 classes, branches main")
    assert ("model.output_stride is taken to be" in said) == (stride != 32)
    model = load_checkpoint(out).description.config.model
    assert (model.stem, model.output_stride, model.align_corners) == (stem, stride, False)
    compared(weights, kind, out, stride=stride)
    if kind in ("psp", "aspp", "uper"):
        compared(weights, kind, out, stride=stride, head="deep")


@pytest.mark.parametrize("names", ["authors", "mmpretrain"])
@pytest.mark.parametrize("stem", ["conv", "patch"])
def test_an_upernet_on_convnext_computes_the_same(
    names: str, stem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONVNEXTS, "convnext_tiny", SMALL)
    depths, width = SMALL
    weights = released.filled({
        **foreign.convnext(depths, width, stem=stem, names=names), **foreign.uper_head((16, 32, 64, 128), 24, 19),
    })  # fmt: skip
    out = tmp_path / "x.safetensors"
    import_checkpoint(saved(tmp_path / "x.pth", weights), out)
    compared(weights, "uper", out)
    assert load_checkpoint(out).description.config.model.stem == ("deep" if stem == "conv" else "plain")


def test_a_segformer_of_mmsegmentation_computes_the_same(tmp_path: Path) -> None:
    weights = released.filled(
        {**foreign.mix_transformer(32, (2, 2, 2, 2)), **foreign.segformer_head((32, 64, 160, 256), 24, 19)}
    )
    out = tmp_path / "x.safetensors"
    said = import_checkpoint(saved(tmp_path / "x.pth", {"state_dict": weights}), out)
    assert said.splitlines()[0].startswith(f"{out}: mit_b0 + segformer, 19 classes, branches main")
    compared(weights, "segformer", out)


@pytest.mark.parametrize(
    ("name", "width", "depths", "hidden", "parameters"),
    [
        ("mit_b0", 32, (2, 2, 2, 2), 256, 3.8),
        ("mit_b1", 64, (2, 2, 2, 2), 256, 13.7),
        ("mit_b2", 64, (3, 4, 6, 3), 256, 24.8),
        ("mit_b3", 64, (3, 4, 18, 3), 256, 44.6),
        ("mit_b4", 64, (3, 8, 27, 3), 256, 61.4),
        ("mit_b5", 64, (3, 6, 40, 3), 256, 82.0),
    ],
)
def test_segformers_have_their_published_sizes(
    name: str, width: int, depths: tuple[int, ...], hidden: int, parameters: float, tmp_path: Path
) -> None:
    channels = tuple(width * heads for heads in (1, 2, 5, 8))
    shapes = {**foreign.mix_transformer(width, depths), **foreign.segformer_head(channels, hidden, 150)}
    assert released.parameters(shapes) / 1e6 == pytest.approx(parameters, abs=0.06)
    weights = released.empty({**foreign.mix_transformer(width, depths), **foreign.segformer_head(channels, hidden, 19)})
    del weights["decode_head.fusion_conv.conv.weight"]
    weights["decode_head.fusion_conv.conv.weight"] = torch.zeros(1, 1, 1, 1)
    with pytest.raises(CheckpointError, match=f"does not fit a {name} \\+ segformer") as caught:
        import_checkpoint(saved(tmp_path / "x.pth", weights), tmp_path / "x.safetensors")
    assert str(caught.value).rpartition(": ")[2].startswith("heads.main.0.weight has shape (1, 1, 1, 1)")


def test_a_robust_upernet_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONVNEXTS, "convnext_tiny", SMALL)
    weights = released.filled(foreign.robust(*SMALL, 24, 20, 21))
    out = tmp_path / "x.safetensors"
    said = import_checkpoint(saved(tmp_path / "x.pth", {f"module.{key}": value for key, value in weights.items()}), out)
    assert "left out: auxiliary_head\nmodel.normalise is taken to be none: the file does not say it; --set sets" in said
    assert "from voc-upernet_convnext_tiny-pir-at, as the file does not say it: trained by pgd-at on voc" in said
    assert load_checkpoint(out).description.config.model.pretrained is None
    compared(weights, "uper", out)


@pytest.mark.parametrize("classes", [21, 151])
@pytest.mark.parametrize(("name", "depths", "parameters"), [("tiny", (3, 3, 9, 3), 60), ("small", (3, 3, 27, 3), 82)])
def test_the_public_robust_files_fit_at_full_size(
    name: str, depths: tuple[int, ...], parameters: int, classes: int, tmp_path: Path
) -> None:
    """An error that names one key alone says that all others fit, and writes nothing."""
    shapes = foreign.robust(depths, 96, 512, 256, classes)
    assert round(released.parameters(shapes) / 1e6) == parameters  # as published, in millions
    weights = released.empty(shapes)
    del weights["decode_head.fpn_bottleneck.conv.weight"]
    out = tmp_path / "x.safetensors"
    file = saved(tmp_path / "x.pth", weights)
    if classes == 151:
        with pytest.raises(ConfigError, match="does not say which 151 classes it has: name a preset or configuration"):
            import_checkpoint(file, out)
        (tmp_path / "data").mkdir()
        names = "\n".join(f"  - class{index}" for index in range(classes))
        (tmp_path / "data/classes.yaml").write_text(f"names:\n{names}\n")
        for part in ("images", "labels"):
            (tmp_path / "data" / part / "val").mkdir(parents=True)
        pytest.importorskip("PIL.Image").new("RGB", (40, 40)).save(tmp_path / "data/images/val/a.png")
        pytest.importorskip("PIL.Image").new("L", (40, 40)).save(tmp_path / "data/labels/val/a.png")
        (tmp_path / "ade.yaml").write_text("inherits: voc-upernet_convnext_tiny-pir-at\ndata: {name: folder}\n")
    like = str(tmp_path / "ade.yaml") if classes == 151 else None
    with pytest.raises(CheckpointError, match=f"does not fit a convnext_{name} \\+ upernet") as caught:
        import_checkpoint(file, out, like=like, data_root=tmp_path / "data" if like else None)
    assert str(caught.value).rpartition(": ")[2] == "heads.main.0.weight is missing"
    assert not out.exists()


@pytest.mark.parametrize("names", ["timm", "transformers", "authors"])
def test_a_robust_convnext_starts_with_the_weights_of_its_file(
    names: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONVNEXTS, "convnext_tiny", SMALL)
    stem = "patch" if names == "transformers" else "conv"
    weights = released.filled(foreign.convnext(*SMALL, stem=stem))
    theirs = {_renamed(key.removeprefix("backbone."), names): value for key, value in weights.items()}
    if names != "authors":  # a classifier has no norms behind the stages
        theirs = {key: value for key, value in theirs.items() if not key.startswith("norm")}
    theirs |= {"classifier.weight" if names == "transformers" else "head.fc.weight": torch.zeros(10, 128)}
    out = tmp_path / "x.safetensors"
    said = import_checkpoint(saved(tmp_path / "x.pt", {f"module.{key}": value for key, value in theirs.items()}), out)
    form = "plain" if stem == "patch" else "deep"
    assert f"convnext_tiny for the {form} stem; left out: " in said
    body = build_backbone(ModelConfig(backbone="convnext_tiny", stem=form, output_stride=32, align_corners=False)).eval()
    load_backbone(body, out)
    images = torch.randn(1, 3, 65, 83, generator=torch.Generator().manual_seed(0))
    if names != "authors":
        norms = [key for key in weights if key.startswith("backbone.norm")]
        weights |= {key: torch.full_like(weights[key], float(key.endswith("weight"))) for key in norms}
    with torch.inference_mode():
        stages, wanted = body(images), foreign.Foreign(weights).convnext(images)
    for maps, stage in zip((*stages.earlier, stages.intermediate, stages.last), wanted, strict=True):
        torch.testing.assert_close(maps, stage, rtol=1e-4, atol=1e-4 * float(stage.std()))


def _renamed(key: str, names: str) -> str:
    tables = {
        "authors": (),
        "timm": (
            ("downsample_layers.0.", "stem."), (".dwconv.", ".conv_dw."), (".pwconv1.", ".mlp.fc1."),
            (".pwconv2.", ".mlp.fc2."),
        ),
        "transformers": (
            ("downsample_layers.0.0.", "convnext.embeddings.patch_embeddings."),
            ("downsample_layers.0.1.", "convnext.embeddings.layernorm."),
            (".gamma", ".layer_scale_parameter"), (".norm.", ".layernorm."),
        ),
    }  # fmt: skip
    for ours, theirs in tables[names]:
        key = key.replace(ours, theirs)
    parts = key.split(".")
    if names == "timm" and parts[0] == "downsample_layers":
        return ".".join(["stages", parts[1], "downsample", *parts[2:]])
    if names == "timm" and parts[0] == "stages":
        return ".".join(["stages", parts[1], "blocks", *parts[2:]])
    if names == "transformers" and parts[0] == "downsample_layers":
        return ".".join(["convnext.encoder.stages", parts[1], "downsampling_layer", *parts[2:]])
    if names == "transformers" and parts[0] == "stages":
        return ".".join(["convnext.encoder.stages", parts[1], "layers", *parts[2:]])
    return key


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decode_head.psp_modules.0.1.conv.weight": None}, "not supported: use a file with PSPHead, ASPPHead"),
        ({"decode_head.conv_seg.bias": None}, "not supported: use a file with PSPHead"),
        ({"decode_head.bottleneck.bn.bias": None}, r"heads\.main\.1\.bias is missing"),
        ({"decode_head.more.weight": torch.zeros(1)}, r"decode_head\.more\.weight is not a key"),
        ({"backbone.layer4.1.bn2.weight": torch.zeros(3)}, r"layer4\.1\.bn2\.weight has shape \(3,\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line(change: dict[str, Tensor | None], message: str, tmp_path: Path) -> None:
    backbone, channels = resnets(bottleneck=False)
    weights: dict[str, Any] = released.filled({**backbone, **head_of("psp", channels)})
    weights = {key: value for key, value in (weights | change).items() if value is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(saved(tmp_path / "x.pth", weights), tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x.safetensors").exists()


def test_dilations_that_ours_has_not_are_refused(tmp_path: Path) -> None:
    backbone, channels = resnets("plain")
    weights = released.empty({**backbone, **head_of("psp", channels)})
    with pytest.raises(CheckpointError, match=r"plain stem and dilations of mmsegmentation, .* ResNetV1c or V1d"):
        import_checkpoint(saved(tmp_path / "x.pth", weights), tmp_path / "x.safetensors")
    upernet = released.filled({**backbone, **head_of("uper", channels)})
    out = tmp_path / "u.safetensors"
    import_checkpoint(saved(tmp_path / "u.pth", upernet), out)
    compared(upernet, "uper", out)


def test_what_the_file_says_is_not_set(tmp_path: Path) -> None:
    backbone, channels = resnets(bottleneck=False)
    file = saved(tmp_path / "x.pth", released.empty({**backbone, **head_of("uper", channels)}))
    for override in ("model.width=4", "model.output_stride=16"):
        with pytest.raises(ConfigError, match="the file itself says what the network is"):
            import_checkpoint(file, tmp_path / "x.safetensors", overrides=[override])
