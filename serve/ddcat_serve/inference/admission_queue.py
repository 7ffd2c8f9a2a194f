"""
Admission and order of an engine's requests: a queue without threads, clocks or images of its own.

Requests with the same image size are batched, the earliest deadline first, as many as a budget of pixels and the deadlines of
all allow. A request that cannot be answered in time is refused on arrival, not when its deadline passes; so is one that a
single call of the engine cannot handle, even an idle engine.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["AdmissionQueue", "Item", "Overloaded", "Taken", "TooLarge"]

_SAFETY_FACTOR = 1.15  # work is expected to take so many times as long as measured
_EWMA_WEIGHT = 0.2  # weight of the latest batch in the measured speed
_HALF_LIFE = 10.0  # seconds in which an idle engine's measured slowdown is halved

Size = tuple[int, int]


@dataclass(eq=False)
class Item:
    """A queued request: a number of images of one size, which are computed together."""

    images: int
    size: Size  # (height, width)
    deadline: float  # in seconds, by the caller's clock
    payload: Any = None  # anything the caller needs
    ready: bool = True  # False: it has its place, but its images are not decoded yet
    waiting: bool = field(default=False, init=False)  # whether it is in the queue

    @property
    def pixels(self) -> int:
        """Number of pixels of all its images."""
        return self.images * self.size[0] * self.size[1]


class Overloaded(Exception):  # noqa: N818 -- a state of the queue, not a fault
    """A request that cannot be answered in time; a similar one could be in `retry_after` seconds."""

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TooLarge(Exception):  # noqa: N818 -- the request is at fault, not the queue
    """A request that the engine cannot answer in time or at all, even when idle."""


@dataclass(frozen=True)
class Taken:
    """The next batch, of one image size, and the requests whose deadline has passed."""

    batch: list[Item]
    late: list[Item]


class _Entry(NamedTuple):
    deadline: float
    order: int  # breaks ties: first come, first served
    item: Item


class AdmissionQueue:
    """
    Requests queued for one engine.

    The queue holds `max_pixels` at most, but an empty one accepts a request of any size. A batch has at most `batch_pixels`,
    and at most `batch_images` if that is given; a request with more pixels is computed alone. A call has at most `call_pixels`,
    if given, and takes at most `call_seconds` by prediction.

    `pixels_per_second` is the throughput that the warm-up measured; None: times are not predicted. `call_overhead` is the
    shortest time of a call in seconds, even for tiny images.
    """

    def __init__(
        self,
        *,
        max_pixels: int,
        batch_pixels: int,
        batch_images: int | None = None,
        pixels_per_second: float | None = None,
        call_overhead: float = 0.0,
        call_pixels: int | None = None,
        call_seconds: float = float("inf"),
    ) -> None:
        self._max_pixels, self._batch_images = max_pixels, batch_images
        self._batch_pixels = batch_pixels if call_pixels is None else min(batch_pixels, call_pixels)
        self._call_pixels, self._call_seconds = call_pixels, call_seconds
        self._rate, self._overhead = pixels_per_second, call_overhead
        self._slowdown = 1.0  # current duration of a call, relative to the rate
        self._measured = 0.0  # time of the slowdown's measurement
        self._entries: list[_Entry] = []  # in the order of deadlines
        self._order = itertools.count()
        self._running: tuple[float, int] | None = None  # start and pixels of the batch being computed
        self.pixels = 0  # in the queue
        self.refused_for_speed = False  # whether a request was refused for the speed alone since that was measured

    def __len__(self) -> int:
        """Number of queued requests."""
        return len(self._entries)

    @property
    def can_take(self) -> bool:
        """Whether a queued request is ready to be computed."""
        return any(entry.item.ready for entry in self._entries)

    def put(self, items: Sequence[Item], now: float) -> None:
        """
        Queue the items of a request: all of them or none.

        TooLarge if the engine cannot handle one of them in one call, or not all of them before the deadline even when idle;
        Overloaded if they would not be answered before their deadline, would make others late, or the queue is full.
        """
        self._check_size(items, now)
        pixels = sum(item.pixels for item in items)
        if self._entries and self.pixels + pixels > self._max_pixels:
            spare = self.pixels + pixels - self._max_pixels
            raise Overloaded("too many pixels are waiting already", spare / self._rate if self._rate else 1.0)
        late = 0.0
        for item in items:
            entry = _Entry(item.deadline, next(self._order), item)
            late = max(late, self._lateness(entry, now))
            bisect.insort(self._entries, entry)
            item.waiting = True
            self.pixels += item.pixels
        if late > 0:
            for item in items:
                self.discard(item)
            raise Overloaded("the request cannot be answered in time now", late)

    def check(self, items: Sequence[Item], now: float, *, ahead: int = 0) -> None:
        """
        Raise as `put` would, but queue nothing: for items of one request, of one deadline, that will be queued one after
        another.

        `ahead` are the pixels of others that will be queued meanwhile.
        """
        self._check_size(items, now)
        waiting = [ahead, *(item.pixels for item in (*items, *(entry.item for entry in self._entries)))]
        late = now + self._left(now) + sum(map(self._seconds, waiting)) - items[0].deadline
        if late > 0:
            raise Overloaded("the request cannot be answered in time now", late)

    def _check_size(self, items: Sequence[Item], now: float) -> None:
        """Refuse a request that is too large for an idle engine at its initial speed."""
        if self._running is None and not self._entries:
            self._decay_slowdown(now)
        largest = max(item.pixels for item in items)
        if self._call_pixels is not None and largest > self._call_pixels:
            raise TooLarge(f"{largest} pixels are more than this server computes at once, {self._call_pixels}: send fewer")
        best = _SAFETY_FACTOR * min(1.0, self._slowdown)
        quickest, left = best * sum(self._by_rate(item.pixels) for item in items), items[0].deadline - now
        if quickest > left > 0:
            self.refused_for_speed = True
            raise TooLarge(
                f"{sum(item.pixels for item in items)} pixels take about {_rounded(quickest)} s here, but the deadline is in "
                f"{_rounded(left)} s: send fewer, or use a longer timeout"
            )
        if (longest := best * self._by_rate(largest)) > self._call_seconds:
            self.refused_for_speed = True
            raise TooLarge(
                f"{largest} pixels take about {_rounded(longest)} s here, but a call of the engine may take "
                f"{_rounded(self._call_seconds)} s: send fewer"
            )
        if self._seconds(largest) > self._call_seconds:
            raise Overloaded("it would take too long at the current speed", _HALF_LIFE)

    def discard(self, item: Item) -> bool:
        """Remove a request whose client has gone; return False if it is not queued."""
        if not item.waiting:
            return False
        self._entries = [entry for entry in self._entries if entry.item is not item]
        self._leave(item)
        return True

    def take(self, now: float) -> Taken:
        """
        Take the next batch out of the queue.

        It is empty if no request is ready. The caller reports its end to `done`.
        """
        punctual = bisect.bisect_right(self._entries, now, key=lambda entry: entry.deadline)
        late = [entry.item for entry in self._entries[:punctual]]
        del self._entries[:punctual]
        batch = [entry.item for entry in self._batch(now)]
        self._entries = [entry for entry in self._entries if entry.item not in batch]
        for item in (*late, *batch):
            self._leave(item)
        if batch:
            self._running = now, sum(item.pixels for item in batch)
        return Taken(batch, late)

    def done(self, now: float, *, measured: bool = True) -> None:
        """Report the end of the current batch; `measured`: its time shows the engine's speed."""
        if self._running is None:
            return
        (began, pixels), self._running = self._running, None
        if measured and now > began and self._rate is not None:
            # relative to the predicted time of such a batch: small images show a slowdown as well as large ones
            latest = (now - began) / self._by_rate(pixels)
            self._slowdown = (1 - _EWMA_WEIGHT) * self._slowdown + _EWMA_WEIGHT * latest
            self._measured = now

    def update_speed(self, pixels_per_second: float, now: float) -> None:
        """Replace the throughput by a new measurement if that is higher: other load on the machine only ever lowers it."""
        self.refused_for_speed = False
        if self._rate is not None and pixels_per_second > self._rate:
            self._overhead *= self._rate / pixels_per_second  # was measured with the rate
            self._rate, self._slowdown, self._measured = pixels_per_second, 1.0, now

    def clear(self) -> list[Item]:
        """Remove and return all queued items."""
        items = [entry.item for entry in self._entries]
        self._entries = []
        for item in items:
            self._leave(item)
        return items

    def _lateness(self, new: _Entry, now: float) -> float:
        """Return by how many seconds the new request, or others because of it, would be late; 0: none."""
        if self._rate is None:
            return 0.0
        own, at = self._seconds(new.item.pixels), now + self._left(now)
        worst, joined = 0.0, False
        for entry in self._entries:
            if not joined and new < entry:
                joined = True
                at += own
                worst = max(worst, at - new.deadline)
            at += self._seconds(entry.item.pixels)
            if joined and at - own <= entry.deadline:  # in time without it
                worst = max(worst, at - entry.deadline)
        return worst if joined else max(worst, at + own - new.deadline)

    def _seconds(self, pixels: int) -> float:
        """Return the predicted time of so many pixels, with a safety factor: a late answer is lost work."""
        return _SAFETY_FACTOR * self._slowdown * self._by_rate(pixels)

    def _by_rate(self, pixels: int) -> float:
        """Return the time of a call at the initial speed."""
        return 0.0 if self._rate is None else max(self._overhead, pixels / self._rate)

    def _decay_slowdown(self, now: float) -> None:
        """Decay the measured slowdown of an idle engine: requests refused for it would never measure it again."""
        if self._slowdown > 1.0 and now > self._measured:
            self._slowdown = 1.0 + (self._slowdown - 1.0) * 0.5 ** ((now - self._measured) / _HALF_LIFE)
            self._measured = now

    def _left(self, now: float) -> float:
        """Return the remaining seconds of the current batch."""
        if self._running is None:
            return 0.0
        began, pixels = self._running
        return max(0.0, self._seconds(pixels) - (now - began))

    def _batch(self, now: float) -> Iterator[_Entry]:
        """Yield the earliest deadline, then others of its size by deadline, unless one would make another late."""
        entries = iter(self._entries)
        first = next((entry for entry in entries if entry.item.ready), None)
        if first is None:
            return
        yield first
        images, size = first.item.images, first.item.size
        ahead: list[_Entry] = []  # passed over: they will be done after the batch
        for entry in entries:
            together = images + entry.item.images
            few = self._batch_images is None or together <= self._batch_images
            pixels = together * size[0] * size[1]
            fits = entry.item.size == size and entry.item.ready and few and pixels <= self._batch_pixels
            if fits and not self._delays(first, ahead, pixels, entry.item.pixels, now):
                images = together
                yield entry
            else:
                ahead.append(entry)

    def _delays(self, first: _Entry, ahead: list[_Entry], batch: int, extra: int, now: float) -> bool:
        """Return whether the batch's first request, or one passed over, would be late because of the newcomer."""
        if self._rate is None:
            return False
        joined, at = self._seconds(extra), now + self._seconds(batch)
        if 0 < at - first.deadline <= joined:
            return True
        for entry in ahead:
            at += self._seconds(entry.item.pixels)
            if 0 < at - entry.deadline <= joined:
                return True
        return False

    def _leave(self, item: Item) -> None:
        item.waiting = False
        self.pixels -= item.pixels


def _rounded(seconds: float) -> str:
    """Return the seconds with two significant digits, without an exponent."""
    return f"{float(f'{seconds:.2g}'):g}"
