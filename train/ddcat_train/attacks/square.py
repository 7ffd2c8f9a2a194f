"""Square attack (Andriushchenko et al., 2020, arXiv 1912.00049): a black-box attack that needs logits and no gradient."""

import math

import torch
from torch import Tensor

from ddcat_train.attacks.gradient import Model
from ddcat_train.attacks.sign_search import QueryResult, Search, random_signs, search_signs
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["square"]

_HALVED_AFTER = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10 000 queries, and in proportion of other budgets


def square(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    queries: int = 1000,
    share: float = 0.8,
    seeds: Tensor,
) -> Tensor:
    """
    Square attack for the L-infinity norm (Alg. 1 and 2 of the paper), on the cross-entropy of the image's pixels.

    Starts with stripes, one random sign for each column and channel. Then each query sets a square at a random place to one
    random sign for each channel, and keeps it when the cross-entropy, summed over the pixels that are not ignored, rises.
    No gradient is used: masking it is no defence. The query about the image itself is counted, unlike in the paper.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W); a module is put into eval() while it is called, and put back.
    images : (N, C, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored: without influence on the result.
    epsilon : float
        L-infinity bound, in [0, 1] units.
    queries : int
        Forwards for each image, that of the image itself included. An image with no correct pixel left is not queried again.
    share : float
        Fraction of the image's area that the first square has, halved nine times on the way. p of the paper: 0.05 for its
        photographs, 0.8 in AutoAttack. On CamVid, 0.8 leaves less.
    seeds : (N,) int64
        One for each image, so that a result does not depend on batch-mates.

    Returns
    -------
    (N, C, H, W) float
        Within epsilon of `images`, in [0, 1]: the queried image of the highest cross-entropy.
    """
    channels, height, width = images.shape[1:]

    def score(candidates: Tensor, truth: Tensor) -> QueryResult:
        logits = model(candidates)
        losses = pixel_cross_entropy(logits, truth).sum((1, 2))  # (n,)
        correct = (logits.argmax(1) == truth).flatten(1).any(1)  # an ignored pixel is never correct: no class is 255
        return QueryResult((-losses).tolist(), (~correct).tolist())

    with torch.no_grad(), eval_mode(model):
        return search_signs(
            score,
            images,
            labels,
            epsilon=epsilon,
            queries=queries,
            seeds=seeds,
            start=lambda generator: _squares((channels, height, width), queries, share, generator),
        )


def _squares(shape: tuple[int, int, int], queries: int, share: float, generator: torch.Generator) -> Search:
    channels, height, width = shape
    best = random_signs((channels, 1, width), generator).expand(shape)
    lowest = yield best
    for query in range(1, queries):
        side = _side(query, queries, share, height, width)
        top = int(torch.randint(height - side + 1, (), generator=generator))
        left = int(torch.randint(width - side + 1, (), generator=generator))
        signs = best.clone()
        signs[:, top : top + side, left : left + side] = random_signs((channels, 1, 1), generator)
        score = yield signs
        if score < lowest:
            best, lowest = signs, score


def _side(query: int, queries: int, share: float, height: int, width: int) -> int:
    """Return the side of the square of a query in 1..queries, in pixels."""
    halvings = sum(10_000 * query // queries > bound for bound in _HALVED_AFTER)
    return min(height, width, max(1, round(math.sqrt(share / 2**halvings * height * width))))
