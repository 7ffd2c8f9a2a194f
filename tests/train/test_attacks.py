"""The attacks against closed forms, peer libraries, and the contract of every attack."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddcat_train.attacks import Answer, bim, cospgd, fgsm, iterate, pgd, segpgd, to_8_bit, trajectory, tsallis_pgd, weighted
from ddcat_train.losses import pixel_divergence

STARTS = ("clean", "random", "lower")
CLASSES = 4


class Pixelwise(nn.Module):
    """Two classes told apart by a weighted sum of the colours: the sign of every gradient is known."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        score = torch.einsum("nchw,c->nhw", images, self.weights)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def small_network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout2d(0.5), nn.Conv2d(6, CLASSES, 3, padding=1)
    ).double()
    with torch.no_grad():
        network(torch.rand(4, 3, 9, 9, dtype=torch.float64))  # batch-norm buffers that are not the initial ones
    return network


def small_batch(
    seed: int, count: int = 3, size: int = 6, ignored: float = 0.2, classes: int = CLASSES
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, dtype=torch.float64, generator=generator)
    images[torch.rand(images.shape, generator=generator) < 0.1] = 0  # on the border of what an image may hold
    labels = torch.randint(classes, (count, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return images, labels


# --- closed forms


@pytest.mark.parametrize("start", ["clean", "lower"])
@given(seed=st.integers(0, 2**31), epsilon=st.floats(0.0, 0.2), alpha=st.floats(0.001, 0.2), steps=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_bim_on_a_linear_model_is_its_closed_form(start: str, seed: int, epsilon: float, alpha: float, steps: int) -> None:
    images, labels = small_batch(seed, classes=2)
    weights = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
    found = bim(Pixelwise(weights), images, labels, epsilon=epsilon, alpha=alpha, steps=steps, start=start)

    away = torch.where(labels == 0, 1, -1)[:, None] * weights.sign()[:, None, None]  # raises the loss, (N, 3, H, W)
    away = torch.where(labels[:, None] == 255, 0, away)
    begin = (images - epsilon).clamp(0, 1) if start == "lower" else images
    moved = torch.maximum(torch.minimum(begin + steps * alpha * away, images + epsilon), images - epsilon)
    assert torch.allclose(found, moved.clamp(0, 1), rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), epsilon=st.floats(0.0, 0.5))
@settings(max_examples=25, deadline=None)
def test_fgsm_on_a_linear_model_is_its_closed_form(seed: int, epsilon: float) -> None:
    images, labels = small_batch(seed, classes=2)
    weights = torch.tensor([-0.3, 0.9, 2.0], dtype=torch.float64)
    found = fgsm(Pixelwise(weights), images, labels, epsilon=epsilon)
    away = torch.where(labels == 0, 1, -1)[:, None] * weights.sign()[:, None, None]
    expected = torch.where(labels[:, None] == 255, images, (images + epsilon * away).clamp(0, 1))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def test_alpha_by_name_is_epsilon_over_steps() -> None:
    images, labels = small_batch(3)
    network = small_network()
    named = bim(network, images, labels, epsilon=0.03, alpha="eps/n", steps=4)
    assert torch.equal(named, bim(network, images, labels, epsilon=0.03, alpha=0.03 / 4, steps=4))
    assert not torch.equal(named, bim(network, images, labels, epsilon=0.03, alpha=0.03, steps=4))


@given(seed=st.integers(0, 2**31), steps=st.integers(1, 5), draws=st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_any_objective_on_a_linear_model_is_ascended_to_its_closed_form(seed: int, steps: int, draws: int) -> None:
    images, labels = small_batch(seed, classes=2)
    weights = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
    generator = torch.Generator().manual_seed(draws)
    wishes = torch.randint(
        -1, 2, (steps, *labels.shape), generator=generator
    )  # each pixel's score at each step: down, as it is, up
    told: list[tuple[int, int]] = []

    def objective(answer: Answer) -> Tensor:
        assert torch.equal(answer.labels, labels)
        told.append((answer.step, answer.steps))
        return 0.3 * wishes[answer.step - 1] * (answer.logits[:, 1] - answer.logits[:, 0])

    *_, (_, found) = iterate(Pixelwise(weights), images, labels, epsilon=0.05, alpha=0.02, steps=steps, objective=objective)
    expected = images
    for wish in wishes:
        expected = expected + 0.02 * wish[:, None].double() * weights.sign()[:, None, None]
        expected = torch.maximum(torch.minimum(expected, images + 0.05), images - 0.05).clamp(0, 1)
    assert told == [(step, steps) for step in range(1, steps + 1)]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), steps=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_segpgd_on_a_linear_model_moves_wrong_pixels_from_the_second_step_on(seed: int, steps: int) -> None:
    images, labels = small_batch(seed, classes=2)
    network = Pixelwise(torch.tensor([1.5, -0.7, -0.9], dtype=torch.float64))
    found = segpgd(network, images, labels, epsilon=0.05, alpha=0.02, steps=steps, start="clean")
    moves = torch.where(network(images).argmax(1) == labels, steps, steps - 1)  # lambda is 0 at the first step
    away = torch.where(labels == 0, 1, -1)[:, None] * network.weights.detach().sign()[:, None, None]
    moved = images + (0.02 * moves.double()).clamp(max=0.05)[:, None] * away
    expected = torch.where(labels[:, None] == 255, images, moved.clamp(0, 1))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), steps=st.integers(1, 5), start=st.sampled_from(["lower", "random"]))
@settings(max_examples=25, deadline=None)
def test_a_divergence_on_a_linear_model_grows_to_the_side_it_starts_on(seed: int, steps: int, start: Any) -> None:
    images, labels = small_batch(seed, classes=2)
    network = Pixelwise(torch.tensor([1.5, -0.7, -0.9], dtype=torch.float64))
    reference, weights = network(images).detach(), network.weights.detach()
    (_, begin), *_, (_, found) = iterate(
        network, images, labels, epsilon=0.05, alpha=0.02, steps=steps, start=start, seeds=torch.tensor([seed, 1, 2]),
        objective=lambda answer: pixel_divergence(reference, answer.logits, answer.labels),
    )  # fmt: skip
    side = torch.einsum("nchw,c->nhw", begin - images, weights).sign()[:, None] * weights.sign()[:, None, None]
    moved = torch.maximum(torch.minimum(begin + 0.02 * steps * side, images + 0.05), images - 0.05).clamp(0, 1)
    expected = torch.where(labels[:, None] == 255, begin, moved)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 50))
@settings(max_examples=25, deadline=None)
def test_a_divergence_is_that_of_torch_and_zero_where_it_is_ignored(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = scale * torch.randn(2, 3, CLASSES, 4, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (3, 4, 5), generator=generator)
    labels[0, 0] = 255
    p, q = (torch.distributions.Categorical(logits=logits.movedim(1, -1)) for logits in (one, other))
    expected = torch.distributions.kl_divergence(p, q).masked_fill(labels == 255, 0)
    assert torch.allclose(pixel_divergence(one, other, labels), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(pixel_divergence(one, one, labels), torch.zeros(3, 4, 5, dtype=torch.float64))


# --- the contract


@given(
    seed=st.integers(0, 2**31),
    epsilon=st.floats(0.0, 0.6),
    alpha=st.floats(0.0, 1.0),
    steps=st.integers(1, 4),
    start=st.sampled_from(STARTS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=60, deadline=None)
def test_every_iterate_lies_in_the_ball_and_is_an_image(
    seed: int, epsilon: float, alpha: float, steps: int, start: Any, dtype: torch.dtype
) -> None:
    images, labels = small_batch(seed)
    images = images.to(dtype)
    before = images.clone()
    network = small_network().to(dtype)
    seeds = torch.tensor([seed, seed + 1, seed + 2]) if start == "random" else None
    count = 0
    for _, current in iterate(network, images, labels, epsilon=epsilon, alpha=alpha, steps=steps, start=start, seeds=seeds):
        assert current.dtype == dtype
        assert current.shape == images.shape
        assert not current.requires_grad
        assert current.min() >= 0
        assert current.max() <= 1
        assert (current - images).abs().max() <= epsilon + 4 * torch.finfo(dtype).eps
        count += 1
    assert count in {steps, steps + 1}
    assert torch.equal(images, before)


@given(
    training=st.lists(st.booleans(), min_size=6, max_size=6),
    start=st.sampled_from(STARTS),
    stop_after=st.integers(1, 3),
    with_gradients=st.booleans(),
)
@settings(max_examples=30, deadline=None)
def test_the_network_is_left_as_it_was(training: list[bool], start: Any, stop_after: int, with_gradients: bool) -> None:
    network = small_network()
    for module, flag in zip(network.modules(), training, strict=True):
        module.training = flag
    network[4].weight.requires_grad_(False)  # a frozen layer stays frozen
    if with_gradients:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(11)
    drawn = torch.get_rng_state()

    images, labels = small_batch(7)
    items = iterate(network, images, labels, epsilon=0.1, alpha=0.04, steps=3, start=start, seeds=torch.tensor([4, 5, 6]))
    for _ in range(stop_after):
        next(items)
    items.close()  # an attack that is stopped early cleans up as well

    assert [module.training for module in network.modules()] == training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == [True] * 4 + [False, True]
    for parameter in network.parameters():
        assert (parameter.grad is not None) == with_gradients
        assert not with_gradients or torch.equal(parameter.grad, torch.full_like(parameter, 3.0))
    assert torch.equal(torch.get_rng_state(), drawn)  # random starts come from the seeds alone


def test_training_flags_return_when_the_model_fails() -> None:
    network = small_network().train()
    network.append(nn.Conv2d(CLASSES + 1, 2, 1).double())  # of the wrong width
    images, labels = small_batch(1)
    with pytest.raises(RuntimeError):
        fgsm(network, images, labels, epsilon=0.1)
    assert all(module.training for module in network.modules())


def test_the_attacked_network_is_in_eval_mode() -> None:
    network = small_network().train()
    images, labels = small_batch(1)
    expected = bim(small_network().eval(), images, labels, epsilon=0.1, alpha=0.03, steps=3)
    assert torch.equal(bim(network, images, labels, epsilon=0.1, alpha=0.03, steps=3), expected)


def test_any_callable_is_a_model_and_no_grad_does_not_stop_the_attack() -> None:
    network = small_network().eval()
    images, labels = small_batch(2)
    expected = bim(network, images, labels, epsilon=0.1, alpha=0.03, steps=2)
    assert not torch.equal(expected, images)
    with torch.no_grad():
        found = bim(network.forward, images, labels, epsilon=0.1, alpha=0.03, steps=2)
    assert torch.equal(found, expected)


@given(seed=st.integers(0, 2**31), order=st.permutations(range(4)), kept=st.integers(1, 4), start=st.sampled_from(STARTS))
@settings(max_examples=30, deadline=None)
def test_a_result_does_not_depend_on_batch_mates(seed: int, order: list[int], kept: int, start: Any) -> None:
    images, labels = small_batch(seed, count=4)
    labels[seed % 4] = 255  # an image without any label among them
    seeds = torch.tensor([seed + i for i in range(4)])
    hyper: dict[str, Any] = {"epsilon": 0.05, "alpha": 0.02, "steps": 3, "start": start}
    network = small_network()
    together = bim(network, images, labels, seeds=seeds, **hyper)
    chosen = order[:kept]
    alone = bim(network, images[chosen], labels[chosen], seeds=seeds[chosen], **hyper)
    assert torch.allclose(alone, together[chosen], rtol=0, atol=1e-12)


def test_random_starts_differ_between_seeds_and_fill_the_ball() -> None:
    images = torch.full((2, 3, 40, 40), 0.5, dtype=torch.float64)
    labels = torch.full((2, 40, 40), 255)  # nothing to gain: the start is the result
    found = bim(small_network(), images, labels, epsilon=0.1, alpha=0.02, steps=1, start="random", seeds=torch.tensor([1, 2]))
    noise = found - images
    assert not torch.equal(noise[0], noise[1])
    assert noise.abs().max() <= 0.1 + 1e-12
    assert noise.max() > 0.099
    assert noise.min() < -0.099
    assert noise.mean().abs() < 0.005


@given(seed=st.integers(0, 2**31), start=st.sampled_from(STARTS))
@settings(max_examples=20, deadline=None)
def test_ignored_pixels_have_no_influence(seed: int, start: Any) -> None:
    images, labels = small_batch(seed, ignored=0.4)
    network = small_network().eval()
    scramble = torch.randn(CLASSES, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def other_where_ignored(batch: Tensor) -> Tensor:
        logits = network(batch)
        return torch.where(labels[:, None] == 255, 50 * torch.einsum("nkhw,jk->njhw", logits, scramble), logits)

    hyper: dict[str, Any] = {"epsilon": 0.05, "alpha": 0.02, "steps": 3, "start": start, "seeds": torch.tensor([1, 2, 3])}
    expected = bim(network, images, labels, **hyper)
    assert torch.equal(bim(other_where_ignored, images, labels, **hyper), expected)


@pytest.mark.parametrize("start", STARTS)
def test_an_image_without_labels_stays_at_its_start(start: Any) -> None:
    images, _ = small_batch(5)
    labels = torch.full((3, 6, 6), 255)
    items = list(
        iterate(small_network(), images, labels, epsilon=0.1, alpha=0.05, steps=3, start=start, seeds=torch.tensor([1, 2, 3]))
    )
    assert all(torch.equal(current, items[0][1]) for _, current in items)
    if start == "clean":
        assert torch.equal(items[-1][1], images)
    if start == "lower":
        assert torch.equal(items[-1][1], (images - 0.1).clamp(0, 1))


def test_no_parameter_gradient_is_computed() -> None:
    masks = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "backward" in str(func) and ("convolution" in str(func) or "batch_norm" in str(func)):
                masks.append(list(args[-1]))
            return func(*args, **(kwargs or {}))

    images, labels = small_batch(5)
    with Watch():
        bim(small_network(), images, labels, epsilon=0.1, alpha=0.05, steps=2)
    assert len(masks) == 2 * 3  # two convolutions and one batch norm, in each of two steps
    assert all(mask == [True, False, False] for mask in masks)


@pytest.mark.parametrize("attack", [pgd, segpgd, cospgd, tsallis_pgd])
def test_all_but_bim_start_at_random(attack: Any) -> None:
    images, labels = small_batch(5)
    seeds = torch.tensor([3, 4, 5])
    found = attack(small_network(), images, labels, steps=2, seeds=seeds)
    assert torch.equal(found, attack(small_network(), images, labels, steps=2, seeds=seeds, start="random"))
    assert not torch.allclose(found, attack(small_network(), images, labels, steps=2, start="clean"), atol=1e-3)
    with pytest.raises(ValueError, match="one seed for each image"):
        attack(small_network(), images, labels)


# --- the trajectory


@pytest.mark.parametrize("start", STARTS)
def test_a_trajectory_holds_the_attack_of_every_n(start: Any) -> None:
    network = small_network()
    network.train()
    images, labels = small_batch(9)
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
    images, labels = small_batch(9)
    with pytest.raises(ValueError, match="constant alpha"):
        list(trajectory(small_network(), images, labels, alpha="eps/n"))


def test_a_trajectory_that_is_stopped_puts_the_modes_back() -> None:
    network = small_network().train()
    images, labels = small_batch(9)
    points = trajectory(network, images, labels)
    next(points)
    points.close()
    assert all(module.training for module in network.modules())


@given(seed=st.integers(0, 2**31), levels=st.integers(0, 20), part=st.floats(0.0, 0.9))
@settings(max_examples=30, deadline=None)
def test_8_bit_images_stay_in_the_ball_and_use_all_of_its_levels(seed: int, levels: int, part: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(256, (2, 3, 5, 5), generator=generator)
    side = torch.randint(0, 2, clean.shape, generator=generator) * 2 - 1
    images = clean.float() / 255
    adversarial = (images + side * (levels + part) / 255).clamp(0, 1)
    expected = (clean + side * levels).clamp(0, 255)
    assert torch.equal(to_8_bit(adversarial, images).long(), expected)


# --- peers


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
def test_equal_to_torchattacks(torchattacks: ModuleType, seed: int) -> None:
    network = small_network(seed).float().eval()
    images, labels = small_batch(seed, size=9, ignored=0)
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
def test_equal_to_cospgd(attack: Any, seed: int) -> None:
    peer = pytest.importorskip("cospgd").functions
    network = small_network(seed).eval()
    images, labels = small_batch(seed, size=9)
    steps, epsilon, alpha = 10, 8 / 255, 2 / 255
    current = images
    for t in range(steps):
        leaf = current.requires_grad_()
        logits = network(leaf)
        losses = nn.functional.cross_entropy(logits, labels, ignore_index=255, reduction="none")
        if attack is segpgd:
            loss, name = peer.segpgd_scale(logits, labels, losses, t, steps).sum() / 3, "SegPGD"  # it counts from 0
        else:
            loss, name = peer.cospgd_scale(logits, labels, losses, num_classes=CLASSES).mean(), "CosPGD"
        answer = Answer(logits, labels, torch.arange(3), t + 1, steps)
        assert torch.allclose(weighted(name)(answer).mean(), loss.mean(), rtol=0, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, leaf)
        current = peer.step_inf(current, epsilon, gradient, images, alpha, targeted=False)
    found = attack(network, images, labels, epsilon=epsilon, alpha=alpha, steps=steps, start="clean")
    assert torch.allclose(found, current, rtol=0, atol=1e-6)
    assert not torch.allclose(found, bim(network, images, labels, epsilon=epsilon, alpha=alpha, steps=steps), atol=1e-3)
