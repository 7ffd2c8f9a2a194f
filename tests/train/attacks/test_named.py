"""Attacks by name, on whatever people call a model."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ddcat
from ddcat_train.attacks import bim, pgd, sea
from ddcat_train.attacks.named import ATTACKS, attack
from ddcat_train.errors import AttackError

EPSILON = 8 / 255


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():  # every class is predicted somewhere
        made[3].bias -= made(torch.rand(3, 3, 12, 10)).mean((0, 2, 3))
    return made


@pytest.fixture
def batch(model: nn.Module) -> tuple[Tensor, Tensor]:
    images = torch.rand(3, 3, 12, 10, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model.eval()(images).argmax(1)
    labels[:, :2] = 255
    model.train()
    return images, labels


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_stays_in_its_ball_and_does_harm(name: str, model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    steps = {"sea": 12, "apgd": 10, "square": 60}.get(name)
    found = attack(model, images, labels, name, epsilon=EPSILON, steps=steps)
    assert found.shape == images.shape
    assert float((found - images).abs().max()) <= EPSILON + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert model.training
    model.eval()
    valid = labels != 255
    assert int((model(found).argmax(1) == labels)[valid].sum()) < int(valid.sum())


def test_it_is_the_attack_of_that_name(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    assert torch.equal(
        attack(model, images, labels, "bim", epsilon=EPSILON),
        bim(model, images, labels, epsilon=EPSILON, alpha=EPSILON / 3, steps=3),
    )
    assert torch.equal(
        attack(model, images, labels, "fgsm", epsilon=EPSILON),
        bim(model, images, labels, epsilon=EPSILON, alpha=EPSILON, steps=1),
    )
    assert torch.equal(
        attack(model, images, labels.to(torch.uint8), "pgd", epsilon=EPSILON, alpha=0.01, steps=4, seed=5),
        pgd(model, images, labels, epsilon=EPSILON, alpha=0.01, steps=4, seeds=torch.tensor([5, 6, 7])),
    )


def test_sea_is_the_member_that_leaves_least_of_each_image(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    pixels = torch.bincount(labels[labels != 255], minlength=4)
    members = sea(model, images, labels, epsilon=EPSILON, steps=12, seeds=torch.arange(3), class_pixels=pixels)
    found = attack(model, images, labels, epsilon=EPSILON, steps=12)
    model.eval()

    def right(image: Tensor, label: Tensor) -> int:
        return int((model(image[None]).argmax(1)[0] == label).sum())

    for place, label in enumerate(labels):
        assert right(found[place], label) == min(right(member[place], label) for member in members.values())


def test_an_image_does_not_depend_on_the_others(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    images, labels = batch
    together = attack(model, images, labels, "pgd", steps=5)
    alone = attack(model, images[1:2], labels[1:2], "pgd", steps=5, seed=1)
    assert torch.allclose(together[1], alone[0], atol=1e-6)


IMAGES, LABELS = torch.full((2, 3, 9, 8), 0.5), torch.zeros(2, 9, 8, dtype=torch.int64)


BIAS = torch.zeros(1, requires_grad=True)  # as of a model that has parameters


def linear(images: Tensor) -> Tensor:
    return torch.cat([images, images], 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "pdg"}, "there is no attack 'pdg': use fgsm, "),
        ({"images": IMAGES * 255}, r"expected values in [0, 1], got 128 to 128; divide 8-bit images by 255"),
        ({"images": IMAGES - 1}, r"expected values in [0, 1], got -0.5 to -0.5"),
        ({"images": IMAGES.permute(0, 2, 3, 1)}, "float32 of shape (2, 9, 8, 3); use images.permute(0, 3, 1, 2)"),
        ({"images": IMAGES[0]}, "use images[None] for one image"),
        ({"images": IMAGES.numpy()}, "got a ndarray; use torch.from_numpy"),
        ({"images": (IMAGES * 255).to(torch.uint8)}, "expected floats of shape (N, 3, H, W), got uint8"),
        ({"labels": LABELS[:1]}, "labels: expected integers of shape (2, 9, 8), got int64 of shape (1, 9, 8)"),
        ({"labels": LABELS.float()}, "labels: expected integers of shape (2, 9, 8), got float32"),
        ({"labels": LABELS + 6}, "labels: expected 0 to 5 for the 6 classes of the model, or 255 (ignored), got 6"),
        ({"labels": LABELS - 1}, "got -1"),
        ({"model": lambda x: {"out": x, "aux": x}}, "a dict with 'out', 'aux': pass lambda images: model(images)['out']"),
        ({"model": lambda x: (x, x)}, "a tuple of 2: pass lambda images: model(images)[0]"),
        ({"model": lambda x: x.mean((2, 3))}, "expected logits of shape (N, K, H, W), got (1, 3) for one image"),
        ({"model": lambda x: x[..., ::2, ::2]}, "expected logits of the images' size (9, 8), got (5, 4); resize them"),
        ({"model": lambda x: x[:, :1]}, "expected logits of 2 classes or more, got 1; the logits of a map before"),
        ({"model": lambda x: linear(x).softmax(1)}, "the model returned probabilities, expected logits: leave its"),
        ({"model": lambda x: linear(x.sub_(0.5))}, "changes its images in place: pass lambda images: model(images.clone"),
        ({"model": lambda x: linear(x.detach())}, "the model detaches its images, by torch.no_grad, detach or numpy"),
        ({"model": lambda x: linear(x.detach()) + BIAS}, "the model detaches its images"),
        ({"model": lambda x: linear((x * 255).round())}, "the gradient of the model is 0 at all pixels"),
        ({"norm": "l2", "epsilon": 0}, "epsilon 0: expected a bound above 0, in [0, 1] units"),
        ({"norm": "l2", "epsilon": -1.0}, "epsilon -1: expected a bound above 0"),
        ({"epsilon": -0.1}, "epsilon -0.1: expected a bound of 0 or more, in [0, 1] units"),
        ({"norm": "l2", "name": "sea"}, "sea is made for the maximum norm: use apgd or pgd for l2"),
        ({"epsilon": 8}, "epsilon 8: expected at most 1, as images are in [0, 1]; did you mean 8/255?"),
        ({"alpha": 2}, "alpha 2: expected at most 1, as images are in [0, 1]; did you mean 2/255?"),
        ({"alpha": -0.1}, "alpha -0.1: expected a step above 0"),
        ({"steps": 0}, "steps 0: expected 1 or more"),
        ({"name": "square", "steps": -3}, "steps -3: expected 1 or more"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images: expected one or more, got a batch of shape (0, 3, 9, 8)"),
        ({"model": lambda x: linear(x) * float("nan")}, "the model returned NaN, on which every attack stands still"),
        ({"model": "runs/mine"}, "model: expected a module or a function, got a str; ddcat.load reads a run"),
        ({"norm": "l1"}, "there is no norm 'l1': use linf or l2"),
        ({"name": "sea", "alpha": 0.1}, "sea chooses the size of its steps: leave alpha out"),
    ],
)
def test_what_is_of_another_form_is_told_in_a_line(changes: dict[str, Any], message: str) -> None:
    given = {"model": linear, "images": IMAGES, "labels": LABELS, "name": "pgd", **changes}
    with pytest.raises(AttackError, match=re.escape(message)) as caught:
        ddcat.attack(**given)
    assert "\n" not in str(caught.value)


def test_square_attacks_a_model_without_gradients() -> None:
    images = ddcat.attack(lambda x: linear((x.detach() * 255).round()), IMAGES, LABELS, "square", epsilon=0.1, steps=2)
    assert 0 < (images - IMAGES).abs().max() <= 0.1 + 1e-6
