import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcat_bench.timing.interleave import interleave, ratio, timing

SECONDS = st.floats(1e-4, 100)


def test_every_turn_begins_with_another_contender() -> None:
    calls: list[str] = []
    clock = itertools.count()
    turns = interleave(
        {name: lambda item, name=name: calls.append(f"{name}{item}") for name in "abc"},
        [7, 8, 9],
        wait=lambda: calls.append("|"),
        clock=lambda: float(next(clock)),
    )
    assert "".join(calls) == "|a7||b7||c7|" + "|b8||c8||a8|" + "|c9||a9||b9|"
    assert turns == [dict.fromkeys("abc", 1.0)] * 3


def test_ratios_by_hand() -> None:
    # medians 4 and 2; ratios of the turns 8, 1/2, 4/3
    found = ratio([8, 1, 4], [1, 2, 3])
    assert (found.of_medians, found.median, found.lowest, found.highest) == (2, 4 / 3, 0.5, 8)


@given(st.lists(SECONDS, min_size=1, max_size=40), st.floats(0.1, 10))
def test_all_ratios_of_proportional_times_are_their_factor(seconds: list[float], factor: float) -> None:
    found = ratio([factor * value for value in seconds], seconds)
    assert all(value == pytest.approx(factor) for value in dict(found).values())


@given(st.lists(SECONDS, min_size=5, max_size=60))
def test_timing_keeps_every_call(seconds: list[float]) -> None:
    found = timing(seconds)
    assert found.seconds == tuple(seconds)
    assert min(seconds) <= found.lower_quartile <= found.median <= found.upper_quartile <= max(seconds)


def test_quartiles_by_hand() -> None:
    found = timing([5, 1, 4, 2, 3])
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2, 3, 4)


@pytest.mark.parametrize(
    ("seconds", "stable"),
    [
        ([1.0] * 10, True),
        ([9.0, 9, 5, 5, 1, 1, 1, 1, 1, 1], True),  # the first windows do not count
        ([1.0] * 8 + [1.1, 1.1], True),
        ([1.0] * 8 + [1.11, 1.11], False),
        ([1.0] * 4 + [1.2, 1.2] + [1.0] * 4, False),
        ([1.0] * 6 + [1, 1, 50, 1, 1, 1, 1, 1, 1], True),  # one slow call does not move a window's median
    ],
)
def test_stability(seconds: list[float], stable: bool) -> None:
    assert timing(seconds).stable is stable
