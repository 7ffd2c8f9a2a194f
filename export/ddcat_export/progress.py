"""Progress of long stages of an export."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["Progress", "with_progress"]

Progress = Callable[[str], None]  # called with the current stage
_Item = TypeVar("_Item")


def with_progress(items: Sequence[_Item], what: str, progress: Progress) -> Iterator[_Item]:
    """
    Yield items; before each, report its number, the time for one and the time left.

    Parameters
    ----------
    items : sequence
    what : str
        The stage, for the report.
    progress : callable
    """
    begun = time.monotonic()
    for done, item in enumerate(items):
        each = (time.monotonic() - begun) / max(done, 1)
        rate = f", {each:.1f} s each, {each * (len(items) - done):.0f} s left" if done else ""
        progress(f"{what}, {done + 1} of {len(items)}{rate}")
        yield item
