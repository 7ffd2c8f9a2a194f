"""Memory: its limit, its use, and settings of malloc and oneDNN."""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["Cost", "disable_onednn_cache", "measure_cost", "memory_limit", "resident_bytes", "trim_malloc", "tune_malloc"]

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE_BLOCK = 2**20  # bytes
_SAMPLE_INTERVAL = 0.002  # seconds
_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def tune_malloc() -> bool:
    """
    Make glibc return each freed block of 1 MiB and more to the system; return False if there is another C library.

    By default it keeps freed blocks of up to 32 MiB once it has seen one, in the heap of each thread: a server that handles a
    few large images then grows in steps for days, without a leak.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK))
    except (AttributeError, OSError, TypeError):
        return False


def trim_malloc() -> bool:
    """
    Make glibc return free memory between used blocks to the system; return False if there was none.

    By itself it does so only at the end of a heap, where a small block of a later request may stay for ever.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


def disable_onednn_cache() -> None:
    """
    Stop oneDNN from caching kernels, unless the user has set its capacity; call it before an engine is opened.

    OpenVINO caches the kernels of recent sizes itself. oneDNN keeps 1024 more, for sizes that may never return: 101 MiB after
    300 sizes of a small ConvNeXt, which ran no faster for it. PyTorch needs that cache, so this is for servers only.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")


def memory_limit() -> int:
    """Return the bytes of memory that this process may use: the machine's, or its container's limit if that is lower."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ImportError, ValueError):
        import resource  # noqa: PLC0415 -- Windows has none

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        sizes += [limit] if limit != resource.RLIM_INFINITY else []
    for file in _cgroup_limits():
        with contextlib.suppress(OSError, ValueError):  # the second: "max"
            sizes.append(int(file.read_text(encoding="ascii")))
    return min(sizes, default=2**32)


def _cgroup_limits() -> Iterator[Path]:
    """Yield files that may hold the memory limit of this process's control group, of version 2 or 1, and of its parents."""
    try:
        lines = _OWN_CGROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/", "0:memory:/"]:
        _, controllers, group = line.split(":", 2)
        base, name = (_CGROUPS, "memory.max") if not controllers else (_CGROUPS / "memory", "memory.limit_in_bytes")
        if controllers in ("", "memory"):
            inner = base / group.lstrip("/")
            yield from (folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(base))


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0


class Cost(NamedTuple):
    """Time and memory of a call."""

    seconds: float
    bytes: int  # peak memory during the call, above that before it


def measure_cost(call: Callable[[], object]) -> Cost:
    """Measure a call that releases the GIL, as a runtime does while it computes."""
    before = peak = resident_bytes()
    ended = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not ended.wait(_SAMPLE_INTERVAL):
            peak = max(peak, resident_bytes())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    began = time.perf_counter()
    try:
        call()
    finally:
        seconds = time.perf_counter() - began
        ended.set()
        sampler.join()
    return Cost(seconds, max(peak, resident_bytes()) - before)
