"""The core of the black-box attacks: a search over the corners of the ball, where every value moves by + or - epsilon."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddcat_train.attacks.quantise import to_8_bit

__all__ = ["Judge", "Search", "Verdict", "random_signs", "search_signs"]


class Verdict(NamedTuple):
    """
    What is known of each image after a query.

    Attributes
    ----------
    scores : list of float
        What the attack lowers; NaN for an image whose pixels are all ignored.
    beaten : list of bool
        Whether no pixel is right any more, so that there is nothing left to gain.
    """

    scores: list[float]
    beaten: list[bool]


Judge = Callable[[Tensor, Tensor], Verdict]  # images (N, C, H, W) in [0, 1], labels (N, H, W)
# Yields signs (int8, +1 or -1, of a shape that expands to (C, H, W)) and is sent the score of the image that they make.
Search = Generator[Tensor, float, None]


def random_signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw +1 or -1, as int8, each with probability 1/2; on the CPU, so that it is the same on every device."""
    return torch.randint(2, tuple(shape), generator=generator, dtype=torch.int8) * 2 - 1


def search_signs(
    judge: Judge,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    queries: int,
    seeds: Tensor,
    start: Callable[[torch.Generator], Search],
    eight_bit: bool = False,
) -> Tensor:
    """
    Let each image's search ask for as long as its queries last, all images of the batch at once.

    An image whose search ends, or that has no right pixel left, is asked about no more. The first query of each is the image
    itself, so that the result is never worse for the attacker than no attack.

    Parameters
    ----------
    judge : callable
    images : (N, C, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored.
    epsilon : float
        L-infinity bound, in [0, 1] units.
    queries : int
        Images that may be judged in the place of each image, itself included.
    seeds : (N,) int64
        One for each image, so that a result does not depend on batch-mates.
    start : callable
        Begins the search of an image, with its generator.
    eight_bit : bool
        Ask about, and return, whole grey levels only: the perturbation is rounded toward zero. The images must be such.

    Returns
    -------
    (N, C, H, W) float
        The image of the lowest score that was seen, within epsilon of `images`, in [0, 1].
    """
    if epsilon < 0 or queries < 1:
        raise ValueError(f"epsilon {epsilon} must not be negative, and queries {queries} must be 1 or more")
    if len(seeds) != len(images):
        raise ValueError(f"{len(seeds)} seeds for {len(images)} images: each needs one")
    best = images.clone()
    lowest, beaten = judge(images, labels)
    searches = [start(torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    # An image without a pixel that counts has no score that could be lowered.
    asked = {i: next(searches[i]) for i in range(len(images)) if not beaten[i] and lowest[i] == lowest[i]}
    for _ in range(queries - 1):
        if not asked:
            break
        places = list(asked)
        signs = torch.stack([asked[i].expand(images.shape[1:]) for i in places])  # (n, C, H, W)
        clean = images[places]
        candidates = (clean + epsilon * signs.to(clean)).clamp(0, 1)
        if eight_bit:
            candidates = to_8_bit(candidates, clean).to(clean) / 255
        scores, now_beaten = judge(candidates, labels[places])
        for i, candidate, score, gone in zip(places, candidates, scores, now_beaten, strict=True):
            if score < lowest[i]:
                best[i], lowest[i] = candidate, score
            following = None if gone else _send(searches[i], score)
            if following is None:
                del asked[i]
            else:
                asked[i] = following
    return best


def _send(search: Search, score: float) -> Tensor | None:
    try:
        return search.send(score)
    except StopIteration:
        return None
