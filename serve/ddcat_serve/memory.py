"""How much memory there is, and what the C library does with that of images that are done."""

import contextlib
import ctypes
import os
from pathlib import Path

__all__ = ["give_back_large_blocks", "memory_size"]

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h
_LARGE = 2**20  # bytes


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


def memory_size() -> int:
    """Return the bytes of memory that this process may use: its machine's, or its container's where that has fewer."""
    sizes = []
    with contextlib.suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # version 2, version 1
        with contextlib.suppress(OSError, ValueError):  # the second: "max"
            sizes.append(int(Path(file).read_text()))
    return min(sizes, default=2**32)
