"""The writing end of a connection: what becomes of clients that do not read, that still send, or that have ended their half."""

import asyncio
from typing import Any

__all__ = ["Channel"]

_STATUS = b"HTTP/1.1"  # every answer begins with it
_KNOCK = 0.25  # seconds between two bytes of it that are sent ahead
_PROGRESS = 2**16  # bytes that a client must read within its time
_DROPPED = 2**28  # bytes that are read and dropped behind an answer


class Channel:
    """
    A transport as uvicorn uses it, whose close() waits for its client, but not for ever.

    A socket that is closed while its client still sends makes the client's system throw the answer away: such a connection is
    closed for writing, and the rest is read and dropped (RFC 9112, 9.6).

    Parameters
    ----------
    transport : asyncio.Transport
    loop : asyncio.AbstractEventLoop
    seconds : float
        In which a client must send the rest of its request, or read `_PROGRESS` bytes of its answer.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport, self._loop, self._seconds = transport, loop, seconds
        self._closing = False
        self._holds = False  # whether what was read waits to be parsed
        self._dropped = 0
        self._ahead = 0  # bytes of the status line that were sent before the answer
        self._knocks: asyncio.TimerHandle | None = None
        self._stalls: asyncio.TimerHandle | None = None
        self._lingers: asyncio.TimerHandle | None = None
        self.unread = False  # whether the rest of a request may still come

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether nothing more can be written."""
        return self._closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write, unless the connection is closing."""
        if not self.is_closing():
            self._stop(self._knocks)
            self._transport.write(data[self._ahead :] if self._ahead else data)
            self._ahead = 0

    def hold(self, holds: bool, *, paused: bool) -> None:
        """Read nothing more while what was read waits to be parsed, whoever resumes reading; then as uvicorn has it."""
        if holds != self._holds:
            self._holds = holds
            if holds:
                self._transport.pause_reading()
            elif not paused:
                self._transport.resume_reading()

    def resume_reading(self) -> None:
        """Read on, unless what was read waits to be parsed."""
        if not self._holds:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close when the answer has been read, and the rest of the request has come or takes too long."""
        if self.is_closing():
            return
        self._closing = True
        self._stop(self._knocks)
        self.watch()
        if self.unread or self._holds:
            self._transport.write_eof()
            self._transport.resume_reading()
            self._lingers = self._loop.call_later(self._seconds, self._transport.abort)
        else:
            self._transport.close()

    def drop(self, size: int) -> None:
        """Count bytes of a request that nobody reads any more."""
        self._dropped += size
        if self._dropped > _DROPPED:
            self._transport.abort()

    def ended(self) -> None:
        """Take note that the client sends no more."""
        self.unread = False
        if self._closing:
            self._transport.close()

    def knock(self) -> None:
        """
        Find out whether a client that sends no more has gone, or waits for its answer.

        Both look alike until something is sent: a client that has gone refuses it, and the connection is lost. What is sent
        are the first bytes of the answer, one by one.
        """
        if self._ahead < len(_STATUS) and not self.is_closing():
            self._transport.write(_STATUS[self._ahead : self._ahead + 1])
            self._ahead += 1
            self._knocks = self._loop.call_later(_KNOCK, self.knock)

    def watch(self) -> None:
        """Give the client up where it does not read what is written from now on."""
        self.unwatch()
        if left := self._transport.get_write_buffer_size():
            self._stalls = self._loop.call_later(self._seconds, self._check, left)

    def unwatch(self) -> None:
        """Take note that the client reads."""
        self._stop(self._stalls)

    def lost(self) -> None:
        """Take note that the connection is no more."""
        for timer in (self._knocks, self._stalls, self._lingers):
            self._stop(timer)

    def _check(self, before: int) -> None:
        left = self._transport.get_write_buffer_size()
        if left and before - left < _PROGRESS:
            self._transport.abort()
        elif left:
            self.watch()

    @staticmethod
    def _stop(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
