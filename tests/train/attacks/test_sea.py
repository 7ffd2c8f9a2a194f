"""SEA: three losses by APGD, each from a start of its own."""

from functools import partial
from itertools import combinations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddcat_train.attacks import SEA, SHRINKING, apgd, sea
from ddcat_train.seeds import derive_seed
from tests.train import small

CLASS_PIXELS = torch.tensor([7, 900, 50, 30])


def test_sea_is_its_three_members_from_starts_of_their_own() -> None:
    images, labels = small.batch(4)
    network, seeds = small.network().eval(), torch.tensor([5, 6, 7])
    found = sea(network, images, labels, epsilon=0.05, steps=10, seeds=seeds, class_pixels=CLASS_PIXELS)
    assert tuple(found) == SEA == ("SEA-JS", "SEA-MCE", "SEA-MCE-Bal")
    for member, (name, adversarial) in enumerate(found.items()):
        alone = partial(apgd, network, images, labels, epsilon=0.05, steps=10, schedule=SHRINKING, class_pixels=CLASS_PIXELS)
        assert torch.equal(
            adversarial, alone(weight=name, seeds=torch.tensor([derive_seed(seed, member) for seed in (5, 6, 7)]))
        )
    nothing_to_gain = torch.full_like(labels, 255)  # so that a result is its start
    starts = [
        start
        for first in (0, 2**30, 2**32)  # of three runs
        for start in sea(
            network, images, nothing_to_gain, epsilon=0.05, seeds=seeds + first, class_pixels=CLASS_PIXELS
        ).values()
    ]
    for one, other in combinations(starts, 2):
        assert not torch.allclose(one, other, atol=0.01)


def test_sea_shows_each_member_to_an_observer_of_its_own() -> None:
    images, labels = small.batch(4)
    seen: dict[str, list[int]] = {name: [] for name in SEA}
    sea(
        small.network(), images, labels, epsilon=0.05, steps=10, seeds=torch.arange(3), class_pixels=CLASS_PIXELS,
        observe=lambda name: lambda answer, gradient: seen[name].append(answer.step),
    )  # fmt: skip
    assert seen == {name: list(range(1, 11)) for name in SEA}


@given(seed=st.integers(0, 2**31))
@settings(max_examples=6, deadline=None)
def test_the_weights_of_a_step_know_which_of_all_steps_it_is(seed: int) -> None:
    """Also over stages, a weight that changes with the steps changes once."""
    images, labels = small.batch(seed)
    told: list[tuple[int, int]] = []
    apgd(
        small.network(), images, labels, epsilon=0.05, steps=7, weight="TsallisPGD", schedule=SHRINKING,
        seeds=torch.arange(3), observe=lambda answer, gradient: told.append((answer.step, answer.steps)),
    )  # fmt: skip
    assert told == [(step, 7) for step in range(1, 8)]
