"""Commands that start several ranks: how they stop and go on, and what is said where one of them fails."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from typer.testing import CliRunner

from ddcat import cli as command_line
from ddcat.cli_support import run
from ddcat_train import cli
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.data.dataset import Sample
from ddcat_train.distributed import launch as launching
from ddcat_train.distributed.launch import launch
from ddcat_train.errors import ConfigError, TrainError
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer
from tests.train import runs
from tests.train.ranks import Together
from tests.train.runs import Command


@pytest.fixture(scope="module")
def overrides(tiny_scenes: Path) -> list[str]:
    return [
        f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "train.epochs=6", "train.batch_size=4",
        "train.evaluate_every=4",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, overrides: list[str], together: Together) -> Path:
    """What two ranks come to in one go."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert together(lambda: train(load_config("scenes-ddcat", overrides), run, device="cpu").step) == [18, 18]
    return run


def assert_same(run: Path, whole: Path) -> None:
    runs.assert_same(run, whole)
    generators = load_checkpoint(run / LAST).tensors["random.cpu"]
    assert generators.shape[0] == 2
    assert not torch.equal(*generators)


def assert_resumes(run: Path, whole: Path, together: Together) -> None:
    config = load_config(str(run / "config.yaml"))
    assert together(lambda: train(config, run, resume=True, device="cpu").step) == [18, 18]
    assert_same(run, whole)


def arguments(overrides: list[str], run: Path, *others: object) -> list[str]:
    sets = [part for override in overrides for part in ("--set", override)]
    return ["scenes-ddcat", *sets, "--device", "cpu", "--out", str(run), *map(str, others)]


@pytest.fixture
def started(overrides: list[str], tmp_path: Path) -> Iterator[Command]:
    """Two ranks that save after every step and have done some."""
    more = arguments([*overrides, "train.workers=1"], tmp_path / "run", "--devices", 2, "--save-every", 0)
    command = Command(command_line.train, more, tmp_path / "printed")
    saved = tmp_path / "run/last.json"
    while not (saved.is_file() and json.loads(saved.read_text())["step"] >= 4):
        time.sleep(0.01)
        assert command.process.is_alive()
    yield command
    command.process.kill()


def processes_of(run: Path) -> dict[int, str]:
    """Every process whose command line names a run, and its rank."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if str(run).encode() in (folder / "cmdline").read_bytes():
                environment = (folder / "environ").read_bytes().split(b"\0")
                found[int(folder.name)] = next((e[5:].decode() for e in environment if e.startswith(b"RANK=")), "")
        except OSError:
            continue
    return found


def assert_none_left(run: Path) -> None:
    for _ in range(100):  # a reader of images looks every 5 seconds whether its rank is alive
        if not processes_of(run):
            return
        time.sleep(0.1)
    raise AssertionError(processes_of(run))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the ranks in /proc")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_rank_ends_the_run_which_resumes_to_the_same_bits(
    rank: str, started: Command, tmp_path: Path, together: Together, request: pytest.FixtureRequest
) -> None:
    run = tmp_path / "run"
    victim = min(pid for pid, found in processes_of(run).items() if found == rank)
    os.kill(victim, signal.SIGKILL)
    status, printed = started.end()
    assert status == 2
    step = load_checkpoint(run / LAST).description.step
    assert step < 18
    assert printed == [
        f"error: rank {rank} was killed by SIGKILL (by hand, or for want of memory); the others were stopped. Continue from "
        f"step {step} with: ddcat train {run}/config.yaml --resume --device cpu --devices 2"
    ]
    assert_none_left(run)
    if rank == "1":
        assert_resumes(run, request.getfixturevalue("whole"), together)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_ranks_after_the_same_step(
    number: signal.Signals, started: Command, tmp_path: Path, whole: Path, together: Together
) -> None:
    run, pid = tmp_path / "run", started.process.pid
    assert pid is not None
    if number == signal.SIGINT:
        os.killpg(pid, number)  # as Ctrl-C does
    else:
        os.kill(pid, number)
    status, printed = started.end()
    assert status == 128 + number
    step = load_checkpoint(run / LAST).description.step
    assert step < 18
    assert printed == [
        f"stopped by {number.name} at step {step} of 18; continue with: "
        f"ddcat train {run}/config.yaml --resume --device cpu --devices 2"
    ]
    assert_none_left(run)
    assert_resumes(run, whole, together)


@pytest.mark.slow
def test_the_end_of_the_agent_is_a_signal_to_stop(started: Command, tmp_path: Path, whole: Path, together: Together) -> None:
    started.process.kill()
    started.process.join()
    assert_none_left(tmp_path / "run")
    assert_resumes(tmp_path / "run", whole, together)


@pytest.mark.slow
def test_torchrun_is_the_same(overrides: list[str], tmp_path: Path, whole: Path) -> None:
    run = tmp_path / "run"
    options = ["--standalone", "--nproc-per-node", "2", "-m", "ddcat", "train"]
    status, printed = Command(torchrun.main, [*options, *arguments(overrides, run)], tmp_path / "printed").end()
    assert status == 0
    assert sum(line.startswith(f"{run}: 18 steps") for line in printed) == 1
    assert (tmp_path / "printed").read_text().count("on 2 x cpu") == 1
    assert len(list((run / "tensorboard").iterdir())) == 1
    assert_same(run, whole)


def test_another_number_of_ranks_goes_on_and_says_so(
    tiny: Callable[..., Config], tmp_path: Path, together: Together, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny("sat", "method.split=global", "model.dropout=0.5", "train.epochs=2")

    def stopped() -> int:
        apply = Trainer.train_step

        def interrupted(self: Trainer, batch: Any) -> Any:
            if self.step == 1 and self.ranks.rank == 1:
                signal.raise_signal(signal.SIGTERM)  # one rank alone: all stop
            return apply(self, batch)

        Trainer.train_step = interrupted  # type: ignore[method-assign]  # of this process, which ends soon
        return train(config, tmp_path / "run", device="cpu").step

    assert together(stopped) == [2, 2]
    assert train(config, tmp_path / "run", resume=True, device="cpu").step == 4
    assert "from step 2, begun on 2 ranks: the result differs from that of a run on" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "run" / LAST).tensors["random.cpu"].shape[0] == 1


# --- errors


@pytest.mark.slow
def test_an_error_of_one_rank_is_one_line(tiny_scenes: Path, overrides: list[str], tmp_path: Path) -> None:
    shutil.copytree(tiny_scenes, tmp_path / "scenes")
    image = min((tmp_path / "scenes/JPEGImages").glob("*.jpg"))
    image.write_bytes(image.read_bytes()[:200])
    more = arguments(overrides, tmp_path / "run", "--data-root", tmp_path / "scenes", "--devices", 2)
    status, printed = Command(command_line.train, more, tmp_path / "printed").end()
    assert status == 2
    warning, line = printed
    assert warning.startswith("warning: 1 of the 10 pairs of train cannot be read: ")
    assert line.startswith("error: ")
    assert image.name in line
    assert_none_left(tmp_path / "run")


def test_what_is_not_finite_on_one_rank_stops_all_and_names_the_images_of_all(
    tiny: Callable[..., Config], tmp_path: Path, together: Together
) -> None:
    config, run = tiny("sat"), tmp_path / "run"

    def spoilt() -> tuple[str, list[tuple[str, ...]]]:
        apply, seen = Trainer.train_step, []

        def spoil(self: Trainer, batch: Any) -> Any:
            seen.append(batch.names)
            if self.step == 3 and self.ranks.rank == 1:
                batch.images[0, 0, 0, 0] = torch.inf
            return apply(self, batch)

        Trainer.train_step = spoil  # type: ignore[method-assign]  # of this process, which ends soon
        with pytest.raises(TrainError, match="not finite at step 4") as caught:
            train(config, run, device="cpu", save_every=0)
        return str(caught.value), seen

    (told, first), (other, second) = together(spoilt)
    assert told == other
    named = json.loads((run / "nonfinite.json").read_text())
    assert [Path(image).stem for image in named["images"]] == [*first[3], *second[3]]
    assert load_checkpoint(run / LAST).description.step == 3
    assert together(lambda: train(config, run, resume=True, device="cpu").step) == [6, 6]


def test_nothing_is_lost_to_a_corrupt_image_of_one_rank(
    tiny: Callable[..., Config], tiny_scenes: Path, tmp_path: Path, together: Together
) -> None:
    shutil.copytree(tiny_scenes, tmp_path / "scenes")
    config, run = tiny("sat", f"data.root={tmp_path / 'scenes'}"), tmp_path / "run"
    trainer = Trainer(config, device="cpu")
    before, step = (batch.names for batch, _ in zip(trainer.batches(), range(2), strict=False))
    (name, *_) = set(step[1::2]) - set(before)  # the share of rank 1
    image = next(pair.image for pair in trainer.data.pairs if pair.name == name)
    image.write_bytes(b"no image")

    def refused() -> str:
        with pytest.raises(TrainError) as caught:
            train(config, run, device="cpu")
        return f"{type(caught.value).__name__} {caught.value}"

    other, refusal = together(refused)
    assert refusal.startswith(f"DataError {image} is not a readable image")
    assert other == refusal.replace("DataError", "TrainError", 1)
    assert load_checkpoint(run / LAST).description.step == 1
    skipping = tiny("sat", f"data.root={tmp_path / 'scenes'}", "data.skip_corrupt=true")
    expected = [len(batch.skipped) for batch in Trainer(skipping, device="cpu").batches()]
    assert together(lambda: train(skipping, tmp_path / "other", device="cpu").step) == [6, 6]
    lines = [json.loads(line) for line in (tmp_path / "other/log.jsonl").read_text().splitlines()]
    assert [line["skipped"] for line in lines if "loss" in line] == expected
    assert json.loads((tmp_path / "other/summary.json").read_text())["skipped"] == sum(expected) > 2


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_all_ranks_is_one_line(overrides: list[str], tmp_path: Path) -> None:
    more = arguments([*overrides, "optim.lr=1e30"], tmp_path / "run", "--devices", 2)
    status, printed = Command(command_line.train, more, tmp_path / "printed").end()
    assert status == 2
    assert len(printed) == 1
    assert "not finite at step" in printed[0]
    assert (tmp_path / "run/nonfinite.json").is_file()
    assert_none_left(tmp_path / "run")


def test_what_ranks_refuse_is_told_once(tmp_path: Path) -> None:
    def start() -> None:
        run(lambda: launch(2, reached=lambda: "its start", again="again"))

    # refused by each before it needs torch
    status, printed = Command(start, ["train", "scenes-dcat"], tmp_path / "printed").end()
    assert status == 2
    assert len(printed) == 1
    assert printed[0].startswith("error: scenes-dcat is neither a file nor a preset: did you mean")


def failure(exit_status: int, when: int, tmp_path: Path, message: str | None = None) -> ProcessFailure:
    file = tmp_path / f"{exit_status}.json"
    if message is not None:
        file.write_text(json.dumps({"message": message, "timestamp": when}))
    found = ProcessFailure(local_rank=0, pid=1, exitcode=exit_status, error_file=str(file))
    found.timestamp = when
    return found


def test_the_cause_is_told_and_not_what_followed(tmp_path: Path) -> None:
    lost, ended = failure(75, 1, tmp_path, "lost"), failure(-signal.SIGTERM, 2, tmp_path)
    refused, killed, crashed = failure(2, 3, tmp_path, "no such image"), failure(-9, 4, tmp_path), failure(1, 5, tmp_path)
    order = sorted([crashed, ended, killed, lost, refused], key=launching._order)
    assert order == [refused, killed, crashed, lost, ended]
    explained = [launching._explain(3, cause, lambda: "its start", "again") for cause in (refused, killed, crashed, lost)]
    go_on = "the others were stopped. Continue from its start with: again"
    assert explained == [
        "no such image",
        f"rank 3 was killed by SIGKILL (by hand, or for want of memory); {go_on}",
        f"rank 3 ended with exit status 1, what it raised is above; {go_on}",
        f"rank 3 gave up: lost; {go_on}",
    ]


@pytest.mark.parametrize(
    ("others", "environment", "message"),
    [
        (["--devices", "3"], {}, "train.batch_size 4 does not divide into 3 devices x 1 micro-batches: use 3 or 6"),
        (["--devices", "2", "--device", "cuda"], {}, "2 processes need as many GPUs, and there are 1: use 1 or fewer"),
        (["--devices", "2"], {"TORCHELASTIC_RUN_ID": "x"}, "under torchrun: leave it out, and use its --nproc-per-node"),
    ],
    ids=str,
)
def test_what_cannot_be_started_is_refused(
    others: list[str],
    environment: dict[str, str],
    message: str,
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(cli.app, arguments(overrides, tmp_path / "run", *others))
    assert isinstance(result.exception, ConfigError)
    assert message in str(result.exception)
    assert not (tmp_path / "run").exists()


def out_of_memory(sample: Sample, generator: np.random.Generator) -> NoReturn:
    """In place of an augmentation; here, where a reader that is not forked finds it."""
    raise MemoryError


@pytest.mark.slow
def test_a_reader_that_fails_on_one_rank_ends_all_of_them(overrides: list[str], tmp_path: Path, together: Together) -> None:
    def work() -> tuple[str, str, int]:
        from ddcat_train.data import AUGMENTATIONS  # noqa: PLC0415 -- of the rank, not a copy that was pickled with this function

        if os.environ["RANK"] == "1":
            AUGMENTATIONS["plain"] = lambda **_: out_of_memory
        config = load_config("scenes-undefended", [*overrides, "train.workers=1", "data.skip_corrupt=true"])
        try:
            train(config, tmp_path / "run", device="cpu")
        except TrainError as error:
            return type(error).__name__, str(error), len(multiprocessing.active_children())
        raise AssertionError("it went on")

    (first, told, left), (second, line, also_left) = together(work)
    assert (first, second) == ("TrainError", "DataError")
    assert told == line
    assert re.search(r"JPEGImages/.*jpg could not be prepared \(MemoryError\): free some memory", line)
    assert (left, also_left) == (0, 0)
