"""Presets: they have the numbers of the paper, every one of them trains, and the command shows them."""

import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ddcat_train.config import PRESETS, Config, load_config, presets
from ddcat_train.corruptions import CAPTURE, EXTRA
from ddcat_train.errors import CheckpointError
from ddcat_train.run.trainer import Trainer
from ddcat_train.yaml_tree import _locate

COMMAND = Path(sys.executable).with_name("ddcat-train")

# crop, epochs, scale, evaluation base: of the released code, and of semseg
DATA = {
    "voc": ("voc", "train_aug", 473, 50, (0.5, 2.0), 512),
    "cityscapes": ("cityscapes", "train", 449, 400, (0.25, 1.0), 1024),
    "cityscapes-semseg": ("cityscapes", "train", 713, 200, (0.5, 2.0), 2048),
}
NETWORKS = {"pspnet50": ("resnet50", "pyramid"), "deeplabv3_50": ("resnet50", "aspp")}
METHODS = ["undefended", "sat", "ddcat", "ddcat-m", "ddcat-n"]
PAPER = [*product(DATA, NETWORKS, METHODS)]
FGSM = [*product(["voc", "cityscapes"], NETWORKS, ["sat-fgsm"])]
C24 = [*product(DATA, NETWORKS, ["pgd-at"])]
SMALL = [*product(["camvid", "scenes"], [*METHODS, "sat-fgsm", "pgd-at", "pgd-at-4", "segpgd-at", "trades", "gaussian"])]
OTHER_NETWORKS = {
    "efficientnet_lite2": "efficientnet_lite2 + upernet",
    "segformer_b0": "segformer",
    "upernet_convnext_tiny": "convnext_tiny + upernet",
}
OTHERS = [*product(["camvid"], OTHER_NETWORKS, ["undefended", "sat", "ddcat", "pgd-at", "pgd-at-4"])]
PIR = ("voc", "upernet_convnext_tiny", "pir-at")
CORRUPTED = [*product(["camvid", "scenes"], ["undefended", "pgd-at"], ["corruptions"])]


def test_there_is_a_preset_for_every_choice() -> None:
    expected = {"-".join(parts) for parts in (*PAPER, *FGSM, *C24, *SMALL, *CORRUPTED, *OTHERS, PIR)}
    assert expected == set(presets())
    used = {file for preset in presets() for part in _locate(preset, Path()) for file in chain(part)}
    assert {path.name for path in set(PRESETS.iterdir()) - used} == {"_letter.yaml"}  # for files of one's own


@pytest.mark.parametrize(("data", "network", "method"), [*PAPER, *FGSM, *C24])
def test_the_presets_of_the_paper_have_its_numbers(data: str, network: str, method: str) -> None:
    config = load_config(f"{data}-{network}-{method}")
    reader, split, crop, epochs, scale, base = DATA[data]
    assert (config.data.name, config.data.train_split, config.data.val_split) == (reader, split, "val")
    assert (config.data.long_side, config.data.eval_long_side) == (None, base)
    assert (config.augment.policy, config.augment.crop, config.augment.scale) == ("paper", (crop, crop), scale)
    assert (config.model.backbone, config.model.context) == NETWORKS[network]
    assert (config.model.width, config.model.output_stride) == (64, 8)
    assert (config.train.epochs, config.train.batch_size) == (epochs, 16)
    optim = config.optim
    assert (optim.lr, optim.lr * optim.head_lr_factor, optim.momentum) == (0.01, 0.1, 0.9)
    assert (optim.weight_decay, optim.power) == (1e-4, 0.9)
    assert config.method.name == method.removesuffix("-fgsm")
    assert (config.method.deep_weight, config.method.adversarial_share, config.method.split) == (0.4, 0.5, "rank")
    assert (config.method.update, config.method.predicted_mask, config.method.mask_loss_on_ignored) == (
        "joint",
        "forward",
        True,
    )
    assert attack_of(config) == {
        "pgd-at": (4 / 255, 0.01, 5, "random"),  # Croce, Singh, Hein
        "sat-fgsm": (0.03, 0.03, 1, "clean"),
    }.get(method, (0.03, 0.01, 3, "clean"))


def attack_of(config: Config) -> tuple[float, float, int, str]:
    attack = config.attack
    return attack.epsilon, attack.step_size, attack.steps, attack.start


@pytest.mark.parametrize(("data", "network", "method"), OTHERS)
def test_other_networks_train_on_camvid_by_their_own_rates(data: str, network: str, method: str) -> None:
    config, usual = load_config(f"{data}-{network}-{method}"), load_config(f"{data}-{method}")
    assert config.model.architecture == OTHER_NETWORKS[network]
    assert config.optim.name == ("sgd" if network.startswith("efficientnet") else "adamw")
    assert (config.data, config.augment, config.attack, config.train) == (usual.data, usual.augment, usual.attack, usual.train)


@pytest.mark.parametrize("start", ["camvid", "scenes", "camvid-upernet_convnext_tiny"])
def test_our_first_advice_is_the_one_that_was_measured(start: str) -> None:
    config = load_config(f"{start}-pgd-at-4")
    assert config.method.name == "pgd-at"
    assert attack_of(config) == (4 / 255, 2 / 255, 3, "random")


def test_pir_at_is_as_released(roots: dict[str, Path]) -> None:
    config = load_config("-".join(PIR))
    assert attack_of(config) == (4 / 255, 0.01, 5, "random")
    assert (config.model.stem, config.model.drop_path, config.model.align_corners) == ("deep", 0.4, False)
    assert config.model.normalise == "none"
    optim = config.optim
    assert (optim.name, optim.lr, optim.weight_decay, optim.power, optim.poly_from) == ("adamw", 1e-3, 0.01, 1, 0)
    assert (optim.head_lr_factor, optim.layer_decay, optim.warmup) == (1, 1, 10 / 50)
    assert (config.train.epochs, config.train.batch_size, config.augment.crop) == (50, 32, (473, 473))
    small = [f"data.root={roots['voc']}", "augment.crop=33", "train.batch_size=2"]
    with pytest.raises(CheckpointError, match=r"pretrained weights: robust_convnext_tiny\.safetensors; name yours by"):
        Trainer(load_config("-".join(PIR), small), device="cpu")


def test_alpha_is_a_share_of_epsilon_as_released() -> None:
    assert load_config("voc-pspnet50-ddcat", ["attack.steps=7"]).attack.alpha == "eps/n"


def numbers(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value, f"{path}.{key}")
    elif not isinstance(tree, str | bool | None):
        yield path, tree


def chain(path: Path) -> list[Path]:
    parents = yaml.safe_load(path.read_text()).get("inherits", [])
    names = [parents] if isinstance(parents, str) else parents
    return [path, *(file for name in names for file in chain(PRESETS / f"{name}.yaml"))]


@pytest.mark.parametrize("preset", presets())
def test_no_number_is_written_twice(preset: str) -> None:
    trees = [yaml.safe_load(file.read_text()) for part in _locate(preset, Path()) for file in chain(part)]
    written = [number for tree in trees for number in numbers(tree)]
    assert len(written) >= 3
    assert [number for number in written if written.count(number) > 1] == []


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory, tiny_scenes: Path) -> dict[str, Path]:
    """Two images and more of every data set, in its layout."""
    folder = tmp_path_factory.mktemp("layouts")
    roots = {name: folder / name for name in ("voc", "cityscapes", "camvid")}
    generator = np.random.default_rng(0)

    def write(path: Path, values: int | None = None) -> None:
        shape = (24, 48, 3) if values is None else (24, 48)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, values or 256, shape).astype(np.uint8)).save(path)

    for index, split in product(range(2), ("train", "val")):
        name = f"{split}_{index}"
        write(roots["voc"] / f"JPEGImages/{name}.jpg")
        write(roots["voc"] / f"SegmentationClass{'Aug' if split == 'train' else ''}/{name}.png", 21)
        write(roots["cityscapes"] / f"leftImg8bit/{split}/ulm/{name}_leftImg8bit.png")
        write(roots["cityscapes"] / f"gtFine/{split}/ulm/{name}_gtFine_labelIds.png", 34)
        write(roots["camvid"] / f"{split}/{name}.png")
        write(roots["camvid"] / f"{split}annot/{name}.png", 12)
    lists = roots["voc"] / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train_aug.txt").write_text(
        "".join(f"/JPEGImages/train_{index}.jpg /SegmentationClassAug/train_{index}.png\n" for index in range(2))
    )
    (lists / "val.txt").write_text("val_0\nval_1\n")
    for split in ("train", "val"):
        (roots["camvid"] / f"{split}.txt").write_text(
            "".join(f"/SegNet/CamVid/{split}/{split}_{i}.png /SegNet/CamVid/{split}annot/{split}_{i}.png\n" for i in range(2))
        )
    return roots | {"scenes": tiny_scenes}


def reduced(preset: str, roots: dict[str, Path], *others: str) -> Config:
    config = load_config(preset)
    backbone = config.model.backbone or ""
    width = ["model.width=4"] if backbone.startswith("resnet") else []
    if backbone.startswith("convnext"):
        width = ["model.context_width=8", "model.pretrained=null"]
    return load_config(
        preset,
        [f"data.root={roots[config.data.name]}", "augment.crop=33", "train.batch_size=2", "train.workers=0", *width, *others],
    )


# Every data set, network and method; what only joins them in another way is slow.
QUICK = {
    "voc-pspnet50-ddcat", "voc-deeplabv3_50-undefended", "voc-upernet_convnext_tiny-pir-at", "cityscapes-pspnet50-ddcat",
    "cityscapes-deeplabv3_50-ddcat-n", "camvid-segformer_b0-ddcat", "camvid-efficientnet_lite2-undefended", "camvid-trades",
    "camvid-pgd-at-corruptions", "camvid-segpgd-at", "camvid-gaussian",
}  # fmt: skip


@pytest.mark.parametrize(
    "preset",
    [preset if preset in QUICK else pytest.param(preset, marks=pytest.mark.slow) for preset in presets()],
)
def test_every_preset_is_loaded_built_and_stepped(preset: str, roots: dict[str, Path]) -> None:
    trainer = Trainer(reduced(preset, roots), device="cpu")
    before = {name: value.clone() for name, value in trainer._network.named_parameters()}
    log = trainer.train_step(next(iter(trainer.batches())))
    assert trainer.step == 1
    assert all(math.isfinite(float(value)) for value in log.values())
    if trainer._config.optim.warmup == 0:  # else the first step is small
        assert not torch.equal(before["heads.main.4.weight"], trainer._network.get_parameter("heads.main.4.weight"))
    assert any(not torch.equal(before[name], value) for name, value in trainer._network.named_parameters())


@pytest.mark.parametrize(
    ("preset", "trained", "judged"),
    [
        ("cityscapes-pspnet50-undefended", (24, 48, 3), (512, 1024, 3)),
        ("voc-pspnet50-undefended", (24, 48, 3), (256, 512, 3)),
        ("camvid-undefended", (120, 240, 3), (120, 240, 3)),
    ],
)
def test_images_are_judged_at_a_size_of_their_own(
    preset: str, trained: tuple[int, ...], judged: tuple[int, ...], roots: dict[str, Path]
) -> None:
    trainer = Trainer(reduced(preset, roots), device="cpu")
    assert trainer._train.read(0).image.shape == trained
    assert trainer._val.read(0).image.shape == judged
    assert trainer._val.read(0).labels.shape == judged[:2]


# --- the command


def command(*arguments: object) -> str:
    return subprocess.run([str(COMMAND), *map(str, arguments)], check=True, capture_output=True, text=True).stdout


def test_the_list_has_a_line_for_every_preset() -> None:
    header, *lines = (line.split("  ") for line in command("--list").splitlines())
    rows = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert [cell.strip() for cell in header if cell.strip()] == ["preset", "data", "network", "method", "crop", "epochs"]
    assert [row[0] for row in rows] == presets()
    assert ["voc-deeplabv3_50-ddcat-m", "voc", "resnet50 + aspp", "ddcat-m", "473 x 473", "50"] in rows
    assert ["camvid-trades", "camvid", "mobilenet_v2 + pyramid", "trades", "129 x 177", "50"] in rows


def test_what_is_shown_is_a_configuration_to_train_from(tmp_path: Path) -> None:
    saved = tmp_path / "mine.yaml"
    saved.write_text(command("--show", "voc-pspnet50-ddcat", "--set", "optim.lr=0.02", "--data-root", "/data/voc"))
    assert load_config(str(saved)) == load_config("voc-pspnet50-ddcat", ["optim.lr=0.02", "data.root=/data/voc"])
    assert "inherits" not in saved.read_text()
    assert command(saved, "--show") == saved.read_text()


@pytest.mark.parametrize("parts", CORRUPTED)
def test_training_on_corruptions_leaves_the_common_ones_for_the_evaluation(parts: tuple[str, ...]) -> None:
    corruptions = load_config("-".join(parts)).augment.corruptions
    assert set(corruptions) == {*EXTRA, *CAPTURE}
