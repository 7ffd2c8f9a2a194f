"""A bound on the bytes of all requests that are in hand together."""

import asyncio
import contextlib
from collections import deque

__all__ = ["Room"]


class Room:
    """
    Bytes that may be taken, in the order in which they are asked for; of one event loop.

    Parameters
    ----------
    most : int
        Bytes in all.
    """

    def __init__(self, most: int) -> None:
        self.most = self._left = most
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def take_now(self, size: int) -> bool:
        """Take bytes, if they are there and nobody waits for them."""
        if self._waiting or self._left < size:
            return False
        self._left -= size
        return True

    async def take(self, size: int) -> None:
        """Take bytes, at most `most`, when it is one's turn."""
        if self.take_now(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(size)
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove((turn, size))
                self.give(0)  # who waits behind may need less
            raise

    def give(self, size: int) -> None:
        """Give bytes back."""
        self._left += size
        while self._waiting and self._waiting[0][1] <= self._left:
            turn, wanted = self._waiting.popleft()
            if not turn.done():
                self._left -= wanted
                turn.set_result(None)
