"""What others do is told apart from what this process does."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from ddcat_bench.timing import busy


def test_the_processors_numbers_are_read_as_the_manual_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """User, nice, system, irq, softirq and steal of the processors that may be used; not idle, iowait, or guests."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(busy, "_STAT", stat)
    monkeypatch.setattr(busy.os, "sched_getaffinity", lambda process: {0})
    monkeypatch.setattr(busy.os, "sysconf", lambda name: 100)
    monkeypatch.setattr(busy, "_own", lambda: 0.0)
    clock = iter([10.0, 12.0])
    monkeypatch.setattr(busy.time, "monotonic", lambda: next(clock))
    stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 100 0 0 500 0 0 0 0 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 5\n")
    others = busy.others_watch()
    stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 110 20 30 900 40 1 2 37 7 7\ncpu1 999 0 0 0 0 0 0 0 0 0\nintr 6\n")
    assert others() == pytest.approx((10 + 20 + 30 + 1 + 2 + 37) / 100 / 2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_own_work_is_nobody_elses() -> None:
    """And a child's is ours once it has ended."""
    begun = time.process_time()
    others = busy.others_watch()
    before = busy._own()
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    while time.process_time() - begun < 0.3:
        pass
    assert busy._own() - before >= 0.3
    assert others() is not None


def test_where_the_system_does_not_tell_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "_STAT", tmp_path / "none")
    assert busy.others_watch()() is None
