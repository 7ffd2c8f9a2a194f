"""What others do is told apart from what this process does."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo import free_threads

from ddcat_bench.timing import cpu_contention


def test_the_processors_numbers_are_read_as_the_manual_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User, nice, system, irq, softirq and steal of the processors that may be used; not idle, iowait, or guests."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(cpu_contention, "_STAT", stat)
    monkeypatch.setattr(cpu_contention.os, "sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(cpu_contention.os, "sysconf", lambda name: 100)
    own = iter([3.0, 3.25])
    monkeypatch.setattr(cpu_contention, "_own", lambda: next(own))
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(cpu_contention.time, "monotonic", lambda: next(clock))
    stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 0 500 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n")
    others = cpu_contention.watch_contention()
    stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 110 20 30 900 40 1 2 37 7 7\ncpu1 999 0 0 0 0 0 0 0 0 0\nintr 6\n")
    assert others() == pytest.approx(((10 + 20 + 30 + 1 + 2 + 37) / 100 - 0.25) / 2)  # less what is ours


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_own_work_is_that_of_this_process_and_of_children_that_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3:\n    pass"
    before, here = cpu_contention._own(), time.process_time()
    subprocess.run([sys.executable, "-c", burn], check=True)
    ours = time.process_time() - here
    assert cpu_contention._own() - before - ours >= 0.25  # the child's; the system counts in hundredths of a second
    before, here = cpu_contention._own(), time.process_time()
    while time.process_time() - here < 0.1:
        pass
    assert cpu_contention._own() - before >= 0.05


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_this_system_tells() -> None:
    assert cpu_contention.watch_contention()() is not None


def test_where_the_system_does_not_tell_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_contention, "_STAT", tmp_path / "none")
    assert cpu_contention.watch_contention()() is None


@pytest.mark.parametrize(
    ("others", "processors", "threads"),
    [
        (None, 2, None),
        (0.0, 2, None),
        (0.2, 2, None),
        (2.0, 2, 1),
        (1.0, 2, 1),
        (8.0, 2, 1),
        (2.0, 16, 14),
        (1.9, 4, 2),
        (0.5, 1, 1),
    ],
)
def test_the_cores_of_others_are_left_to_them(others: float | None, processors: int, threads: int | None) -> None:
    assert free_threads(others, processors) == threads
