"""The queue by simulated time: every request is answered once, refused at once, or told that it is late; never lost."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ddcat_serve.inference.admission_queue import AdmissionQueue, Item, Overloaded, TooLarge

SIZES = [(10, 10), (10, 20), (30, 30)]
BUDGET, IMAGES, MOST = 900, 4, 4000


def queue(rate: float | None = None) -> AdmissionQueue:
    return AdmissionQueue(max_pixels=MOST, batch_pixels=BUDGET, batch_images=IMAGES, pixels_per_second=rate)


class Served(RuleBasedStateMachine):
    """An engine of known speed, clients who come, wait and go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.queue = queue(rate=500.0)
        self.waiting: list[Item] = []
        self.running: list[Item] | None = None
        self.came = self.ended = self.refused = 0

    @rule(images=st.integers(1, IMAGES), size=st.sampled_from(SIZES), patience=st.floats(0.01, 20.0, allow_nan=False))
    def come(self, images: int, size: tuple[int, int], patience: float) -> None:
        item = Item(images, size, self.now + patience)
        self.came += 1
        refused = None
        try:
            self.queue.put([item], self.now)
            self.waiting.append(item)
        except Overloaded as full:
            refused = full
        except TooLarge:
            assert 1.15 * item.pixels / 500 > patience  # by that alone, whatever waits
            self.came -= 1
        if refused is not None:
            self.refused += 1
            assert refused.retry_after > 0
            assert not item.waiting
            assert self.waiting or self.running or self.queue._slowdown > 1  # an idle engine tries what it can do in time

    @precondition(lambda self: self.waiting)
    @rule(which=st.randoms(use_true_random=False))
    def go(self, which: object) -> None:
        item = which.choice(self.waiting)  # type: ignore[attr-defined]
        assert self.queue.discard(item)
        assert not self.queue.discard(item)
        self.waiting.remove(item)
        self.ended += 1

    @precondition(lambda self: self.running is None)
    @rule()
    def take(self) -> None:
        taken = self.queue.take(self.now)
        for item in taken.late:
            assert item.deadline <= self.now
        assert all(item.deadline > self.now for item in taken.batch)
        left = [item for item in self.waiting if item not in taken.late]
        assert bool(taken.batch) == bool(left)
        if taken.batch:
            assert len({item.size for item in taken.batch}) == 1
            assert taken.batch[0].deadline == min(item.deadline for item in left)
            assert [item.deadline for item in taken.batch] == sorted(item.deadline for item in taken.batch)
            if len(taken.batch) > 1:
                assert sum(item.pixels for item in taken.batch) <= BUDGET
                assert sum(item.images for item in taken.batch) <= IMAGES
            self.running = taken.batch
        self.waiting = [item for item in left if item not in taken.batch]
        self.ended += len(taken.batch) + len(taken.late)

    @precondition(lambda self: self.running is not None)
    @rule()
    def finish(self) -> None:
        assert self.running is not None
        self.now += sum(item.pixels for item in self.running) / 500
        self.queue.done(self.now)
        self.running = None

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nothing_is_lost(self) -> None:
        assert len(self.queue) == len(self.waiting)
        assert self.queue.pixels == sum(item.pixels for item in self.waiting)
        assert self.came == self.ended + self.refused + len(self.waiting)
        assert self.queue.pixels <= MOST or len(self.waiting) == 1

    def teardown(self) -> None:
        assert set(map(id, self.queue.clear())) == set(map(id, self.waiting))
        assert (len(self.queue), self.queue.pixels) == (0, 0)


TestServed = Served.TestCase
TestServed.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def serve(
    requests: list[tuple[float, tuple[int, int], float]], rate: float
) -> tuple[list[tuple[float, tuple[int, int]]], list[float], list[Item]]:
    """
    Answer requests (arrival, size, patience) with an engine of constant throughput.

    Gives, of those that were answered, seconds beyond the deadline, and size; the waits that refused ones were told; late ones.
    """
    waiting = queue(rate)
    now, answered, refused = 0.0, [], []
    late: list[Item] = []
    pending = sorted(requests)
    free = 0.0
    batch: list[Item] = []
    while pending or len(waiting) or batch:
        arrival = pending[0][0] if pending else math.inf
        if batch and free <= arrival:
            now = free
            waiting.done(now)
            answered += [(now - item.deadline, item.size) for item in batch]
            batch = []
        elif pending:
            now, size, patience = pending.pop(0)
            item = Item(1, size, now + patience)
            try:
                waiting.put([item], now)
            except Overloaded as full:
                refused.append(full.retry_after)
            except TooLarge:
                assert 1.15 * item.pixels / rate > patience
                refused.append(patience)
        if not batch:
            taken = waiting.take(now)
            batch, late = taken.batch, late + taken.late
            free = now + sum(item.pixels for item in batch) / rate
    return answered, refused, late


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1), st.floats(0.2, 3.0), st.booleans())
def test_what_is_accepted_is_answered_in_time_at_any_load(seed: int, load: float, alike: bool) -> None:
    """Requests of any size and patience, and an engine whose speed is known."""
    generator = random.Random(seed)
    rate, now, requests = 1000.0, 0.0, []
    for _ in range(200):
        now += generator.expovariate(load * rate / 400)
        requests.append((now, generator.choice(SIZES), 4.0 if alike else generator.uniform(1.0, 10.0)))
    answered, refused, late = serve(requests, rate)
    assert len(answered) + len(refused) == 200
    assert not late
    assert max(over for over, _ in answered) <= 1e-6
    assert all(wait > 0 for wait in refused)
    if load < 0.3:
        assert len(answered) > 150
    elif load > 1.2:  # what was refused left the engine no idle time
        busy = sum(height * width for _, (height, width) in answered) / rate
        assert busy > 0.8 * now


def test_two_sizes_that_alternate_still_make_batches() -> None:
    waiting = queue()
    for place in range(8):
        waiting.put([Item(1, SIZES[place % 2], 100.0 + place)], 0.0)
    batches = [[item.deadline for item in waiting.take(0.0).batch] for _ in range(2)]
    assert batches == [[100, 102, 104, 106], [101, 103, 105, 107]]


def test_a_request_larger_than_the_budget_goes_alone() -> None:
    waiting = queue()
    waiting.put([Item(3, (30, 30), 5.0)], 0.0)
    waiting.put([Item(1, (30, 30), 6.0)], 0.0)
    assert [item.images for item in waiting.take(0.0).batch] == [3]
    assert [item.images for item in waiting.take(0.0).batch] == [1]


def test_batches_do_not_make_others_late() -> None:
    """With caution the first takes 1.15 s, the one of another size 0.575 s, and that is to be done at 1.8 s: a third waits."""
    waiting = queue(rate=200.0)
    small, large = SIZES[:2]
    waiting.put([Item(1, large, 1.5, "first")], 0.0)
    waiting.put([Item(1, small, 1.8, "other size")], 0.0)
    waiting.put([Item(1, large, 9.0, "third")], 0.0)
    batches = [[item.payload for item in waiting.take(0.0).batch] for _ in range(3)]
    assert batches == [["first"], ["other size"], ["third"]]


def test_the_running_batch_counts_for_what_is_left_of_it() -> None:
    waiting = queue(rate=50.0)
    waiting.put([Item(2, (10, 10), 10.0)], 0.0)
    waiting.take(0.0)  # until 4.0
    waiting.put([Item(1, (10, 10), 7.0)], 3.0)  # until 6.0, or with caution 1.15 * (4 + 2)
    with pytest.raises(Overloaded) as caught:
        waiting.put([Item(1, (10, 10), 8.5)], 3.0)  # until 8.0, or 1.15 * (4 + 2 + 2)
    assert caught.value.retry_after == pytest.approx(0.7)
    waiting.done(4.0)
    waiting.take(4.0)
    waiting.put([Item(1, (10, 10), 8.6)], 4.0)


def test_a_newcomer_may_not_make_others_late() -> None:
    waiting = queue(rate=100.0)
    waiting.put([Item(1, (10, 10), 1.5)], 0.0)
    with pytest.raises(Overloaded) as caught:
        waiting.put([Item(1, (10, 10), 1.2)], 0.0)  # would be first, and the other at 2.0, or with caution at 2.3
    assert caught.value.retry_after == pytest.approx(0.8)


def test_a_failed_batch_tells_nothing_of_the_speed() -> None:
    waiting = queue(rate=100.0)
    for measured, most in ((False, 1.0), (True, 1 / (0.8 / 100 + 0.2 * 4 / 100) / 100)):
        waiting.put([Item(1, (10, 10), 100.0)], 0.0)
        waiting.take(0.0)
        waiting.done(4.0, measured=measured)
        assert waiting._by_rate(100) * waiting._slowdown == pytest.approx(1 / most)


def test_an_idle_engine_does_not_try_what_it_could_not_do_in_time() -> None:
    waiting = queue(rate=100.0)
    with pytest.raises(TooLarge, match=r"900 pixels take about 10 s here, but the deadline is in 9 s: send fewer, or use"):
        waiting.put([Item(1, (30, 30), 9.0)], 0.0)
    with pytest.raises(TooLarge, match=r"90000 pixels take about 1000 s here"):
        waiting.put([Item(1, (300, 300), 9.0)], 0.0)
    waiting.put([Item(1, (30, 30), 11.0)], 0.0)


def test_images_that_come_together_are_too_large_together() -> None:
    """To wait helps none of them: alone they would not be answered in time either."""
    waiting = queue(rate=100.0)
    with pytest.raises(TooLarge, match=r"800 pixels take about 9\.2 s here, but the deadline is in 9 s"):
        waiting.put([Item(1, (10, 10), 9.0) for _ in range(8)], 0.0)
    assert (len(waiting), waiting.pixels) == (0, 0)
    alone = [Item(1, (10, 10), 9.0) for _ in range(7)]
    waiting.put(alone, 0.0)
    with pytest.raises(Overloaded) as caught:  # these could be, at another time
        waiting.put([Item(1, (10, 10), 9.0) for _ in range(7)], 0.0)
    assert caught.value.retry_after == pytest.approx(1.15 * 14 - 9.0)
    assert len(waiting) == 7
    assert not any(item.waiting for item in waiting.clear())


def test_images_that_find_the_queue_empty_are_taken_whatever_they_have() -> None:
    """Else a form of many would be told for ever that too much waits."""
    waiting = queue()
    waiting.put([Item(1, (30, 30), 9.0) for _ in range(9)], 0.0)
    with pytest.raises(Overloaded, match="too many pixels are waiting already"):
        waiting.put([Item(1, (10, 10), 9.0)], 0.0)


def test_an_idle_engine_does_not_try_what_would_pass_for_a_hang_or_has_no_memory() -> None:
    slow = AdmissionQueue(max_pixels=MOST, batch_pixels=BUDGET, pixels_per_second=100.0, call_seconds=5.0)
    with pytest.raises(TooLarge, match=r"a call of the engine may take 5 s"):
        slow.put([Item(1, (30, 30), 1000.0)], 0.0)
    small = AdmissionQueue(max_pixels=MOST, batch_pixels=BUDGET, call_pixels=500)
    with pytest.raises(TooLarge, match=r"600 pixels are more than this server computes at once, 500: send fewer"):
        small.put([Item(6, (10, 10), 1000.0)], 0.0)
    for _ in range(6):
        small.put([Item(1, (10, 10), 1000.0)], 0.0)
    assert len(small.take(0.0).batch) == 5


def test_a_speed_that_was_measured_low_is_measured_anew_after_a_while() -> None:
    """Where everything is refused for it, nothing else would tell that the machine is quick again."""
    waiting = queue(rate=100.0)
    for _ in range(20):
        waiting.put([Item(1, (10, 10), 1e9)], 0.0)
        waiting.take(0.0)
        waiting.done(10.0)  # ten times as long as at the start
    for now in (10.0, 20.0):
        with pytest.raises(Overloaded):
            waiting.put([Item(1, (10, 10), now + 3.0)], now)
    waiting.put([Item(1, (10, 10), 103.0)], 100.0)
    calls = AdmissionQueue(max_pixels=MOST, batch_pixels=BUDGET, pixels_per_second=100.0, call_seconds=2.0)
    calls.put([Item(1, (10, 10), 1e9)], 0.0)
    calls.take(0.0)
    calls.done(10.0)
    with pytest.raises(Overloaded, match="it would take too long at the current speed"):
        calls.put([Item(1, (10, 10), 1e9)], 10.0)


def test_a_speed_that_was_measured_on_a_busy_machine_is_doubted_and_a_higher_one_believed() -> None:
    waiting = queue(rate=100.0)
    waiting.put([Item(1, (10, 10), 9.0)], 0.0)
    assert not waiting.refused_for_speed
    assert waiting.clear()
    for speed, taken in ((50.0, False), (1000.0, True), (100.0, True)):
        if not taken:
            with pytest.raises(TooLarge):
                waiting.put([Item(1, (30, 30), 9.0)], 0.0)
            assert waiting.refused_for_speed
        waiting.update_speed(speed, 0.0)
        assert not waiting.refused_for_speed
    waiting.put([Item(1, (30, 30), 1.1)], 0.0)


def test_tiny_images_do_not_make_an_engine_slow_for_others() -> None:
    """A call has a least time: by its pixels alone an image of 4 x 4 would tell of an engine a hundred times slower."""
    waiting = AdmissionQueue(max_pixels=MOST, batch_pixels=BUDGET, pixels_per_second=1000.0, call_overhead=0.05)
    now = 0.0
    for _ in range(200):
        waiting.put([Item(1, (4, 4), now + 1.0)], now)
        waiting.take(now)
        waiting.done(now := now + 0.05)
    waiting.put([Item(1, (30, 30), now + 1.1)], now)


def test_a_place_that_is_not_ready_counts_and_is_not_taken() -> None:
    waiting = queue(rate=100.0)
    first = Item(1, (10, 10), 2.2, ready=False)
    waiting.put([first], 0.0)
    with pytest.raises(Overloaded):
        waiting.put([Item(1, (10, 10), 2.25)], 0.0)
    assert not waiting.can_take
    assert waiting.take(0.0).batch == []
    other = Item(1, (10, 20), 9.0)
    waiting.put([other], 0.0)
    assert waiting.take(0.0).batch == [other]
    waiting.done(2.0)
    first.ready = True
    assert waiting.take(2.0).batch == [first]
    waiting.done(3.0)
    late = Item(1, (10, 10), 5.0, ready=False)
    waiting.put([late], 3.0)
    assert waiting.take(6.0).late == [late]
