"""Weights of the classes in the losses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ddcat_train.checkpoints import LAST, read_description
from ddcat_train.choices import MethodName
from ddcat_train.config import AttackConfig, Config, MethodConfig, load_config
from ddcat_train.errors import ConfigError, DataError
from ddcat_train.losses import pixel_cross_entropy, pixel_divergence, valid_pixels
from ddcat_train.methods import METHODS
from ddcat_train.run.class_weights import balanced
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer
from tests.train.batches import batch_of, network_for

WEIGHTS = torch.tensor([0.5, 2.0, 0.0, 7.0], dtype=torch.float64)


@pytest.fixture
def pixels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (2, 5, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    return torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator), labels


def test_weighted_losses_are_torch_s(pixels: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = pixels
    found = pixel_cross_entropy(logits, labels, WEIGHTS).sum() / valid_pixels(labels, WEIGHTS)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, WEIGHTS, ignore_index=255))
    other = logits.flip(1)
    plain, weighted = pixel_divergence(logits, other, labels), pixel_divergence(logits, other, labels, WEIGHTS)
    of_pixels = torch.where(labels == 255, 0.0, WEIGHTS[labels.clamp(max=3)])
    torch.testing.assert_close(weighted, plain * of_pixels)


@pytest.mark.parametrize("method", ["undefended", "segpgd-at", "trades", "ddcat"])
def test_equal_weights_change_nothing_and_others_change_every_head(method: MethodName) -> None:
    options, attack = MethodConfig(name=method), AttackConfig()
    micro_batch = batch_of(4, ignored=(0.3,))
    classes = 5
    doubled = torch.full((classes,), 2.0, dtype=micro_batch.images.dtype)
    odd = torch.arange(1, classes + 1, dtype=micro_batch.images.dtype)

    def logged(weights: torch.Tensor | None) -> dict[str, float]:
        network = network_for(options, micro_batch)
        valid = valid_pixels(micro_batch.labels, weights)
        updates = METHODS[method].step(
            network, replace(micro_batch, valid=valid, weights=weights), attack=attack, options=options
        )
        return {name: float(value) for update in updates for name, value in update.log.items()}

    plain, same, other = logged(None), logged(doubled), logged(odd)
    assert same == pytest.approx(plain, rel=1e-9)
    learning_classes = {"main", "auxiliary", "deep", "divergence"} & plain.keys()
    assert {name for name in plain if other[name] != pytest.approx(plain[name], rel=1e-9)} == learning_classes


def test_balanced_weights_are_inverse_to_the_shares() -> None:
    weights = balanced(np.array([600, 300, 0, 100]))
    assert weights == pytest.approx((1000 / 1800, 1000 / 900, 1.0, 1000 / 300))
    with pytest.raises(DataError, match="no pixel of the training split has a label"):
        balanced(np.zeros(3, np.int64))


@pytest.fixture
def config(tmp_path: Path) -> Config:
    root = tmp_path / "data"
    for split, count in (("train", 4), ("val", 1)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            labels = np.zeros((40, 40), np.uint8)
            labels[: 10 * (index + 1), :20], labels[:, 30:] = 1, 255
            Image.new("RGB", (40, 40)).save(root / "images" / split / f"{index}.png")
            Image.fromarray(labels).save(root / "labels" / split / f"{index}.png")
    (root / "classes.yaml").write_text("names: [ground, object]\n")
    overrides = [
        "data.name=folder", f"data.root={root}", "augment.crop=33", "model.width=4", "train.epochs=1", "train.batch_size=4",
        "train.class_weights=balanced",
    ]  # fmt: skip
    return load_config("scenes-undefended", overrides)


def test_balanced_weights_are_counted_once_and_recorded(
    config: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(config, tmp_path / "run")
    description = read_description(tmp_path / "run" / LAST)
    assert description.class_weights == pytest.approx((4800 / 5600, 4800 / 4000))
    assert "class weights: ground 0.857, object 1.2" in capfd.readouterr().err
    (config.data.root / "labels/train/0.png").write_bytes(b"")  # a run that goes on does not count again
    assert train(config, tmp_path / "run", resume=True).step == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[1, 2, 3]", "train.class_weights has 3 numbers, and there are 2 classes: give one for each of ground, object"),
        ("[0, 0]", "class_weights of 0 alone leave nothing to train on"),
        ("[1, -1]", "greater than or equal to 0"),
        ("often", "train.class_weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(config: Config, value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(load_config("scenes-undefended", [
            "data.name=folder", f"data.root={config.data.root}", f"train.class_weights={value}", "train.batch_size=4"
        ]))  # fmt: skip
