"""The training methods against the oracle, in double precision, and what they may cost."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddcat_train.config import AttackConfig, MethodConfig, ModelConfig
from ddcat_train.losses import valid_pixels
from ddcat_train.methods import METHODS, Portion, Update
from ddcat_train.methods.division import Division, divide
from ddcat_train.networks import Segmenter, build_segmenter

CLASSES = 5
ATTACK = AttackConfig(epsilon=0.03, alpha=0.01, steps=3)
CASES = ["even", "odd", "partly ignored", "all ignored", "p all 0", "p all 1"]
LITERAL = pytest.mark.parametrize("paper_literal", [False, True], ids=["released", "literal"])
CONTEXT = pytest.mark.parametrize("context", ["pyramid", "aspp"])


def batch_of(count: int, size: tuple[int, int] = (33, 37), ignored: Sequence[float] = (), seed: int = 0) -> Portion:
    """Smooth images with labels in blocks; `ignored` is the share of ignored pixels of the first images; half stay clean."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 9, 9, dtype=torch.float64, generator=generator)
    images = nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
    images = images + 0.1 * torch.rand(images.shape, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (count, 5, 5), generator=generator).double()[:, None]
    labels = nn.functional.interpolate(labels, size, mode="nearest")[:, 0].long()
    for i, share in enumerate(ignored):
        labels[i][torch.rand(size, generator=generator) < share] = 255
    return Portion(
        images.clamp(0, 1), labels, torch.arange(count), count // 2, valid_pixels(labels).clamp(min=1), labels.numel()
    )


def options_of(method: Any, paper_literal: bool = False) -> MethodConfig:
    """The method as released, or to the paper's letter."""
    letter: dict[str, Any] = {"deep_weight": 0}
    if method == "ddcat":
        letter |= {"update": "two-step", "predicted_mask": "algorithm-2"}
    return MethodConfig(name=method, **(letter if paper_literal else {}))


def attack_of(paper_literal: bool, attack: AttackConfig = ATTACK) -> AttackConfig:
    return attack.model_copy(update={"start": "lower"}) if paper_literal else attack


def step_of(
    method: Any, network: Segmenter, batch: Portion, *, paper_literal: bool = False, attack: AttackConfig = ATTACK
) -> list[Update]:
    options = options_of(method, paper_literal)
    return METHODS[method].step(network, batch, attack=attack_of(paper_literal, attack), options=options)


def division_of(network: Segmenter, batch: Portion, *, paper_literal: bool = False) -> Division:
    return divide(network, batch, attack=attack_of(paper_literal), predict_mask=paper_literal)


def network_for(
    method: Any,
    context: Any,
    batch: Portion,
    *,
    paper_literal: bool = False,
    dropout: float = 0.0,
    mask_bias: float | None = None,
) -> Segmenter:
    """
    Build a tiny network in train mode, in double precision, with lived-in batch-norm statistics.

    Every branch is balanced on the batch, so that it predicts several classes and an attack changes some; the mask branch can
    be forced by its bias instead.
    """
    torch.manual_seed(1)
    heads = METHODS[method].heads(options_of(method, paper_literal))
    model = ModelConfig(backbone="resnet10", context=context, width=8)
    network = build_segmenter(model, classes=CLASSES, heads=heads).double()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.3, 0.3)
                module.momentum = 0.5
            if isinstance(module, nn.Dropout2d):
                module.p = dropout
        for seed in range(3):
            network(batch_of(4, seed=10 + seed).images, heads=heads)
        for head, logits in network.eval()(batch.images, heads=heads).items():
            network.heads[head][-1].bias -= logits.mean((0, 2, 3))
        if mask_bias is not None:
            network.heads["mask"][-1].bias[1] = mask_bias
    return network.train()


def case_of(name: str) -> tuple[Portion, float | None]:
    return {
        "even": (batch_of(4), None),
        "odd": (batch_of(3), None),
        "partly ignored": (batch_of(5, ignored=(0.3, 1.0, 0.0, 0.6, 1.0)), None),
        "all ignored": (batch_of(3, ignored=(1.0, 1.0, 1.0)), None),
        "p all 0": (batch_of(3, ignored=(0.2,)), -1e3),
        "p all 1": (batch_of(3, ignored=(0.2,)), 1e3),
    }[name]


def gradients(update: Any, network: nn.Module) -> dict[str, Tensor]:
    names = {parameter: name for name, parameter in network.named_parameters()}
    found = torch.autograd.grad(update.loss, update.parameters, retain_graph=True, allow_unused=True)
    return {
        names[parameter]: torch.zeros_like(parameter) if gradient is None else gradient
        for parameter, gradient in zip(update.parameters, found, strict=True)
    }


@contextmanager
def images_in_training(network: Segmenter) -> Iterator[list[Tensor]]:
    """Collect what enters the network in train mode."""
    seen: list[Tensor] = []
    with network.normalise.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].detach().clone()) if module.training else None
    ):
        yield seen


def close(found: Tensor, expected: Tensor | float, tolerance: float = 1e-8) -> bool:
    reference = torch.as_tensor(expected, dtype=torch.float64)
    return torch.allclose(found.double(), reference, rtol=tolerance, atol=tolerance)


def assert_same_step(network: Segmenter, updates: list[Any], expected: Any) -> None:
    """Compare losses, the parameters of each update, every gradient, and the batch-norm buffers."""
    assert len(updates) == len(expected.gradients)
    log = updates[0].log
    for name, loss in expected.losses.items():
        assert close(log[name], loss), name
    for update, reference in zip(updates, expected.gradients, strict=True):
        found = gradients(update, network)
        assert found.keys() == reference.keys()
        for name, gradient in reference.items():
            assert close(found[name], gradient), name
    for name, buffer in network.named_buffers():
        assert close(buffer, expected.buffers[name], 1e-12), name


# --- the oracle


@LITERAL
@CONTEXT
@pytest.mark.parametrize("case", CASES)
def test_ddcat_is_algorithms_2_and_3(oracle: ModuleType, case: str, context: str, paper_literal: bool) -> None:
    batch, mask_bias = case_of(case)
    network = network_for("ddcat", context, batch, paper_literal=paper_literal, mask_bias=mask_bias)
    expected = oracle.ddcat_step(
        network, batch.images, batch.labels, epsilon=0.03, alpha=0.01, steps=3, paper_literal=paper_literal
    )
    division = division_of(network, batch, paper_literal=paper_literal)
    with images_in_training(network) as seen:
        updates = step_of("ddcat", network, batch, paper_literal=paper_literal)
    (mixed,) = seen

    assert close(mixed, expected.images, 1e-12)
    assert close(division.images, expected.images, 1e-12)
    assert torch.equal(division.masks, expected.masks)
    if paper_literal:
        assert division.chosen is not None
        assert torch.equal(division.chosen, expected.predicted.bool())
    else:
        assert division.chosen is None
    assert close(updates[0].log["mask_share"], expected.masks.double().mean(), 1e-6)
    assert close(updates[0].log["chosen_share"], expected.predicted.double().mean(), 1e-6)
    assert_same_step(network, updates, expected)

    # The case is what its name says, so that the comparison above cannot be an empty one.
    half = len(batch.images) // 2
    assert torch.equal(mixed[:half], batch.images[:half])
    p = expected.predicted.double().mean()
    assert p == (mask_bias > 0) if mask_bias is not None else 0.05 < p < 0.95
    assert not expected.masks[half:].any()
    if case == "all ignored":
        assert expected.losses["main"] == expected.losses["auxiliary"] == 0
        assert paper_literal or not expected.masks.any()
    else:
        assert expected.masks.any()
    assert all(torch.isfinite(gradient).all() for update in expected.gradients for gradient in update.values())


@LITERAL
@CONTEXT
@pytest.mark.parametrize("case", CASES[:4])
@pytest.mark.parametrize("method", ["clean", "sat"])
def test_sat_is_algorithm_1(oracle: ModuleType, method: Any, case: str, context: str, paper_literal: bool) -> None:
    batch, _ = case_of(case)
    network = network_for(method, context, batch, paper_literal=paper_literal)
    expected = oracle.sat_step(
        network,
        batch.images,
        batch.labels,
        epsilon=0.03,
        alpha=0.01,
        steps=3,
        paper_literal=paper_literal,
        clean_only=method == "clean",
    )
    with images_in_training(network) as seen:
        updates = step_of(method, network, batch, paper_literal=paper_literal)
    (mixed,) = seen
    assert close(mixed, expected.images, 1e-12)
    assert_same_step(network, updates, expected)
    if method == "sat" and case != "all ignored":
        assert not torch.equal(mixed[len(mixed) // 2 :], batch.images[len(mixed) // 2 :])


@LITERAL
@pytest.mark.parametrize("method", ["clean", "sat", "ddcat"])
def test_dropout_acts_in_training_and_never_in_the_attack(oracle: ModuleType, method: Any, paper_literal: bool) -> None:
    batch = batch_of(3)
    network = network_for(method, "pyramid", batch, paper_literal=paper_literal, dropout=0.5)
    hyper: dict[str, Any] = {"epsilon": 0.03, "alpha": 0.01, "steps": 3, "paper_literal": paper_literal}
    step = oracle.ddcat_step if method == "ddcat" else oracle.sat_step
    if method == "clean":
        hyper["clean_only"] = True
    expected = step(network, batch.images, batch.labels, seed=5, **hyper)
    assert step(network, batch.images, batch.labels, seed=6, **hyper).losses["main"] != expected.losses["main"]
    torch.manual_seed(5)  # the oracle draws from here when it trains: the method must have drawn nothing before
    updates = step_of(method, network, batch, paper_literal=paper_literal)
    assert_same_step(network, updates, expected)


@pytest.mark.parametrize("method", ["sat", "ddcat"])
def test_step_size_by_name_and_random_start(oracle: ModuleType, method: Any) -> None:
    batch = batch_of(3)
    network = network_for(method, "aspp", batch)
    step = oracle.ddcat_step if method == "ddcat" else oracle.sat_step
    expected = step(network, batch.images, batch.labels, epsilon=0.04, alpha=0.02, steps=2)
    settings = AttackConfig(epsilon=0.04, alpha="eps/n", steps=2)
    with images_in_training(network) as seen:
        step_of(method, network, batch, attack=settings)
        step_of(method, network, batch, attack=settings.model_copy(update={"start": "random"}))
    assert close(seen[0], expected.images, 1e-12)
    assert not close(seen[1], expected.images, 1e-3)
    assert (seen[1] - batch.images).abs().max() <= 0.04 + 1e-12


@LITERAL
def test_in_single_precision_few_pixels_differ(oracle: ModuleType, paper_literal: bool) -> None:
    batch = batch_of(4)
    network = network_for("ddcat", "pyramid", batch, paper_literal=paper_literal)
    expected = oracle.ddcat_step(
        network, batch.images, batch.labels, epsilon=0.03, alpha=0.01, steps=3, paper_literal=paper_literal
    )
    single = replace(batch, images=batch.images.float())
    division = division_of(network.float(), single, paper_literal=paper_literal)
    assert ((division.images - expected.images).abs() > 1e-6).double().mean() < 0.01
    assert (division.masks != expected.masks).double().mean() < 0.01


# --- what a step costs, and leaves alone


class Backwards(TorchDispatchMode):
    """Count the samples that go backwards through one convolution, and those whose weight gradient is computed."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.pointer = convolution.weight.data_ptr()
        self.samples = 0
        self.masks: list[list[bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if "backward" in name and ("convolution" in name or "batch_norm" in name):
            self.masks.append(list(args[-1]))
        if func is torch.ops.aten.convolution_backward.default and args[2].data_ptr() == self.pointer:
            self.samples += len(args[1])
        return func(*args, **(kwargs or {}))


@contextmanager
def samples_through(modules: dict[str, nn.Module]) -> Iterator[dict[str, int]]:
    counts = dict.fromkeys(modules, 0)

    def count(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            counts[name] += len(inputs[0])

        return hook

    handles = [module.register_forward_pre_hook(count(name)) for name, module in modules.items()]
    yield counts
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("method", "paper_literal", "forward", "backward"),
    [
        ("clean", False, 1, 1),
        ("sat", False, 2.5, 2.5),
        ("sat", True, 2.5, 2.5),
        ("ddcat", False, 4.5, 4),
        ("ddcat", True, 5.5, 5),  # two updates go backwards twice
    ],
)
def test_samples_through_the_backbone(method: Any, paper_literal: bool, forward: float, backward: float) -> None:
    batch = batch_of(4, ignored=(0.2,))
    network = network_for(method, "pyramid", batch, paper_literal=paper_literal)
    with (
        samples_through({"backbone": network.backbone, **network.heads}) as counts,
        Backwards(network.backbone.layer0[0]) as done,
    ):
        updates = step_of(method, network, batch, paper_literal=paper_literal)
        assert all(mask == [True, False, False] for mask in done.masks)  # of the attack: the input's gradient alone
        assert bool(done.masks) == METHODS[method].attacks
        attack_samples = done.samples
        for update in updates:
            torch.autograd.grad(update.loss, update.parameters, retain_graph=True, allow_unused=True)
    assert counts["backbone"] == forward * 4
    assert done.samples == backward * 4
    assert done.samples - attack_samples == len(updates) * 4
    if method == "ddcat" and not paper_literal:
        assert counts == {"backbone": 18, "main": 18, "auxiliary": 8, "mask": 8, "deep": 4}  # spare heads: 0.5 + 0.5 + 1


def test_odd_batches_attack_the_larger_half() -> None:
    batch = batch_of(5)
    sat, ddcat = (network_for(method, "aspp", batch) for method in ("sat", "ddcat"))
    with samples_through({"sat": sat.backbone, "ddcat": ddcat.backbone}) as counts:
        step_of("sat", sat, batch)
        step_of("ddcat", ddcat, batch)
    assert counts == {"sat": 3 * 3 + 5, "ddcat": 3 * 5 + 2 + 5}


@LITERAL
@pytest.mark.parametrize("method", ["clean", "sat", "ddcat"])
def test_a_step_leaves_gradients_flags_and_the_batch_alone(method: Any, paper_literal: bool) -> None:
    batch = batch_of(3, ignored=(0.5,))
    images, labels = batch.images.clone(), batch.labels.clone()
    network = network_for(method, "aspp", batch, paper_literal=paper_literal)
    network.backbone.layer0.eval()  # frozen statistics, which some fine-tune with
    flags = [module.training for module in network.modules()]
    frozen = [buffer.clone() for buffer in network.backbone.layer0.buffers()]
    weights = [parameter.clone() for parameter in network.parameters()]
    updates = step_of(method, network, batch, paper_literal=paper_literal)
    assert [module.training for module in network.modules()] == flags
    assert all(map(torch.equal, network.backbone.layer0.buffers(), frozen))
    assert all(map(torch.equal, network.parameters(), weights))
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.labels, labels)
    assert not any(value.requires_grad for update in updates for value in update.log.values())


def test_a_nan_of_the_branch_that_is_not_chosen_stays_out_of_the_maps() -> None:
    batch = batch_of(4)
    network = network_for("ddcat", "pyramid", batch, mask_bias=-1e3)  # p = 0: the main branch everywhere
    expected = division_of(network, batch)
    with torch.no_grad():
        network.heads["auxiliary"][-1].bias.fill_(float("nan"))
    found = division_of(network, batch)
    assert expected.masks.any()
    assert torch.equal(found.masks, expected.masks)
