"""
Randomised smoothing for segmentation: SegCertify (Fischer, Baader and Vechev, ICML 2021).

The smoothed network gives each pixel the class that the base network gives it most often under Gaussian noise. Where that class
has, with confidence, a probability above tau, no perturbation of an L2 norm below sigma * Phi^-1(tau) changes it (Cohen et al.,
2019). The base network may be anything, an int8 engine that receives whole grey levels included: rounding is a part of it.
"""

import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

__all__ = ["ABSTAIN", "certified_labels", "holm", "p_values", "radius"]

ABSTAIN = 255  # label of a pixel without a certificate

U8 = npt.NDArray[np.uint8]
Votes = npt.NDArray[np.integer]  # (..., K): how often each class was given to a pixel


def radius(sigma: float, tau: float) -> float:
    """Return the certified L2 radius sigma * Phi^-1(tau), in [0, 1] units over all values of the image."""
    return sigma * NormalDist().inv_cdf(tau)


def p_values(hits: npt.NDArray[np.integer], *, samples: int, tau: float) -> npt.NDArray[np.float64]:
    """
    Test of each pixel that its class has a probability above tau, in [0.5, 1): one-sided, binomial, exact.

    `hits` is how often the class came, of `samples`. Returns P(Binomial(samples, tau) >= hits), float64 of the same shape.
    """
    chance = [math.comb(samples, k) * tau**k * (1 - tau) ** (samples - k) for k in range(samples + 1)]
    tail = np.minimum(np.cumsum(chance[::-1])[::-1], 1.0)
    return np.asarray(tail[hits])


def holm(p: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.bool_]:
    """
    Reject hypotheses, (M,) p-values -> (M,) bool, so that with a probability of 1 - alpha none is rejected wrongly.

    That holds whatever their dependence (Holm, 1979).
    """
    order = np.argsort(p, kind="stable")
    passed = p[order] <= alpha / np.arange(len(p), 0, -1)
    first = len(p) if passed.all() else int(np.argmin(passed))  # all behind the first that fails fail
    rejected = np.zeros(len(p), np.bool_)
    rejected[order[:first]] = True
    return rejected


def certified_labels(chosen: U8, hits: npt.NDArray[np.integer], *, samples: int, tau: float, alpha: float) -> U8:
    """
    Keep the class of a pixel where it is certified, and abstain elsewhere.

    With a probability of 1 - alpha every certificate of the image holds.

    Parameters
    ----------
    chosen : (H, W) uint8
        The class of each pixel, chosen by other samples than those that are counted.
    hits : (H, W) int
        How often it came, of `samples`.

    Returns
    -------
    (H, W) uint8
        The class, or `ABSTAIN`.
    """
    sure = holm(p_values(hits, samples=samples, tau=tau).ravel(), alpha).reshape(chosen.shape)
    return np.where(sure, chosen, np.uint8(ABSTAIN))
