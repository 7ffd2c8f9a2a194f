"""What a run is resumed with, and that one training at a time works in its folder."""

import os
import shutil
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddcat.errors import WriteError
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint, read_description
from ddcat_train.config import Config, dump_config, load_config
from ddcat_train.errors import ConfigError, TrainError
from ddcat_train.run import trainer as training
from ddcat_train.run.loop import train
from ddcat_train.run.run_folder import MAY_CHANGE, check_run, locked
from ddcat_train.run.trainer import Trainer
from tests.train.ranks import FORK
from tests.train.runs import Finished


@pytest.fixture
def config(tiny_run: list[str]) -> Config:
    return load_config("scenes-undefended", [*tiny_run, "train.evaluate_every=1"])


@pytest.fixture
def done(config: Config, finished: Finished) -> Path:
    return finished(config)


def copied(run: Path, to: Path) -> Path:
    to.mkdir()
    for name in ("config.yaml", LAST):
        (to / name).write_bytes((run / name).read_bytes())
    return to


def with_values(config: Config, **values: object) -> Config:
    """Change values, `section__key=value`."""
    tree = config.model_dump()
    for name, value in values.items():
        section, _, key = name.partition("__")
        tree |= {section: tree[section] | {key: value}} if key else {section: value}
    return Config.model_validate(tree)


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"optim__lr": 0.5, "train__epochs": 4}, r"optim\.lr, train\.epochs"),
        ({"train__batch_size": 2}, r"train\.batch_size"),
        ({"augment__crop": 40}, r"augment\.crop"),
        ({"attack__epsilon": 0.1}, r"attack\.epsilon"),
        ({"seed": 1}, "seed"),
        ({"model__width": 8}, r"model\.width"),
        ({"method__name": "sat"}, r"method\.name"),
        ({"train__accumulate": 2}, r"train\.accumulate"),
    ],
)
def test_a_configuration_that_was_edited_is_held_against_the_checkpoint(
    values: dict[str, object], keys: str, done: Path, tmp_path: Path
) -> None:
    run = copied(done, tmp_path / "run")
    edited = with_values(load_config(str(run / "config.yaml")), **values)
    (run / "config.yaml").write_text(dump_config(edited))
    before = (run / LAST).read_bytes()
    with pytest.raises(ConfigError, match=rf"begun with another configuration \({keys} differs?\): set (it|them) back"):
        train(edited, run, resume=True)
    assert (run / LAST).read_bytes() == before


def test_a_name_that_is_too_long_for_a_folder_is_one_line(config: Config, tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="File name too long"):
        check_run(config, tmp_path / ("x" * 5000), resume=False)


def test_want_of_memory_for_a_checkpoint_is_one_line(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Trainer, "save", save)
    with pytest.raises(TrainError, match=r"out of memory in saving step \d+ .*continue with --resume"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "where"), [("write_summary", r"writing .*/run/summary\.md"), ("RunLog.write", "the training")]
)
def test_want_of_memory_for_what_is_told_of_a_run_is_one_line(
    part: str, where: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("could not create a primitive")

    monkeypatch.setattr(f"ddcat_train.run.loop.{part}", fail)
    line = rf"^out of memory in {where} \(could not create a primitive\): free some memory, and continue with --resume$"
    with pytest.raises(TrainError, match=line):
        train(config, tmp_path / "run")
    monkeypatch.undo()
    assert train(config, tmp_path / "run", resume=True).step == 9
    assert (tmp_path / "run/summary.md").is_file()


def test_the_line_says_what_to_set_back_to(done: Path) -> None:
    edited = with_values(load_config(str(done / "config.yaml")), optim__lr=0.5)
    with pytest.raises(ConfigError, match=r"\(optim\.lr differs\): set it back \(optim\.lr to 0\.01\), or begin a new run"):
        check_run(edited, done, resume=True)


def test_fewer_epochs_than_are_done_are_refused(done: Path) -> None:
    begun = load_config(str(done / "config.yaml"))
    with pytest.raises(ConfigError, match=r"is finished with 3 epochs: --set train\.epochs takes a larger number"):
        check_run(with_values(begun, train__epochs=1), done, resume=True, more_epochs=True)


def test_what_changes_nothing_that_is_learnt_may_change(config: Config, done: Path, tmp_path: Path) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    others = {"evaluate_batch": 1, "evaluate_every": 2, "evaluate_images": 1, "workers": 1}
    changed = with_values(config, data__val_long_side=40, **{f"train__{key}": value for key, value in others.items()})
    assert {f"train.{key}" for key in others} | {"data.val_long_side"} <= MAY_CHANGE
    expected = load_checkpoint(run / LAST)
    assert train(changed, run, resume=True).step == 9
    found = load_checkpoint(run / LAST)
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.tensors.items())


def test_a_score_of_another_measure_is_not_compared(config: Config, done: Path) -> None:
    begun = Trainer(with_values(config, train__epochs=4, train__evaluate_images=1))
    begun.restore(load_checkpoint(done / LAST))
    assert begun.best is None
    assert any("scores from here on cannot be compared" in note for note in begun.notes)


def test_a_finished_run_takes_more_epochs_when_asked(
    config: Config, done: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(done, tmp_path / "run")
    outcome = train(with_values(config, train__epochs=4), run, resume=True, more_epochs=True)
    assert (outcome.step, outcome.steps) == (12, 12)
    assert "train.epochs 3 -> 4: the learning rate rises from" in capfd.readouterr().err
    description = read_description(run / LAST)
    assert (description.config.train.epochs, description.steps) == (4, 12)
    assert len([line for line in (run / "log.jsonl").read_text().splitlines() if '"lr"' in line]) == 12
    train(load_config(str(run / "config.yaml")), run, resume=True)  # from here on it is a run of that length


def test_an_unfinished_run_takes_none(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, apply = tmp_path / "run", Trainer.train_step

    def fail(self: Trainer, batch: object) -> object:
        if self.step == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return apply(self, batch)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train_step", fail)
    with pytest.raises(TrainError, match=r"out of memory in step 5 \(CUDA out of memory\): continue on more devices"):
        train(config, run)
    with pytest.raises(ConfigError, match="is at step 3 of 9: a finished run can be given more epochs"):
        train(with_values(config, train__epochs=4), run, resume=True, more_epochs=True)
    monkeypatch.undo()
    assert train(config, run, resume=True).step == 9


def test_out_of_memory_in_an_evaluation_the_run_goes_on_with_less(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(training, "evaluate", fail)
    with pytest.raises(TrainError, match=r"out of memory in the evaluation after step 3 .* a smaller train\.evaluate_batch"):
        train(config, run)
    monkeypatch.undo()
    assert train(with_values(config, train__evaluate_batch=1), run, resume=True).step == 9
    assert (run / BEST).is_file()


def hold(run: Path, ready: Connection) -> None:
    with locked(run):
        child = os.fork()  # as a reader is, which may outlive it
        if not child:
            signal.pause()
        ready.send(child)
        signal.pause()


@pytest.fixture
def held(tmp_path: Path) -> Callable[[], tuple[BaseProcess, int]]:
    def begin() -> tuple[BaseProcess, int]:
        here, there = FORK.Pipe()
        holder = FORK.Process(target=hold, args=(tmp_path / "run", there), daemon=True)
        holder.start()
        return holder, here.recv()

    return begin


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_training_in_a_folder_is_refused_until_the_first_has_ended(
    resume: bool, held: Callable[[], tuple[BaseProcess, int]], config: Config, done: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    if resume:
        shutil.copytree(done, run)
    before = sorted(path.name for path in run.iterdir()) if resume else []
    holder, child = held()
    try:
        with pytest.raises(ConfigError, match=r"another process is training in .*run: wait until it has ended"):
            train(config, run, resume=resume)
        assert sorted(path.name for path in run.iterdir() if path.name != ".lock") == [n for n in before if n != ".lock"]
        holder.kill()
        holder.join()
        with locked(run):  # although its child lives on
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_name_that_is_not_utf_8_is_refused_at_once(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--out .*caf\\xe9 is not UTF-8"):
        train(config, tmp_path / os.fsdecode(b"caf\xe9"))


def test_images_whose_names_are_not_utf_8_are_refused_before_the_first_step(config: Config, tmp_path: Path) -> None:
    root = tmp_path / "data"
    for kind, name in (("images", "RGB"), ("labels", "L")):
        for split in ("train", "val"):
            (root / kind / split).mkdir(parents=True)
            Image.new(name, (48, 48)).save(root / kind / split / "one.png")
        (root / kind / "train/one.png").rename(root / kind / "train" / os.fsdecode(b"caf\xe9.png"))
    (root / "classes.yaml").write_text("names: [ground, object]\n")
    with pytest.raises(TrainError, match="is not UTF-8"):
        train(with_values(config, data__root=root, data__name="folder"), tmp_path / "run")
    assert not (tmp_path / "run" / LAST).exists()
