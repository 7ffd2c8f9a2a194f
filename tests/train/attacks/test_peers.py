"""Equality with the libraries of others."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddcat_train.attacks import StepOutput, bim, cospgd, dag, sea, segpgd, weighted
from ddcat_train.attacks.apgd import _run_stage, _Stage
from tests.train import small
from tests.train.small import right_pixels


@contextlib.contextmanager
def without_init(name: str, *parts: str) -> Iterator[ModuleType]:
    """Import modules of a package while none of its packages runs an __init__: those need what is not used here."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip(f"{name} is not installed")
    before = {key: module for key, module in sys.modules.items() if key.partition(".")[0] == name}
    for package in (name, *(f"{name}.{part}" for part in parts)):
        bare = ModuleType(package)
        bare.__path__ = [str(Path(spec.submodule_search_locations[0]).parent / package.replace(".", "/"))]
        sys.modules[package] = bare
    try:
        yield sys.modules[name]
    finally:
        for key in [key for key in sys.modules if key.partition(".")[0] == name]:
            del sys.modules[key]
        sys.modules |= before


@pytest.fixture
def torchattacks() -> Iterator[ModuleType]:
    with without_init("torchattacks", "attacks") as package:
        for name in ("fgsm", "bim", "pgd", "pgdl2"):
            module = importlib.import_module(f"torchattacks.attacks.{name}")
            setattr(package, name.upper(), getattr(module, name.upper()))
        yield package


@pytest.fixture
def adv_lib(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Attacks that look for the smallest perturbation, and another APGD."""
    monkeypatch.setattr(torch, "compile", lambda function: function)  # of one of its helpers, when it is imported
    with without_init("adv_lib", "attacks", "attacks.segmentation", "utils"):
        drawing = ModuleType("adv_lib.utils.visdom_logger")
        drawing.VisdomLogger = type("VisdomLogger", (), {})  # type: ignore[attr-defined]
        sys.modules["adv_lib.utils.visdom_logger"] = drawing
        yield {
            "ALMA-prox": importlib.import_module("adv_lib.attacks.segmentation.alma_prox").alma_prox,
            "DAG": importlib.import_module("adv_lib.attacks.segmentation.dense_adversary").dag,
            "APGD": importlib.import_module("adv_lib.attacks.auto_pgd")._apgd,
        }


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_torchattacks(torchattacks: ModuleType, seed: int) -> None:
    network = small.network(seed).float().eval()
    images, labels = small.batch(seed, size=9, ignored=0)
    images = images.float()
    hyper = {"alpha": 2 / 255, "steps": 5}
    for found, peer in [
        (bim(network, images, labels, epsilon=8 / 255, alpha=8 / 255, steps=1), torchattacks.FGSM(network, eps=8 / 255)),
        (bim(network, images, labels, epsilon=8 / 255, **hyper), torchattacks.BIM(network, eps=8 / 255, **hyper)),
        (
            bim(network, images, labels, epsilon=4 / 255, **hyper),
            torchattacks.PGD(network, eps=4 / 255, random_start=False, **hyper),
        ),
    ]:
        assert torch.allclose(found, peer(images, labels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 3.0])
def test_l2_equal_to_torchattacks(torchattacks: ModuleType, seed: int, epsilon: float) -> None:
    network = small.network(seed).float().eval()
    images, labels = small.batch(seed, size=9, ignored=0)
    images = images.float()
    found = bim(network, images, labels, epsilon=epsilon, alpha=epsilon / 4, steps=6, norm="l2")
    peer = torchattacks.PGDL2(network, eps=epsilon, alpha=epsilon / 4, steps=6, random_start=False)
    assert torch.allclose(found, peer(images, labels), rtol=0, atol=1e-5)
    assert (found - images).flatten(1).norm(dim=1).max() <= epsilon * (1 + 1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_dag_equal_to_adv_lib(learnt: tuple[nn.Module, Tensor, Tensor], adv_lib: dict[str, Any], seed: int) -> None:
    network, images, labels = (part[4 * seed : 4 * seed + 4] if isinstance(part, Tensor) else part for part in learnt)
    masks = labels != 255
    theirs = adv_lib["DAG"](network, images, labels.masked_fill(~masks, 0), masks, False, 0.9, 200, 0.02)
    ours = dag(network, images, labels, steps=200, size=0.02, share=0.9)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert (ours != images).any()


@pytest.mark.parametrize("attack", [segpgd, cospgd], ids=["SegPGD", "CosPGD"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_cospgd(attack: Any, seed: int) -> None:
    peer = pytest.importorskip("cospgd").functions
    network = small.network(seed).eval()
    images, labels = small.batch(seed, size=9)
    steps, epsilon, alpha = 10, 8 / 255, 2 / 255
    current = images
    for t in range(steps):
        leaf = current.requires_grad_()
        logits = network(leaf)
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none")
        if attack is segpgd:
            loss, name = peer.segpgd_scale(logits, labels, losses, t, steps).sum() / 3, "SegPGD"  # it counts from 0
        else:
            loss, name = peer.cospgd_scale(logits, labels, losses, num_classes=small.CLASSES).mean(), "CosPGD"
        answer = StepOutput(logits, labels, torch.arange(3), t + 1, steps)
        assert torch.allclose(weighted(name)(answer).mean(), loss.mean(), rtol=0, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, leaf)
        current = peer.step_inf(current, epsilon, gradient, images, alpha, targeted=False)
    found = attack(network, images, labels, epsilon=epsilon, alpha=alpha, steps=steps, start="clean")
    assert torch.allclose(found, current, rtol=0, atol=1e-6)
    assert not torch.allclose(found, bim(network, images, labels, epsilon=epsilon, alpha=alpha, steps=steps), atol=1e-3)


@pytest.fixture(scope="module")
def learnt() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that is mostly right about its 12 images, and the labels, some of them ignored."""
    network = small.network(3).float().eval()  # no dropout
    images = nn.functional.interpolate(small.batch(3, count=12, size=10)[0].float(), scale_factor=2, mode="bilinear")
    labels = (images.argmax(1) + (images.mean(1) > 0.6)).long()  # of 0..3
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    labels[:, :2] = 255
    return network.requires_grad_(False), images, labels


@pytest.mark.parametrize("name", [pytest.param("ALMA-prox", marks=pytest.mark.slow), "DAG"])
def test_sea_is_at_least_as_strong_as_the_smallest_perturbations(
    learnt: tuple[nn.Module, Tensor, Tensor], adv_lib: dict[str, Any], name: str
) -> None:
    """
    Their results count as far as they lie in the ball: cut to it, or taken only where they lie in it anyway.

    Order only: they look for another thing. An image that they do not solve comes back clean, which is no attack.
    """
    network, images, labels = learnt
    masks = labels != 255
    clean = right_pixels(network, images, labels).sum()
    assert clean > 0.8 * masks.sum()
    search, task = adv_lib[name], (network, images, labels.masked_fill(~masks, 0), masks, False, 0.9)
    theirs = search(*task, num_steps=100) if name == "ALMA-prox" else search(*task, 200, 0.1)
    assert (theirs != images).flatten(1).any(1).sum() >= 6
    print(f"{name}; right of {int(masks.sum())} pixels: clean {clean}", end="")
    pixels = torch.bincount(labels[masks], minlength=4)
    for levels in (2, 4, 8, 16):
        epsilon = levels / 255
        members = sea(network, images, labels, epsilon=epsilon, steps=50, seeds=torch.arange(12), class_pixels=pixels)
        ours = torch.stack([right_pixels(network, found, labels) for found in members.values()]).amin(0).sum()
        inside = ((theirs - images).abs().flatten(1).amax(1) <= epsilon + 1e-6)[:, None, None, None]
        cut = torch.minimum(torch.maximum(theirs, images - epsilon), images + epsilon)
        others = [right_pixels(network, other, labels).sum() for other in (cut, torch.where(inside, theirs, images))]
        print(f"; {levels}/255: SEA {ours}, cut {others[0]}, within {others[1]}", end="")
        assert ours <= min(others)
        assert ours < clean
    print()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("norm", "order", "radius"), [("linf", float("inf"), 0.1), ("l2", 2, 0.8)])
def test_apgd_climbs_as_high_as_that_of_adv_lib(
    adv_lib: dict[str, Any], seed: int, norm: Any, order: float, radius: float
) -> None:
    """
    On one label an image, the task of theirs, from the same start.

    Not equal: theirs counts the first step as a rise whatever it does, and compares with the iterate before a return to the
    best, not with that.
    """
    network = small.network(seed).eval().requires_grad_(False)
    images, labels = small.batch(seed, count=16, ignored=0)
    labels = labels[:, :1, :1]

    def model(batch: Tensor) -> Tensor:
        return network(batch).mean((2, 3))

    def loss(batch: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(batch), labels[:, 0, 0], reduction="none")

    epsilon = torch.full((16,), radius, dtype=torch.float64)
    theirs, *_ = adv_lib["APGD"](model, images, labels[:, 0, 0], epsilon, order, x_init=images, n_iter=50, loss_function="ce")
    ours, _ = _run_stage(
        lambda batch: model(batch)[:, :, None, None], images, labels, images, weighted("PGD"),
        _Stage(radius, 50, 0, 50), None, norm=norm, skip_fooled=False,
    )  # fmt: skip
    gained, known = loss(ours) - loss(images), loss(theirs) - loss(images)
    assert known.min() > 0
    assert float((gained / known).mean()) == pytest.approx(1, abs=0.01)
    assert (gained / known).min() > 0.95
