"""
Which requests an engine answers next, and which it refuses at once: a queue without threads, clocks or images of its own.

Requests of one image size are answered together, beginning with the oldest deadline, as many as a budget of pixels allows and
as the deadlines of all leave time for. What cannot be answered in time is refused when it comes, not when its time is over,
and so is what one call of the engine cannot do, however idle it is.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Full", "Item", "Queue", "Taken", "TooLarge"]

_CAUTION = 1.15  # work is taken to last so many times as long as was measured
_MEMORY = 0.2  # weight of the latest batch in the measured speed
_FORGET = 10.0  # seconds after which an idle engine is taken to be half as far below its speed at the start as it was

Size = tuple[int, int]


@dataclass(eq=False)
class Item:
    """
    A request that waits.

    Attributes
    ----------
    images : int
        In it; they are never divided.
    size : (height, width)
        Of its images.
    deadline : float
        Seconds, by the clock of whoever uses the queue.
    payload
        Whatever it is.
    ready : bool
        Whether it can be taken; False: it has its place, but its images are not decoded yet.
    """

    images: int
    size: Size
    deadline: float
    payload: Any = None
    ready: bool = True
    waiting: bool = field(default=False, init=False)  # whether it is in the queue

    @property
    def pixels(self) -> int:
        """Of all its images."""
        return self.images * self.size[0] * self.size[1]


class Full(Exception):  # noqa: N818 -- a state that is told, not a fault
    """
    A request that cannot be answered in time.

    Parameters
    ----------
    reason : str
    retry_after : float
        Seconds until one like it could be.
    """

    def __init__(self, reason: str, retry_after: float) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class TooLarge(Exception):  # noqa: N818 -- the request is at fault, not the queue
    """A request that the engine cannot do in time or at all, whatever else waits."""


@dataclass(frozen=True)
class Taken:
    """What is to be done next: a batch of one size, and requests whose time is over."""

    batch: list[Item]
    late: list[Item]


class _Place(NamedTuple):
    deadline: float
    turn: int  # of two with the same deadline, the one that came first
    item: Item


class Queue:
    """
    Requests that wait for one engine.

    Parameters
    ----------
    max_pixels : int
        That may wait; a request that finds the queue empty is taken whatever it has.
    batch_pixels : int
        That are computed at once; a request that has more is computed alone.
    batch_images : int or None
        Most images that are computed at once; None: as many as the pixels allow.
    pixels_per_second : float or None
        Throughput, as a warm-up measured it; None: nothing is predicted.
    call_overhead : float
        Seconds that a call takes at least, however small its images are.
    call_pixels : int or None
        Most pixels that the engine may be given at once; None: no bound.
    call_seconds : float
        Most seconds that a call may be expected to take.
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
        self._slowness = 1.0  # times as long as by the rate
        self._measured = 0.0  # when the slowness was
        self._places: list[_Place] = []  # in the order of deadlines
        self._turn = itertools.count()
        self._running: tuple[float, int] | None = None  # when the batch at hand began, and its pixels
        self.pixels = 0  # that wait
        self.doubted = False  # whether something was refused for the speed alone since that was measured

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._places)

    @property
    def can_take(self) -> bool:
        """Whether something waits that can be computed."""
        return any(place.item.ready for place in self._places)

    def put(self, items: Sequence[Item], now: float) -> None:
        """
        Let the images of a request wait: all of them or none.

        Raises
        ------
        TooLarge
            Where the engine cannot do one of them in one call, or not all before their deadline though nothing else waits.
        Full
            Where they would not be answered before their deadline, would make another late, or too much waits already.
        """
        if self._running is None and not self._places:
            self._hope(now)
        self._check_size(items, now)
        pixels = sum(item.pixels for item in items)
        if self._places and self.pixels + pixels > self._max_pixels:
            spare = self.pixels + pixels - self._max_pixels
            raise Full("too many pixels are waiting already", spare / self._rate if self._rate else 1.0)
        late = 0.0
        for item in items:
            place = _Place(item.deadline, next(self._turn), item)
            late = max(late, self._lateness(place, now))
            bisect.insort(self._places, place)
            item.waiting = True
            self.pixels += item.pixels
        if late > 0:
            for item in items:
                self.discard(item)
            raise Full("the request cannot be answered in time now", late)

    def _check_size(self, items: Sequence[Item], now: float) -> None:
        """Refuse what would be too much for an engine that is idle and as quick as at its start."""
        largest = max(item.pixels for item in items)
        if self._call_pixels is not None and largest > self._call_pixels:
            raise TooLarge(f"{largest} pixels are more than this server computes at once, {self._call_pixels}: send fewer")
        best = _CAUTION * min(1.0, self._slowness)
        quickest, left = best * sum(self._by_rate(item.pixels) for item in items), items[0].deadline - now
        if quickest > left > 0:
            self.doubted = True
            raise TooLarge(
                f"{sum(item.pixels for item in items)} pixels take about {_rounded(quickest)} s here, and the answer is wanted "
                f"in {_rounded(left)} s: send fewer, or ask for a longer timeout"
            )
        if (longest := best * self._by_rate(largest)) > self._call_seconds:
            self.doubted = True
            raise TooLarge(
                f"{largest} pixels take about {_rounded(longest)} s here, and a call of the engine may take "
                f"{_rounded(self._call_seconds)} s: send fewer"
            )
        if self._seconds(largest) > self._call_seconds:
            raise Full("it would take too long at the current speed", _FORGET)

    def discard(self, item: Item) -> bool:
        """Forget a request whose client has gone; False where it does not wait any more."""
        if not item.waiting:
            return False
        self._places = [place for place in self._places if place.item is not item]
        self._leave(item)
        return True

    def take(self, now: float) -> Taken:
        """
        Take what is to be done next.

        The batch is empty where nothing waits. `done` must be told when it is finished.
        """
        punctual = bisect.bisect_right(self._places, now, key=lambda place: place.deadline)
        late = [place.item for place in self._places[:punctual]]
        del self._places[:punctual]
        batch = [place.item for place in self._batch(now)]
        self._places = [place for place in self._places if place.item not in batch]
        for item in (*late, *batch):
            self._leave(item)
        if batch:
            self._running = now, sum(item.pixels for item in batch)
        return Taken(batch, late)

    def done(self, now: float, *, measured: bool = True) -> None:
        """Say that the batch at hand is finished; `measured`: that its time tells what the engine can do."""
        if self._running is None:
            return
        (began, pixels), self._running = self._running, None
        if measured and now > began and self._rate is not None:
            # a ratio to what such a batch took at the start: tiny images tell nothing else of the speed than large ones
            latest = (now - began) / self._by_rate(pixels)
            self._slowness = (1 - _MEMORY) * self._slowness + _MEMORY * latest
            self._measured = now

    def believe(self, pixels_per_second: float, now: float) -> None:
        """Take a throughput that was measured anew if it is higher: other work on the machine makes an engine only slower."""
        self.doubted = False
        if self._rate is not None and pixels_per_second > self._rate:
            self._overhead *= self._rate / pixels_per_second  # it was measured with it
            self._rate, self._slowness, self._measured = pixels_per_second, 1.0, now

    def clear(self) -> list[Item]:
        """Take all that waits out of the queue."""
        items = [place.item for place in self._places]
        self._places = []
        for item in items:
            self._leave(item)
        return items

    def _lateness(self, new: _Place, now: float) -> float:
        """Seconds that a request would be late if it waited, or others would be that would not be without it; 0: none."""
        if self._rate is None:
            return 0.0
        own, at = self._seconds(new.item.pixels), now + self._left(now)
        worst, joined = 0.0, False
        for place in self._places:
            if not joined and new < place:
                joined = True
                at += own
                worst = max(worst, at - new.deadline)
            at += self._seconds(place.item.pixels)
            if joined and at - own <= place.deadline:  # in time without it
                worst = max(worst, at - place.deadline)
        return worst if joined else max(worst, at + own - new.deadline)

    def _seconds(self, pixels: int) -> float:
        """How long so many pixels take, with caution: times vary, and a late answer is lost work."""
        return _CAUTION * self._slowness * self._by_rate(pixels)

    def _by_rate(self, pixels: int) -> float:
        """How long a call took at the start."""
        return 0.0 if self._rate is None else max(self._overhead, pixels / self._rate)

    def _hope(self, now: float) -> None:
        """Believe a low speed less, the longer ago it was measured: what is refused for it would never be measured anew."""
        if self._slowness > 1.0 and now > self._measured:
            self._slowness = 1.0 + (self._slowness - 1.0) * 0.5 ** ((now - self._measured) / _FORGET)
            self._measured = now

    def _left(self, now: float) -> float:
        """Seconds that the batch at hand will still take."""
        if self._running is None:
            return 0.0
        began, pixels = self._running
        return max(0.0, self._seconds(pixels) - (now - began))

    def _batch(self, now: float) -> Iterator[_Place]:
        """The oldest deadline, and others of its size in the order of theirs, but none that makes another late."""
        places = iter(self._places)
        first = next((place for place in places if place.item.ready), None)
        if first is None:
            return
        yield first
        images, size = first.item.images, first.item.size
        ahead: list[_Place] = []  # passed over: they will be done after the batch
        for place in places:
            together = images + place.item.images
            few = self._batch_images is None or together <= self._batch_images
            pixels = together * size[0] * size[1]
            fits = place.item.size == size and place.item.ready and few and pixels <= self._batch_pixels
            if fits and not self._delays(first, ahead, pixels, place.item.pixels, now):
                images = together
                yield place
            else:
                ahead.append(place)

    def _delays(self, first: _Place, ahead: list[_Place], batch: int, extra: int, now: float) -> bool:
        """Whether the batch's first, or one that is passed over, would be late for the last that joins, and not without it."""
        if self._rate is None:
            return False
        joined, at = self._seconds(extra), now + self._seconds(batch)
        if 0 < at - first.deadline <= joined:
            return True
        for place in ahead:
            at += self._seconds(place.item.pixels)
            if 0 < at - place.deadline <= joined:
                return True
        return False

    def _leave(self, item: Item) -> None:
        item.waiting = False
        self.pixels -= item.pixels


def _rounded(seconds: float) -> str:
    """Return two digits, 150 and not 1.5e+02."""
    return f"{float(f'{seconds:.2g}'):g}"
