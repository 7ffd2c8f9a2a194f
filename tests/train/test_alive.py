"""What can befall a run: it ends with one line that says what to do, and goes on from there as if nothing had happened."""

import dataclasses
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from ddcat import cli
from ddcat.errors import WriteError
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.data.dataset import Dataset
from ddcat_train.data.loader import Batch
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.errors import ConfigError, DataError, TrainError
from ddcat_train.methods import MicroBatch, OptimizerStep
from ddcat_train.run import monitor as watching
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer

FORK = multiprocessing.get_context("fork")  # torch is there already: to import it takes longer than most of these tests


@pytest.fixture
def config(tiny_run: list[str]) -> Config:
    """Of 9 steps, judged after 6 and 9."""
    return load_config("scenes-undefended", [*tiny_run, "train.workers=0"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_scenes: Path) -> Callable[[Config], Path]:
    """What a configuration comes to when nothing befalls it."""
    runs: dict[str, Path] = {}

    def run_of(config: Config) -> Path:
        key = config.model_dump_json()
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("whole") / "run"
            train(config, runs[key])
        return runs[key]

    return run_of


def assert_same(run: Path, whole: Path) -> None:
    expected, found = (load_checkpoint(folder / LAST).tensors for folder in (whole, run))
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert (run / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()
    assert load_checkpoint(run / BEST).tensors.keys() == load_checkpoint(whole / BEST).tensors.keys()
    assert (run / BEST).read_bytes() == (whole / BEST).read_bytes()
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in whole.iterdir())


def command(printed: Path, *arguments: object, before: Callable[[], object] = lambda: None) -> tuple[int | None, list[str]]:
    """Its exit status, and the lines that it printed; `before` is called in its process."""

    def main() -> None:
        with printed.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        sys.argv = ["ddcat", "train", *map(str, arguments)]
        torch.set_num_threads(1)
        before()
        cli.main()

    process = FORK.Process(target=main)
    process.start()
    process.join(300)
    process.kill()
    return process.exitcode, printed.read_text().splitlines()


def assert_refused(status: int | None, lines: list[str]) -> str:
    errors = [line for line in lines if line.startswith("error: ")]
    assert status == 2, lines
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    assert not any("Traceback" in line for line in lines)
    return errors[0]


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


@pytest.mark.parametrize("save_every", [0.0, 300.0])
@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (spoil_images, {"main", "deep", "loss", "gradient_norm"}),
        (spoil_gradient, {"gradient_norm"}),
        (spoil_weights, {"weights"}),
    ],
)
def test_what_is_not_finite_stops_the_run_and_is_not_saved(
    spoil: Callable[..., Batch],
    found: set[str],
    save_every: float,
    config: Config,
    whole: Callable[[Config], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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
    assert_same(run, whole(config))


def test_a_rate_that_is_too_high_is_one_line(tiny_run: list[str], tmp_path: Path) -> None:
    sets = [part for override in [*tiny_run, "optim.lr=1e30"] for part in ("--set", override)]
    for method in ("undefended", "ddcat"):
        run = tmp_path / method
        line = assert_refused(*command(tmp_path / "printed", f"scenes-{method}", *sets, "--out", run, "--save-every", 0))
        assert str(run / "nonfinite.json") in line
        last = load_checkpoint(run / LAST)
        assert all(value.isfinite().all() for value in last.tensors.values() if value.is_floating_point())
        assert last.description.step == json.loads((run / "nonfinite.json").read_text())["step"] - 1


# --- files that cannot be written


def stop_after(step: int, config: Config, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin a run, and stop it as SIGTERM does."""
    apply = Trainer.train_step

    def stopped(self: Trainer, batch: Batch) -> Any:
        if self.step == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return apply(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stopped)
        assert train(config, run).step == step


@pytest.mark.parametrize("name", ["log.jsonl", LAST])
def test_a_full_disk_is_one_line_and_the_checkpoint_stays(
    name: str, config: Config, whole: Callable[[Config], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_after(7, config, run, monkeypatch)  # by then the log is longer than the configuration, which is written again
    before = (run / LAST).read_bytes()
    # what there is can be written again; the next line of the log cannot, or a checkpoint, in the middle of its write
    size = (run / "log.jsonl").stat().st_size + 60 if name != LAST else 30_000
    status, lines = command(
        tmp_path / "printed",
        *(run / "config.yaml", "--resume", *(["--save-every", 0] if name == LAST else [])),
        before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    line = assert_refused(status, lines)
    assert "File too large" in line
    assert "MB are needed" in line
    assert f"cannot write {run / name}: " in line
    assert (run / LAST).read_bytes() == before
    train(config, run, resume=True)
    assert_same(run, whole(config))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_fills_up(
    small_disk: Path, config: Config, whole: Callable[[Config], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes one checkpoint to resume from, and not the second that is written before it is replaced."""
    run = small_disk / "run"
    stop_after(4, config, run, monkeypatch)
    before = (run / LAST).read_bytes()
    line = assert_refused(*command(tmp_path / "printed", run / "config.yaml", "--resume", "--save-every", 0))
    assert f"cannot write {run / LAST}: No space left on device: 0.2 MB are needed and 0." in line
    assert (run / LAST).read_bytes() == before
    shutil.copytree(run, tmp_path / "moved")  # to where there is room
    train(config, tmp_path / "moved", resume=True)
    assert_same(tmp_path / "moved", whole(config))


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


# --- images that cannot be read


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", train=10, val=4, size=(48, 48))
    return tmp_path / "scenes"


def over(config: Config, root: Path, **data: object) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root, **data})})


def of_step(config: Config, step: int) -> Path:
    """An image that is first used at a step of the first epoch."""
    trainer = Trainer(config)
    files = {pair.name: pair.image for pair in trainer.data.pairs}
    names = [batch.names for batch, _ in zip(trainer.batches(), range(step), strict=False)]
    (name, *_) = set(names[-1]) - {name for before in names[:-1] for name in before}
    return files[name]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_image_in_the_middle_of_an_epoch_is_named_and_nothing_is_lost(
    workers: int, config: Config, whole: Callable[[Config], Path], scenes: Path, tmp_path: Path
) -> None:
    config = over(config, scenes)
    config = config.model_copy(update={"train": config.train.model_copy(update={"workers": workers})})
    whole(config)
    image, run = of_step(config, 3), tmp_path / "run"
    content = image.read_bytes()
    image.write_bytes(content[:200])
    with pytest.raises(DataError, match=r"replace it") as caught:
        train(config, run)
    assert str(image) in str(caught.value)
    assert load_checkpoint(run / LAST).description.step == 2
    image.write_bytes(content)
    train(config, run, resume=True)
    assert_same(run, whole(config))


@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_skipped_when_asked_and_counted(
    workers: int,
    config: Config,
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = over(config, scenes, skip_corrupt=True)
    config = config.model_copy(update={"train": config.train.model_copy(update={"workers": workers})})
    images = [of_step(config, step) for step in (1, 3)]
    for image in images:
        image.write_bytes(b"no image")
    expected = [len(batch.skipped) for batch in Trainer(config).batches()]
    assert sum(expected) >= 6
    run = tmp_path / "run"
    stop_after(5, config, run, monkeypatch)
    printed = capfd.readouterr().err
    assert [printed.count(str(image)) for image in images] == [1, 1]
    assert train(config, run, resume=True).step == 9
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "loss" in line] == expected
    assert json.loads((run / "summary.json").read_text())["skipped"] == sum(expected)


def test_a_reader_that_is_killed_is_one_line(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config.model_copy(update={"train": config.train.model_copy(update={"workers": 1})})
    apply = Trainer.train_step

    def killing(self: Trainer, batch: Batch) -> Any:
        if self.step == 3:
            for reader in multiprocessing.active_children():
                reader.kill()
                assert reader.pid is not None
                # The kernel ends it some time later: until then up to two batches that it has handed over are learnt from.
                # WNOWAIT, for torch's handler of SIGCHLD must still find it.
                os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOWAIT)
        return apply(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killing)
        with pytest.raises(DataError, match=r"a process that reads images ended .* or memory or /dev/shm ran out") as caught:
            train(config, tmp_path / "run", save_every=0)
    assert "\n" not in str(caught.value)
    assert load_checkpoint(tmp_path / "run" / LAST).description.step == 3


# --- a data set that changed


def test_a_data_set_that_changed_is_not_resumed_with(
    config: Config, whole: Callable[[Config], Path], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = over(config, scenes), tmp_path / "run"
    stop_after(4, config, run, monkeypatch)
    names = {split: (scenes / f"ImageSets/Segmentation/{split}.txt") for split in ("train", "val")}
    for split, path in names.items():
        before = path.read_text()
        lines = before.split()
        for changed, count in ((lines[:-1], len(lines) - 1), (lines[::-1], len(lines))):
            path.write_text("\n".join(changed) + "\n")
            with pytest.raises(
                ConfigError, match=rf"the {split} split at {scenes} has changed: {count} images, whose"
            ) as caught:
                train(config, run, resume=True)
            told = str(caught.value)
            assert f"knows {len(lines)}, " in told
            assert (
                len(
                    {word.strip(",:") for word in told.split() if len(word.strip(",:")) == 12 and word[0] in "0123456789abcdef"}
                )
                == 2
            )
            assert "put the images back as they were, or begin a new run with another --out" in told
        path.write_text(before)
    train(config, run, resume=True)
    assert_same(run, whole(config))


def test_masks_that_have_another_meaning_are_not_resumed_with(
    config: Config, whole: Callable[[Config], Path], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run, file = over(config, scenes), tmp_path / "run", scenes / "classes.yaml"
    stop_after(4, config, run, monkeypatch)
    text = file.read_text()
    names, _, colours = text.partition("colours:")
    first, *others = load_checkpoint(run / LAST).description.classes.names
    renumbered = {0: first} | {2 + index: name for index, name in enumerate(others)}
    for other in (f"{text}ignore_label: 77\n", f"names: {renumbered}\ncolours:{colours}", names):
        file.write_text(other)
        with pytest.raises(
            ConfigError, match=rf"the masks of {scenes} .* ignore_label and colours of its classes.yaml back"
        ) as caught:
            train(config, run, resume=True)
        assert "\n" not in str(caught.value)
    file.write_text(f"{text}clips: (.+)_\n")  # no mask means anything else
    train(config, run, resume=True)
    assert_same(run, whole(config))


def test_how_images_are_come_by_may_change_between_sessions(
    config: Config, whole: Callable[[Config], Path], scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, run = over(config, scenes), tmp_path / "run"
    whole(config)
    stop_after(4, config, run, monkeypatch)
    moved = over(config, scenes.rename(tmp_path / "moved"), skip_corrupt=True)
    moved = moved.model_copy(update={"train": moved.train.model_copy(update={"workers": 2})})
    train(moved, run, resume=True)
    expected, found = (load_checkpoint(folder / LAST) for folder in (whole(config), run))
    assert all(torch.equal(expected.tensors[name], value) for name, value in found.tensors.items())
    assert load_config(str(run / "config.yaml")) == found.description.config == moved
    with pytest.raises(ConfigError, match=r"another configuration \(data.long_side differs\)"):
        train(over(config, tmp_path / "moved", long_side=40), run, resume=True)


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
    kills: tuple[int, ...], config: Config, whole: Callable[[Config], Path], tmp_path: Path
) -> None:
    run, leftovers = tmp_path / "run", set()
    for kill_at in kills:
        process = session(config, run, kill_at)
        process.join(300)
        assert process.exitcode == -signal.SIGKILL
        leftovers |= {path.name.rpartition(".")[0] for path in run.iterdir() if path.name.startswith(".")}
    assert {".config.yaml", f".{LAST}"} <= leftovers
    finish(config, run)
    assert_same(run, whole(config))


@pytest.mark.parametrize(
    ("method", "kills"),
    [("ddcat", 2), *(pytest.param(method, 10, marks=pytest.mark.slow) for method in ("undefended", "ddcat"))],
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    method: str, kills: int, tiny_run: list[str], whole: Callable[[Config], Path], tmp_path: Path
) -> None:
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
    assert_same(run, whole(config))


def saved(run: Path) -> int:
    file = run / "last.json"
    return int(json.loads(file.read_text())["step"]) if file.is_file() else 0


# --- loaders that keep up


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
    slow: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cls: Any = {"read": Dataset, "train_step": Trainer}[slow]
    original = getattr(cls, slow)

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.03 if slow == "read" else 0.5)
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
