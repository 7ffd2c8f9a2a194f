"""Equality with the libraries of others."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from ddcat_train.attacks import Answer, bim, cospgd, fgsm, segpgd, weighted

STARTS = ("clean", "random", "lower")


@pytest.fixture
def torchattacks() -> Iterator[ModuleType]:
    """The peer's package without its __init__, which needs scipy for attacks that are not used here."""
    spec = importlib.util.find_spec("torchattacks")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("torchattacks is not installed")
    package = ModuleType("torchattacks")
    package.__path__ = list(spec.submodule_search_locations)
    attacks = ModuleType("torchattacks.attacks")
    attacks.__path__ = [f"{path}/attacks" for path in package.__path__]
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torchattacks"}
    sys.modules |= {"torchattacks": package, "torchattacks.attacks": attacks}
    for name in ("fgsm", "bim", "pgd"):
        module = importlib.import_module(f"torchattacks.attacks.{name}")
        setattr(package, name.upper(), getattr(module, name.upper()))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchattacks"]:
        del sys.modules[name]
    sys.modules |= before


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_torchattacks(small: Any, torchattacks: ModuleType, seed: int) -> None:
    network = small.network(seed).float().eval()
    images, labels = small.batch(seed, size=9, ignored=0)
    images = images.float()
    hyper = {"alpha": 2 / 255, "steps": 5}
    for found, peer in [
        (fgsm(network, images, labels, epsilon=8 / 255), torchattacks.FGSM(network, eps=8 / 255)),
        (bim(network, images, labels, epsilon=8 / 255, **hyper), torchattacks.BIM(network, eps=8 / 255, **hyper)),
        (
            bim(network, images, labels, epsilon=4 / 255, **hyper),
            torchattacks.PGD(network, eps=4 / 255, random_start=False, **hyper),
        ),
    ]:
        assert torch.allclose(found, peer(images, labels), rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", [segpgd, cospgd], ids=["SegPGD", "CosPGD"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_cospgd(small: Any, attack: Any, seed: int) -> None:
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
        answer = Answer(logits, labels, torch.arange(3), t + 1, steps)
        assert torch.allclose(weighted(name)(answer).mean(), loss.mean(), rtol=0, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, leaf)
        current = peer.step_inf(current, epsilon, gradient, images, alpha, targeted=False)
    found = attack(network, images, labels, epsilon=epsilon, alpha=alpha, steps=steps, start="clean")
    assert torch.allclose(found, current, rtol=0, atol=1e-6)
    assert not torch.allclose(found, bim(network, images, labels, epsilon=epsilon, alpha=alpha, steps=steps), atol=1e-3)
