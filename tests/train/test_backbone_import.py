"""Backbones of others: every key finds its place, and the values compute the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError
from ddcat_train.networks import build_backbone, load_backbone
from ddcat_train.weight_import import import_checkpoint
from tests.train import released
from tests.train.released import parallel, saved

DEEP_STEM = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
PLAIN_STEM = (("conv1", "bn1"),)


def test_the_layout_of_torchvision_written_here_has_its_published_size() -> None:
    assert released.parameters(released.torchvision_resnet()) == 25_557_032


RESNETS: dict[str, dict[str, Any]] = {
    "resnet50": {"bottleneck": True, "blocks": (3, 4, 6, 3)},
    "resnet18": {"bottleneck": False, "blocks": (2, 2, 2, 2)},
}


@pytest.mark.parametrize("backbone", RESNETS)
@pytest.mark.parametrize("stem", ["deep", "plain"])
def test_a_resnet_starts_with_the_weights_of_its_file(tmp_path: Path, backbone: str, stem: Any) -> None:
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


def test_torchvisions_file_at_its_full_size(tmp_path: Path) -> None:
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
def test_a_robust_resnet_loses_its_wrapping_by_name(tmp_path: Path, form: str) -> None:
    weights = released.filled(released.torchvision_resnet(8, **RESNETS["resnet18"]))
    said = import_checkpoint(saved(tmp_path / "x.pth", robust(weights, form)), tmp_path / "x.safetensors")
    left_out = said.splitlines()[0].rpartition("left out: ")[2].split(", ")
    assert set(left_out) == ({"fc", "normalize"} if form == "sequential" else {"fc", "normalizer", "attacker"})
    body = build_backbone(ModelConfig(backbone="resnet18", width=8, stem="plain"))
    load_backbone(body, tmp_path / "x.safetensors")
    assert torch.equal(body.state_dict()["layer0.0.weight"], weights["conv1.weight"])
    assert torch.equal(body.state_dict()["layer4.1.bn2.bias"], weights["layer4.1.bn2.bias"])


@pytest.mark.parametrize("key", ["normalizer.new_std", "attacker.normalize.new_mean"])
def test_another_normalisation_than_ours_is_refused(tmp_path: Path, key: str) -> None:
    content = robust(released.filled(released.torchvision_resnet(8, **RESNETS["resnet18"])), "attacker")
    content["model"][f"module.{key}"] = torch.full((3, 1, 1), 0.5)
    with pytest.raises(CheckpointError, match=rf"normalises in another way .* its {key} is \[0\.5, 0\.5, 0\.5\]"):
        import_checkpoint(saved(tmp_path / "x.pth", content), tmp_path / "x.safetensors")


def test_a_resnet_that_does_not_fit_is_one_error(tmp_path: Path) -> None:
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


def test_weights_of_another_network_are_a_line_that_can_be_read(mobilenet: dict[str, Tensor], tmp_path: Path) -> None:
    import_checkpoint(saved(tmp_path / "x.pth", released.filled(released.semseg_resnet(4))), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError) as caught:
        load_backbone(build_backbone(ModelConfig(backbone="mobilenet_v2")), tmp_path / "x.safetensors")
    told = str(caught.value)
    assert len(told) < 700
    assert "features.0.0.weight is missing; " in told
    assert " more; " in told
    assert told.endswith(" is not a key of the network")
