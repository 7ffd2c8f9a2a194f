"""Running out of memory: how it is recognised, and the line for the user."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ddcat.error_text import first_line
from ddcat_train.errors import TrainError

__all__ = ["enough_memory", "lacks_memory"]

# Messages of torch's allocators, cuDNN, cuBLAS, oneDNN, OpenCV, NumPy and C++, most of them in a RuntimeError
_TEXT = re.compile(
    r"out of memory|(can't|cannot|could not|failed to|unable to) allocate|not enough memory|insufficient memory|ALLOC_FAILED"
    r"|bad_alloc|bad allocation|can't start new thread|could not create a (memory object|primitive)(?! descriptor)",
    re.IGNORECASE,
)


def lacks_memory(error: BaseException) -> bool:
    """Return True where an exception says that memory has run out."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(_TEXT.search(str(error)))


@contextmanager
def enough_memory(where: str, remedy: str) -> Iterator[None]:
    """
    Turn an out-of-memory error of the device or the host into one line for the user, a `TrainError`.

    `where` is the work in progress, such as "the evaluation"; `remedy` is advice.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not lacks_memory(error):
            raise
        text = " ".join(first_line(error).split())[:300].rstrip(". ")
        raise TrainError(f"out of memory in {where} ({text}): {remedy}") from error
