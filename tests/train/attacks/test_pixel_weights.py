"""The weights of pixels against the losses that they are published for, and at the ends of what floats can hold."""

from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ddcat_train.attacks import SEA, WEIGHTS, StepOutput, weighted
from ddcat_train.choices import WeightName

CLASS_PIXELS = torch.tensor([7, 900, 50, 30])
every_weight = pytest.mark.parametrize("name", WEIGHTS)


def draw(seed: int, scale: float = 3.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 4, 5, 6, dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (2, 5, 6), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return logits.to(dtype).requires_grad_(), labels


def answer(logits: Tensor, labels: Tensor, step: int = 1, steps: int = 1) -> StepOutput:
    return StepOutput(logits, labels, torch.arange(len(labels)), step, steps)


def published(name: WeightName, logits: Tensor, labels: Tensor, step: int, steps: int) -> Tensor:
    """The loss of a paper, written out for the valid pixels, and summed."""
    valid = labels != 255
    chosen, truth = logits.movedim(1, -1)[valid], labels[valid]  # (V, K), (V,)
    p = chosen.softmax(1)
    of_truth = p.gather(1, truth[:, None])[:, 0]
    right = chosen.argmax(1) == truth
    match name:
        case "PGD":
            each = -of_truth.log()
        case "SegPGD":
            share = (step - 1) / (2 * steps)
            each = -of_truth.log() * torch.where(right, 1 - share, share)
        case "CosPGD":
            each = -of_truth.log() * F.cosine_similarity(p, F.one_hot(truth, 4).double(), dim=1).detach()
        case "TsallisPGD":
            q = torch.linspace(-2, 1, steps, dtype=torch.float64)[step - 1] if steps > 1 else torch.tensor(-2.0)
            each = -of_truth.log() if q == 1 else (1 - of_truth ** (1 - q)) / (1 - q)
        case "SEA-JS":
            one_hot = F.one_hot(truth, 4).double()
            middle = (p + one_hot) / 2
            each = ((p * (p / middle).log()).sum(1) - middle.gather(1, truth[:, None])[:, 0].log()) / 2
        case "SEA-MCE":
            each = -of_truth.log() * right
        case "SEA-MCE-Bal":
            each = -of_truth.log() * right / CLASS_PIXELS.clamp(min=1)[truth]
    return each.sum()


@every_weight
@given(seed=st.integers(0, 2**31), steps=st.integers(1, 6), data=st.data())
@settings(max_examples=12, deadline=None)
def test_the_gradient_is_that_of_the_published_loss_up_to_a_factor(name: Any, seed: int, steps: int, data: Any) -> None:
    step = data.draw(st.integers(1, steps))
    logits, labels = draw(seed)
    (found,) = torch.autograd.grad(weighted(name, CLASS_PIXELS)(answer(logits, labels, step, steps)).sum(), logits)
    (expected,) = torch.autograd.grad(published(name, logits, labels, step, steps), logits)
    factor = 7 if name == "SEA-MCE-Bal" else 1  # there, the class of the fewest pixels weighs 1
    assert torch.allclose(found, factor * expected, rtol=1e-9, atol=1e-12)


@every_weight
@given(
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([0.0, 1.0, 50.0, 1e3, 1e5, 1e30]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=40, deadline=None)
def test_a_weight_is_a_finite_number_that_is_not_differentiated(name: Any, seed: int, scale: float, dtype: torch.dtype) -> None:
    logits, labels = draw(seed, scale, dtype)
    seen = answer(logits, labels, 2, 3)
    weight = WEIGHTS[name](seen, CLASS_PIXELS)
    assert not weight.requires_grad
    assert weight.shape == labels.shape
    assert weight.dtype == dtype
    assert weight.isfinite().all()
    assert weight.min() >= 0
    assert weight[labels != 255].max() <= 1 + 1e-6
    gained = weighted(name, CLASS_PIXELS)(seen)
    assert torch.equal(gained[labels == 255], torch.zeros_like(gained[labels == 255]))
    (gradient,) = torch.autograd.grad(gained.sum(), logits)
    assert gradient.isfinite().all()
    assert torch.equal(gradient.movedim(1, -1)[labels == 255], torch.zeros(int((labels == 255).sum()), 4, dtype=dtype))


@every_weight
def test_what_is_not_a_number_at_an_ignored_pixel_changes_no_weight(name: Any) -> None:
    logits, labels = draw(3)
    with torch.no_grad():
        other = torch.where(labels[:, None] == 255, torch.nan, logits)
    expected = weighted(name, CLASS_PIXELS)(answer(logits, labels, 2, 3))
    assert torch.equal(weighted(name, CLASS_PIXELS)(answer(other, labels, 2, 3)), expected)


def test_the_names_are_those_of_the_table() -> None:
    assert tuple(WEIGHTS) == get_args(WeightName)
    assert set(SEA) < set(WEIGHTS)


@pytest.mark.parametrize("class_pixels", [None, torch.ones(3)])
def test_the_balanced_loss_asks_for_the_pixels_of_each_class(class_pixels: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"training pixels of each of 4 classes, not (none|3)"):
        weighted("SEA-MCE-Bal", class_pixels)(answer(*draw(1)))
