"""Images that cannot be read, or are not those that a run was begun with."""

import json
import multiprocessing
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.data.loader import Batch
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.errors import ConfigError, DataError
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer
from tests.train.runs import Finished, assert_same, stop_after


@pytest.fixture
def config(tiny_run: list[str], scenes: Path) -> Config:
    """Of 9 steps, judged after 6 and 9."""
    return load_config("scenes-undefended", [*tiny_run, "train.workers=0", f"data.root={scenes}"])


@pytest.fixture
def whole(tiny_run: list[str], finished: Finished) -> Path:
    """What it comes to where nothing changes."""
    return finished(load_config("scenes-undefended", [*tiny_run, "train.workers=0"]))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", train=10, val=4, size=(48, 48))
    return tmp_path / "scenes"


def over(config: Config, root: Path, **data: object) -> Config:
    return config.model_copy(update={"data": config.data.model_copy(update={"root": root, **data})})


def read_by(workers: int, config: Config) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update={"workers": workers})})


def of_step(config: Config, step: int) -> Path:
    """An image that is first used at a step of the first epoch."""
    trainer = Trainer(config)
    files = {pair.name: pair.image for pair in trainer.data.pairs}
    names = [batch.names for batch, _ in zip(trainer.batches(), range(step), strict=False)]
    (name, *_) = set(names[-1]) - {name for before in names[:-1] for name in before}
    return files[name]


def test_a_corrupt_image_in_the_middle_of_an_epoch_is_named_and_nothing_is_lost(
    config: Config, whole: Path, tmp_path: Path
) -> None:
    config = read_by(2, config)
    image, run = of_step(config, 3), tmp_path / "run"
    content = image.read_bytes()
    image.write_bytes(content[:200])
    with pytest.raises(DataError, match=r"replace it") as caught:
        train(config, run)
    assert str(image) in str(caught.value)
    assert load_checkpoint(run / LAST).description.step == 2
    image.write_bytes(content)
    train(config, run, resume=True)
    assert_same(run, whole)


def test_corrupt_images_are_skipped_when_asked_and_counted(
    config: Config, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = read_by(2, over(config, scenes, skip_corrupt=True))
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
    config = read_by(1, config)
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
    config: Config, whole: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
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
            assert len(set(re.findall(r"\b[0-9a-f]{12}\b", told))) == 2
            assert "put the images back as they were, or begin a new run with another --out" in told
        path.write_text(before)
    train(config, run, resume=True)
    assert_same(run, whole)


def test_masks_that_have_another_meaning_are_not_resumed_with(
    config: Config, whole: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, file = tmp_path / "run", scenes / "classes.yaml"
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
    assert_same(run, whole)


def test_how_images_are_come_by_may_change_between_sessions(
    config: Config, whole: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    stop_after(4, config, run, monkeypatch)
    moved = read_by(2, over(config, scenes.rename(tmp_path / "moved"), skip_corrupt=True))
    train(moved, run, resume=True)
    expected, found = (load_checkpoint(folder / LAST) for folder in (whole, run))
    assert all(torch.equal(expected.tensors[name], value) for name, value in found.tensors.items())
    assert load_config(str(run / "config.yaml")) == found.description.config == moved
    with pytest.raises(ConfigError, match=r"another configuration \(data.long_side differs\)"):
        train(over(config, tmp_path / "moved", long_side=40), run, resume=True)
