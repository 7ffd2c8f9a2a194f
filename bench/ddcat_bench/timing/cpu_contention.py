"""CPU contention: how busy other processes keep the cores of this process while something is timed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["watch_contention"]

_STAT = Path("/proc/stat")
_IDLE = (3, 4)  # places of idle and iowait among the numbers of a processor
_ALL = 8  # user, nice, system, idle, iowait, irq, softirq, steal; guests are counted in user already


def watch_contention() -> Callable[[], float | None]:
    """
    Begin to watch; the function that is returned gives the number of cores, on average, that others kept busy since.

    That is all that was done on the processors which this process may use, less what it and its children did. What a hypervisor
    took away counts. None where the system does not tell.
    """
    began, busy, own = time.monotonic(), _busy(), _own()

    def others() -> float | None:
        now = _busy()
        if busy is None or now is None:
            return None
        seconds = max(time.monotonic() - began, 1e-9)
        return max(0.0, (now - busy - (_own() - own)) / seconds)

    return others


def _busy() -> float | None:
    """Seconds of work that the processors of this process did since the machine began."""
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
        processors = {f"cpu{processor}" for processor in os.sched_getaffinity(0)}
    except (OSError, AttributeError):  # no Linux
        return None
    ticks = 0
    for line in lines:
        name, *numbers = line.split()
        if name in processors:
            ticks += sum(int(number) for place, number in enumerate(numbers[:_ALL]) if place not in _IDLE)
    return ticks / os.sysconf("SC_CLK_TCK")


def _own() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
