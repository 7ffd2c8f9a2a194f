"""How much memory there is and is taken, and what the C library does with that of images that are done."""

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "Cost",
    "cost_of",
    "give_back_free_blocks",
    "give_back_large_blocks",
    "keep_kernels_once",
    "memory_size",
    "resident",
]

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 2**20  # bytes
_LOOKS_EVERY = 0.002  # seconds
_GROUPS, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def give_back_large_blocks() -> bool:
    """
    Let glibc return each block of a MiB and more to the system when it is freed; False where another C library is at work.

    Left alone it keeps blocks of up to 32 MiB for later use once it has seen one, in each thread's own heap: a server that
    meets a few large images then grows for days, in steps, without any leak.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE))
    except (AttributeError, OSError, TypeError):
        return False


def give_back_free_blocks() -> bool:
    """
    Let glibc return free memory to the system that lies between blocks in use; False where it had none to return.

    It does so by itself only at the end of a heap, where some small block of a later request may lie for ever.
    """
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (AttributeError, OSError, TypeError):
        return False


def keep_kernels_once() -> None:
    """
    Let oneDNN keep no kernels, unless the user has said how many; to be called before an engine is opened.

    OpenVINO keeps the kernels of recent sizes itself. oneDNN keeps 1024 more for sizes that may never come again: 101 MiB after
    300 sizes of a small ConvNeXt, which was no quicker for it. PyTorch needs them, so that this is for servers alone.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "0")


def memory_size() -> int:
    """Return the bytes of memory that this process may use: its machine's, or its container's where that has fewer."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(ImportError, ValueError):
        import resource  # noqa: PLC0415 -- Windows has none

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        sizes += [limit] if limit != resource.RLIM_INFINITY else []
    for file in _limits():
        with contextlib.suppress(OSError, ValueError):  # the second: "max"
            sizes.append(int(file.read_text(encoding="ascii")))
    return min(sizes, default=2**32)


def _limits() -> Iterator[Path]:
    """Files that may hold the limit of a control group, of version 2 or 1: of this process, and of those that it is in."""
    try:
        lines = _OWN.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in [*lines, "0::/", "0:memory:/"]:
        _, controllers, group = line.split(":", 2)
        base, name = (_GROUPS, "memory.max") if not controllers else (_GROUPS / "memory", "memory.limit_in_bytes")
        if controllers in ("", "memory"):
            inner = base / group.lstrip("/")
            yield from (folder / name for folder in (inner, *inner.parents) if folder.is_relative_to(base))


def resident() -> int:
    """Return the bytes of memory that this process has taken; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError):
        return 0


class Cost(NamedTuple):
    """What a call took."""

    seconds: float
    bytes: int  # of memory, at its peak, above what was taken before


def cost_of(call: Callable[[], object]) -> Cost:
    """Measure what a call takes that leaves the interpreter to other threads, as a runtime does while it computes."""
    before = peak = resident()
    ended = threading.Event()

    def look() -> None:
        nonlocal peak
        while not ended.wait(_LOOKS_EVERY):
            peak = max(peak, resident())

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    began = time.perf_counter()
    try:
        call()
    finally:
        seconds = time.perf_counter() - began
        ended.set()
        looking.join()
    return Cost(seconds, max(peak, resident()) - before)
