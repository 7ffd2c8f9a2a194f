"""On a linear model the optimum of each attack is known."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddcat_train.attacks import StepOutput, bim, segpgd, signed_gradient_ascent
from ddcat_train.losses import pixel_divergence
from tests.train import small


@pytest.mark.parametrize("start", ["clean", "lower"])
@given(seed=st.integers(0, 2**31), epsilon=st.floats(0.0, 0.2), alpha=st.floats(0.001, 0.2), steps=st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_bim_on_a_linear_model_is_its_closed_form(start: str, seed: int, epsilon: float, alpha: float, steps: int) -> None:
    images, labels = small.batch(seed, classes=2)
    weights = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
    found = bim(small.Pixelwise(weights), images, labels, epsilon=epsilon, alpha=alpha, steps=steps, start=start)

    away = torch.where(labels == 0, 1, -1)[:, None] * weights.sign()[:, None, None]  # raises the loss, (N, 3, H, W)
    away = torch.where(labels[:, None] == 255, 0, away)
    begin = (images - epsilon).clamp(0, 1) if start == "lower" else images
    moved = torch.maximum(torch.minimum(begin + steps * alpha * away, images + epsilon), images - epsilon)
    assert torch.allclose(found, moved.clamp(0, 1), rtol=0, atol=1e-12)


def test_alpha_by_name_is_epsilon_over_steps() -> None:
    images, labels = small.batch(3)
    network = small.network()
    named = bim(network, images, labels, epsilon=0.03, alpha="eps/n", steps=4)
    assert torch.equal(named, bim(network, images, labels, epsilon=0.03, alpha=0.03 / 4, steps=4))
    assert not torch.equal(named, bim(network, images, labels, epsilon=0.03, alpha=0.03, steps=4))


@given(seed=st.integers(0, 2**31), steps=st.integers(1, 5), draws=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_any_objective_on_a_linear_model_is_ascended_to_its_closed_form(seed: int, steps: int, draws: int) -> None:
    images, labels = small.batch(seed, classes=2)
    weights = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
    generator = torch.Generator().manual_seed(draws)
    wishes = torch.randint(
        -1, 2, (steps, *labels.shape), generator=generator
    )  # each pixel's score at each step: down, as it is, up
    told: list[tuple[int, int]] = []

    def objective(answer: StepOutput) -> Tensor:
        assert torch.equal(answer.labels, labels)
        told.append((answer.step, answer.steps))
        return 0.3 * wishes[answer.step - 1] * (answer.logits[:, 1] - answer.logits[:, 0])

    *_, (_, found) = signed_gradient_ascent(
        small.Pixelwise(weights), images, labels, epsilon=0.05, alpha=0.02, steps=steps, objective=objective
    )
    expected = images
    for wish in wishes:
        expected = expected + 0.02 * wish[:, None].double() * weights.sign()[:, None, None]
        expected = torch.maximum(torch.minimum(expected, images + 0.05), images - 0.05).clamp(0, 1)
    assert told == [(step, steps) for step in range(1, steps + 1)]
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), steps=st.integers(1, 5))
@settings(max_examples=12, deadline=None)
def test_segpgd_on_a_linear_model_moves_wrong_pixels_from_the_second_step_on(seed: int, steps: int) -> None:
    images, labels = small.batch(seed, classes=2)
    network = small.Pixelwise(torch.tensor([1.5, -0.7, -0.9], dtype=torch.float64))
    found = segpgd(network, images, labels, epsilon=0.05, alpha=0.02, steps=steps, start="clean")
    moves = torch.where(network(images).argmax(1) == labels, steps, steps - 1)  # lambda is 0 at the first step
    away = torch.where(labels == 0, 1, -1)[:, None] * network.weights.detach().sign()[:, None, None]
    moved = images + (0.02 * moves.double()).clamp(max=0.05)[:, None] * away
    expected = torch.where(labels[:, None] == 255, images, moved.clamp(0, 1))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), steps=st.integers(1, 5), start=st.sampled_from(["lower", "random"]))
@settings(max_examples=12, deadline=None)
def test_a_divergence_on_a_linear_model_grows_to_the_side_it_starts_on(seed: int, steps: int, start: Any) -> None:
    images, labels = small.batch(seed, classes=2)
    network = small.Pixelwise(torch.tensor([1.5, -0.7, -0.9], dtype=torch.float64))
    reference, weights = network(images).detach(), network.weights.detach()
    (_, begin), *_, (_, found) = signed_gradient_ascent(
        network, images, labels, epsilon=0.05, alpha=0.02, steps=steps, start=start, seeds=torch.tensor([seed, 1, 2]),
        objective=lambda answer: pixel_divergence(reference, answer.logits, answer.labels),
    )  # fmt: skip
    side = torch.einsum("nchw,c->nhw", begin - images, weights).sign()[:, None] * weights.sign()[:, None, None]
    moved = torch.maximum(torch.minimum(begin + 0.02 * steps * side, images + 0.05), images - 0.05).clamp(0, 1)
    expected = torch.where(labels[:, None] == 255, begin, moved)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 50))
@settings(max_examples=12, deadline=None)
def test_a_divergence_is_that_of_torch_and_zero_where_it_is_ignored(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = scale * torch.randn(2, 3, small.CLASSES, 4, 5, dtype=torch.float64, generator=generator)
    labels = torch.randint(small.CLASSES, (3, 4, 5), generator=generator)
    labels[0, 0] = 255
    p, q = (torch.distributions.Categorical(logits=logits.movedim(1, -1)) for logits in (one, other))
    expected = torch.distributions.kl_divergence(p, q).masked_fill(labels == 255, 0)
    assert torch.allclose(pixel_divergence(one, other, labels), expected, rtol=1e-9, atol=1e-12)
    assert torch.equal(pixel_divergence(one, one, labels), torch.zeros(3, 4, 5, dtype=torch.float64))
