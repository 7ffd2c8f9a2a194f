"""What the paper's presets do as the released code does, and others do in their own way."""

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from ddcat_train.config import ModelConfig, OptimConfig, load_config, presets
from ddcat_train.data import AUGMENTATIONS, open_dataset
from ddcat_train.data.dataset import Sample
from ddcat_train.data.loader import batches_per_epoch, train_batches
from ddcat_train.errors import ConfigError
from ddcat_train.networks import build_segmenter
from ddcat_train.networks.normalise import Normalise
from ddcat_train.optimizer import learning_rate
from ddcat_train.run.trainer import Trainer

PAPERS = [name for name in presets() if name.startswith(("voc-", "cityscapes-")) and not name.endswith("-pir-at")]


@pytest.mark.parametrize("preset", presets())
def test_only_the_paper_s_presets_do_as_released(preset: str) -> None:
    config = load_config(preset)
    found = (config.optim.poly_from, config.model.init)
    assert found == ((1, "kaiming") if preset in PAPERS else (0, "torch"))
    assert config.train.last_batch == ("drop" if preset.startswith("voc-") else "fill")


@pytest.mark.parametrize(("preset", "images"), [("voc-pspnet50-ddcat", 10_582), ("cityscapes-pspnet50-ddcat", 2_975)])
def test_an_epoch_has_as_many_steps_as_the_released_one_on_4_gpus(preset: str, images: int) -> None:
    train = load_config(preset).train
    data: Any = Counted(images)
    sampler = DistributedSampler(data, num_replicas=4, rank=0)
    theirs = DataLoader(data, train.batch_size // 4, sampler=sampler, drop_last=True)
    assert batches_per_epoch(data, train.batch_size, drop_last=train.last_batch == "drop") == len(theirs)


def test_the_released_poly_rule_counts_from_1() -> None:
    released, ours = OptimConfig(poly_from=1), OptimConfig()
    assert learning_rate(released, step=0, steps=100) == pytest.approx(0.01 * 0.99**0.9)
    assert learning_rate(released, step=99, steps=100) == 0
    assert learning_rate(ours, step=0, steps=100) == 0.01


class Counted:
    """A data set of which only the length is asked."""

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images


def test_the_images_left_out_change_from_epoch_to_epoch(tiny_scenes: Path) -> None:
    dataset = open_dataset("scenes", tiny_scenes, "train")
    augment = AUGMENTATIONS["plain"](crop=(33, 33), scale=(1, 1))
    batches = list(train_batches(dataset, augment, batch_size=4, seed=0, steps=8, drop_last=True))  # 10 images: 2 batches
    epochs = [set(batches[first].names) | set(batches[first + 1].names) for first in range(0, 8, 2)]
    assert all(len(epoch) == 8 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_fewer_images_than_a_batch_are_refused(tiny_run: list[str]) -> None:
    config = load_config("scenes-undefended", [*tiny_run, "train.batch_size=12", "train.last_batch=drop"])
    with pytest.raises(ConfigError, match=r"10 images make no batch of 12: use a smaller train\.batch_size"):
        Trainer(config)


class Fixed:
    """Draws the factor that is asked for, and nothing else."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def uniform(self, *_: float) -> float:
        return self.factor

    def random(self) -> float:
        return 1.0

    def integers(self, *_: int) -> int:
        return 0


@pytest.mark.parametrize("factor", [0.731, 1.0, 1.00301, 1.337])
def test_the_paper_s_scale_is_opencv_s_by_its_factor(factor: float) -> None:
    generator = np.random.default_rng(3)
    image = generator.integers(0, 256, (75, 53, 3), dtype=np.uint8)
    labels = generator.integers(0, 4, (75, 53), dtype=np.uint8)
    expected = cv2.resize(np.float32(image) / np.float32(255), None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    nearest = cv2.resize(labels, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    crop = nearest.shape[0], nearest.shape[1]
    found, truth = AUGMENTATIONS["paper"](crop=crop, scale=(factor, factor))(Sample(image, labels, "x"), Fixed(factor))  # type: ignore[arg-type]
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(truth, nearest)


def test_an_image_that_a_scale_would_leave_nothing_of_is_scaled_all_the_same() -> None:
    sample = Sample(np.zeros((1, 90, 3), np.uint8), np.zeros((1, 90), np.uint8), "x")
    found, _ = AUGMENTATIONS["paper"](crop=(33, 33), scale=(0.3, 0.3))(sample, Fixed(0.3))  # type: ignore[arg-type]
    assert found.shape == (33, 33, 3)


def test_the_released_weights_of_a_backbone_keep_the_variance_of_gradients() -> None:
    torch.manual_seed(0)
    network = build_segmenter(ModelConfig(backbone="resnet18", width=16, init="kaiming"), classes=3)
    for module in network.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert float(module.weight.detach().std()) == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)
    torch.manual_seed(0)
    plain = build_segmenter(ModelConfig(backbone="resnet18", width=16), classes=3)
    head, other = (net.heads["main"][0].weight for net in (network, plain))
    assert float(head.detach().std()) == pytest.approx(float(other.detach().std()), rel=0.1)  # heads keep torch's


def test_transformers_have_weights_of_their_own() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="init is for convolutional networks of ours"):
        load_config("scenes-undefended", ["model={backbone: hf, hf: {model_type: swin}, init: kaiming}"])


def test_normalisation_in_float64_is_exact() -> None:
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
    ))  # fmt: skip
    layer = Normalise().double()
    assert torch.equal(layer(images), (images - mean) / std)
    layer.load_state_dict(Normalise().state_dict())  # a file in float32
    assert torch.equal(layer(images), (images - mean) / std)
    assert torch.equal(layer.float().mean, Normalise().mean)
    other = Normalise((0.5, 0.5, 0.25), (1, 1, 1)).state_dict()
    layer.double().load_state_dict(other)
    assert torch.equal(layer.mean, other["mean"].double())
