"""What can befall a run: it ends with one line that says what to do, and goes on from there as if nothing had happened."""

import dataclasses
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddcat_train import cli
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.data.loader import Batch
from ddcat_train.errors import TrainError
from ddcat_train.loop import train
from ddcat_train.methods import Portion, Update
from ddcat_train.trainer import Trainer

FORK = multiprocessing.get_context("fork")  # torch is there already: to import it takes longer than most of these tests


@pytest.fixture
def config(tiny_run: list[str]) -> Config:
    """Of 9 steps, judged after 6 and 9."""
    return load_config("scenes-clean", [*tiny_run, "train.workers=0"])


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
        sys.argv = ["ddcat-train", *map(str, arguments)]
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

    def spoilt(segmenter: Any, portion: Portion, **options: Any) -> list[Update]:
        (update,) = step(segmenter, portion, **options)
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
    run, apply = tmp_path / "run", Trainer.apply
    seen: dict[int, tuple[str, ...]] = {}
    kept: list[bytes] = []

    def spoilt(self: Trainer, batch: Batch) -> Any:
        seen[self.step + 1] = batch.names
        if self.step == 4:
            kept.extend(path.read_bytes() for path in [run / LAST] if path.is_file())
            batch = spoil(self, batch, monkeypatch)
        return apply(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "apply", spoilt)
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
    for method in ("clean", "ddcat"):
        run = tmp_path / method
        line = assert_refused(*command(tmp_path / "printed", f"scenes-{method}", *sets, "--out", run, "--save-every", 0))
        assert str(run / "nonfinite.json") in line
        last = load_checkpoint(run / LAST)
        assert all(value.isfinite().all() for value in last.tensors.values() if value.is_floating_point())
        assert last.description.step == json.loads((run / "nonfinite.json").read_text())["step"] - 1
