"""The search that all black-box attacks share: over the corners of the ball, where every value moves by + or - epsilon."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ddcat_train.pixels import to_8_bit

__all__ = ["QueryResult", "ScoreFn", "Search", "random_signs", "search_signs"]


class QueryResult(NamedTuple):
    """
    Result of a query, for each image.

    Attributes
    ----------
    scores : list of float
        The score that the attack lowers; NaN for an image whose pixels are all ignored.
    fooled : list of bool
        True where no pixel is correct any more: the attack has nothing left to gain.
    """

    scores: list[float]
    fooled: list[bool]


ScoreFn = Callable[[Tensor, Tensor], QueryResult]  # images (N, C, H, W) in [0, 1], labels (N, H, W)
# Yields signs (int8, +1 or -1, of a shape that expands to (C, H, W)) and is sent the score of the image that they make.
Search = Generator[Tensor, float, None]


def random_signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw +1 or -1, as int8, each with probability 1/2; on the CPU, so that it is the same on every device."""
    return torch.randint(2, tuple(shape), generator=generator, dtype=torch.int8) * 2 - 1


def search_signs(
    score_fn: ScoreFn,
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
    Run each image's search until its queries are spent, all images of the batch at once.

    An image whose search ends, or that has no correct pixel left, is not queried again. The first query of each is the image
    itself, so that the result is never worse for the attacker than no attack.

    Parameters
    ----------
    images : (N, C, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored.
    epsilon : float
        L-infinity bound, in [0, 1] units.
    queries : int
        Queries for each image, that of the image itself included.
    seeds : (N,) int64
        One for each image, so that a result does not depend on batch-mates.
    start : callable
        Starts the search of an image, with its generator.
    eight_bit : bool
        Query and return whole grey levels only: the perturbation is rounded toward zero. `images` must have whole ones.

    Returns
    -------
    (N, C, H, W) float
        The queried image of the lowest score, within epsilon of `images`, in [0, 1].
    """
    if epsilon < 0 or queries < 1:
        raise ValueError(f"epsilon {epsilon} must not be negative, and queries {queries} must be 1 or more")
    if len(seeds) != len(images):
        raise ValueError(f"{len(seeds)} seeds for {len(images)} images: each needs one")
    best = images.clone()
    lowest, fooled = score_fn(images, labels)
    searches = [start(torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    # A score that is not a number is that of an image whose pixels are all ignored.
    pending = {i: next(searches[i]) for i in range(len(images)) if not fooled[i] and lowest[i] == lowest[i]}
    for _ in range(queries - 1):
        if not pending:
            break
        indices = list(pending)
        signs = torch.stack([pending[i].expand(images.shape[1:]) for i in indices])  # (n, C, H, W)
        clean = images[indices]
        candidates = (clean + epsilon * signs.to(clean)).clamp(0, 1)
        if eight_bit:
            candidates = to_8_bit(candidates, clean).to(clean) / 255
        scores, fooled = score_fn(candidates, labels[indices])
        for i, candidate, score, is_fooled in zip(indices, candidates, scores, fooled, strict=True):
            if score < lowest[i]:
                best[i], lowest[i] = candidate, score
            following = None if is_fooled else _send(searches[i], score)
            if following is None:
                del pending[i]
            else:
                pending[i] = following
    return best


def _send(search: Search, score: float) -> Tensor | None:
    try:
        return search.send(score)
    except StopIteration:
        return None
