"""Backbones of transformers: their settings, maps and weights, and that they train as any other. Nothing here is downloaded."""

import json
import math
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import Config, ModelConfig, dump_config, load_config
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks import Backbone, build_backbone, load_backbone
from ddcat_train.run.loop import check_run
from ddcat_train.run.trainer import Trainer

transformers = pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')

SETTINGS: dict[str, dict[str, Any]] = {
    "convnextv2": {"model_type": "convnextv2", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    "swin": {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 3},
}


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a hub was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def model(name: str, **others: Any) -> ModelConfig:
    return ModelConfig(backbone="hf", hf=SETTINGS[name], **others)


def body_of(name: str, **others: Any) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(model(name, **others)).eval()


@pytest.fixture
def trained(tiny_scenes: Path) -> Callable[..., Config]:
    """A configuration of a tiny run by some method."""

    def make(name: str, method: str, *overrides: str) -> Config:
        fixed = [
            f"data.root={tiny_scenes}", "augment.crop=40", "model.backbone=hf", "model.width=64",
            f"model.hf={json.dumps(SETTINGS[name])}", "train.epochs=1", "train.batch_size=4",
        ]  # fmt: skip
        return load_config(f"scenes-{method}", [*fixed, *overrides])

    return make


# --- settings


def test_settings_are_resolved_and_survive_being_saved(trained: Callable[..., Config], tmp_path: Path) -> None:
    config = trained("convnextv2", "undefended")
    assert config.model.hf is not None
    assert config.model.hf.items() >= SETTINGS["convnextv2"].items()
    assert config.model.hf["layer_norm_eps"] == 1e-12  # not said, but part of the network
    assert "id2label" not in config.model.hf
    assert config.model.architecture == "convnextv2 + pyramid"
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config
    check_run(config, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"another configuration \(model\.hf\..*differ"):
        check_run(trained("swin", "undefended"), tmp_path, resume=True)


def test_a_config_json_is_read_without_what_is_no_setting_of_the_network(tmp_path: Path) -> None:
    written = {
        **SETTINGS["swin"],
        "path_norm": True,
        "id2label": {"0": "cat"},
        "architectures": ["X"],
        "out_features": ["stage4"],
    }
    (tmp_path / "config.json").write_text(json.dumps(written))
    for path in (tmp_path, tmp_path / "config.json"):
        assert ModelConfig(backbone="hf", hf=path) == model("swin")  # type: ignore[arg-type]  # it is resolved


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model_type": "swim"}, r"model_type swim is not a backbone of transformers: .*nearest: swin"),
        ({"model_type": "bert"}, "model_type bert is not a backbone of transformers"),
        ({}, "model_type None is not a backbone"),
        ({"model_type": "swin", "embed_dims": 8}, "swin has no setting embed_dims: the nearest is embed_dim"),
        ({"model_type": "swin", "embed_dim": "wide"}, "transformers does not take these settings: .*embed_dim"),
        ({"model_type": "swin", "id2label": {}}, "swin has no setting id2label"),
        (None, "name both"),
        (3, r"model\.hf: expected keys and values \(found 3\)"),
    ],
    ids=str,
)
def test_what_is_no_setting_is_refused(wrong: Any, message: str, tiny_scenes: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("scenes-sat", ["model.backbone=hf", "model.width=64", f"model.hf={json.dumps(wrong)}"])
    assert "\n" not in str(caught.value)


def test_settings_without_the_backbone_are_refused() -> None:
    with pytest.raises(ValueError, match="name both"):
        ModelConfig(backbone="resnet18", hf=SETTINGS["swin"])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("{", "is not JSON"), ("[]", "no table of settings")]
)
def test_a_file_that_holds_no_settings_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("scenes-sat", ["model.backbone=hf", f"model.hf={file}"])
    assert "\n" not in str(caught.value)


def test_where_transformers_is_absent_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "ddcat_train.huggingface_settings", raising=False)
    with pytest.raises(ValueError, match=r'not installed .*transformers.*: pip install "\.\[train,hf\]"'):
        model("swin")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"model_type": "dinov2", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1},
            "have the strides 14, 14, expected 8",
        ),
        ({**SETTINGS["convnextv2"], "patch_size": 2}, "have the strides 2, 4, 8, 16, expected 16"),
        ({**SETTINGS["convnextv2"], "hidden_sizes": [8]}, "cannot build a convnextv2 of these settings: .*index"),
        ({**SETTINGS["convnextv2"], "num_channels": 4}, "cannot build a convnextv2 of these settings"),
    ],
    ids=str,
)
def test_what_has_no_stages_to_segment_from_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_backbone(ModelConfig(backbone="hf", hf=settings, output_stride=16 if "patch_size" in settings else 8))
    assert "\n" not in str(caught.value)


# --- maps


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", SETTINGS)
def test_maps_have_the_size_and_channels_that_are_stated(name: str, stride: Any) -> None:
    body = body_of(name, output_stride=stride)
    assert body.stride == stride
    for height, width in ((33, 33), (65, 97), (70, 40), (64, 32)):
        stages = body(torch.zeros(1, 3, height, width))
        assert stages.last.shape == (1, body.channels, math.ceil(height / stride), math.ceil(width / stride))
        assert stages.intermediate.shape == (1, body.intermediate_channels, math.ceil(height / 16), math.ceil(width / 16))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_maps_are_those_of_transformers(name: str) -> None:
    ours = body_of(name)
    configuration = transformers.AutoConfig.for_model(**SETTINGS[name], out_features=["stage2", "stage3", "stage4"])
    theirs = transformers.AutoBackbone.from_config(configuration).eval()
    theirs.load_state_dict({key.removeprefix("body."): value for key, value in ours.state_dict().items()})
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        second, third, fourth = theirs(images).feature_maps
        found = ours(images)
        for part, stage, factor in zip(found.last.split(theirs.channels, 1), (second, third, fourth), (1, 2, 4), strict=True):
            expected = nn.functional.interpolate(stage, scale_factor=factor, mode="bilinear", align_corners=False)
            torch.testing.assert_close(part, expected)
        torch.testing.assert_close(found.intermediate, third)

        # What is beyond the image's edge is the mean of ImageNet, which is 0 after normalisation.
        odd = images[..., :61, :70]
        padded = ours(nn.functional.pad(odd, (0, 26, 0, 3)))
        torch.testing.assert_close(ours(odd).last, padded.last[..., :8, :9])


def test_stochastic_depth_is_off_in_eval() -> None:
    body = build_backbone(ModelConfig(backbone="hf", hf={**SETTINGS["swin"], "drop_path_rate": 0.5}))
    images = torch.randn(2, 3, 33, 33)
    assert torch.equal(*(body.eval()(images).last for _ in range(2)))
    assert not torch.equal(*(body.train()(images).last for _ in range(2)))


# --- weights


@pytest.fixture
def classifier(tmp_path: Path) -> Callable[[str], Path]:
    """Save a classifier as its own library does."""

    def make(name: str) -> Path:
        torch.manual_seed(3)
        network = transformers.AutoModelForImageClassification.from_config(transformers.AutoConfig.for_model(**SETTINGS[name]))
        for parameter in network.parameters():
            nn.init.normal_(parameter)
        network.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", SETTINGS)
def test_a_classifiers_file_gives_the_backbone_its_weights(
    name: str, classifier: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = classifier(name)
    capfd.readouterr()
    of_theirs = {"convnextv2": transformers.ConvNextV2Backbone, "swin": transformers.SwinBackbone}[name]
    theirs = of_theirs.from_pretrained(folder, out_features=["stage2", "stage3", "stage4"]).state_dict()
    capfd.readouterr()
    body = build_backbone(ModelConfig(backbone="hf", hf=folder))  # type: ignore[arg-type]  # it is resolved
    before = {key: value.clone() for key, value in body.state_dict().items()}
    load_backbone(body, folder / "model.safetensors")
    assert capfd.readouterr() == ("", "")
    found = {key.removeprefix("body."): value for key, value in body.state_dict().items()}
    assert found.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(found[key], value), key
        assert "hidden_states_norms" in key or value.dtype == torch.int64 or not torch.equal(before[f"body.{key}"], value), key


def test_every_mismatch_of_a_file_is_named(classifier: Callable[[str], Path], tmp_path: Path) -> None:
    weights = load_file(classifier("convnextv2") / "model.safetensors")
    stage = "convnextv2.encoder.stages.2.layers"
    del weights[f"{stage}.0.dwconv.bias"]
    weights[f"{stage}.1.dwconv.bias"] = torch.zeros(7)
    weights[f"{stage}.2.dwconv.bias"] = torch.zeros(24)
    save_file(weights, tmp_path / "weights.safetensors")
    body = body_of("convnextv2")
    before = {key: value.clone() for key, value in body.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_backbone(body, tmp_path / "weights.safetensors")
    message = str(caught.value)
    assert "body.encoder.stages.2.layers.0.dwconv.bias is missing" in message
    assert "body.encoder.stages.2.layers.1.dwconv.bias has shape (7,) instead of (24,)" in message
    assert f"{stage}.2.dwconv.bias is not a key of the network" in message
    assert message.count(";") == 2
    assert all(torch.equal(value, before[key]) for key, value in body.state_dict().items())


# --- training


@pytest.mark.parametrize(
    ("name", "method", "overrides"),
    [
        ("convnextv2", "trades", ["model.context=aspp", "train.ema=0.9"]),
        ("swin", "ddcat", ["method.update=two-step", "train.accumulate=2", "train.precision=fp64"]),
        ("convnextv2", "pgd-at", ["model.output_stride=16", "train.precision=bf16"]),
    ],
    ids=str,
)
def test_two_steps_of_training_and_a_checkpoint(
    name: str, method: str, overrides: list[str], trained: Callable[..., Config], tmp_path: Path
) -> None:
    config = trained(name, method, *overrides)
    trainer = Trainer(config, device="cpu")
    network = trainer._network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    logs = [trainer.train_step(batch) for batch, _ in zip(trainer.batches(), range(2), strict=False)]
    assert all(math.isfinite(float(value)) for log in logs for value in log.values())
    assert trainer.step == 2

    backbone, others = trainer._optimizer.param_groups
    assert others["lr"] == pytest.approx(10 * backbone["lr"])
    assert {id(p) for p in backbone["params"]} == {id(p) for p in network.backbone.parameters()}
    unused = {f"backbone.body.swin.layernorm.{kind}" for kind in ("weight", "bias")}  # what a classifier would read
    still = {key for key, value in network.named_parameters() if torch.equal(value, before[key])}
    assert still <= unused

    trainer.save(tmp_path / LAST, resumable=True)
    resumed = Trainer(config, device="cpu")
    resumed.restore(load_checkpoint(tmp_path / LAST))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in resumed._network.state_dict().items())
    used = load_checkpoint(tmp_path / LAST).segmenter()
    with torch.inference_mode():
        assert torch.isfinite(used(torch.rand(1, 3, 45, 70))).all()

    begun = Trainer(trained(name, method, *overrides, f"model.pretrained={tmp_path / LAST}"), device="cpu")
    ours = used.backbone.state_dict()
    assert all(torch.equal(value.float(), ours[key].float()) for key, value in begun._network.backbone.state_dict().items())
