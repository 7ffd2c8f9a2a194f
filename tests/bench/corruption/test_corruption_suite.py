"""The suite of corruptions: of a checkpoint and of its engine, resumed, and its figures from written-out sums."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddcat.engines import Outputs
from ddcat.metrics import confusion_counts, miou
from ddcat_bench import judged as judging
from ddcat_bench.corruption import measure as measuring
from ddcat_bench.corruption.measure import CorruptionJob, measure
from ddcat_bench.corruption.report import corruption_brief, corruption_markdown
from ddcat_bench.corruption.results import CorruptionResult
from ddcat_bench.corruption.run import run_corruptions
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import main_branch
from ddcat_bench.result_io import read_result
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.corruptions import SEVERITIES, corrupt
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_planes

NAMES = ("gaussian_noise", "contrast", "underexposed")


@pytest.fixture
def job(checkpoint: Checkpoint, scenes: Dataset) -> CorruptionJob:
    network = main_branch(checkpoint, torch.device("cpu"))

    def predict(images: Any) -> Any:
        with torch.no_grad():
            return network(to_planes(images)).argmax(1).numpy()

    return CorruptionJob(predict, checkpoint.sha256(), scenes, names=NAMES, batch_size=1)


def test_the_figures_are_those_of_a_plain_loop(job: CorruptionJob, tmp_path: Path) -> None:
    seen: list[int] = []
    measured = measure(job, tmp_path / "work", seen.append)
    assert sum(seen) == job.labelled == len(job.dataset) * (1 + 5 * len(NAMES))
    assert [(row.name, row.severity) for row in measured.rows] == [(name, s) for name in NAMES for s in SEVERITIES]
    for row in measured.rows:
        total = np.zeros((len(job.dataset.classes), 3), np.int64)
        for index in range(len(job.dataset)):
            sample = job.dataset.read(index)
            changed = corrupt(sample.image, row.name, severity=row.severity, seed=job.seed_of(index, row.name, row.severity))
            total += confusion_counts(sample.labels, job.predict(changed[None])[0], len(job.dataset.classes))
        assert row.miou == pytest.approx(miou(total))
    assert [row.miou for row in measured.rows if row.name == "gaussian_noise"][-1] < measured.clean.miou


def test_what_is_done_is_not_done_again(job: CorruptionJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure(job, tmp_path / "whole")
    calls = 0

    def interrupted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 20:
            raise KeyboardInterrupt
        return corrupt(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "corrupt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure(job, tmp_path / "work")
    seen: list[int] = []
    again = measure(job, tmp_path / "work", seen.append)
    assert sum(seen) == job.labelled
    assert (again.rows, again.clean, again.images) == (whole.rows, whole.clean, whole.images)


def test_a_checkpoint_and_a_bundle_are_judged_and_published(
    checkpoint: Checkpoint,
    make_bundle: Callable,
    make_engine: Callable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = run_corruptions(checkpoint, tmp_path / "model", names=NAMES, max_images=2)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "corruptions.json", "corruptions.md", "corruptions.png", "panels.png",
    ]  # fmt: skip
    assert read_result(tmp_path / "model/corruptions.json", CorruptionResult) == result
    assert "mean over" in capsys.readouterr().out
    text = corruption_markdown(result)
    assert "| gaussian_noise |" in text
    assert f"| **mean**{result.part('common')} |" in text
    assert result.part("common") == f" ({len(result.names('common'))} of 15)"
    assert result.mean("common") == pytest.approx(np.mean([r.miou for r in result.rows if r.group == "common"]))
    assert result.mean("extra") is None
    assert corruption_brief(result).startswith("sat (")
    assert not (tmp_path / "model.work").exists()
    with pytest.raises(BenchError, match="use --force to replace"):
        run_corruptions(checkpoint, tmp_path / "model", names=NAMES)
    bundle = make_bundle()
    monkeypatch.setattr(judging, "open_engine", make_engine)
    of_engine = run_corruptions(bundle, tmp_path / "engine", names=NAMES, max_images=2)
    assert (of_engine.rows, of_engine.clean) == (result.rows, result.clean)
    assert of_engine.bundle is not None
    assert of_engine.bundle.sha256 == bundle.digest


def test_threads_and_parts_of_a_batch_change_no_figure(job: CorruptionJob, tmp_path: Path) -> None:
    alone = measure(replace(job, threads=1, batch_size=4), tmp_path / "alone")
    shared = measure(replace(job, threads=3, batch_size=4, at_once=1), tmp_path / "shared")
    assert (alone.rows, alone.clean) == (shared.rows, shared.clean)


@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_an_engine_on_a_cpu_is_opened_for_each_thread_and_none_is_shared(
    make_bundle: Callable, make_engine: Callable, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    bundle = make_bundle()
    engine = bundle.manifest.engine.model_copy(update={"provider": provider})
    bundle = replace(bundle, manifest=bundle.manifest.model_copy(update={"engine": engine}))
    opened: list[Any] = []
    busy: set[int] = set()

    def opens(one: Any, **options: Any) -> Any:
        made = make_engine(one)
        opened.append(options)

        def infer(images: Any) -> Any:
            assert id(made) not in busy
            busy.add(id(made))
            time.sleep(0.01)
            busy.remove(id(made))
            return Outputs(np.zeros(images.shape[:3], np.uint8))

        made.infer = infer
        return made

    monkeypatch.setattr(judging, "open_engine", opens)
    monkeypatch.setattr(judging, "physical_cores", lambda: 4)
    with judging.judged(bundle, threads=2) as subject, ThreadPoolExecutor(4) as pool:
        assert opened == ([{"threads": 2}] * 2 if provider.startswith("CPU") else [{"threads": None}])
        assert (subject.threads, subject.at_once) == ((2, 4) if provider.startswith("CPU") else (1, 8))
        for labels in pool.map(subject.predict, [np.zeros((1, 40, 48, 3), np.uint8)] * 8):
            assert not labels.any()
