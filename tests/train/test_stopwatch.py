"""Where the time of a run goes: waiting for images, or working."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddcat_train.config import load_config
from ddcat_train.data.dataset import Dataset
from ddcat_train.run import monitor as watching
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer


def test_a_stopwatch_tells_waiting_from_working(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]

    def items() -> Iterator[int]:
        for item in range(5):
            now[0] += 3
            yield item

    monkeypatch.setattr(watching, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    watch, readings = watching.Stopwatch(torch.device("cpu")), []
    for item in watch.over(items()):
        now[0] += 1
        if item in (2, 4):
            readings.append(watch.read())
            now[0] += 50  # an evaluation, which is not measured
    assert readings == [(12, 9), (8, 6)]
    assert watch.read() == (0, 0)  # the end was not waited for


def test_on_a_gpu_it_is_the_device_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is busy for 8 at each step, and a batch takes 5, 5 and then 20; the host only waits for batches."""
    now = {"host": 0.0, "device": 0.0}

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            now["device"] = self.when = max(now.values())

        def elapsed_time(self, other: "Event") -> float:
            return 1000 * (other.when - self.when)

    def items() -> Iterator[int]:
        for duration in (5, 5, 20):
            now["host"] += duration
            yield duration

    monkeypatch.setattr(torch.cuda, "Event", Event)
    watch, waits = watching.Stopwatch(torch.device("cuda")), []
    for _ in watch.over(items()):
        waits.append(watch.read()[1])
        now["device"] += 8
    assert waits == [5, 0, pytest.approx(9)]


@pytest.mark.parametrize("slow", ["read", "train_step"])
def test_a_loader_that_does_not_keep_up_is_told_once(
    slow: str, tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = load_config("scenes-undefended", [*tiny_run, "train.workers=0"])
    cls: Any = {"read": Dataset, "train_step": Trainer}[slow]
    original = getattr(cls, slow)

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.03 if slow == "read" else 0.2)
        return original(*arguments)

    monkeypatch.setattr(cls, slow, slowly)
    monkeypatch.setattr(watching, "_WINDOW", 0.0)
    monkeypatch.setattr(watching, "_FLUSH_EVERY", 2)
    train(config, tmp_path / "run")
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("the loader does not keep up: ")]
    share = json.loads((tmp_path / "run/summary.json").read_text())["waited_share"]
    timing = [json.loads(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in timing] == [2, 4, 6, 8, 9]
    assert sum(line["steps"] for line in timing) == 9
    assert share == pytest.approx(sum(line["waited"] for line in timing) / sum(line["seconds"] for line in timing), abs=1e-3)
    if slow == "train_step":
        assert (told, share < 0.1) == ([], True)
        return
    (line,) = told
    assert (
        "of the time goes into waiting for images; use more workers (--resume --set train.workers=N; 0 for each device now, "
        in line
    )
    assert share > 0.3
