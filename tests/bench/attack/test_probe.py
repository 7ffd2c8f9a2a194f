"""The probe on a model that was trained here, and on the same model with its gradient masked."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat.metrics import confusion_counts, miou
from ddcat_bench.attack.alarms import raise_alarms
from ddcat_bench.attack.probe import FEW, MORE, run_probe
from ddcat_bench.attack.results import Probe
from ddcat_bench.errors import BenchError
from ddcat_train.attacks import Model, bim
from ddcat_train.checkpoints import build_network
from ddcat_train.config import parse_config
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.dataset import Sample
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.networks import Segmenter
from ddcat_train.seeds import derive_seed

EPSILON = 8 / 255
IMAGES = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("probe") / "scenes"
    write_scenes(root, train=40, val=6, size=(48, 64))
    return root


@pytest.fixture(scope="module")
def val(root: Path) -> Dataset:
    return open_dataset("scenes", root, "val")


def trained(root: Path, *, updates: int, adversarial: bool = False) -> Segmenter:
    config = parse_config(
        {
            "data": {"name": "scenes", "root": str(root)},
            "augment": {"policy": "plain", "crop": 33},
            "model": {"backbone": "resnet10", "width": 8},
            "method": {"name": "undefended"},
            "train": {"epochs": 1, "batch_size": 2, "workers": 0},
        },
        "the tests of the probe",
    )
    dataset = open_dataset("scenes", root, "train")
    torch.manual_seed(0)
    network = build_network(config, len(dataset.classes)).train()
    batches = [(images, labels) for _, images, labels in evaluation_batches(dataset, batch_size=8)]
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for update in range(updates):
        images, labels = batches[update % len(batches)]
        if adversarial:
            images = bim(network, images, labels, epsilon=EPSILON, alpha=EPSILON / 2, steps=3)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels, ignore_index=255).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def plain(root: Path) -> Segmenter:
    return trained(root, updates=80)


@pytest.fixture(scope="module")
def found(plain: Segmenter, val: Dataset) -> Probe:
    return run_probe(plain, val, epsilon=EPSILON, images=IMAGES)


def scaled(model: Segmenter) -> Model:
    """Never in doubt: in float32 the loss of a right pixel is exactly 0, and so is its gradient."""
    return lambda images: 1e4 * model(images)


def quantised(model: Segmenter) -> Model:
    """What the first layers see has 5 bits; round() has no gradient, and nothing is passed straight through."""
    return lambda images: model((images * 31).round() / 31)


def undefined(model: Segmenter) -> Model:
    """The same answers, with a gradient that is NaN where an image is black."""
    return lambda images: model(images) + 0 * (images * 0).sqrt().sum((1, 2, 3), keepdim=True)


def rung(probe: Probe) -> set[str]:
    return {alarm.name for alarm in raise_alarms((), probe, trained_steps=None)}


def test_a_trained_model_raises_none(found: Probe) -> None:
    assert rung(found) == set()
    [clean], [few, more] = found.find("clean"), found.find("PGD")
    assert clean.miou > 0.3  # it has learnt something
    assert more.miou < few.miou < 0.7 * clean.miou  # and the attack is one
    assert Probe.model_validate_json(found.model_dump_json()) == found


@pytest.mark.slow
def test_an_adversarially_trained_model_raises_none(root: Path, val: Dataset) -> None:
    found = run_probe(trained(root, updates=120, adversarial=True), val, epsilon=EPSILON)
    assert rung(found) == set()
    [clean], [_, more] = found.find("clean"), found.find("PGD")
    assert more.miou > 0.6 * clean.miou > 0.2


def test_scaled_logits_ring(plain: Segmenter, val: Dataset) -> None:
    found = run_probe(scaled(plain), val, epsilon=EPSILON, images=IMAGES)
    assert rung(found) == {"gradients are zero or not finite", "accuracy is left at epsilon 64/255"}
    assert found.gradients.zero_pixels > 0.5
    assert found.gradients.zero_images == 0


def test_quantised_activations_ring(plain: Segmenter, val: Dataset) -> None:
    found = run_probe(quantised(plain), val, epsilon=EPSILON, images=IMAGES)
    by_chance = {"attacked mIoU is above clean"}  # without a gradient an attack is its random start, which may help
    assert rung(found) - by_chance == {
        "black-box beats white-box",
        "gradients are zero or not finite",
        "accuracy is left at epsilon 64/255",
    }
    assert found.gradients.zero_images == 1


def test_undefined_gradients_ring(plain: Segmenter, val: Dataset) -> None:
    found = run_probe(undefined(plain), val, epsilon=EPSILON, images=2)
    assert found.gradients.non_finite_images == 1
    assert "gradients are zero or not finite" in rung(found)


def test_figures_are_those_of_the_attacks(found: Probe, plain: Segmenter, val: Dataset) -> None:
    [(_, images, labels)] = evaluation_batches(val, batch_size=8, limit=IMAGES)
    images = images.contiguous(memory_format=torch.channels_last)

    def of(candidates: Tensor) -> float:
        predictions = plain(candidates).argmax(1)
        return miou(confusion_counts(labels.numpy(), predictions.numpy(), len(val.classes)))

    seeds = torch.tensor([derive_seed(0, place) for place in range(IMAGES)])
    assert found.find("clean")[0].miou == of(images)
    for point, steps in zip(found.find("PGD"), (FEW, MORE), strict=True):
        attacked = bim(plain, images, labels, epsilon=EPSILON, alpha=EPSILON / 4, steps=steps, start="random", seeds=seeds)
        assert (point.steps, point.epsilon) == (steps, EPSILON)
        assert point.miou == of(attacked)


def ignoring(dataset: Dataset, chosen: Callable[[int], bool]) -> Dataset:
    """The data set with no label in some of its images."""

    class Ignoring(type(dataset)):  # type: ignore[misc]
        def read(self, index: int) -> Sample:
            sample: Sample = super().read(index)
            return dataclasses.replace(sample, labels=np.full_like(sample.labels, 255)) if chosen(index) else sample

    return Ignoring(**{field.name: getattr(dataset, field.name) for field in dataclasses.fields(dataset)})


def test_images_without_labels_do_not_count_as_masked(plain: Segmenter, val: Dataset) -> None:
    found = run_probe(plain, ignoring(val, lambda index: index < 3), epsilon=EPSILON, images=2)
    assert found.gradients.zero_images == 0
    assert found.images == 2


def test_refuses_images_of_which_every_pixel_is_ignored(plain: Segmenter, val: Dataset) -> None:
    with pytest.raises(BenchError, match="every pixel of the probed images is ignored"):
        run_probe(plain, ignoring(val, lambda index: True), epsilon=EPSILON, images=2)
