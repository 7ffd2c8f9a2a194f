"""What every attack keeps to: the ball, ignored pixels, the network as it was, images that are independent."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddcat_train.attacks import (
    SEA,
    SHRINKING,
    apgd,
    attack_start,
    bim,
    cospgd,
    pgd,
    segpgd,
    signed_gradient_ascent,
    tsallis_pgd,
)
from tests.train import small

STARTS = ("clean", "random", "lower")
STEPS: dict[str, Any] = {"epsilon": 0.05, "alpha": 0.02, "steps": 3}
ADAPTIVE: dict[str, Any] = {"epsilon": 0.05, "steps": 8, "class_pixels": torch.tensor([7, 900, 0, 30])}
ATTACKS: dict[str, Callable[..., Tensor]] = {
    **{f"BIM, {start} start": partial(bim, start=start, **STEPS) for start in STARTS},
    **{attack.__name__: partial(attack, **STEPS) for attack in (segpgd, cospgd, tsallis_pgd)},
    "BIM, stopped early": partial(bim, stop_early=True, **STEPS),
    "BIM, L2": partial(bim, norm="l2", **STEPS),
    "PGD, L2": partial(pgd, norm="l2", **STEPS),
    "APGD, L2": partial(apgd, norm="l2", **ADAPTIVE),
    **{f"APGD, {start} start": partial(apgd, start=start, **ADAPTIVE) for start in STARTS},
    **{f"APGD on {name}": partial(apgd, weight=name, schedule=SHRINKING, **ADAPTIVE) for name in SEA},
}
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


@every_attack
@given(seed=st.integers(0, 2**31), epsilon=st.floats(0.0, 0.6), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=6, deadline=None)
def test_every_result_lies_in_the_ball_and_is_an_image(attack: Any, seed: int, epsilon: float, dtype: torch.dtype) -> None:
    images, labels = small.batch(seed)
    images = images.to(dtype)
    before = images.clone()
    found = attack(small.network().to(dtype), images, labels, epsilon=epsilon, seeds=seed + torch.arange(3))
    assert found.dtype == dtype
    assert not found.requires_grad
    assert found.min() >= 0
    assert found.max() <= 1
    assert (found - images).abs().max() <= epsilon + 4 * torch.finfo(dtype).eps
    assert torch.equal(images, before)


@every_attack
@given(training=st.lists(st.booleans(), min_size=6, max_size=6), with_gradients=st.booleans())
@settings(max_examples=6, deadline=None)
def test_the_network_is_left_as_it_was(attack: Any, training: list[bool], with_gradients: bool) -> None:
    network = small.network()
    for module, flag in zip(network.modules(), training, strict=True):
        module.training = flag
    network[4].weight.requires_grad_(False)  # a frozen layer stays frozen
    if with_gradients:
        for parameter in network.parameters():
            parameter.grad = torch.full_like(parameter, 3.0)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(11)
    drawn = torch.get_rng_state()

    images, labels = small.batch(7)
    attack(network, images, labels, seeds=torch.tensor([4, 5, 6]))

    assert [module.training for module in network.modules()] == training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == [True] * 4 + [False, True]
    for parameter in network.parameters():
        assert (parameter.grad is not None) == with_gradients
        assert not with_gradients or torch.equal(parameter.grad, torch.full_like(parameter, 3.0))
    assert torch.equal(torch.get_rng_state(), drawn)  # random starts come from the seeds alone


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_an_attack_that_is_broken_off_puts_the_modes_back(stop_after: int) -> None:
    network = small.network().train()
    images, labels = small.batch(7)
    items = signed_gradient_ascent(network, images, labels)
    for _ in range(stop_after):
        next(items)
    items.close()
    assert all(module.training for module in network.modules())


def test_training_flags_return_when_the_model_fails() -> None:
    network = small.network().train()
    network.append(nn.Conv2d(small.CLASSES + 1, 2, 1).double())  # of the wrong width
    images, labels = small.batch(1)
    with pytest.raises(RuntimeError):
        bim(network, images, labels, epsilon=0.1)
    assert all(module.training for module in network.modules())


@every_attack
def test_any_callable_is_a_model_and_neither_its_mode_nor_no_grad_matters(attack: Any) -> None:
    images, labels = small.batch(2)
    seeds = torch.tensor([1, 2, 3])
    expected = attack(small.network().eval(), images, labels, seeds=seeds)
    assert not torch.equal(expected, images)
    assert torch.equal(attack(small.network().train(), images, labels, seeds=seeds), expected)
    with torch.no_grad():
        assert torch.equal(attack(small.network().eval().forward, images, labels, seeds=seeds), expected)


@every_attack
@given(seed=st.integers(0, 2**31), order=st.permutations(range(4)), kept=st.integers(1, 4))
@settings(max_examples=8, deadline=None)
def test_a_result_does_not_depend_on_batch_mates(attack: Any, seed: int, order: list[int], kept: int) -> None:
    images, labels = small.batch(seed, count=4)
    labels[seed % 4] = 255  # an image without any label among them
    labels[(seed + 1) % 4, 0, 1:] = 255
    labels[(seed + 1) % 4, 1:] = 255  # and one of a single pixel, which is soon wrong
    seeds = torch.tensor([seed + i for i in range(4)])
    network = small.network()
    together = attack(network, images, labels, seeds=seeds)
    chosen = order[:kept]
    alone = attack(network, images[chosen], labels[chosen], seeds=seeds[chosen])
    assert torch.allclose(alone, together[chosen], rtol=0, atol=1e-12)


def test_random_starts_differ_between_seeds_and_fill_the_ball() -> None:
    images = torch.full((2, 3, 40, 40), 0.5, dtype=torch.float64)
    labels = torch.full((2, 40, 40), 255)  # nothing to gain: the start is the result
    found = bim(small.network(), images, labels, epsilon=0.1, alpha=0.02, steps=1, start="random", seeds=torch.tensor([1, 2]))
    noise = found - images
    assert not torch.equal(noise[0], noise[1])
    assert noise.abs().max() <= 0.1 + 1e-12
    assert noise.max() > 0.099
    assert noise.min() < -0.099
    assert noise.mean().abs() < 0.005


@every_attack
@given(seed=st.integers(0, 2**31))
@settings(max_examples=6, deadline=None)
def test_ignored_pixels_have_no_influence(attack: Any, seed: int) -> None:
    images, labels = small.batch(seed, ignored=0.4)
    network = small.network().eval()
    scramble = torch.randn(small.CLASSES, small.CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    def other_where_ignored(batch: Tensor) -> Tensor:
        logits = network(batch)
        # Which images these are: of those that are beaten, some may be missing. Each is far from all others.
        far = (batch.detach()[:, None] - images[None]).abs().flatten(2).amax(2)
        ignored = labels[far.argmin(1), None] == 255
        return torch.where(ignored, 50 * torch.einsum("nkhw,jk->njhw", logits, scramble), logits)

    seeds = torch.tensor([1, 2, 3])
    assert torch.equal(attack(other_where_ignored, images, labels, seeds=seeds), attack(network, images, labels, seeds=seeds))


@every_attack
def test_an_image_without_labels_ends_at_its_start(attack: Any) -> None:
    images, labels = small.batch(5)
    labels[:] = 255
    seeds = torch.tensor([1, 2, 3])
    begin = {
        "clean": images,
        "lower": (images - 0.05).clamp(0, 1),
        "random": attack_start("random", images, 0.05, seeds, attack.keywords.get("norm", "linf")),
    }
    start = attack.keywords.get("start", "clean" if attack.func is bim else "random")
    if attack.keywords.get("schedule") is not None:  # drawn in twice the ball
        doubled = pgd(small.network(), images, labels, epsilon=0.1, seeds=seeds)
        begin["random"] = doubled.clamp(images - 0.05, images + 0.05)
    assert torch.allclose(attack(small.network(), images, labels, seeds=seeds), begin[start], rtol=0, atol=1e-15)


@every_attack
def test_no_parameter_gradient_is_computed(attack: Any) -> None:
    masks = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "backward" in str(func) and ("convolution" in str(func) or "batch_norm" in str(func)):
                masks.append(list(args[-1]))
            return func(*args, **(kwargs or {}))

    images, labels = small.batch(5)
    with Watch():
        attack(small.network(), images, labels, seeds=torch.tensor([1, 2, 3]))
    assert len(masks) == attack.keywords["steps"] * 3  # two convolutions and one batch norm, in each step
    assert all(mask == [True, False, False] for mask in masks)


@pytest.mark.parametrize("attack", [pgd, segpgd, cospgd, tsallis_pgd])
def test_all_but_bim_start_at_random(attack: Any) -> None:
    images, labels = small.batch(5)
    seeds = torch.tensor([3, 4, 5])
    found = attack(small.network(), images, labels, steps=2, seeds=seeds)
    assert torch.equal(found, attack(small.network(), images, labels, steps=2, seeds=seeds, start="random"))
    assert not torch.allclose(found, attack(small.network(), images, labels, steps=2, start="clean"), atol=1e-3)
    with pytest.raises(ValueError, match="one seed for each image"):
        attack(small.network(), images, labels)


@every_attack
def test_channels_last_images_go_through_the_model_as_they_are(attack: Any) -> None:
    images, labels = small.batch(5, count=4)
    labels[1] = 255  # an image that is taken out
    laid_out = []

    def model(batch: Tensor) -> Tensor:
        laid_out.append(batch.is_contiguous(memory_format=torch.channels_last))
        return network(batch)

    network = small.network().eval().to(memory_format=torch.channels_last)
    found = attack(model, images.to(memory_format=torch.channels_last), labels, seeds=torch.arange(4))
    assert all(laid_out)
    assert torch.allclose(found, attack(network, images, labels, seeds=torch.arange(4)), rtol=0, atol=1e-12)


@every_attack
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_counts_as_zero_and_is_seen(attack: Any, value: float) -> None:
    images, labels = small.batch(6)
    network = small.network().eval()
    left = torch.arange(6) < 3

    def model(put: float, batch: Tensor) -> Tensor:
        first = (batch - images[:1]).detach().abs().flatten(1).amax(1) <= 0.2  # others may be missing, but it is not
        moved = 1 * batch
        if moved.requires_grad:
            moved.register_hook(lambda gradient: gradient.masked_fill(first[:, None, None, None] & left, put))
        return network(moved)

    seen = []
    seeds = torch.tensor([1, 2, 3])
    found = attack(
        partial(model, value), images, labels, seeds=seeds, observe=lambda answer, gradient: seen.append((answer, gradient))
    )
    assert torch.equal(found, attack(partial(model, 0.0), images, labels, seeds=seeds))
    assert [answer.step for answer, _ in seen] == list(range(1, attack.keywords["steps"] + 1))
    for answer, gradient in seen:
        assert answer.indices[0] == 0
        assert not gradient[0, ..., :3].isfinite().any()
        assert gradient[0, ..., 3:].isfinite().all()
        assert gradient[1:].isfinite().all()


@pytest.mark.parametrize("wrong", [{"epsilon": -0.1}, {"steps": -1}, {"epsilon": -0.1, "steps": 0}])
@pytest.mark.parametrize("attack", [bim, apgd])
def test_a_ball_or_a_climb_of_less_than_nothing_is_refused(attack: Any, wrong: dict[str, Any]) -> None:
    options = {"class_pixels": ADAPTIVE["class_pixels"]} if attack is apgd else {"alpha": 0.02}
    images, labels = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match="must not be negative"):
        attack(lambda images: images, images, labels, start="clean", **{"epsilon": 0.1, "steps": 2} | options | wrong)
