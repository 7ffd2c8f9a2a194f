"""The sliding-window protocol against a literal transcription."""

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from ddcat.metrics import confusion_counts
from ddcat_bench import cli
from ddcat_bench.attack.attacks import AttackBatch
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.report import attack_markdown
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.attack.sliding_window import score_windows, sized, windows
from ddcat_bench.attack.suites import BIM, AttackSpec
from ddcat_bench.inputs import main_branch
from ddcat_bench.result_io import read_result
from ddcat_train import imagenet
from ddcat_train.attacks import Model
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.losses import pixel_cross_entropy
from tests.bench.suite import run_suite

PLAN = BIM._replace(counted=(0, 1, 3))


def slowly(model: Model, image: Tensor, labels: Tensor, classes: int, crop: tuple[int, int], steps: int) -> np.ndarray:
    """Predictions for one image, step by step as the protocol is told: image (1, 3, H, W), labels (1, H, W)."""
    height, width = labels.shape[-2:]
    tall, wide = max(height, crop[0]), max(width, crop[1])
    above, left = (tall - height) // 2, (wide - width) // 2
    padded, truth = torch.empty(1, 3, tall, wide), torch.full((1, tall, wide), 255)
    for channel in range(3):
        padded[:, channel] = imagenet.MEAN[channel]
    padded[:, :, above : above + height, left : left + width] = image
    truth[:, above : above + height, left : left + width] = labels
    strides = [math.ceil(2 * side / 3) for side in crop]
    down = math.ceil((tall - crop[0]) / strides[0]) + 1
    across = math.ceil((wide - crop[1]) / strides[1]) + 1
    total, times = torch.zeros(1, classes, tall, wide), torch.zeros(tall, wide)
    for i in range(down):
        for j in range(across):
            bottom = min(i * strides[0] + crop[0], tall)
            right = min(j * strides[1] + crop[1], wide)
            top, start = bottom - crop[0], right - crop[1]
            window = padded[:, :, top:bottom, start:right].contiguous(memory_format=torch.channels_last)
            attacked = window.clone()
            for _ in range(steps):
                leaf = attacked.detach().requires_grad_()
                loss = pixel_cross_entropy(model(leaf), truth[:, top:bottom, start:right]).sum()
                attacked = leaf.detach() + 0.01 * torch.autograd.grad(loss, leaf)[0].sign()
                attacked = torch.clamp(attacked, (window - 0.03).clamp(min=0), (window + 0.03).clamp(max=1))
            with torch.no_grad():
                found = torch.softmax(model(attacked), 1)
                if steps == 0:
                    found = (found + torch.softmax(model(attacked.flip(3)), 1).flip(3)) / 2
            total[:, :, top:bottom, start:right] += found
            times[top:bottom, start:right] += 1
    assert times.min() >= 1
    return (total / times).argmax(1)[0, above : above + height, left : left + width].numpy()


@pytest.mark.parametrize("crop", [(33, 33), (34, 48), (40, 33), (49, 37), (57, 65)], ids=str)
def test_it_is_the_protocol_as_it_is_told(checkpoint: Checkpoint, scenes: Dataset, crop: tuple[int, int]) -> None:
    network = main_branch(checkpoint, torch.device("cpu"))
    classes = len(scenes.classes)
    for _, images, labels in evaluation_batches(scenes, batch_size=1, limit=2):
        counts = score_windows(network, network, PLAN, AttackBatch(images, labels, torch.tensor([0])), classes, crop=crop)
        for place, steps in enumerate(PLAN.counted):
            expected = slowly(network, images, labels, classes, crop, steps)
            np.testing.assert_array_equal(counts[0, place, 0], confusion_counts(labels[0].numpy(), expected, classes))
        if crop[0] <= images.shape[2] and crop[1] <= images.shape[3]:  # the mean colour around others has no 8 bits
            np.testing.assert_array_equal(counts[0, 0], counts[1, 0])


def test_every_window_has_a_start_of_its_own() -> None:
    seen: set[bytes] = set()

    def grey(images: torch.Tensor) -> torch.Tensor:
        seen.add(images.detach().numpy().tobytes())
        return images[:, :2] * 0  # without a gradient every step stays at the start

    images, labels = torch.full((1, 3, 50, 50), 0.5), torch.zeros(1, 50, 50, dtype=torch.int64)
    plan = AttackSpec("PGD", 0.03, alpha=0.01, start="random", counted=(1,))
    victims = AttackBatch(images, labels, torch.tensor([7]))
    score_windows(grey, lambda images: images[:, :2], plan, victims, 2, crop=(33, 33))
    assert len(seen) == len(windows(50, 50, (33, 33))) == 4


def test_windows_cover_everything_and_lie_inside() -> None:
    assert windows(33, 40, (33, 40)) == [(slice(0, 33), slice(0, 40))]
    for height, width, crop in [(100, 77, (33, 41)), (34, 33, (33, 33)), (473, 512, (473, 473))]:
        seen = np.zeros((height, width), int)
        for window in windows(height, width, crop):
            assert seen[window].shape == crop
            seen[window] += 1
        assert seen.min() >= 1


@pytest.mark.usefixtures("no_probe")
def test_the_suite_says_which_protocol(checkpoint: Checkpoint, scenes: Dataset, run_directory: Path, tmp_path: Path) -> None:
    cli.attack(run_directory, max_images=1, batch=2, device="cpu", protocol="windows", out=tmp_path / "attack")
    result = read_result(tmp_path / "attack/attack.json", AttackResult)
    assert result.protocol_name == "windows"
    assert "33 x 33" in result.protocol
    assert "no single adversarial image" in result.protocol
    assert "Protocol: windows." in attack_markdown(result)
    whole = run_suite(AttackJob(checkpoint, scenes, max_images=1, batch_size=2))
    assert whole.protocol_name == "whole"
    assert [row.label for row in whole.rows] == [row.label for row in result.rows]
    assert whole.rows != result.rows


@pytest.mark.parametrize(("own", "base"), [((75, 53), 61), ((53, 75), 90), ((40, 40), 61)], ids=str)
@pytest.mark.parametrize("at_base", [False, True])
def test_images_are_resized_in_floats_and_scores_resized_back(own: tuple[int, int], base: int, at_base: bool) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (*own, 3), dtype=np.uint8)
    labels = generator.integers(0, 3, own, dtype=np.uint8)
    seen: list[Tensor] = []

    def model(images: Tensor) -> Tensor:
        seen.append(images)
        return 20 * images

    # as the released evaluation writes it
    size = sized(own, base)
    resized = cv2.resize(np.float32(pixels), size[::-1], interpolation=cv2.INTER_LINEAR)
    truth = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
    softmax = torch.softmax(20 * torch.from_numpy(resized / 255).permute(2, 0, 1)[None], 1)[0].permute(1, 2, 0).numpy()
    scored = softmax if at_base else cv2.resize(np.float64(softmax), own[::-1], interpolation=cv2.INTER_LINEAR)
    expected = confusion_counts(truth if at_base else labels, scored.argmax(2), 3)

    planes = torch.from_numpy(np.float32(pixels) / 255).permute(2, 0, 1)[None]
    victims = AttackBatch(planes, torch.from_numpy(labels).long()[None], torch.tensor([0]))
    plan = BIM._replace(counted=(0,))
    found = score_windows(model, model, plan, victims, 3, crop=size, base=base, at_base=at_base)
    assert max(size) == base
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0).detach() * 255, resized, atol=1e-2)
    assert np.abs(found[0, 0, 0] - expected).sum() <= 4  # a tie in floats


def test_what_surrounds_a_small_image_has_the_mean_colour_itself() -> None:
    seen: list[Tensor] = []

    def model(images: Tensor) -> Tensor:
        seen.append(images)
        return images[:, :2]

    victims = AttackBatch(torch.rand(1, 3, 20, 30), torch.zeros(1, 20, 30, dtype=torch.int64), torch.tensor([0]))
    score_windows(model, model, BIM._replace(counted=(0,)), victims, 2, crop=(33, 33))
    assert torch.equal(seen[0][0, :, 0, 0].detach(), torch.tensor(imagenet.MEAN))
