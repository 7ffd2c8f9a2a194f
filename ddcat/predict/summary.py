"""The summary of a run: shares of the classes, confidence, and the distance of the answers from the golden ones."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ddcat.bundle import Bundle
from ddcat.engines.answer_statistics import Shares, Statistic, Statistics, psi, summed_shares
from ddcat.passport import read_passport
from ddcat.predict.records import Record

__all__ = ["summarise"]


def summarise(
    bundle: Bundle,
    records: Iterable[Record],
    golden: Iterable[Statistics],
    failures: Mapping[str, str],
    threshold: float | None = None,
) -> dict[str, Any]:
    """
    Sum up what was predicted, as JSON without times: the same images give the same bytes.

    Parameters
    ----------
    bundle : Bundle
    records : iterable of Record
    golden : iterable of Statistics
        Of the clean golden images; may be empty.
    failures : mapping of str to str
        Why an image has no mask, by its name.
    threshold : float, optional
        Of the confidence, where the engine abstained; all pixels that are not above it have no class.

    Returns
    -------
    dict
        `drift` has the population stability index of each distribution between these answers and the golden ones, None without
        golden images or answers; `confidence` is None where the engine gives none, `abstained` where it answered all pixels.
    """
    names = [entry.name for entry in bundle.manifest.classes]
    pixels, images, certain, seen, total = np.zeros(len(names), np.int64), 0, 0.0, 0, 0
    shares: dict[Statistic, Shares] = {}
    for record in records:
        answer = record.statistics.statistics()
        pixels += record.pixels
        images += 1
        total += record.height * record.width
        for name, share in summed_shares([answer]).items():
            shares[name] = shares.get(name, 0) + share
        if answer.confidence is not None:
            certain += answer.mean_confidence * int(answer.confidence.sum())
            seen += int(answer.confidence.sum())
    expected = summed_shares(golden)
    unanswered = total - int(pixels.sum())
    return {
        "bundle": {"name": bundle.manifest.name, "digest": bundle.digest, "passport": read_passport(bundle).summary},
        "images": images,
        "failed": [{"name": name, "reason": reason} for name, reason in failures.items()],
        "pixels": total,
        "classes": [
            {"name": name, "pixels": int(count), "share": round(int(count) / total, 6) if total else 0.0}
            for name, count in zip(names, pixels, strict=True)
        ],
        "abstained": None
        if threshold is None
        else {"threshold": threshold, "pixels": unanswered, "share": round(unanswered / total, 6) if total else 0.0},
        "confidence": {"mean": round(certain / seen, 6), "tenths": _rounded(shares["confidence"])} if seen else None,
        "drift": {name: round(psi(expected[name], shares[name]), 6) for name in expected if name in shares} or None,
    }


def _rounded(shares: Shares) -> list[float]:
    return [round(float(share), 6) for share in shares / shares.sum()]
