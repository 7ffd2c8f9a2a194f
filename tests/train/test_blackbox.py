"""The black-box attacks against closed forms and transcriptions of their papers, and the contract of every attack."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddcat.metrics import confusion_counts, miou
from ddcat_train.attacks import dla, sign_noise, square
from ddcat_train.losses import pixel_cross_entropy

CLASSES = 4
Attack = Callable[..., Tensor]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Dropout2d(0.5), nn.Conv2d(6, CLASSES, 3, padding=1))
    return layers.double()


def batch(seed: int, count: int = 3, size: tuple[int, int] = (8, 8), ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    """Images of whole grey levels, some on the border of what an image may hold."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, *size), generator=generator).double() / 255
    images[torch.rand(images.shape, generator=generator) < 0.1] = 0
    labels = torch.randint(CLASSES, (count, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return images, labels


def labels_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """All that a label-only attack may see of it, as an engine gives it."""
    model.eval()

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            return model(images).argmax(1).to(torch.uint8)

    return predict


ATTACKS: dict[str, Attack] = {
    "square": square,
    "dla": lambda model, *given, **options: dla(labels_of(model), *given, **options),
    "noise": lambda model, *given, **options: sign_noise(labels_of(model), *given, **options),
}
each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def loss_of(attack: Attack | None, model: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """What each attack lowers, of each image."""
    logits = model.eval()(images)
    if attack is square:
        return [-float(value) for value in pixel_cross_entropy(logits, labels).sum((1, 2)).detach()]
    return [miou(confusion_counts(t.numpy(), p.numpy(), CLASSES)) for t, p in zip(labels, logits.argmax(1), strict=True)]


# --- the contract of every attack


@each_attack
@given(seed=st.integers(0, 2**31), epsilon=st.floats(0.0, 0.5), queries=st.integers(1, 12))
@settings(max_examples=12, deadline=None)
def test_in_the_ball_in_the_range_and_never_worse_than_no_attack(
    attack: Attack, seed: int, epsilon: float, queries: int
) -> None:
    images, labels = batch(seed)
    model = network(seed % 5)
    found = attack(model, images, labels, epsilon=epsilon, queries=queries, seeds=torch.arange(3))
    assert (found - images).abs().max() <= epsilon + 1e-12
    assert found.min() >= 0
    assert found.max() <= 1
    before, after = loss_of(attack, model, images, labels), loss_of(attack, model, found, labels)
    assert all(late <= early for late, early in zip(after, before, strict=True))


@each_attack
@given(seed=st.integers(0, 2**31), alone=st.integers(0, 2))
@settings(max_examples=8, deadline=None)
def test_result_does_not_depend_on_batch_mates(attack: Attack, seed: int, alone: int) -> None:
    images, labels = batch(seed)
    model, seeds = network(), torch.tensor([5, 1, 9])
    together = attack(model, images, labels, epsilon=0.1, queries=20, seeds=seeds)
    one = slice(alone, alone + 1)
    assert torch.equal(together[one], attack(model, images[one], labels[one], epsilon=0.1, queries=20, seeds=seeds[one]))


@each_attack
def test_seeds_decide(attack: Attack) -> None:
    images, labels = batch(1)
    first, again, other = (
        attack(network(), images, labels, epsilon=0.1, queries=10, seeds=torch.tensor(seeds))
        for seeds in ([1, 2, 3], [1, 2, 3], [4, 5, 6])
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_model_is_left_as_it_was() -> None:
    images, labels = batch(1)
    model = network().train()
    square(model, images, labels, epsilon=0.1, queries=5, seeds=torch.arange(3))
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@each_attack
def test_ignored_pixels_have_no_influence(attack: Attack) -> None:
    images, labels = batch(2, ignored=0.5)
    model = network().eval()

    class Falsified(nn.Module):
        """Answers as the model does, and at ignored pixels at random."""

        def forward(self, candidates: Tensor) -> Tensor:
            logits = model(candidates)
            noise = torch.randn(logits.shape, dtype=logits.dtype) * 100
            which = torch.stack([(candidate - images).abs().amax((1, 2, 3)).argmin() for candidate in candidates])
            known = (labels != 255)[which]
            return torch.where(known[:, None], logits, noise)

    seeds = torch.arange(3)
    plain = attack(model, images, labels, epsilon=0.1, queries=15, seeds=seeds)
    assert torch.equal(plain, attack(Falsified(), images, labels, epsilon=0.1, queries=15, seeds=seeds))


@each_attack
def test_image_without_a_pixel_that_counts_is_left_alone(attack: Attack) -> None:
    images, labels = batch(3)
    labels[1] = 255
    found = attack(network(), images, labels, epsilon=0.1, queries=15, seeds=torch.arange(3))
    assert torch.equal(found[1], images[1])
    assert not torch.equal(found[0], images[0])


@each_attack
@pytest.mark.parametrize("queries", [1, 2, 7, 30])
def test_every_image_is_asked_about_as_often_as_the_budget_says(attack: Attack, queries: int) -> None:
    images, _ = batch(4)
    asked: list[int] = []

    class Counted(nn.Module):
        """Right at every pixel, and less sure with every query, so that each search has something to hope for."""

        def forward(self, candidates: Tensor) -> Tensor:
            asked.append(len(candidates))
            logits = torch.zeros(len(candidates), CLASSES, 8, 8)
            logits[:, 0] = 1 + 1 / len(asked)
            logits.view(len(candidates), CLASSES, -1)[:, 1, : len(asked)] = 5  # one pixel more is wrong
            return logits

    attack(Counted(), images, torch.zeros(3, 8, 8, dtype=torch.int64), epsilon=0.1, queries=queries, seeds=torch.arange(3))
    assert asked == [3] * queries


@each_attack
def test_image_with_no_right_pixel_left_is_not_asked_about_again(attack: Attack) -> None:
    images, _ = batch(5)
    labels = torch.zeros(3, 8, 8, dtype=torch.int64)
    labels[1] = 1
    asked: list[int] = []

    class Stubborn(nn.Module):
        def forward(self, candidates: Tensor) -> Tensor:
            asked.append(len(candidates))
            return torch.tensor([5.0, 0, 0, 0]).view(1, 4, 1, 1).expand(len(candidates), 4, 8, 8)

    found = attack(Stubborn(), images, labels, epsilon=0.1, queries=10, seeds=torch.arange(3))
    assert asked == [3, *[2] * 9]
    assert torch.equal(found, images)


@each_attack
def test_refusals(attack: Attack) -> None:
    images, labels = batch(6)
    for wrong in ({"queries": 0}, {"epsilon": -0.1}, {"seeds": torch.arange(2)}):
        with pytest.raises(ValueError, match=r"seeds for|must"):
            attack(network(), images, labels, **{"epsilon": 0.1, "queries": 5, "seeds": torch.arange(3), **wrong})


# --- known answers


class Brightness(nn.Module):
    """Class 1 where a weighted sum of the colours is above a half: one corner of the ball is the best attack."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def forward(self, images: Tensor) -> Tensor:
        score = torch.einsum("nchw,c->nhw", images, self.weights) - 0.5
        return torch.stack([torch.zeros_like(score), score], dim=1)


def test_square_finds_the_best_corner_of_a_linear_model() -> None:
    images = torch.full((2, 3, 4, 4), 0.5, dtype=torch.float64)
    images[1, 0] = 0.01  # clipped at 0
    labels = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]).long()
    model = Brightness([1.5, -0.7, 0.9])
    labels[0, 0, 0] = 255
    found = square(model, images, labels, epsilon=0.03, queries=1500, seeds=torch.tensor([3, 4]))
    away = torch.tensor([-1, 1, -1], dtype=torch.float64).view(3, 1, 1)
    best = torch.stack([images[0] + 0.03 * away, images[1] - 0.03 * away]).clamp(0, 1)
    counted = (labels != 255)[:, None].expand_as(found)
    assert torch.allclose(found[counted], best[counted], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(16, 16), (16, 5), (5, 16)])
def test_dla_turns_every_line_of_a_linear_model(size: tuple[int, int]) -> None:
    images = torch.full((2, 3, *size), 0.51, dtype=torch.float64)
    labels = torch.ones(2, *size, dtype=torch.int64)
    predict = labels_of(Brightness([1 / 3, 1 / 3, 1 / 3]))
    assert (predict(images) == labels).all()
    # Whatever pattern it begins with, one round of at most 31 flips suffices.
    found = dla(predict, images, labels, epsilon=0.03, queries=42, seeds=torch.arange(2))
    assert torch.allclose(found, images - 0.03, rtol=0, atol=1e-12)
    assert not (predict(found) == labels).any()


def test_dla_within_8_bits() -> None:
    images, labels = batch(7)
    predict = labels_of(network())
    levels: list[Tensor] = []

    def received(candidates: Tensor) -> Tensor:
        levels.append(candidates * 255)
        return predict(candidates)

    found = dla(received, images, labels, epsilon=0.03, queries=20, seeds=torch.arange(3), eight_bit=True)
    assert all(torch.allclose(level, level.round(), rtol=0, atol=1e-9) for level in [*levels, found * 255])
    assert ((found - images).abs() * 255).max().round() == 7


def test_noise_is_the_worst_of_its_draws() -> None:
    images, _ = batch(12, count=1)
    model = network().eval()
    labels = model(images).argmax(1)
    generator = torch.Generator().manual_seed(3)
    draws = [2.0 * torch.randint(2, (3, 8, 8), generator=generator, dtype=torch.int8).double() - 1 for _ in range(6)]
    seen = [images, *((images + 0.2 * signs).clamp(0, 1) for signs in draws)]
    found = sign_noise(labels_of(model), images, labels, epsilon=0.2, queries=7, seeds=torch.tensor([3]))
    worst = min(seen, key=lambda candidate: loss_of(None, model, candidate, labels))
    assert torch.allclose(found, worst, rtol=0, atol=1e-12)
    assert not torch.equal(found, images)


# --- transcriptions of the papers


def test_square_is_the_papers_algorithm() -> None:
    images, labels = batch(8, count=1, size=(9, 7))
    model, epsilon, queries, share = network().eval(), 0.1, 60, 0.4
    generator = torch.Generator().manual_seed(11)

    def loss(candidate: Tensor) -> float:
        return float(pixel_cross_entropy(model(candidate), labels).sum().detach())

    def signs(*shape: int) -> Tensor:
        return 2.0 * torch.randint(2, shape, generator=generator, dtype=torch.int8).double() - 1

    best = (images + epsilon * signs(3, 1, 7)).clamp(0, 1)
    lowest = loss(best)
    for i in range(1, queries - 1):
        at, p = int(i / queries * 10_000), share
        for bound in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
            p = p / 2 if at > bound else p
        side = min(7, max(1, round(math.sqrt(p * 9 * 7))))
        row = int(torch.randint(9 - side + 1, (), generator=generator))
        column = int(torch.randint(7 - side + 1, (), generator=generator))
        window = (..., slice(row, row + side), slice(column, column + side))
        candidate = best.clone()
        candidate[window] = (images[window] + epsilon * signs(3, 1, 1)).clamp(0, 1)
        if loss(candidate) > lowest:
            best, lowest = candidate, loss(candidate)
    found = square(model, images, labels, epsilon=epsilon, queries=queries, share=share, seeds=torch.tensor([11]))
    assert torch.allclose(found, best, rtol=0, atol=1e-12)


def test_dla_is_the_papers_algorithm_1() -> None:
    """With h and w powers of two, and for as long as the first round of flips, after which M is set to ones again."""
    height, width, epsilon, iterations = 8, 16, 0.1, 25
    images, labels = batch(9, count=1, size=(height, width))
    predict = labels_of(network())
    generator = torch.Generator().manual_seed(13)

    def index(delta: Tensor) -> float:
        return miou(confusion_counts(labels.numpy(), predict((images + delta).clamp(0, 1)).numpy(), CLASSES))

    l_min, delta, i, n, d = index(torch.zeros(1)), torch.zeros(1), 0, 0, 0
    mask = torch.ones(height, width, dtype=torch.float64)
    for t in range(1, iterations + 1):
        if t <= iterations // 5:
            k = t % 2
            shape = (height, 1) if k else (1, width)
            drawn = epsilon * (2.0 * torch.randint(2, shape, generator=generator, dtype=torch.int8).double() - 1)
            if l_min > index(drawn):
                l_min, delta, d = index(drawn), drawn, k
        else:
            c = (d * height + (1 - d) * width) // 2**n
            block = (slice(i * c, (i + 1) * c), slice(None)) if d else (slice(None), slice(i * c, (i + 1) * c))
            mask[block] *= -1
            if l_min > index(delta * mask):
                l_min = index(delta * mask)
            else:
                mask[block] *= -1
            i += 1
            if i == 2**n:
                i, n = 0, n + 1
    found = dla(predict, images, labels, epsilon=epsilon, queries=iterations + 1, seeds=torch.tensor([13]))
    assert delta.abs().max() > 0  # exploration found something
    assert torch.allclose(found, (images + delta * mask).clamp(0, 1), rtol=0, atol=1e-12)


def test_dla_ends_when_a_whole_round_has_changed_nothing() -> None:
    images, labels = batch(10, count=1, size=(8, 8))
    asked: list[int] = []
    predict = labels_of(network())

    def counted(candidates: Tensor) -> Tensor:
        asked.append(len(candidates))
        return predict(candidates)

    many = dla(counted, images, labels, epsilon=0.1, queries=5000, seeds=torch.tensor([1]))
    assert len(asked) < 1100  # 1000 explore; a round on 8 lines is 15 queries
    np.testing.assert_array_less(loss_of(None, network(), many, labels), loss_of(None, network(), images, labels))
