"""Segmenters of others: every key finds its place, the values compute the same, and anything else is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

from ddcat.classes import CITYSCAPES
from ddcat_bench.cli import app as bench
from ddcat_export.cli import app as export
from ddcat_serve.cli import app as serve
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import ModelConfig, load_config
from ddcat_train.data_cli import app as data
from ddcat_train.errors import CheckpointError, ConfigError, DataError
from ddcat_train.run.trainer import Trainer
from ddcat_train.weight_import import import_checkpoint
from tests.train import released
from tests.train.released import parallel, saved

HEADS = {1: {"main": "cls", "deep": "aux"}, 3: {"main": "cls1", "auxiliary": "cls2", "mask": "mask1", "deep": "aux_cls1"}}


@pytest.mark.parametrize(
    ("context", "branches", "count"),
    [("ppm", 1, 49_081_578), ("ppm", 3, 86_844_161), ("aspp", 1, 39_440_362), ("aspp", 3, 40_102_657)],
)
def test_the_layout_written_here_has_the_published_size(context: str, branches: int, count: int) -> None:
    assert released.parameters(released.segmenter(context, 21, branches=branches)) == count


@pytest.mark.parametrize("classes", [21, 19])
@pytest.mark.parametrize("branches", [1, 3])
@pytest.mark.parametrize("context", ["ppm", "aspp"])
def test_at_full_size_nothing_is_missed_but_what_is_missing(tmp_path: Path, context: str, branches: int, classes: int) -> None:
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
        ("aspp", 19, 16, None),
        pytest.param("aspp", 19, 64, 40_102_657 - 3 * 2 * 257, marks=pytest.mark.slow),  # published with 21 classes
    ],
)
def test_a_released_file_computes_the_same(tmp_path: Path, context: str, classes: int, width: int, count: int | None) -> None:
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
def small(tmp_path: Path) -> SimpleNamespace:
    """A file of a narrow PSPNet-50 of DDC-AT for the generated scenes, which have 6 classes."""
    weights = released.filled(released.segmenter("ppm", 6, branches=3, width=4))
    return SimpleNamespace(weights=weights, file=saved(tmp_path / "x.pth", parallel(weights)), out=tmp_path / "x.safetensors")


@pytest.mark.parametrize("branches", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("form", ["bare", "module.", "state_dict", "old zip-less file", "halves", "without counters"])
def test_every_form_of_a_file_is_read(tiny_scenes: Path, tmp_path: Path, form: str, branches: int) -> None:
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


def test_what_the_file_cannot_say_is_asked_for(small: SimpleNamespace, tiny_scenes: Path, tmp_path: Path) -> None:
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


def run(app: typer.Typer, *arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_an_imported_segmenter_is_attacked_exported_and_trained_on(
    tiny_scenes: Path, tiny_run: list[str], tmp_path: Path
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
