"""All of n = 0..N in one pass."""

from typing import Any

import pytest
import torch

from ddcat_train.attacks import bim, trajectory
from tests.train import small

STARTS = ("clean", "random", "lower")


@pytest.mark.parametrize("start", STARTS)
def test_a_trajectory_holds_the_attack_of_every_n(start: Any) -> None:
    network = small.network()
    network.train()
    images, labels = small.batch(9)
    hyper: dict[str, Any] = {"epsilon": 0.03, "alpha": 0.01, "start": start, "seeds": torch.tensor([1, 2, 3])}
    forwards = []
    with network.register_forward_hook(lambda module, inputs, output: forwards.append(len(inputs[0]))):
        points = list(trajectory(network, images, labels, steps=7, **hyper))
    assert [point.steps for point in points] == list(range(8))
    assert forwards == [3] * 8  # one pass of 7 steps, and the forward that judges the last
    assert all(module.training for module in network.modules())
    network.eval()
    for point in points[1:]:
        alone = bim(network, images, labels, steps=point.steps, **hyper)
        assert torch.equal(point.images, alone)
        assert torch.equal(point.predictions, network(alone).argmax(1))
    if start == "clean":
        assert torch.equal(points[0].predictions, network(images).argmax(1))


def test_a_trajectory_refuses_a_step_size_that_depends_on_n() -> None:
    images, labels = small.batch(9)
    with pytest.raises(ValueError, match="constant alpha"):
        list(trajectory(small.network(), images, labels, alpha="eps/n"))
