"""The most that a machine gives."""

import time

import torch

from ddcat_bench.timing.results import Precision

__all__ = ["matrix_product_peak"]

_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp64": torch.float64}
_SIDE = {"cpu": 2048, "cuda": 8192}
_PRODUCTS_WITHIN = 2.0  # seconds


def matrix_product_peak(precision: Precision, device: torch.device) -> float:
    """
    Measure the most operations a second that a product of two large square matrices reaches here and now.

    Multiplications and additions are counted one by one.
    """
    side = _SIDE[device.type]
    a, b = (torch.rand(side, side, device=device).to(_DTYPES[precision]) for _ in range(2))
    fastest, until = float("inf"), time.perf_counter() + _PRODUCTS_WITHIN
    a @ b
    while fastest == float("inf") or time.perf_counter() < until:
        _wait(device)
        start = time.perf_counter()
        a @ b
        _wait(device)
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
