"""An evaluation that is stopped continues, and one in several processes finds the same."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.errors import DdcatError
from ddcat_bench import cli
from ddcat_bench.attack.aggregate import aggregate
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.rank_work import attack_rank_work
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.describe import versions
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.job import GateJob
from ddcat_bench.result_io import read_result
from ddcat_bench.work_units import open_units, work_folder
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_plan, read_whole
from tests.bench.suite import quiet_probe, run_suite


@pytest.fixture(scope="module")
def evaluation(checkpoint: Checkpoint, scenes: Dataset) -> AttackJob:
    return AttackJob(checkpoint, scenes, suite="paper", batch_size=2, max_images=3)


@pytest.fixture(scope="module")
def whole(evaluation: AttackJob) -> AttackResult:
    return timeless(run_suite(evaluation))


def timeless(result: AttackResult) -> AttackResult:
    assert result.probe is not None
    changed = {"environment": result.environment, "probe": result.probe}
    return result.model_copy(update={key: part.model_copy(update={"seconds": 0.0}) for key, part in changed.items()})


def test_what_is_done_is_not_done_again(evaluation: AttackJob, whole: AttackResult, tmp_path: Path) -> None:
    calls = 0

    def stop_in_the_middle(forwards: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 50:
            raise KeyboardInterrupt

    work = tmp_path / "attack.work"
    with pytest.raises(KeyboardInterrupt):
        run_suite(evaluation, work=work, advance=stop_in_the_middle)
    done = {file: file.stat().st_mtime_ns for file in work.glob("*.npz")}
    assert 0 < len(done) < 4  # 2 batches, 2 plans
    told: list[int] = []
    assert timeless(run_suite(evaluation, work=work, advance=told.append)) == whole
    assert sum(told) == evaluation.forwards
    assert {file: file.stat().st_mtime_ns for file in done} == done


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_share_the_work_and_find_the_same(
    evaluation: AttackJob, whole: AttackResult, tmp_path: Path, ranks: int
) -> None:
    units = open_units(tmp_path / "work", evaluation.identity())
    shares = []
    for rank in reversed(range(ranks)):
        before = set(units.folder.glob("*.npz"))
        told: list[int] = []
        batches = attack_rank_work(evaluation, units, rank=rank, ranks=ranks, advance=told.append)
        assert 0 < sum(told) < evaluation.forwards
        shares.append(len(set(units.folder.glob("*.npz")) - before))
    assert sum(shares) == 4
    assert max(shares) - min(shares) <= 1
    assert timeless(aggregate(evaluation, units, batches, quiet_probe(images=3))) == whole


def test_a_process_reads_only_the_images_that_it_attacks(
    evaluation: AttackJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[int, ...]] = []

    def reading(dataset: Dataset, indices: Sequence[int]) -> object:
        read.append(tuple(indices))
        return read_whole(dataset, indices)

    monkeypatch.setattr("ddcat_bench.attack.rank_work.read_whole", reading)
    monkeypatch.setattr("ddcat_bench.attack.rank_work.score_whole_images", lambda *_: np.zeros(1))
    units, plans, ranks = open_units(tmp_path / "work", evaluation.identity()), len(evaluation.specs), 6
    batches = list(evaluation_plan(evaluation.dataset, batch_size=evaluation.batch_size, limit=evaluation.max_images))
    for rank in range(ranks):
        mine = [tuple(batch) for at, batch in enumerate(batches) if any((at + plan) % ranks == rank for plan in range(plans))]
        for expected in (mine, []):  # what is done is not read again
            read.clear()
            attack_rank_work(evaluation, units, rank=rank, ranks=ranks)
            assert read == expected
    assert all(units.has(batch, plan) for batch in range(len(batches)) for plan in range(plans))


def test_parts_of_another_evaluation_are_refused(
    run_directory: Path, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "attack"
    first = AttackJob(checkpoint, scenes, max_images=1)
    open_units(work_folder(out), first.identity())
    open_units(work_folder(out), first.identity())  # the same again
    with pytest.raises(BenchError, match=r"attack\.work belongs to another evaluation \(images 1, now 2\)"):
        cli.attack(run_directory, max_images=2, device="cpu", out=out)
    with pytest.raises(BenchError, match="seed 0, now 3"):
        cli.attack(run_directory, max_images=1, device="cpu", out=out, seed=3)
    with pytest.raises(BenchError, match="plans"):
        cli.attack(run_directory, max_images=1, device="cpu", out=out, suite="paper")
    (tmp_path / "other.work").mkdir()
    (tmp_path / "other.work" / "letter.txt").write_text("mine")
    with pytest.raises(BenchError, match="does not hold unfinished work"):
        cli.attack(run_directory, max_images=1, device="cpu", out=tmp_path / "other")
    assert not out.exists()


def test_parts_that_other_libraries_computed_are_refused(
    make_bundle: Callable[..., Bundle],
    checkpoint: Checkpoint,
    scenes: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle, installed = make_bundle(), versions()
    for name, judged in (("attack", AttackJob(checkpoint, scenes)), ("gate", GateJob(bundle, checkpoint, scenes))):
        open_units(tmp_path / name, judged.identity())
        with monkeypatch.context() as patched:
            found = {**installed, "torch": "9.0", "openvino": "9.1"}
            patched.setattr("ddcat.provenance.versions", lambda names, found=found: found)
            told = f"openvino {installed.get('openvino')}, now 9.1, torch {installed['torch']}, now 9.0"
            with pytest.raises(BenchError, match=re.escape(f"{name} belongs to another evaluation (versions: {told})")):
                open_units(tmp_path / name, judged.identity())
        open_units(tmp_path / name, judged.identity())


def test_a_damaged_part_is_named(evaluation: AttackJob, tmp_path: Path) -> None:
    units = open_units(tmp_path / "work", {})
    units.put(3, 1, np.arange(3), 0.5)
    counts, seconds = units.get(3, 1)
    assert (counts.tolist(), seconds) == ([0, 1, 2], 0.5)
    [file] = units.folder.glob("*.npz")
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(BenchError, match=file.name):
        units.get(3, 1)


@pytest.mark.usefixtures("no_probe")
def test_a_fault_in_the_data_costs_only_what_follows(run_directory: Path, tmp_path: Path, scenes_copy: Path) -> None:
    image = scenes_copy / "JPEGImages" / "val_00004.jpg"
    content = image.read_bytes()
    image.write_bytes(b"no image")
    out = tmp_path / "attack"
    with pytest.raises(DdcatError, match="val_00004"):
        cli.attack(run_directory, data_root=scenes_copy, device="cpu", out=out, batch=2)
    assert not out.exists()
    assert len(list(work_folder(out).glob("*.npz"))) == 1  # the second batch is given when the third image of it is read
    image.write_bytes(content)
    cli.attack(run_directory, data_root=scenes_copy, device="cpu", out=out, batch=2)
    assert out.exists()
    assert not work_folder(out).exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_command_continues(run_directory: Path, whole: AttackResult, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "attack"
    command = [sys.executable, "-c", "from ddcat.cli import bench; bench()", "attack", str(run_directory)]
    command += ["--suite", "paper", "--batch", "2", "--max-images", "3", "--device", "cpu", "--out", str(out)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    work = work_folder(out)
    for _ in range(10):  # on a busy machine it may be done before the signal is sent
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone)
        while process.poll() is None and not list(work.glob("*.npz")):
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        if not out.exists():
            break
        shutil.rmtree(out)
    assert work.exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert said == f"error: interrupted: finished parts are in {work}, and the same command continues\n"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    assert timeless(read_result(out / "attack.json", AttackResult)).rows == whole.rows
    assert sorted(file.name for file in tmp_path.iterdir()) == ["attack"]


@pytest.mark.slow
@pytest.mark.parametrize("starter", ["--jobs", "torchrun"])
def test_two_processes_write_what_one_writes(run_directory: Path, whole: AttackResult, tmp_path: Path, starter: str) -> None:
    out = tmp_path / "attack"
    arguments = ["attack", str(run_directory), "--suite", "paper", "--batch", "2", "--max-images", "3", "--device", "cpu"]
    arguments += ["--out", str(out)]
    if starter == "torchrun":
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
        command += ["ddcat", *arguments]
    else:
        command = [sys.executable, "-m", "ddcat", *arguments, "--jobs", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert timeless(read_result(out / "attack.json", AttackResult)).rows == whole.rows
    assert done.stdout.count("| attack | mIoU |") == 1  # the first process speaks for all
    assert [file.name for file in tmp_path.iterdir()] == ["attack"]


@pytest.mark.slow
def test_what_a_process_cannot_read_is_one_line(run_directory: Path, tmp_path: Path, scenes_copy: Path) -> None:
    (scenes_copy / "JPEGImages" / "val_00004.jpg").write_bytes(b"no image")
    command = [sys.executable, "-m", "ddcat", "attack", str(run_directory), "--data-root", str(scenes_copy)]
    command += ["--jobs", "2", "--device", "cpu", "--out", str(tmp_path / "attack")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "val_00004.jpg is not a readable image" in done.stderr


def test_devices_that_cannot_be(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BenchError, match="use 1 or more"):
        cli.attack(run_directory, device="cpu", jobs=0, out=tmp_path / "attack")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    with pytest.raises(BenchError, match="use its --nproc-per-node instead"):
        cli.attack(run_directory, device="cpu", jobs=2, out=tmp_path / "attack")
