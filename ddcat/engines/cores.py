"""The cores of this machine."""

import os
from pathlib import Path

__all__ = ["physical_cores"]


def physical_cores() -> int:
    """
    Cores that this process may use, hyper-threads counted once: the number of threads at which convolutions are fastest.

    Where the system does not say which processors share a core, every processor counts.
    """
    processors = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for processor in processors:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text(encoding="ascii")
        except OSError:
            siblings = str(processor)
        cores.add(siblings.strip())
    return len(cores)
