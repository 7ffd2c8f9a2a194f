"""The writing end of a connection: handles clients that do not read, that are still sending, or that have ended their half."""

import asyncio
from typing import Any

__all__ = ["Channel"]

_STATUS = b"HTTP/1.1"  # beginning of every response
_PROBE_INTERVAL = 0.25  # seconds between two bytes of it that are sent in advance
_PROGRESS = 2**16  # bytes that a client must read within its timeout
_MAX_DROPPED = 2**28  # bytes that are read and dropped after a response


class Channel:
    """
    A transport as uvicorn uses it, whose close() waits for the client, but for a limited time.

    If a socket is closed while its client is still sending, the client's system discards the response. Such a connection is
    closed for writing, and the rest is read and dropped (RFC 9112, 9.6). Within `seconds` a client must send the rest of its
    request, or read `_PROGRESS` bytes of its response.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._transport, self._loop, self._seconds = transport, loop, seconds
        self._closing = False
        self._holds = False  # whether received bytes wait to be parsed
        self._dropped = 0
        self._ahead = 0  # bytes of the status line that were sent before the answer
        self._probe_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None
        self.unread = False  # whether the rest of a request may still arrive

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Return whether the connection accepts no more data."""
        return self._closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Write, unless the connection is closing."""
        if not self.is_closing():
            self._stop(self._probe_timer)
            self._transport.write(data[self._ahead :] if self._ahead else data)
            self._ahead = 0  # bytes of the status line that were sent in advance

    def hold(self, holds: bool, *, paused: bool) -> None:
        """Pause reading while received bytes wait to be parsed, whoever resumes it; afterwards follow uvicorn's own state."""
        if holds != self._holds:
            self._holds = holds
            if holds:
                self._transport.pause_reading()
            elif not paused:
                self._transport.resume_reading()

    def resume_reading(self) -> None:
        """Resume reading, unless received bytes wait to be parsed."""
        if not self._holds:
            self._transport.resume_reading()

    def close(self) -> None:
        """Close once the response has been read and the rest of the request has arrived, or has taken too long."""
        if self.is_closing():
            return
        self._closing = True
        self._stop(self._probe_timer)
        self.watch()
        if self.unread or self._holds:
            self._transport.write_eof()
            self._transport.resume_reading()
            self._linger_timer = self._loop.call_later(self._seconds, self._transport.abort)
        else:
            self._transport.close()

    def drop(self, size: int) -> None:
        """Count dropped bytes, and abort when there are too many."""
        self._dropped += size
        if self._dropped > _MAX_DROPPED:
            self._transport.abort()

    def ended(self) -> None:
        """Handle the end of the client's half of the connection."""
        self.unread = False
        if self._closing:
            self._transport.close()

    def probe(self) -> None:
        """
        Find out whether a client that has ended its half has gone, or waits for its response.

        Both look alike until something is sent: the system of a client that has gone rejects it, and the connection is lost. So
        the first bytes of the response are sent, one by one.
        """
        if self._ahead < len(_STATUS) and not self.is_closing():
            self._transport.write(_STATUS[self._ahead : self._ahead + 1])
            self._ahead += 1
            self._probe_timer = self._loop.call_later(_PROBE_INTERVAL, self.probe)

    def watch(self) -> None:
        """Abort the connection if the client does not read what is written from now on."""
        self.unwatch()
        if left := self._transport.get_write_buffer_size():
            self._stall_timer = self._loop.call_later(self._seconds, self._check, left)

    def unwatch(self) -> None:
        """Stop watching: the client has read everything."""
        self._stop(self._stall_timer)

    def lost(self) -> None:
        """Cancel all timers: the connection is lost."""
        for timer in (self._probe_timer, self._stall_timer, self._linger_timer):
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
