"""APGD and SEA against a literal transcription, image by image, and against what must be true of them."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddcat_train.attacks import SEA, SHRINKING, WEIGHTS, StepOutput, apgd, signed_gradient_ascent
from ddcat_train.attacks.apgd import CONSTANT, _at_checkpoint, _initial_state, step_checkpoints
from tests.train import small
from tests.train.small import right_pixels

CLASS_PIXELS = torch.tensor([7, 900, 50, 30])

# --- the transcription


def literal_apgd(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    steps: int,
    weight: str,
    schedule: tuple[tuple[float, int], ...],
) -> Tensor:
    """
    Algorithm 1 of Croce and Hein (2020), run in the stages of SEA, on one image; slow, and nothing shared with the fast one.

    f is the plain cross-entropy; what is ascended has a weight.
    """
    total, done, x0 = steps, 0, start
    for number, (factor, percent) in enumerate(schedule):
        last = number == len(schedule) - 1
        n = total - done if last else math.floor(total * percent / 100 + 1e-9)
        if n == 0 and not last:
            continue
        radius = factor * epsilon

        def project(x: Tensor, radius: float = radius) -> Tensor:
            return torch.minimum(torch.maximum(x, image - radius), image + radius).clamp(0, 1)

        def ascent(x: Tensor) -> Tensor:
            leaf = x.clone().requires_grad_()
            losses = F.cross_entropy(model(leaf), labels, ignore_index=255, reduction="none")
            weights = literal_weight(weight, model(x).detach(), labels)
            return torch.autograd.grad((weights * losses).sum(), leaf)[0].sign()

        def f(x: Tensor) -> float:
            return float(F.cross_entropy(model(x).detach(), labels, ignore_index=255, reduction="sum"))

        def right(x: Tensor) -> int:
            return int((model(x).argmax(1) == labels).sum())

        # Checkpoints w_j = ceil(p_j n), p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06)
        p = [0.0, 0.22]
        while p[-1] < 1:
            p.append(p[-1] + max(p[-1] - p[-2] - 0.03, 0.06))
        w = [math.ceil(share * n - 1e-9) for share in p]

        eta = 2 * radius
        x = [project(x0)]
        fs = [f(x[0])]
        x_max, f_max = x[0], fs[0]
        weakest, fewest = x[0], right(x[0])
        eta_then, f_max_then, w_then = eta, f_max, 0
        for k in range(1, n + 1):
            alpha = 1 if k == 1 else 0.75
            z = project(x[-1] + eta * ascent(x[-1]))
            momentum = (1 - alpha) * (x[-1] - x[-2]) if k > 1 else 0
            x.append(project(x[-1] + alpha * (z - x[-1]) + momentum))
            fs.append(f(x[-1]))
            if fs[-1] > f_max:
                x_max, f_max = x[-1], fs[-1]
            if right(x[-1]) < fewest:
                weakest, fewest = x[-1], right(x[-1])
            if k in w and k < n:
                rises = sum(fs[i + 1] > fs[i] for i in range(w_then, k))
                condition_1 = rises < 0.75 * (k - w_then)
                condition_2 = eta_then == eta and f_max_then == f_max
                eta_then, f_max_then, w_then = eta, f_max, k
                if condition_1 or condition_2:
                    eta /= 2
                    x[-1], fs[-1] = x_max, f_max
        x0, done = x_max, done + n
    return weakest


def literal_weight(name: str, logits: Tensor, labels: Tensor) -> Tensor:
    weights = torch.zeros_like(labels, dtype=logits.dtype)
    for n, row, column in (labels != 255).nonzero().tolist():
        here, truth = logits[n, :, row, column], int(labels[n, row, column])
        p, right = float(here.softmax(0)[truth]), int(here.argmax()) == truth
        weights[n, row, column] = {
            "PGD": 1,
            "CosPGD": p / float(here.softmax(0).norm()),
            "SEA-JS": p * (math.log1p(p) - math.log(p)) / 2,
            "SEA-MCE": right,
            "SEA-MCE-Bal": right / int(CLASS_PIXELS[truth]),
        }[name]
    return weights


# --- APGD


@pytest.mark.parametrize("weight", ["PGD", "CosPGD", *SEA])
@given(
    seed=st.integers(0, 2**31),
    epsilon=st.floats(0.001, 0.2),
    steps=st.integers(0, 30),
    schedule=st.sampled_from([CONSTANT, SHRINKING]),
    start=st.sampled_from(["clean", "random", "lower"]),
)
@settings(max_examples=12, deadline=None)
def test_it_is_the_published_algorithm_image_by_image(
    weight: Any, seed: int, epsilon: float, steps: int, schedule: Any, start: Any
) -> None:
    images, labels = small.batch(seed, size=4)
    network = small.network(seed % 5).eval()
    seeds = torch.tensor([seed, seed + 1, seed + 2])
    first = schedule[0][0] if steps >= 4 else 1.0  # of fewer steps, no whole one is 30 %
    (_, begin), *_ = signed_gradient_ascent(network, images, labels, epsilon=first * epsilon, start=start, seeds=seeds)
    found = apgd(
        network, images, labels, epsilon=epsilon, steps=steps, weight=weight, class_pixels=CLASS_PIXELS, schedule=schedule,
        start=start, seeds=seeds,
    )  # fmt: skip
    for i in range(3):
        expected = literal_apgd(
            network, images[i : i + 1], labels[i : i + 1], begin[i : i + 1],
            epsilon=epsilon, steps=steps, weight=weight, schedule=schedule,
        )  # fmt: skip
        assert torch.allclose(found[i : i + 1], expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, [22, 41, 57, 70, 80, 87, 93, 99]),  # of the paper
        (300, [66, 123, 171, 210, 240, 261, 279, 297]),
        (10, [3, 5, 6, 7, 8, 9, 10]),
        (1, [1]),
        (0, [0]),
    ],
)
def test_the_checkpoints_are_those_of_the_paper(steps: int, expected: list[int]) -> None:
    assert step_checkpoints(steps) == expected


@pytest.mark.parametrize(
    ("rises", "gained", "halved_before", "expected"),
    [
        (8, 1.0, False, False),
        (6, 1.0, False, False),  # three quarters of 8 steps
        (5, 1.0, False, True),  # condition 1
        (8, 0.0, False, True),  # condition 2: nothing gained with a step that did not change either
        (8, 0.0, True, False),
        (5, 0.0, True, True),
    ],
)
def test_a_step_is_halved_by_either_condition(rises: int, gained: float, halved_before: bool, expected: bool) -> None:
    """Condition 2 alone is rare, so random runs seldom tell of it."""
    present, best = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    answer = StepOutput(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), torch.arange(1), 1, 1)
    run = _initial_state(present, present, answer, present, size=0.2)._replace(
        best=best,
        best_gradient=2 * best,
        best_loss=torch.tensor([3.0 + gained]),
        known_loss=torch.tensor([3.0]),
        rises=torch.tensor([rises]),
        halved=torch.tensor([halved_before]),
    )
    checked = _at_checkpoint(run, 8)
    assert checked.halved.item() == expected
    assert checked.size.item() == pytest.approx(0.1 if expected else 0.2)
    assert torch.equal(checked.present, best if expected else present)
    assert torch.equal(checked.gradient, 2 * best if expected else present)
    assert checked.loss.item() == (3.0 + gained if expected else run.loss.item())
    assert (checked.rises.item(), checked.known_loss.item()) == (0, 3.0 + gained)


@pytest.mark.parametrize("weight", WEIGHTS)
@given(seed=st.integers(0, 2**31), epsilon=st.floats(0.001, 0.4), schedule=st.sampled_from([CONSTANT, SHRINKING]))
@settings(max_examples=6, deadline=None)
def test_on_a_linear_model_no_image_of_the_ball_has_fewer_right_pixels(
    weight: Any, seed: int, epsilon: float, schedule: Any
) -> None:
    images, labels = small.batch(seed, classes=2)
    weights = torch.tensor([1.5, -0.7, 0.2], dtype=torch.float64)
    model = small.Pixelwise(weights)
    away = torch.where(labels == 0, 1, -1)[:, None] * weights.sign()[:, None, None]
    corner = (images + epsilon * away).clamp(0, 1)
    found = apgd(
        model, images, labels, epsilon=epsilon, steps=20, weight=weight, class_pixels=torch.tensor([5, 60]),
        schedule=schedule, seeds=torch.tensor([seed, 1, 2]),
    )  # fmt: skip
    assert torch.equal(right_pixels(model, found, labels), right_pixels(model, corner, labels))
    assert (found - images).abs().max() <= epsilon + 1e-12


@pytest.mark.parametrize("schedule", [(), ((2.0, 100),), ((2.0, 30), (1.0, 60))])
def test_a_schedule_that_does_not_end_at_epsilon_is_refused(schedule: Any) -> None:
    images, labels = small.batch(4)
    with pytest.raises(ValueError, match="a schedule ends at 1 epsilon"):
        apgd(small.network(), images, labels, epsilon=0.1, schedule=schedule, start="clean")


# --- what it costs


@pytest.mark.parametrize("schedule", [CONSTANT, SHRINKING])
def test_a_step_costs_a_forward_and_a_backward(schedule: Any) -> None:
    images, labels = small.batch(4)
    forwards, backwards = [], []

    def model(batch: Tensor) -> Tensor:
        forwards.append(len(batch))
        if batch.requires_grad:
            batch.register_hook(lambda gradient: backwards.append(len(gradient)))
        return network(batch)

    network = small.network().eval()
    apgd(model, images, labels, epsilon=0.02, steps=20, schedule=schedule, seeds=torch.arange(3))
    assert backwards == [3] * 20
    assert forwards == [3] * (20 + len(schedule))  # and one to judge the last iterate of each stage


def test_images_without_a_right_pixel_cost_nothing_more() -> None:
    images, labels = small.batch(4, count=4, ignored=0)
    network = small.network().eval()
    labels[1] = (network(images).argmax(1)[1] + 1) % small.CLASSES  # wrong from the start, by far
    labels[2] = 255
    forwards = []

    def model(batch: Tensor) -> Tensor:
        forwards.append(len(batch))
        return network(batch)

    found = apgd(model, images, labels, epsilon=1e-6, steps=5, start="clean")
    assert forwards == [4, 2, 2, 2, 2, 2]
    assert torch.equal(found[1:3], images[1:3])
    forwards.clear()
    apgd(model, images[1:3], labels[1:3], epsilon=1e-6, steps=5, start="clean")
    assert forwards == [2]
