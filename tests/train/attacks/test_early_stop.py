"""Images that are beaten are left alone and cost nothing."""

from functools import partial
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddcat_train.attacks import StepOutput, bim, signed_gradient_ascent, trajectory, weighted
from tests.train import small
from tests.train.small import right_pixels


def losing(seed: int) -> tuple[Any, Tensor, Tensor]:
    """A model and four images of few labelled pixels, so that some are beaten before the last step."""
    images, labels = small.batch(seed, count=4, ignored=0.9)
    return small.network(seed % 7).eval(), images, labels


def first_beaten(model: Any, iterates: list[Tensor], labels: Tensor) -> list[int]:
    """Of each image, the first iterate at which no valid pixel is right; the number of the last, if none is before it."""
    wrong = [[int(right) == 0 for right in right_pixels(model, images, labels)] for images in iterates[:-1]]
    return [next((n for n, each in enumerate(wrong) if each[i]), len(wrong)) for i in range(len(labels))]


@given(seed=st.integers(0, 2**31), steps=st.integers(1, 6), weight=st.sampled_from(["PGD", "SegPGD", "CosPGD"]))
@settings(max_examples=12, deadline=None)
def test_a_beaten_image_stays_as_it_was_and_no_other_is_touched(seed: int, steps: int, weight: Any) -> None:
    network, images, labels = losing(seed)
    run = partial(
        signed_gradient_ascent, network, images, labels, epsilon=0.2, alpha=0.05, steps=steps, objective=weighted(weight)
    )
    through = [current for _, current in run()]
    beaten = first_beaten(network, through, labels)
    for step, current in run(stop_early=True):
        for i in range(4):
            assert torch.allclose(current[i], through[min(step, beaten[i])][i], rtol=0, atol=1e-12)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=12, deadline=None)
def test_a_beaten_image_costs_no_further_forward_and_no_further_backward(seed: int) -> None:
    network, images, labels = losing(seed)
    through = [current for _, current in signed_gradient_ascent(network, images, labels, epsilon=0.2, alpha=0.05, steps=6)]
    beaten = first_beaten(network, through, labels)
    forwards, backwards = [], []

    def model(batch: Tensor) -> Tensor:
        forwards.append(len(batch))
        batch.register_hook(lambda gradient: backwards.append(len(gradient)))
        return network(batch)

    seen: list[tuple[StepOutput, Tensor | None]] = []
    bim(
        model, images, labels, epsilon=0.2, alpha=0.05, steps=6, stop_early=True,
        observe=lambda answer, gradient: seen.append((answer, gradient)),
    )  # fmt: skip
    # Step n sees the images that were not beaten at any iterate before n - 1, and so finds out which are beaten there.
    attacked = [[i for i in range(4) if beaten[i] >= step - 1] for step in range(1, 7)]
    assert forwards == [len(places) for places in attacked if places]
    none_left = [step for step, places in enumerate(attacked, 1) if places and all(beaten[i] == step - 1 for i in places)]
    assert len(backwards) == len(forwards) - len(none_left)
    assert [answer.indices.tolist() for answer, _ in seen] == [places for places in attacked if places]
    assert [answer.step for answer, gradient in seen if gradient is None] == none_left


@given(seed=st.integers(0, 2**31), steps=st.integers(0, 6), start=st.sampled_from(["clean", "random"]))
@settings(max_examples=12, deadline=None)
def test_a_trajectory_that_stops_early_holds_each_n_and_its_predictions(seed: int, steps: int, start: Any) -> None:
    network, images, labels = losing(seed)
    hyper: dict[str, Any] = {"epsilon": 0.2, "alpha": 0.05, "start": start, "seeds": torch.arange(4)}
    points = list(trajectory(network, images, labels, steps=steps, stop_early=True, **hyper))
    assert [point.steps for point in points] == list(range(steps + 1))
    for point in points:
        expected = bim(network, images, labels, steps=point.steps, stop_early=True, **hyper)
        assert torch.allclose(point.images, expected, rtol=0, atol=1e-12)
        assert torch.equal(point.predictions, network(point.images).argmax(1))


def test_a_trajectory_spends_nothing_on_images_that_are_beaten() -> None:
    images, labels = small.batch(4, count=3, ignored=0)
    network = small.network().eval()
    labels[:] = (network(images).argmax(1) + 1) % small.CLASSES
    labels[2] = network(images).argmax(1)[2]
    forwards = []

    def model(batch: Tensor) -> Tensor:
        forwards.append(len(batch))
        return network(batch)

    list(trajectory(model, images, labels, epsilon=1e-6, alpha=1e-6, steps=4, stop_early=True))
    assert forwards == [3, 1, 1, 1, 1]
