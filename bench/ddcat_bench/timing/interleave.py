"""Contenders that take turns: what slows the machine for a while slows all of them."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from ddcat_bench.timing.results import Ratio, Times, Timing

__all__ = ["interleave", "ratio", "times", "timing"]

Name = TypeVar("Name", bound=str)
Item = TypeVar("Item")

_WINDOWS = 5  # that the repeats are divided into; the last three tell whether the times are stable
_STABLE = 0.10


def interleave(
    contenders: Mapping[Name, Callable[[Item], object]],
    items: Sequence[Item],
    *,
    wait: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    advance: Callable[[int], None] = lambda calls: None,
) -> list[dict[Name, float]]:
    """
    Let all do their work on the same item once in each turn, the first of a turn last in the next.

    Parameters
    ----------
    contenders : mapping of str to callable
        Take an item and return when they are done.
    items : sequence
        One for each turn.
    wait : callable
        Is called before each call and within its time after it, so that nothing is under way.
    clock : callable
        In seconds.
    advance : callable, optional
        Called with the number of calls that were made.

    Returns
    -------
    list of dict of str to float
        Seconds of each contender in each turn; none is left out.
    """
    order, turns = list(contenders), []
    for item in items:
        turn = {}
        for name in order:
            wait()
            start = clock()
            contenders[name](item)
            wait()
            turn[name] = clock() - start
            advance(1)
        turns.append(turn)
        order = [*order[1:], order[0]]
    return turns


def times(seconds: Sequence[float]) -> Times:
    """Summarise times, none of which is left out."""
    lower, median, upper = np.quantile(seconds, (0.25, 0.5, 0.75)).tolist()
    return Times(seconds=tuple(seconds), median=median, lower_quartile=lower, upper_quartile=upper)


def timing(seconds: Sequence[float]) -> Timing:
    """
    Summarise times, none of which is left out.

    There must be five at least. The windows of the stability note are fifths of the times; the last three must have medians
    within 10 % of the lowest. Only quartiles are given: a high percentile needs more calls than a run makes (64 for p90, 662
    for p99).
    """
    size = len(seconds) // _WINDOWS
    last = [statistics.median(seconds[len(seconds) - (index + 1) * size : len(seconds) - index * size]) for index in range(3)]
    return Timing(**dict(times(seconds)), stable=max(last) <= (1 + _STABLE) * min(last))


def ratio(baseline: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Summarise how many times as fast ours is: seconds of the baseline / ours, turn by turn."""
    ratios = [theirs / own for theirs, own in zip(baseline, ours, strict=True)]
    lower, median, upper = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
    return Ratio(
        median=median,
        lower_quartile=lower,
        upper_quartile=upper,
        lowest=min(ratios),
        highest=max(ratios),
        of_medians=statistics.median(baseline) / statistics.median(ours),
    )
