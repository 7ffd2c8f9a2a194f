"""The optimiser against its equations, by hand."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ddcat_train.config import ModelConfig, OptimConfig
from ddcat_train.methods import OptimizerStep
from ddcat_train.networks import build_segmenter
from ddcat_train.optimizer import (
    add_gradients,
    apply_gradients,
    build_optimizer,
    learning_rate,
    load_optimizer_state,
    optimizer_state,
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


@pytest.mark.parametrize(
    ("config", "kinds"),
    [(CONFIG, {"momentum"}), (OptimConfig.model_validate({"name": "adamw"}), {"average", "square", "updates"})],
    ids=["sgd", "adamw"],
)
def test_the_state_is_put_back_by_name(config: OptimConfig, kinds: set[str]) -> None:
    network = build_segmenter(ModelConfig(backbone="resnet10", width=8), classes=3)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(network, config)
    assert optimizer_state(network, optimizer) == {}
    updates = [OptimizerStep(network(torch.rand(2, 3, 33, 33)).square().mean(), tuple(network.parameters()), {})]
    apply_gradients(optimizer, updates, add_gradients(updates))
    state = optimizer_state(network, optimizer)
    assert set(state) == {f"{kind}.{name}" for kind in kinds for name, _ in network.named_parameters()}
    other = build_optimizer(network, config)
    load_optimizer_state(network, other, {name: value.contiguous() for name, value in state.items()})  # as a file has them
    restored = optimizer_state(network, other)
    assert restored.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in restored.items())
    strides = {name: parameter.stride() for name, parameter in network.named_parameters()}
    assert all(restored[key].stride() == strides[key.partition(".")[2]] for key in restored if not key.startswith("updates."))


def test_adamw_is_its_equations_and_spares_norms_and_biases() -> None:
    network = build_segmenter(ModelConfig(backbone="resnet10", width=8), classes=3).double()
    config = OptimConfig.model_validate(
        {"name": "adamw", "lr": 0.01, "head_lr_factor": 5, "weight_decay": 0.1, "betas": [0.8, 0.95], "power": 1}
    )
    optimizer = build_optimizer(network, config)
    values = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    first, second = ({name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for step in range(3):
        rate = set_learning_rate(optimizer, config, step=step, steps=4)
        loss = network(torch.rand(2, 3, 33, 33, dtype=torch.float64, generator=generator)).square().mean()
        updates = [OptimizerStep(loss, tuple(network.parameters()), {})]
        gradients = add_gradients(updates)
        by_name = dict(zip(values, [value.clone() for value in gradients[0]], strict=True))  # type: ignore[union-attr]
        apply_gradients(optimizer, updates, gradients)
        assert rate == 0.01 * (1 - step / 4)
        for name, gradient in by_name.items():
            own = rate * (1 if name.startswith("backbone.") else 5)
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.95 * second[name] + 0.05 * gradient**2
            if values[name].ndim > 1:
                values[name] = values[name] * (1 - own * 0.1)
            corrected = first[name] / (1 - 0.8 ** (step + 1)), second[name] / (1 - 0.95 ** (step + 1))
            values[name] = values[name] - own * corrected[0] / (corrected[1].sqrt() + 1e-8)
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), values[name], rtol=1e-9, atol=1e-12)


def test_the_rate_rises_linearly_and_then_falls_over_the_rest() -> None:
    config = OptimConfig(lr=0.1, warmup=0.25, power=2)
    rates = [learning_rate(config, step=step, steps=8) for step in range(8)]
    assert rates == pytest.approx([0.05, 0.1, *(0.1 * (1 - done / 6) ** 2 for done in range(6))])


@pytest.mark.parametrize(
    ("backbone", "order"),
    [
        ("resnet18", ["layer0", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))]),
        ("mobilenet_v2", [f"features.{index}" for index in range(18)]),
    ],
)
def test_each_layer_has_a_share_of_the_rate_of_the_next(backbone: str, order: list[str]) -> None:
    network = build_segmenter(ModelConfig(backbone=backbone, output_stride=8), classes=3)
    optimizer = build_optimizer(network, OptimConfig(layer_decay=0.5))
    factors = {id(p): group["factor"] for group in optimizer.param_groups for p in group["params"]}
    expected = {name: 0.5 ** (len(order) - 1 - place) for place, name in enumerate(order)}
    for name, parameter in network.named_parameters():
        layer = next((layer for layer in order if name.startswith(f"backbone.{layer}.")), None)
        assert factors[id(parameter)] == (10 if layer is None else expected[layer]), name


@pytest.mark.parametrize(("limit", "moved"), [(2.5, [1.5, 2.0]), (5.0, [3.0, 4.0]), (9.0, [3.0, 4.0]), (None, [3.0, 4.0])])
def test_gradients_are_clipped_together_by_their_norm(limit: float | None, moved: list[float]) -> None:
    parameters = tuple(nn.Parameter(torch.zeros(1)) for _ in range(2))
    updates = [OptimizerStep((3 * parameters[0] + 4 * parameters[1]).sum(), parameters, {})]
    apply_gradients(torch.optim.SGD(parameters, lr=1.0), updates, add_gradients(updates), clip_norm=limit)
    assert [-parameter.item() for parameter in parameters] == pytest.approx(moved, rel=1e-5)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "adamw", "momentum": 0.8}, "momentum is for sgd: adamw has no use for it"),
        ({"betas": [0.8, 0.9]}, "betas is for adamw: sgd has no use for it"),
        ({"warmup": 1}, "less than 1"),
        ({"layer_decay": 0}, "greater than 0"),
        ({"name": "adam"}, "'sgd' or 'adamw'"),
    ],
)
def test_what_an_optimiser_cannot_use_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        OptimConfig.model_validate(section)


def test_adamw_has_rates_of_its_own() -> None:
    config = OptimConfig.model_validate({"name": "adamw"})
    assert (config.lr, config.weight_decay) == (6e-5, 0.01)
    assert OptimConfig.model_validate({"name": "adamw", "lr": 1e-3}).lr == 1e-3
    assert (OptimConfig().lr, OptimConfig().weight_decay) == (0.01, 1e-4)
