"""Number of requests and batches of a model since the start, and their times: the protocol's statistics."""

import threading
import time
from collections import Counter
from typing import Any, NamedTuple

__all__ = ["Batch", "Usage"]


class Batch(NamedTuple):
    """A batch that an engine has computed."""

    requests: int
    images: int
    pixels: int
    seconds: float
    failed: int  # requests


class Usage:
    """Counters of one model; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._ns: Counter[str] = Counter()
        self._executions: Counter[int] = Counter()  # by the images of a batch
        self._execution_ns: Counter[int] = Counter()
        self._images, self._last_ms = 0, 0

    def count_request(self, images: int, seconds: float, *, answered: bool) -> None:
        """Count a request and its time; `answered`: it succeeded."""
        kind = "success" if answered else "fail"
        with self._lock:
            self._counts[kind] += 1
            self._ns[kind] += round(1e9 * seconds)
            if answered:
                self._images += images
                self._last_ms = round(1000 * time.time())

    def count_batch(self, batch: Batch) -> None:
        """Count a batch: each of its requests took all of its time."""
        with self._lock:
            self._executions[batch.images] += 1
            self._execution_ns[batch.images] += round(1e9 * batch.seconds)
            self._ns["compute"] += round(1e9 * batch.seconds) * (batch.requests - batch.failed)

    def engine_time(self) -> tuple[int, float]:
        """Return the number of images that the engine computed, and its seconds for them."""
        with self._lock:
            images = sum(size * times for size, times in self._executions.items())
            return images, self._execution_ns.total() / 1e9

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """
        Return a member of the protocol's `model_stats`.

        Decoding and encoding are not part of the model and count as 0. The time that an answered request did not spend in the
        engine, it spent in the queue. All stages have the same count, even during a batch: clients insist on it.
        """
        with self._lock:
            count, ns = self._counts, self._ns
            nothing, compute = {"count": 0, "ns": 0}, min(ns["compute"], ns["success"])
            stages = {
                "success": {"count": count["success"], "ns": ns["success"]},
                "fail": {"count": count["fail"], "ns": ns["fail"]},
                "queue": {"count": count["success"], "ns": ns["success"] - compute},
                "compute_input": {"count": count["success"], "ns": 0},
                "compute_infer": {"count": count["success"], "ns": compute},
                "compute_output": {"count": count["success"], "ns": 0},
                "cache_hit": nothing,
                "cache_miss": nothing,
            }
            batches = [
                {
                    "batch_size": size,
                    "compute_input": {"count": times, "ns": 0},
                    "compute_infer": {"count": times, "ns": self._execution_ns[size]},
                    "compute_output": {"count": times, "ns": 0},
                }
                for size, times in sorted(self._executions.items())
            ]
            return {
                "name": name,
                "version": version,
                "last_inference": self._last_ms,
                "inference_count": self._images,
                "execution_count": self._executions.total(),
                "inference_stats": stages,
                "batch_stats": batches,
                "memory_usage": [],
            }
