"""FGSM and BIM, the attacks of the paper."""

from torch import Tensor

from ddcat_train.attacks.core import Model, iterate
from ddcat_train.names import Start, StepSize

__all__ = ["bim", "fgsm"]


def fgsm(model: Model, images: Tensor, labels: Tensor, *, epsilon: float) -> Tensor:
    """
    Take one signed gradient step of size epsilon (Eq. 1).

    Parameters and result as for `bim`.
    """
    return bim(model, images, labels, epsilon=epsilon, alpha=epsilon, steps=1)


def bim(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float = 0.03,
    alpha: StepSize = 0.01,
    steps: int = 3,
    start: Start = "clean",
    seeds: Tensor | None = None,
) -> Tensor:
    """
    Basic iterative method (Eq. 2): signed gradient steps, clipped to the ball around the image and to [0, 1].

    With ``start="random"`` this is PGD.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W).
    images : (N, 3, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored: without influence on the result.
    epsilon, alpha, steps, start, seeds
        As for `iterate`; the defaults are the paper's in training.

    Returns
    -------
    (N, 3, H, W) float
        Within epsilon of `images`, in [0, 1].
    """
    *_, (_, last) = iterate(model, images, labels, epsilon=epsilon, alpha=alpha, steps=steps, start=start, seeds=seeds)
    return last
