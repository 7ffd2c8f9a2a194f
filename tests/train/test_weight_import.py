"""Importing the files of others: every key finds its place, the values compute the same, and anything else is refused."""

import os
import pickle
import subprocess
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from ddcat.classes import CITYSCAPES
from ddcat_bench.cli import app as bench
from ddcat_export.cli import app as export
from ddcat_serve.cli import app as serve
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import ModelConfig, load_config
from ddcat_train.data_cli import app as data
from ddcat_train.errors import CheckpointError, ConfigError, DataError
from ddcat_train.networks import build_backbone, load_backbone
from ddcat_train.run.trainer import Trainer
from ddcat_train.weight_import import import_checkpoint

HEADS = {1: {"main": "cls", "deep": "aux"}, 3: {"main": "cls1", "auxiliary": "cls2", "mask": "mask1", "deep": "aux_cls1"}}
DEEP_STEM = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
PLAIN_STEM = (("conv1", "bn1"),)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def parallel(weights: dict[str, Tensor]) -> OrderedDict[str, Tensor]:
    """As DataParallel names them, and as the released files keep them."""
    return OrderedDict((f"module.{key}", value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("context", "branches", "count"),
    [("ppm", 1, 49_081_578), ("ppm", 3, 86_844_161), ("aspp", 1, 39_440_362), ("aspp", 3, 40_102_657)],
)
def test_the_layout_written_here_has_the_published_size(released: ModuleType, context: str, branches: int, count: int) -> None:
    assert released.parameters(released.segmenter(context, 21, branches=branches)) == count


def test_the_layout_of_torchvision_written_here_has_its_published_size(released: ModuleType) -> None:
    assert released.parameters(released.torchvision_resnet()) == 25_557_032


@pytest.mark.parametrize("classes", [21, 19])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("context", ["ppm", "aspp"])
def test_at_full_size_nothing_is_missed_but_what_is_missing(
    released: ModuleType, tmp_path: Path, context: str, branches: int, classes: int
) -> None:
    """An error that names one key alone says that all others fit, and writes nothing."""
    weights = released.empty(released.segmenter(context, classes, branches=branches))
    del weights[f"{HEADS[branches]['deep']}.4.bias"]
    like = f"{'voc' if classes == 21 else 'cityscapes'}-pspnet50-{'sat' if branches == 1 else 'ddcat'}"
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(saved(tmp_path / "x.pth", parallel(weights)), tmp_path / "x.safetensors", like=like)
    assert str(caught.value).rpartition(": ")[2] == f"{HEADS[branches]['deep']}.4.bias is missing"


@pytest.mark.parametrize(
    ("context", "classes", "width", "count"),
    [
        pytest.param("ppm", 21, 64, 86_844_161, marks=pytest.mark.slow),
        ("ppm", 21, 16, None),
        ("aspp", 19, 64, 40_102_657 - 3 * 2 * 257),  # published with 21 classes
    ],
)
def test_a_released_file_computes_the_same(
    released: ModuleType, tmp_path: Path, context: str, classes: int, width: int, count: int | None
) -> None:
    name = "voc" if classes == 21 else "cityscapes"
    shapes = released.segmenter(context, classes, branches=3, width=width)
    weights, count = released.filled(shapes), count or released.parameters(shapes)
    file = saved(tmp_path / "train_epoch_50.pth", {"epoch": 50, "state_dict": parallel(weights), "optimizer": {"state": {}}})
    out = tmp_path / "ours.safetensors"
    said = import_checkpoint(file, out)
    checkpoint = load_checkpoint(out)
    network = checkpoint.segmenter()
    assert sum(parameter.numel() for parameter in network.parameters()) == count
    assert f"{count / 1e6:.2f} M parameters" in said
    images = torch.rand(1, 3, 65, 81, generator=torch.Generator().manual_seed(1))
    reference = released.Reference(weights)
    with torch.inference_mode():
        found = network(images, tuple(network.heads))
        for head, key in HEADS[3].items():
            wanted = reference.segment(images, key)
            assert wanted.std() > 0.01
            torch.testing.assert_close(found[head], wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))

    description = checkpoint.description
    assert (description.config.method.name, description.config.data.name) == ("ddcat", name)
    assert description.imported is not None
    assert (description.imported.file, description.imported.epoch) == ("train_epoch_50.pth", 50)
    assert description.imported.like == f"{name}-{'pspnet50' if context == 'ppm' else 'deeplabv3_50'}-ddcat"
    assert len(description.imported.sha256) == 64
    unknown = (
        description.step,
        description.steps,
        description.train,
        description.val,
        description.git_commit,
        description.best,
    )
    assert set(unknown) == {None}
    assert (description.scores, description.versions) == ({}, {})
    for path in (file, out):
        path.unlink()  # hundreds of megabytes that pytest would keep


@pytest.fixture
def small(released: ModuleType, tmp_path: Path) -> SimpleNamespace:
    """A file of a narrow PSPNet-50 of DDC-AT for the generated scenes, which have 6 classes."""
    weights = released.filled(released.segmenter("ppm", 6, branches=3, width=4))
    return SimpleNamespace(weights=weights, file=saved(tmp_path / "x.pth", parallel(weights)), out=tmp_path / "x.safetensors")


@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("form", ["bare", "module.", "state_dict", "old zip-less file", "halves", "without counters"])
def test_every_form_of_a_file_is_read(
    released: ModuleType, tiny_scenes: Path, tmp_path: Path, form: str, branches: int
) -> None:
    weights = released.filled(released.segmenter("aspp", 6, branches=branches, width=4))
    content: Any = dict(weights)
    if form == "module.":
        content = parallel(weights)
    elif form == "state_dict":
        content = {"state_dict": parallel(weights), "optimizer": {}}
    elif form == "halves":
        content = {key: value.half() if value.is_floating_point() else value for key, value in weights.items()}
    elif form == "without counters":
        content = {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
    file = saved(tmp_path / "x.pth", content, _use_new_zipfile_serialization=form != "old zip-less file")
    method = "sat" if branches == 1 else "ddcat"
    import_checkpoint(file, tmp_path / "x.safetensors", like=f"scenes-{method}", data_root=tiny_scenes)
    checkpoint = load_checkpoint(tmp_path / "x.safetensors")
    network = checkpoint.segmenter()
    assert set(network.heads) == set(HEADS[branches])
    exact = form != "halves"
    for name, key in (("backbone.layer3.5.bn3.running_var", "layer3.5.bn3.running_var"), ("context.convs.4.1.weight",) * 2):
        wanted = weights[key.replace("context.", "aspp.")]
        assert torch.allclose(network.state_dict()[name], wanted, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-3)
    assert network.state_dict()["backbone.layer0.1.num_batches_tracked"] == (0 if form == "without counters" else 7)
    assert checkpoint.description.config.model == ModelConfig(backbone="resnet50", context="aspp", width=4)
    assert checkpoint.description.config.method.name == method


def test_a_file_without_deep_supervision_gets_a_method_without_it(
    small: SimpleNamespace, tiny_scenes: Path, tmp_path: Path
) -> None:
    bare = {key: value for key, value in small.weights.items() if not key.startswith("aux_cls1.")}
    saved(small.file, bare)
    import_checkpoint(small.file, small.out, like="scenes-ddcat", data_root=tiny_scenes)
    checkpoint = load_checkpoint(small.out)
    assert checkpoint.description.config.method.deep_weight == 0
    assert set(checkpoint.segmenter().heads) == {"main", "auxiliary", "mask"}


def test_what_the_user_says_is_kept(small: SimpleNamespace, tiny_scenes: Path) -> None:
    import_checkpoint(
        small.file,
        small.out,
        like="scenes-ddcat-m",
        data_root=tiny_scenes,
        overrides=["attack.epsilon=8/255", "data.long_side=40"],
    )
    description = load_checkpoint(small.out).description
    assert description.config.attack.epsilon == 8 / 255
    assert description.config.method.name == "ddcat-m"
    assert description.config.data.long_side == 40
    assert description.config.data.root == tiny_scenes
    assert description.val is not None
    assert description.val.images == 4
    assert description.train is None


def test_all_that_does_not_fit_is_one_error_in_the_files_own_names(small: SimpleNamespace, tiny_scenes: Path) -> None:
    weights = small.weights
    del weights["cls2.1.running_mean"], weights["layer3.4.bn2.weight"]
    weights["ppm.features.4.1.weight"] = torch.zeros(1)
    weights["criterion.weight"] = torch.zeros(1)
    weights["mask1.4.weight"] = torch.zeros(3, 32, 1, 1)
    saved(small.file, parallel(weights))
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(small.file, small.out, like="scenes-ddcat", data_root=tiny_scenes)
    message = str(caught.value)
    for fault in (
        "cls2.1.running_mean is missing",
        "layer3.4.bn2.weight is missing",
        "ppm.features.4.1.weight is not a key",
        "criterion.weight is not a key",
        "mask1.4.weight has shape (3, 32, 1, 1) instead of (2, 32, 1, 1)",
    ):
        assert fault in message
    assert message.count(";") == 4
    assert "\n" not in message
    assert not small.out.exists()


@pytest.mark.parametrize("key", ["layer1.0.conv1.weight", "layer0.0.weight", "cls1.0.weight"])
def test_a_missing_key_that_would_tell_the_form_is_named(small: SimpleNamespace, tiny_scenes: Path, key: str) -> None:
    del small.weights[key]
    saved(small.file, small.weights)
    with pytest.raises(CheckpointError, match=f"{key} is missing"):
        import_checkpoint(small.file, small.out, like="scenes-ddcat", data_root=tiny_scenes)


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("cls1.4.bias", "has no cls1.4.bias, which would tell the number of classes"),
        ("ppm.", "no context, expected keys of ppm"),
        ("layer4.2.", "3-4-6-2 blocks of 3 convolutions"),
    ],
)
def test_a_network_that_is_none_is_one_line(small: SimpleNamespace, tiny_scenes: Path, drop: str, message: str) -> None:
    saved(small.file, {key: value for key, value in small.weights.items() if not key.startswith(drop)})
    with pytest.raises(CheckpointError, match=message):
        import_checkpoint(small.file, small.out, like="scenes-ddcat", data_root=tiny_scenes)


def test_what_the_file_cannot_say_is_asked_for(
    released: ModuleType, small: SimpleNamespace, tiny_scenes: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"does not say which 6 classes it has: .* --config"):
        import_checkpoint(small.file, small.out)
    with pytest.raises(ConfigError, match=r"classes of scenes are in a file of the data set: .* --data-root"):
        import_checkpoint(small.file, small.out, like="scenes-ddcat")
    with pytest.raises(CheckpointError, match=r"6 classes, voc has 21: .* --config, and its data set with --data-root"):
        import_checkpoint(small.file, small.out, like="voc-pspnet50-ddcat")
    with pytest.raises(CheckpointError, match="has the branches cls1, cls2, mask1, but sat of scenes-sat trains main: use"):
        import_checkpoint(small.file, small.out, like="scenes-sat", data_root=tiny_scenes)
    with pytest.raises(DataError, match="holds no generated scenes"):
        import_checkpoint(small.file, small.out, like="scenes-ddcat", data_root=tmp_path)
    with pytest.raises(ConfigError, match=r"--set model\.width=64: the file itself says what the network is"):
        import_checkpoint(small.file, small.out, like="scenes-ddcat", data_root=tiny_scenes, overrides=["model.width=64"])
    one = saved(tmp_path / "one.pth", released.empty(released.segmenter("aspp", 19, branches=1, width=4)))
    with pytest.raises(ConfigError, match="use --config cityscapes-deeplabv3_50-undefended or cityscapes-deeplabv3_50-sat"):
        import_checkpoint(one, small.out)
    assert not small.out.exists()
    import_checkpoint(one, small.out, like="cityscapes-deeplabv3_50-sat")
    assert load_checkpoint(small.out).description.classes == CITYSCAPES


class Anything:
    """An object, whose class a file would have to be trusted for."""


CONTENTS: dict[str, tuple[Any, str]] = {
    "an object": (
        {"state_dict": {"x": torch.zeros(1)}, "args": Anything()},
        r"holds more than tensors \(\S*Anything\), and reading it could run code",
    ),
    "a list": ([torch.zeros(1)], "holds no weights, expected a dict of tensors"),
    "nothing": ({}, "holds no weights, expected a dict of tensors"),
    "no tensors": (
        {"state_dict": {"a": 1, "b": torch.zeros(1), "c": "x"}},
        "does not hold tensors alone: a, c are something else",
    ),
    "two networks": ({"module.a": torch.zeros(1), "a": torch.zeros(1)}, "with and without module."),
    "another network": ({"blocks.0.weight": torch.zeros(1), "norm.bias": torch.zeros(1)}, "keys begin with blocks, norm"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_holds_no_known_network_is_refused(tmp_path: Path, name: str) -> None:
    content, message = CONTENTS[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(saved(tmp_path / "x.pth", content), tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_one_line(tmp_path: Path, keep: float, zipped: bool) -> None:
    file = saved(tmp_path / "x.pth", {"a": torch.zeros(1000)}, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"truncated or not a file of torch\.save") as caught:
        import_checkpoint(file, tmp_path / "x.safetensors")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_weights_is_refused(small: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        import_checkpoint(tmp_path / "none.pth", small.out)
    with pytest.raises(CheckpointError, match="is a folder"):
        import_checkpoint(tmp_path, small.out)
    small.file.with_suffix(".txt").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        import_checkpoint(small.file.with_suffix(".txt"), small.out)


def test_where_the_import_may_write_is_said_before_it_reads(small: SimpleNamespace, tmp_path: Path) -> None:
    given = CliRunner().invoke(data, ["import-checkpoint", str(small.file), str(tmp_path / "ours.json")])
    assert "use " in str(given.exception)
    assert "ours.safetensors" in str(given.exception)
    for path in (small.out, small.out.with_suffix(".json")):
        path.write_text("precious")
        given = CliRunner().invoke(data, ["import-checkpoint", str(small.file), str(small.out)])
        assert f"{path.name} exists already" in str(given.exception)
        assert path.read_text() == "precious"
        path.unlink()


RESNETS: dict[str, dict[str, Any]] = {
    "resnet50": {"bottleneck": True, "blocks": (3, 4, 6, 3)},
    "resnet18": {"bottleneck": False, "blocks": (2, 2, 2, 2)},
}


@pytest.mark.parametrize("backbone", RESNETS)
@pytest.mark.parametrize("stem", ["deep", "plain"])
def test_a_resnet_starts_with_the_weights_of_its_file(released: ModuleType, tmp_path: Path, backbone: str, stem: Any) -> None:
    make = released.semseg_resnet if stem == "deep" else released.torchvision_resnet
    weights = released.filled(make(8, **RESNETS[backbone]))
    out = tmp_path / "x.safetensors"
    said = import_checkpoint(saved(tmp_path / "x.pth", weights), out)
    assert said.splitlines()[0] == f"{out}: {backbone} for the {stem} stem; left out: fc"
    assert f"--set model.backbone={backbone} --set model.stem={stem} --set model.width=8" in said
    body = build_backbone(ModelConfig(backbone=backbone, width=8, stem=stem)).eval()
    load_backbone(body, out)
    images = torch.randn(2, 3, 49, 65, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        found = body(images)
        wanted = released.Reference(weights).resnet(images, DEEP_STEM if stem == "deep" else PLAIN_STEM)
    for ours, theirs in zip(found[:2], wanted, strict=True):
        assert theirs.std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.std()))

    other = "plain" if stem == "deep" else "deep"
    with pytest.raises(CheckpointError, match=f"is for the {stem} stem, not for the {other} one: use model.stem={stem}"):
        load_backbone(build_backbone(ModelConfig(backbone=backbone, width=8, stem=other)), out)


def test_torchvisions_file_at_its_full_size(released: ModuleType, tmp_path: Path) -> None:
    file = saved(tmp_path / "x.pth", released.empty(released.torchvision_resnet()))
    assert file.stat().st_size < 1e6
    import_checkpoint(file, tmp_path / "x.safetensors")
    with torch.device("meta"):
        wanted = build_backbone(ModelConfig(backbone="resnet50", stem="plain")).state_dict()
    found = load_file(tmp_path / "x.safetensors")
    assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in wanted.items()}
    (tmp_path / "x.safetensors").unlink()


def robust(weights: dict[str, Tensor], form: str) -> Any:
    """The two forms that public robust ResNets have around torchvision's keys."""
    mean, std = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1), torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    inside = {f"model.{key}": value for key, value in weights.items()}
    if form == "sequential":
        return {"normalize.mean": mean, "normalize.std": std, **inside}
    attacker = {"normalize.new_mean": mean[0], "normalize.new_std": std[0], **inside}
    around = {"normalizer.new_mean": mean[0], "normalizer.new_std": std[0], **inside}
    around |= {f"attacker.{key}": value for key, value in attacker.items()}
    return {"model": parallel(around), "epoch": 90, "schedule": None}


@pytest.mark.parametrize("form", ["sequential", "attacker"])
def test_a_robust_resnet_loses_its_wrapping_by_name(released: ModuleType, tmp_path: Path, form: str) -> None:
    weights = released.filled(released.torchvision_resnet(8, **RESNETS["resnet18"]))
    said = import_checkpoint(saved(tmp_path / "x.pth", robust(weights, form)), tmp_path / "x.safetensors")
    left_out = said.splitlines()[0].rpartition("left out: ")[2].split(", ")
    assert set(left_out) == ({"fc", "normalize"} if form == "sequential" else {"fc", "normalizer", "attacker"})
    body = build_backbone(ModelConfig(backbone="resnet18", width=8, stem="plain"))
    load_backbone(body, tmp_path / "x.safetensors")
    assert torch.equal(body.state_dict()["layer0.0.weight"], weights["conv1.weight"])
    assert torch.equal(body.state_dict()["layer4.1.bn2.bias"], weights["layer4.1.bn2.bias"])


@pytest.mark.parametrize("key", ["normalizer.new_std", "attacker.normalize.new_mean"])
def test_another_normalisation_than_ours_is_refused(released: ModuleType, tmp_path: Path, key: str) -> None:
    content = robust(released.filled(released.torchvision_resnet(8, **RESNETS["resnet18"])), "attacker")
    content["model"][f"module.{key}"] = torch.full((3, 1, 1), 0.5)
    with pytest.raises(CheckpointError, match=rf"normalises otherwise .* its {key} is \[0\.5, 0\.5, 0\.5\]"):
        import_checkpoint(saved(tmp_path / "x.pth", content), tmp_path / "x.safetensors")


def test_a_resnet_that_does_not_fit_is_one_error(released: ModuleType, tmp_path: Path) -> None:
    weights = released.filled(released.semseg_resnet(8, **RESNETS["resnet18"]))
    del weights["bn2.running_var"]
    weights["conv3.weight"] = torch.zeros(8, 8, 3, 3)
    weights["head.weight"] = torch.zeros(1)
    file = saved(tmp_path / "x.pth", weights)
    with pytest.raises(CheckpointError) as caught:
        import_checkpoint(file, tmp_path / "x.safetensors")
    faults = (
        "bn2.running_var is missing",
        "conv3.weight has shape (8, 8, 3, 3) instead of (16, 8, 3, 3)",
        "head.weight is not a",
    )
    assert all(fault in str(caught.value) for fault in faults)
    with pytest.raises(CheckpointError, match="holds a backbone alone: --config"):
        import_checkpoint(file, tmp_path / "x.safetensors", like="scenes-sat")


@pytest.fixture
def mobilenet() -> dict[str, Tensor]:
    """With the keys of torchvision's file, of which two layers are not ours."""
    weights = build_backbone(ModelConfig(backbone="mobilenet_v2")).state_dict()
    return weights | {"features.18.0.weight": torch.zeros(1280, 320, 1, 1), "classifier.1.bias": torch.zeros(1000)}


def test_torchvisions_mobilenet_becomes_a_file_to_start_from(mobilenet: dict[str, Tensor], tmp_path: Path) -> None:
    out = tmp_path / "mobilenet_v2.safetensors"
    said = import_checkpoint(saved(tmp_path / "mobilenet_v2-7ebf99e0.pth", mobilenet), out)
    assert said.splitlines()[0].endswith("mobilenet_v2; left out: features, classifier")
    assert said.splitlines()[1].endswith(f"PRESET --set model.backbone=mobilenet_v2 --set model.pretrained={out}")
    body = build_backbone(ModelConfig(backbone="mobilenet_v2"))
    load_backbone(body, out)
    assert all(torch.equal(value, mobilenet[key]) for key, value in body.state_dict().items())

    del mobilenet["features.17.conv.2.weight"]
    with pytest.raises(CheckpointError, match=r"does not fit a mobilenet_v2: features\.17\.conv\.2\.weight is missing$"):
        import_checkpoint(saved(tmp_path / "x.pth", mobilenet), tmp_path / "x.safetensors")


def test_weights_of_another_network_are_a_line_that_can_be_read(
    mobilenet: dict[str, Tensor], released: ModuleType, tmp_path: Path
) -> None:
    import_checkpoint(saved(tmp_path / "x.pth", released.filled(released.semseg_resnet(4))), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(build_backbone(ModelConfig(backbone="mobilenet_v2")), tmp_path / "x.safetensors")
    told = str(caught.value)
    assert len(told) < 700
    assert "features.0.0.weight is missing; " in told
    assert " more; " in told
    assert told.endswith(" is not a key of the network")


def start_from(path: Path) -> None:
    load_backbone(build_backbone(ModelConfig(backbone="resnet18")), path)


@pytest.mark.parametrize("load", [load_checkpoint, start_from])
def test_a_file_of_torch_says_how_it_comes_in(load: Callable[[Path], object], tmp_path: Path) -> None:
    file = saved(tmp_path / "x.pth", {"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError) as caught:
        load(file)
    command = f"ddcat data import-checkpoint {file} {tmp_path / 'x.safetensors'}"
    assert str(caught.value) == f"{file} is a file of torch.save: first '{command}'"


def test_torchs_advice_to_run_what_is_in_a_file_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("inherits: camvid-ddcat\n")
    with pytest.raises(CheckpointError, match=r"truncated or not a file of torch\.save") as caught:
        import_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert "weights_only" not in str(caught.value)


def run(app: typer.Typer, *arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_an_imported_segmenter_is_attacked_exported_and_trained_on(
    released: ModuleType, tiny_scenes: Path, tiny_run: list[str], tmp_path: Path
) -> None:
    shapes = released.segmenter("ppm", 6, branches=3, width=4, blocks=(1, 1, 1, 1), bottleneck=False)
    file, out = saved(tmp_path / "x.pth", parallel(released.filled(shapes))), tmp_path / "x.safetensors"
    said = run(data, "import-checkpoint", file, out, "--config", "scenes-ddcat", "--data-root", tiny_scenes)
    assert "resnet10 + pyramid, 6 classes, branches main, auxiliary, mask, deep" in said

    run(bench, "attack", out, "--max-images", 1, "--out", tmp_path / "attack")
    assert "x.safetensors, imported, SHA-256" in (tmp_path / "attack/attack.md").read_text()
    run(export, out, "--engine", "ort", "--size", "33x41", "--out", tmp_path / "bundle")
    assert "imported" in run(serve, "inspect", tmp_path / "bundle")

    model = ["model.backbone=resnet10", f"model.pretrained={out}"]
    trainer = Trainer(load_config("scenes-sat", [*tiny_run, *model]))
    before = load_checkpoint(out).segmenter().backbone.state_dict()
    trainer.save(tmp_path / LAST, resumable=False)
    after = load_checkpoint(tmp_path / LAST).segmenter().backbone.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with pytest.raises(ConfigError, match=r"was imported and has no run to continue: name it as model\.pretrained"):
        trainer.restore(load_checkpoint(out))


class Runs:
    """Pickled, it is a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Runs(os.system, "false"), r"(posix|nt|os)\.system"),
        (Runs(print, "x"), r"(builtins|__builtin__)\.print"),
        (Runs(subprocess.call, ["false"]), r"(subprocess|commands)\.call"),  # protocol 2 of pickle has the names of Python 2
    ],
)
def test_what_would_run_code_is_named_by_each_of_torch_s_texts(tmp_path: Path, call: Runs, name: str, zipped: bool) -> None:
    file = saved(tmp_path / "x.pth", {"a": call}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"holds more than tensors \({name}\), and reading it could run code") as caught:
        import_checkpoint(file, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_a_pickle_that_torch_does_not_read_is_told_how_to_save_again(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "x.pth"
    file.write_bytes(pickle.dumps({"a": Runs(os.system, "false")}, protocol=protocol))
    with pytest.raises(CheckpointError, match="no pickle that can be read without running code"):
        import_checkpoint(file, tmp_path / "x.safetensors")
