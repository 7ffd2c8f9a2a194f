"""What a step of each method costs, counted in samples, and what it leaves alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddcat_train.config import PRESETS
from ddcat_train.methods import METHODS
from ddcat_train.networks.contexts import Context
from tests.train.batches import batch_of, network_for, settings_of

LETTER = {key: value for part in yaml.safe_load((PRESETS / "_letter.yaml").read_text()).values() for key, value in part.items()}


class Backwards(TorchDispatchMode):
    """Count the samples that go backwards through one convolution, and note which gradients each backward computes."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.shape = convolution.weight.shape  # in an attack the weight is one with a batch norm folded in
        self.samples = 0
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "backward" in name and ("convolution" in name or "batch_norm" in name):
            self.masks.append(list(args[-1]))
        if func is torch.ops.aten.convolution_backward.default and args[2].shape == self.shape:
            self.samples += len(args[1])
        return func(*args, **(kwargs or {}))


@contextmanager
def samples_through(modules: dict[str, nn.Module]) -> Iterator[dict[str, int]]:
    counts = dict.fromkeys(modules, 0)

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor | Context, ...]) -> None:
            counts[name] += len(inputs[0].maps if isinstance(inputs[0], Context) else inputs[0])

        return hook

    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    yield counts
    for handle in handles:
        handle.remove()


# Samples in batches: forward and backward through the backbone, and forward through the spare heads and deep supervision.
# The main head sees all that the backbone does.
@pytest.mark.parametrize(
    ("method", "chosen", "forward", "backward", "spare", "deep"),
    [
        ("undefended", {}, 1, 1, 0, 1),
        ("undefended", {"deep_weight": 0.0}, 1, 1, 0, 0),
        ("sat", {}, 2.5, 2.5, 0, 1),
        ("sat", {"start": "random"}, 2.5, 2.5, 0, 1),
        ("ddcat", {}, 4.5, 4, 2, 1),  # B_clean of a half from the attack's first forward, B_adv of it, the training
        ("ddcat", {"start": "random"}, 5, 4, 2, 1),
        ("ddcat", {"predicted_mask": "algorithm-2"}, 5, 4, 2.5, 1),
        ("ddcat", {"update": "two-step"}, 4.5, 5, 2, 1),  # two updates go backwards twice
        ("ddcat", {"adversarial_share": 0.75}, 4.25, 4, 1.5, 1),
        ("ddcat", LETTER, 5.5, 5, 2.5, 0),
        ("ddcat-m", {}, 5, 4, 3, 1),
        ("ddcat-n", {}, 3, 2.5, 2, 1),
        ("pgd-at", {}, 4, 4, 0, 1),
        ("pgd-at", {"steps": 7, "start": "clean"}, 8, 8, 0, 1),
        ("segpgd-at", {}, 4, 4, 0, 1),
        ("trades", {}, 6, 5, 0, 2),
        ("trades", {"steps": 1, "start": "lower"}, 4, 3, 0, 2),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("sat", {"adversarial_share": 0.75}, 3.25, 3.25, 0, 1),
                ("sat", {"steps": 1, "alpha": "eps/n"}, 1.5, 1.5, 0, 1),
                ("ddcat", {"steps": 7}, 8.5, 8, 2, 1),
                ("ddcat", {"start": "lower"}, 5, 4, 2, 1),
                ("ddcat-m", {"start": "random"}, 6, 4, 3, 1),
                ("ddcat-m", {"predicted_mask": "algorithm-2"}, 5, 4, 3, 1),
                ("ddcat-m", LETTER, 6, 5, 3, 0),
                ("ddcat-n", {"start": "random"}, 3.5, 2.5, 2, 1),
                ("ddcat-n", {"predicted_mask": "algorithm-2"}, 3.5, 2.5, 2.5, 1),
                ("ddcat-n", LETTER, 4, 3.5, 2.5, 0),
                ("segpgd-at", {"steps": 5}, 6, 6, 0, 1),
            )
        ),
    ],
)
def test_samples_through_the_network(
    method: str,
    chosen: dict[str, Any],
    forward: float,
    backward: float,
    spare: float,
    deep: float,
) -> None:
    options, attack = settings_of(method, chosen)
    micro_batch = replace(batch_of(4, ignored=(0.2,)), clean=options.clean_images(4))
    network = network_for(options, micro_batch)
    with (
        samples_through({"backbone": network.backbone, **network.heads}) as counts,
        Backwards(network.backbone.layer0[0]) as done,
    ):
        updates = METHODS[options.name].step(network, micro_batch, attack=attack, options=options)
        assert all(mask == [True, False, False] for mask in done.masks)  # of the attack: the input's gradient alone
        assert bool(done.masks) == METHODS[options.name].attacks
        attack_samples = done.samples
        for update in updates:
            torch.autograd.grad(update.loss, update.parameters, retain_graph=True, allow_unused=True)
    expected = {"backbone": forward, "main": forward, "auxiliary": spare, "mask": spare, "deep": deep}
    assert counts == {name: 4 * expected[name] for name in ("backbone", *network.heads)}
    assert ("deep" in network.heads) == (deep > 0)
    assert done.samples == backward * 4
    assert done.samples - attack_samples == (2 if method == "trades" else len(updates)) * 4


@pytest.mark.parametrize(
    ("method", "forward"),
    [("sat", 3 * 3 + 5), ("ddcat", 3 * 5 + 2 + 5), ("ddcat-m", 3 * 5 + 5 + 5), ("ddcat-n", 3 * 3 + 3 + 5)],
)
def test_odd_batches_attack_the_larger_half(
    method: str,
    forward: int,
) -> None:
    options, attack = settings_of(method, {})
    micro_batch = replace(batch_of(5), clean=options.clean_images(5))
    network = network_for(options, micro_batch, context="aspp")
    with samples_through({"backbone": network.backbone}) as counts:
        METHODS[options.name].step(network, micro_batch, attack=attack, options=options)
    assert counts == {"backbone": forward}


@pytest.mark.parametrize(("method", "chosen"), [("undefended", {}), ("trades", {}), ("ddcat", {}), ("ddcat-n", LETTER)])
def test_a_step_leaves_gradients_flags_and_the_batch_alone(
    method: str,
    chosen: dict[str, Any],
) -> None:
    micro_batch = batch_of(3, ignored=(0.5,))
    images, labels = micro_batch.images.clone(), micro_batch.labels.clone()
    options, attack = settings_of(method, chosen)
    network = network_for(options, micro_batch, context="aspp")
    network.backbone.layer0.eval()  # frozen statistics, which some fine-tune with
    flags = [module.training for module in network.modules()]
    frozen = [buffer.clone() for buffer in network.backbone.layer0.buffers()]
    weights = [parameter.clone() for parameter in network.parameters()]
    updates = METHODS[options.name].step(network, micro_batch, attack=attack, options=options)
    assert [module.training for module in network.modules()] == flags
    assert all(map(torch.equal, network.backbone.layer0.buffers(), frozen))
    assert all(map(torch.equal, network.parameters(), weights))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(micro_batch.images, images)
    assert torch.equal(micro_batch.labels, labels)
    assert not any(value.requires_grad for update in updates for value in update.log.values())
