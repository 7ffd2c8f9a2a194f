"""What can befall a run: it ends with one line that says what to do, and goes on from there as if nothing had happened."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from ddcat import cli
from ddcat.errors import WriteError
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.data.loader import Batch
from ddcat_train.errors import TrainError
from ddcat_train.methods import MicroBatch, OptimizerStep
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer
from tests.train import runs
from tests.train.ranks import FORK
from tests.train.runs import Command, Finished, stop_after


@pytest.fixture
def config(tiny_run: list[str]) -> Config:
    """Of 9 steps, judged after 6 and 9."""
    return load_config("scenes-undefended", [*tiny_run, "train.workers=0"])


def assert_same(run: Path, whole: Path) -> None:
    runs.assert_same(run, whole)
    assert (run / BEST).read_bytes() == (whole / BEST).read_bytes()
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())


def refused(printed: Path, *arguments: object, before: Callable[[], object] = lambda: None) -> str:
    """The one line that a command ends with; `before` is called in its process."""

    def main() -> None:
        before()
        cli.train()

    status, lines = Command(main, [*map(str, arguments)], printed).end()
    assert status == 2, lines
    assert [line for line in lines if line.startswith(("error: ", "Traceback"))] == lines[-1:]
    return lines[-1]


# --- not finite


def spoil_images(trainer: Trainer, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Batch:
    images = batch.images.clone()
    images[-1, 0, 0, 0] = torch.nan
    return dataclasses.replace(batch, images=images)


def spoil_gradient(trainer: Trainer, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """Of one parameter; its loss is as it was."""
    step = trainer._method.step

    def spoilt(segmenter: Any, micro_batch: MicroBatch, **options: Any) -> list[OptimizerStep]:
        (update,) = step(segmenter, micro_batch, **options)
        return [update._replace(loss=update.loss + (update.parameters[3].sum() * 0).sqrt())]

    trainer._method = dataclasses.replace(trainer._method, step=spoilt)
    return batch


def spoil_weights(trainer: Trainer, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Batch:
    """A statistic, of which training takes no notice."""
    norm = next(module for module in trainer._network.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_var is not None
    norm.running_var[0] = torch.inf
    return batch


@pytest.mark.parametrize(
    ("spoil", "found", "save_every"),
    [
        (spoil_images, {"main", "deep", "loss", "gradient_norm"}, 300.0),
        (spoil_gradient, {"gradient_norm"}, 0.0),
        (spoil_weights, {"weights"}, 300.0),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_not_saved(
    spoil: Any, found: set[str], save_every: float, config: Config, finished: Finished, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, apply = tmp_path / "run", Trainer.train_step
    seen: dict[int, tuple[str, ...]] = {}
    kept: list[bytes] = []

    def spoilt(self: Trainer, batch: Batch) -> Any:
        seen[self.step + 1] = batch.names
        if self.step == 4:
            kept.extend(path.read_bytes() for path in [run / LAST] if path.is_file())
            batch = spoil(self, batch, monkeypatch)
        return apply(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", spoilt)
        with pytest.raises(TrainError, match=r"not finite at step \d .*nonfinite\.json.*lower optim\.lr") as caught:
            train(config, run, save_every=save_every)
    assert "\n" not in str(caught.value)
    told = json.loads((run / "nonfinite.json").read_text())
    # weights are looked at when they are to be saved, and then the step is the latest
    step = 6 if spoil is spoil_weights and save_every else 5
    assert told["step"] == step
    assert set(told["not_finite"]) == found
    assert told["values"]["lr"] == pytest.approx(0.01 * (1 - (step - 1) / 9) ** 0.9)
    assert [Path(image).stem for image in told["images"]] == list(seen[step])
    assert all(Path(image).is_file() for image in told["images"])
    steps = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, step))
    assert not (run / BEST).exists()
    assert [path.read_bytes() for path in [run / LAST] if path.is_file()] == kept
    assert len(kept) == (0 if save_every else 1)
    assert save_every or load_checkpoint(run / LAST).description.step == 4
    train(config, run, resume=True)
    (run / "nonfinite.json").unlink()
    assert_same(run, finished(config))


def test_a_rate_that_is_too_high_is_one_line(tiny_run: list[str], tmp_path: Path) -> None:
    sets = [part for override in [*tiny_run, "optim.lr=1e30"] for part in ("--set", override)]
    run = tmp_path / "run"
    line = refused(tmp_path / "printed", "scenes-ddcat", *sets, "--out", run, "--save-every", 0)
    assert str(run / "nonfinite.json") in line
    last = load_checkpoint(run / LAST)
    assert all(value.isfinite().all() for value in last.tensors.values() if value.is_floating_point())
    assert last.description.step == json.loads((run / "nonfinite.json").read_text())["step"] - 1


# --- files that cannot be written


@pytest.mark.parametrize("name", ["log.jsonl", LAST])
def test_a_full_disk_is_one_line_and_the_checkpoint_stays(
    name: str, config: Config, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_after(8, config, run, monkeypatch)  # by then the log is longer than the configuration, which is written again
    before = (run / LAST).read_bytes()
    # what there is can be written again; the next line of the log cannot, or a checkpoint, in the middle of its write
    size = (run / "log.jsonl").stat().st_size + 60 if name != LAST else 30_000
    line = refused(
        tmp_path / "printed",
        *(run / "config.yaml", "--resume", *(["--save-every", 0] if name == LAST else [])),
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert "File too large" in line
    assert "MB are needed" in line
    assert f"cannot write {run / name}: " in line
    assert (run / LAST).read_bytes() == before
    train(config, run, resume=True)
    assert_same(run, finished(config))


def test_tensorboard_cannot_write_either(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for method in ("add_scalar", "close", "__init__"):
        with monkeypatch.context() as patch:
            patch.setattr(SummaryWriter, method, full)
            with pytest.raises(WriteError, match=r"cannot write .*run.*No space left on device.* make room"):
                train(config, tmp_path / method / "run")


def test_a_run_folder_that_cannot_be_written_in_is_refused_at_once(config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WriteError, match=r"cannot write .*file/run: .*use a writable folder"):
        train(config, tmp_path / "file/run")
    if os.getuid():
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(WriteError, match="use a writable folder"):
            train(config, tmp_path / "locked/run")


# --- kill -9


def session(config: Config, run: Path, kill_at: int | None = None) -> multiprocessing.process.BaseProcess:
    """Train in a process of its own, saving after every step; it may be killed at one of its calls of fsync."""

    def main() -> None:
        torch.set_num_threads(1)
        sync, left = os.fsync, [kill_at]

        def killed(descriptor: int) -> None:
            if left[0] == 0:
                state = os.fstat(descriptor)
                if stat.S_ISREG(state.st_mode):  # its end had not come to the disk
                    os.ftruncate(descriptor, max(0, state.st_size - 10))
                os.kill(os.getpid(), signal.SIGKILL)
            if left[0] is not None:
                left[0] -= 1
            sync(descriptor)

        os.fsync = killed
        train(config, run, resume=True, save_every=0)

    process = FORK.Process(target=main)
    process.start()
    return process


def finish(config: Config, run: Path) -> None:
    process = session(config, run)
    process.join(300)
    assert process.exitcode == 0


@pytest.mark.parametrize("kills", [(0, 9, 10, 11), pytest.param(tuple(range(16)), marks=pytest.mark.slow)], ids=len)
def test_killed_in_the_middle_of_writing_it_ends_with_the_same_bits(
    kills: tuple[int, ...], config: Config, finished: Finished, tmp_path: Path
) -> None:
    run, leftovers = tmp_path / "run", set()
    for kill_at in kills:
        process = session(config, run, kill_at)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        leftovers |= {path.name.rpartition(".")[0] for path in run.iterdir() if path.name.startswith(".")}
    assert {".config.yaml", f".{LAST}"} <= leftovers
    finish(config, run)
    assert_same(run, finished(config))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["undefended", "ddcat"])
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    method: str, tiny_run: list[str], finished: Finished, tmp_path: Path
) -> None:
    kills = 10
    steps = 12 + 3 * kills
    config = load_config(f"scenes-{method}", [*tiny_run, f"train.epochs={steps // 3}", "train.workers=1"])
    run, draws, reached = tmp_path / "run", random.Random(0), []
    for kill in range(kills):
        process, step = session(config, run), saved(run)
        while kill % 4 != 3 and saved(run) == step and process.is_alive():  # else at any moment after its start
            time.sleep(0.001)
        time.sleep(draws.uniform(0, 1 if kill % 4 == 3 else 0.15))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reached.append(saved(run))
    assert len(set(reached)) >= 0.7 * kills
    assert 0 < reached[0] <= reached[-1] < steps
    finish(config, run)
    assert_same(run, finished(config))


def saved(run: Path) -> int:
    file = run / "last.json"
    return int(json.loads(file.read_text())["step"]) if file.is_file() else 0
