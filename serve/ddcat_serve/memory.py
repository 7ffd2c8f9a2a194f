"""What the C library does with the memory of images that are done."""

import ctypes

__all__ = ["give_back_large_blocks"]

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
