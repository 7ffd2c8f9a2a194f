"""A bound on the bytes of request bodies that the server holds at once."""

import asyncio
import contextlib
from collections import deque

from ddcat_serve.errors import RequestError

__all__ = ["ByteBudget", "HeldBytes"]


class ByteBudget:
    """A number of bytes that may be taken, first come, first served; for one event loop."""

    def __init__(self, size: int) -> None:
        self.size = self._left = size
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    def try_take(self, size: int) -> bool:
        """Take bytes if they are free and nobody waits for them; return whether they were taken."""
        if self._waiting or self._left < size:
            return False
        self._left -= size
        return True

    async def take(self, size: int) -> None:
        """Take bytes, at most the whole budget, as soon as they are free."""
        if self.try_take(size):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, size))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give_back(size)
            else:
                with contextlib.suppress(ValueError):
                    self._waiting.remove((turn, size))
                self.give_back(0)  # the next in line may need fewer bytes
            raise

    def give_back(self, size: int) -> None:
        """Return bytes to the budget."""
        self._left += size
        while self._waiting and self._waiting[0][1] <= self._left:
            turn, needed = self._waiting.popleft()
            if not turn.done():
                self._left -= needed
                turn.set_result(None)


class HeldBytes:
    """Bytes of the shared budget that one HTTP request holds."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget, self._size = budget, 0

    def take(self, size: int) -> None:
        """Take more bytes; raise RequestError (503 with Retry-After) if the budget is used up."""
        if not self._budget.try_take(size):
            message = "the requests in progress hold as many bytes as the server keeps at once: try again in 1 s"
            raise RequestError(503, message, {"Retry-After": "1"})
        self._size += size

    def give_back(self) -> None:
        """Return all of them."""
        self._budget.give_back(self._size)
        self._size = 0
