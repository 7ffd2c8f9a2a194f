"""Long stages of an export, told step by step."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["Progress", "with_progress"]

Progress = Callable[[str], None]  # is told what is being done
_Item = TypeVar("_Item")


def with_progress(items: Sequence[_Item], what: str, progress: Progress) -> Iterator[_Item]:
    """
    Yield items, and tell before each how many there are, how long one takes, and how long those that are left will take.

    Parameters
    ----------
    items : sequence
    what : str
        What is done with them.
    progress : callable
    """
    begun = time.monotonic()
    for done, item in enumerate(items):
        each = (time.monotonic() - begun) / max(done, 1)
        rate = f", {each:.1f} s each, {each * (len(items) - done):.0f} s left" if done else ""
        progress(f"{what}, {done + 1} of {len(items)}{rate}")
        yield item
