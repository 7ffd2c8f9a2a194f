"""The optimiser against its equations, by hand."""

import pytest
import torch
from torch import nn

from ddcat_train.config import ModelConfig, OptimConfig
from ddcat_train.methods import OptimizerStep
from ddcat_train.networks import build_segmenter
from ddcat_train.optimizer import (
    add_gradients,
    apply_gradients,
    build_optimizer,
    load_momentum,
    momentum_buffers,
    set_learning_rate,
)

CONFIG = OptimConfig(lr=0.01, head_lr_factor=10, power=0.9)


def test_poly_decays_both_rates_and_knows_every_parameter_once() -> None:
    network = build_segmenter(ModelConfig(backbone="resnet10", width=8), classes=3, heads=("main", "deep"))
    optimizer = build_optimizer(network, CONFIG)
    for step in (0, 50, 99):
        rate = set_learning_rate(optimizer, CONFIG, step=step, steps=100)
        assert rate == pytest.approx(0.01 * (1 - step / 100) ** 0.9)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, 10 * rate]
    backbone, others = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in backbone} == {id(p) for p in network.backbone.parameters()}
    assert sorted(id(p) for p in (*backbone, *others)) == sorted(id(p) for p in network.parameters())


def test_two_updates_take_their_gradients_before_the_first_step() -> None:
    shared, first_own, second_own = (nn.Parameter(torch.tensor([value])) for value in (2.0, 1.0, 1.0))
    optimizer = torch.optim.SGD([shared, first_own, second_own], lr=0.1, momentum=0.5)
    product = shared * first_own
    updates = [
        OptimizerStep((product**2).sum(), (shared, first_own), {}),  # gradients 2 s a^2 = 4 and 2 s^2 a = 8
        OptimizerStep((shared * second_own + product).sum(), (shared, second_own), {}),  # gradients b + a = 2 and s = 2
    ]
    gradients = add_gradients(updates)
    assert gradients == [[4, 8], [2, 2]]
    apply_gradients(optimizer, updates, gradients)
    # shared: 2 - 0.1 * 4 - 0.1 * (0.5 * 4 + 2); the second update leaves first_own alone though its loss depends on it
    assert [value.item() for value in (shared, first_own, second_own)] == pytest.approx([1.2, 0.2, 0.8])


def test_gradients_of_micro_batches_add_up_for_each_update() -> None:
    shared, own = (nn.Parameter(torch.tensor([value])) for value in (2.0, 3.0))

    def updates(factor: float) -> list[OptimizerStep]:
        product = shared * own
        return [
            OptimizerStep((factor * product).sum(), (shared, own), {}),
            OptimizerStep((factor * product**2).sum(), (shared,), {}),
        ]

    gradients = add_gradients(updates(2.0), add_gradients(updates(1.0)))
    assert gradients == [[9, 6], [108]]  # (1 + 2) a, (1 + 2) s; (1 + 2) 2 s a^2


def test_momentum_is_put_back_by_name() -> None:
    network = build_segmenter(ModelConfig(backbone="resnet10", width=8), classes=3)
    optimizer = build_optimizer(network, CONFIG)
    assert momentum_buffers(network, optimizer) == {}
    updates = [OptimizerStep(network(torch.rand(2, 3, 33, 33)).square().mean(), tuple(network.parameters()), {})]
    apply_gradients(optimizer, updates, add_gradients(updates))
    buffers = momentum_buffers(network, optimizer)
    assert set(buffers) == {name for name, _ in network.named_parameters()}
    other = build_optimizer(network, CONFIG)
    load_momentum(network, other, buffers)
    assert all(torch.equal(value, buffers[name]) for name, value in momentum_buffers(network, other).items())
