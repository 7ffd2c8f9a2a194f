"""Attacks that are learnt on some images and tried on others: stronger than chance, and where they may be."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddcat_train.attacks import apply_universal, learn_patch, patch_side, place_patch, universal_perturbation
from ddcat_train.errors import AttackError


@pytest.fixture(scope="module")
def scene() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that has learnt to tell which colour is strongest in the neighbourhood, and 24 images of 24 x 24."""
    torch.manual_seed(0)
    coarse = torch.rand(24, 3, 6, 6)
    images = nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    labels = nn.functional.avg_pool2d(images, 5, 1, 2).argmax(1)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.requires_grad_(False), images, labels


def halves(images: Tensor, labels: Tensor) -> Any:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        yield images[:6], labels[:6]
        yield images[6:12], labels[6:12]

    return batches


def accuracy(network: nn.Module, images: Tensor, labels: Tensor, counted: Tensor | None = None) -> float:
    right = network(images).argmax(1) == labels
    return float(right[counted].float().mean() if counted is not None else right.float().mean())


def test_a_learnt_patch_harms_unseen_images_more_than_a_random_and_a_grey_one(scene: Any) -> None:
    network, images, labels = scene
    side = patch_side(24, 24, 0.08)
    patch = learn_patch(network, halves(images, labels), side=side, epochs=25)
    assert patch.shape == (3, side, side)
    assert (patch.min() >= 0, patch.max() <= 1) == (True, True)
    left = {}
    for name, one in {
        "learnt": patch,
        "random": torch.rand(3, side, side, generator=torch.Generator().manual_seed(1)),
        "grey": torch.full((3, side, side), 0.5),
    }.items():
        placed = place_patch(images[12:], one, torch.Generator().manual_seed(2))
        left[name] = accuracy(network, placed.images, labels[12:], placed.outside)
    assert left["learnt"] < min(left["random"], left["grey"]) - 0.005
    again = learn_patch(network, halves(images, labels), side=side, epochs=25)
    assert torch.equal(patch, again)


def test_a_patch_changes_nothing_outside_of_its_place(scene: Any) -> None:
    _, images, _ = scene
    placed = place_patch(images, torch.zeros(3, 5, 5), torch.Generator().manual_seed(0))
    kept = placed.outside[:, None].expand_as(images)
    assert torch.equal(placed.images[kept], images[kept])
    assert (placed.images[~kept] == 0).all()
    covered = (~placed.outside).flatten(1).sum(1)
    assert covered.min() >= 16
    assert covered.max() <= 36
    assert len(set(covered.tolist())) > 1
    fixed = place_patch(images, torch.ones(3, 5, 5), torch.Generator().manual_seed(0), vary=False)
    assert ((~fixed.outside).flatten(1).sum(1) == 25).all()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.0, 0.9, float("nan")])
def test_a_patch_that_does_not_fit_is_refused(share: float) -> None:
    with pytest.raises(AttackError, match=r"does not fit into it: use a share above 0 and below 0\.35"):
        patch_side(24, 48, share)


def test_a_patch_larger_than_the_image_is_refused(scene: Any) -> None:
    _, images, _ = scene
    with pytest.raises(AttackError, match="does not fit into an image of 24x24"):
        place_patch(images, torch.zeros(3, 40, 40), torch.Generator().manual_seed(0))


def test_a_universal_perturbation_harms_unseen_images_more_than_random_signs(scene: Any) -> None:
    network, images, labels = scene
    epsilon = 8 / 255
    learnt = universal_perturbation(network, halves(images, labels), epsilon=epsilon, epochs=8, size=(24, 24))
    assert learnt.abs().max() <= epsilon
    random = epsilon * torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(0)).sign()
    clean = accuracy(network, images[12:], labels[12:])
    left = [accuracy(network, apply_universal(images[12:], one), labels[12:]) for one in (learnt, random)]
    assert left[0] < min(left[1], clean) - 0.01


def test_a_small_universal_perturbation_is_repeated_and_its_gradient_folded(scene: Any) -> None:
    network, images, labels = scene
    tile = torch.arange(12.0).reshape(3, 2, 2) / 100
    assert torch.allclose(apply_universal(torch.zeros(1, 3, 5, 3), tile)[0, 0], torch.tensor(
        [[0.0, 0.01, 0.0], [0.02, 0.03, 0.02], [0.0, 0.01, 0.0], [0.02, 0.03, 0.02], [0.0, 0.01, 0.0]]
    ))  # fmt: skip
    learnt = universal_perturbation(network, halves(images, labels), epsilon=0.05, epochs=8, size=(7, 5))
    assert learnt.shape == (3, 7, 5)
    assert accuracy(network, apply_universal(images[12:], learnt), labels[12:]) < accuracy(network, images[12:], labels[12:])
    with pytest.raises(AttackError, match="there are none: use one or more"):
        universal_perturbation(network, lambda: iter(()), epsilon=0.05, size=(7, 5))
    with pytest.raises(AttackError, match="epsilon 0: expected a bound above 0"):
        universal_perturbation(network, halves(images, labels), epsilon=0.0, size=(7, 5))
