"""
Black-box attacks that need predicted labels and nothing else.

DLA is Chen et al., 2024 (arXiv 2402.01220); random signs are the baseline that any attack must exceed.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from ddcat.classes import IGNORE_INDEX
from ddcat.metrics import confusion_counts, miou
from ddcat_train.attacks.sign_search import QueryResult, ScoreFn, Search, random_signs, search_signs

__all__ = ["Predict", "dla", "sign_noise"]

Predict = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [0, 1] -> labels (N, H, W), of any integer type


def dla(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    queries: int = 200,
    seeds: Tensor,
    eight_bit: bool = False,
) -> Tensor:
    """
    Discrete linear attack (Alg. 1 of the paper): lower the mIoU of each image by the signs of whole rows or columns.

    A fifth of the queries explores: random signs of all rows and of all columns, in turn. The best pattern is then
    calibrated: the signs of all its lines, of either half, of each quarter, ... of each line are flipped, and a flip is kept
    when the mIoU falls. That is repeated from the start until the queries are spent, or until a whole round has changed
    nothing: the next would repeat its queries. The paper does not count the query about the image itself, and this does.

    Parameters
    ----------
    predict : callable
        Maps images to labels. It may be an engine.
    images : (N, C, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        The true ones; 255 = ignored: without influence on the mIoU.
    epsilon : float
        L-infinity bound, in [0, 1] units; the default is the paper's.
    queries : int
        Predictions for each image, that of the image itself included; at most.
    seeds : (N,) int64
        One for each image, so that a result does not depend on batch-mates.
    eight_bit : bool
        Use whole grey levels only, as an engine receives them; `images` must be multiples of 1/255.

    Returns
    -------
    (N, C, H, W) float
        Within epsilon of `images`, in [0, 1]; the image itself where nothing lowered its mIoU.
    """
    height, width = images.shape[-2:]
    return search_signs(
        _image_miou(predict),
        images,
        labels,
        epsilon=epsilon,
        queries=queries,
        seeds=seeds,
        start=lambda generator: _lines(height, width, max(1, (queries - 1) // 5), generator),
        eight_bit=eight_bit,
    )


def sign_noise(
    predict: Predict,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 8 / 255,
    queries: int = 10,
    seeds: Tensor,
    eight_bit: bool = False,
) -> Tensor:
    """
    Add + or - epsilon at random to every value, and keep the draw of the image's lowest mIoU.

    Parameters and result as for `dla`.
    """

    def draws(generator: torch.Generator) -> Search:
        while True:
            yield random_signs(images.shape[1:], generator)

    return search_signs(
        _image_miou(predict),
        images,
        labels,
        epsilon=epsilon,
        queries=queries,
        seeds=seeds,
        start=draws,
        eight_bit=eight_bit,
    )


def _image_miou(predict: Predict) -> ScoreFn:
    def score(candidates: Tensor, truth: Tensor) -> QueryResult:
        predictions, known = predict(candidates).cpu().numpy(), truth.cpu().numpy()
        classes = 1 + max(int(predictions.max()), int(known[known != IGNORE_INDEX].max(initial=0)))
        counts = [confusion_counts(t, p, classes) for t, p in zip(known, predictions, strict=True)]
        return QueryResult([miou(c) for c in counts], [not c[:, 0].any() for c in counts])

    return score


def _lines(height: int, width: int, explored: int, generator: torch.Generator) -> Search:
    shapes = ((height, 1), (1, width))
    best, lowest = torch.empty(0), float("inf")
    for turn in range(explored):
        signs = random_signs(shapes[turn % 2], generator)
        score = yield signs
        if score < lowest:
            best, lowest = signs, score
    changed = True
    while changed:
        changed = False
        for first, end in _segments(best.numel()):
            signs = best.clone()
            signs.view(-1)[first:end] *= -1
            score = yield signs
            if score < lowest:
                best, lowest, changed = signs, score, True


def _segments(lines: int) -> Iterator[tuple[int, int]]:
    """Yield the whole, its halves, its quarters, ... and each line, as (first, end)."""
    parts = 1
    while True:
        bounds = [i * lines // parts for i in range(parts + 1)]
        yield from ((first, end) for first, end in pairwise(bounds) if first < end)
        if parts >= lines:
            return
        parts *= 2
