"""A run: what it leaves, how it stops, and that it continues to the bit."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from ddcat import cli
from ddcat.metrics import miou
from ddcat_train import cli as cli_module
from ddcat_train.attacks import bim
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.choices import MethodName
from ddcat_train.cli import app as train_app
from ddcat_train.config import load_config
from ddcat_train.data.loader import Batch
from ddcat_train.errors import CheckpointError, ConfigError, DataError
from ddcat_train.evaluation import evaluate
from ddcat_train.run import trainer as trainer_module
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer
from tests.train.runs import Command, Finished, assert_same, stop_after


def weights(run: Path) -> dict[str, Tensor]:
    return dict(load_checkpoint(run / LAST).tensors)


@pytest.mark.parametrize("method", ["undefended", pytest.param("sat", marks=pytest.mark.slow), "ddcat"])
def test_a_run_leaves_all_that_later_stages_need(method: str, tiny_run: list[str], finished: Finished) -> None:
    config = load_config(f"scenes-{method}", tiny_run)
    run = finished(config)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 10))
    assert [line["step"] for line in lines if "val/clean" in line] == [6, 9]
    terms = {"main", "auxiliary", "mask", "deep"} & steps[0].keys()
    assert terms == {"main", "deep"} | ({"auxiliary", "mask"} if method == "ddcat" else set())
    for line in steps:
        weighed = sum(line[term] * (0.4 if term == "deep" else 1) for term in terms)
        assert line["loss"] == pytest.approx(weighed, rel=1e-5)
        assert line["gradient_norm"] > 0
        assert method != "ddcat" or 0 <= line["mask_share"] <= 0.5
    assert load_config(str(run / "config.yaml")) == config
    assert list((run / "tensorboard").glob("events.*"))
    best, last = load_checkpoint(run), load_checkpoint(run / LAST)
    assert best.path.name == BEST
    assert last.description.step == 9
    assert last.description.best == pytest.approx(max(line.get("val/selection", 0) for line in lines))
    assert not best.part("optimizer.")
    assert not best.segmenter().training


def test_a_signal_leaves_a_run_that_resumes_to_the_same_bits(
    tiny_run: list[str], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("scenes-sat", tiny_run)
    before = signal.getsignal(signal.SIGINT)
    stop_after(5, config, tmp_path / "stopped", monkeypatch, signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    torch.rand(7)  # whatever happens between two sessions
    outcome = train(config, tmp_path / "stopped", resume=True)
    assert (outcome.step, outcome.steps, outcome.signal) == (9, 9, None)
    assert_same(tmp_path / "stopped", finished(config))


def test_the_command_says_how_to_go_on(tiny_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = [part for override in [*tiny_run, "train.epochs=4000"] for part in ("--set", override)]
    command = Command(cli.train, ["scenes-undefended", *options, "--out", str(run)], tmp_path / "printed")
    while not (run / "log.jsonl").is_file() or "step" not in (run / "log.jsonl").read_text():
        time.sleep(0.05)
        assert command.process.is_alive()
    command.process.terminate()
    status, printed = command.end()
    assert status == 128 + signal.SIGTERM
    assert printed[-1].endswith(f"ddcat train {run}/config.yaml --resume")
    assert (run / LAST).is_file()


def test_the_command_says_what_comes_next(tiny_run: list[str], tmp_path: Path) -> None:
    sets = [part for override in [*tiny_run, "train.epochs=1", "train.workers=0"] for part in ("--set", override)]
    result = CliRunner().invoke(train_app, ["scenes-undefended", *sets, "--out", str(tmp_path / "run")], catch_exceptions=False)
    done, summary, following = result.stdout.splitlines()[-3:]
    assert done.startswith(f"{tmp_path}/run: 3 steps; clean ")
    assert (summary, following) == (f"summary: {tmp_path}/run/summary.md", f"next: ddcat attack {tmp_path}/run --suite paper")
    assert cli_module._reached(tmp_path / "run") == "step 3"
    assert cli_module._reached(tmp_path) == "its start, for no checkpoint was written yet,"


def test_a_run_is_not_overwritten_nor_continued_as_another(tiny_run: list[str], finished: Finished, tmp_path: Path) -> None:
    config = load_config("scenes-undefended", tiny_run)
    run = finished(config)
    with pytest.raises(ConfigError, match="--resume"):
        train(config, run)
    with pytest.raises(ConfigError, match=r"another configuration \(optim.lr, seed differ\)"):
        train(load_config("scenes-undefended", [*tiny_run, "optim.lr=0.5", "seed=1"]), run, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("")
    with pytest.raises(ConfigError, match="is not empty"):
        train(config, tmp_path / "mine")
    assert os.listdir(tmp_path / "mine") == ["file"]


_ADAMW = "optim={name: adamw, lr: 0.001, warmup: 0.5, layer_decay: 0.8, clip_norm: 0.5}"
# Each method in a run of its own, and each option in another with a method that takes it.
QUICK = [
    ("undefended", ()),
    ("sat", ("attack.start=random", "model.context=aspp", "method.deep_weight=0")),
    ("ddcat", ("method.update=two-step", "method.split=global", "train.accumulate=2")),
    ("ddcat", (_ADAMW, "method.update=two-step", "train.precision=bf16")),
]
SLOW = [
    *((method, ()) for method in get_args(MethodName) if method != "undefended"),
    ("trades", ("method.beta=1",)),
    ("sat", ("attack.steps=1", "attack.alpha=eps/n")),
    ("sat", ("model.context=aspp", "method.adversarial_share=0.75")),
    ("ddcat", ("model.context=aspp", "attack.start=random")),
    ("ddcat", ("method.predicted_mask=algorithm-2",)),
    ("ddcat", ("method.mask_loss_on_ignored=false",)),
    ("ddcat-n", ("method.adversarial_share=1", "attack.start=lower")),
    ("pgd-at", (_ADAMW, "train.ema=0.9")),
    ("ddcat", ("model.context=upernet", "model.context_width=8")),
    ("trades", ("model.context=deeplabv3plus", "model.context_width=8", "model.align_corners=false")),
    ("sat", ("model.context=segformer", "model.context_width=8", "model.output_stride=32")),
]
CHOICES = [*QUICK, *(pytest.param(*choice, marks=pytest.mark.slow) for choice in SLOW)]


@pytest.mark.parametrize(
    ("method", "overrides"), CHOICES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_choice_trains_and_resumes_to_the_same_bits(
    method: str, overrides: tuple[str, ...], tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(f"scenes-{method}", [*tiny_run, "train.epochs=1", "train.evaluate_images=2", *overrides])
    train(config, tmp_path / "whole")
    stop_after(2, config, tmp_path / "stopped", monkeypatch)
    assert train(config, tmp_path / "stopped", resume=True).step == 3
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    heads = {key.split(".")[2] for key in weights(tmp_path / "whole") if key.startswith("model.heads.")}
    assert ("deep" in heads) == ("method.deep_weight=0" not in overrides)


@pytest.mark.parametrize(("where", "step"), [("evaluate", 6), ("panels", 9)])
def test_a_run_that_is_killed_in_an_evaluation_goes_on_with_it(
    where: str, step: int, tiny_run: list[str], finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("scenes-sat", tiny_run)
    part, apply, applied = getattr(Trainer, where), Trainer.train_step, []

    def killed(self: Trainer) -> object:
        if self.step == step:
            raise KeyboardInterrupt
        return part(self)

    def counted(self: Trainer, batch: Batch) -> object:
        applied.append(self.step)
        return apply(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, where, killed)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "killed")
    found = load_checkpoint(tmp_path / "killed" / LAST).description
    assert (found.step, found.judged) == (step, False)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", counted)
        assert train(config, tmp_path / "killed", resume=True).step == 9
    assert applied == list(range(step, 9))
    assert_same(tmp_path / "killed", finished(config))
    for name in (LAST, BEST):
        one, other = (load_checkpoint(run / name).description for run in (finished(config), tmp_path / "killed"))
        assert (one.scores, one.best, one.judged) == (other.scores, other.best, True)


def test_a_run_resumes_without_the_weights_that_it_began_with(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Trainer(load_config("scenes-undefended", tiny_run)).save(tmp_path / "begun.safetensors", resumable=False)
    config = load_config(
        "scenes-undefended", [*tiny_run, "train.epochs=1", f"model.pretrained={tmp_path / 'begun.safetensors'}"]
    )
    train(config, tmp_path / "whole")
    stop_after(2, config, tmp_path / "stopped", monkeypatch)
    (tmp_path / "begun.safetensors").unlink()
    assert train(config, tmp_path / "stopped", resume=True).step == 3
    assert_same(tmp_path / "stopped", tmp_path / "whole")
    with pytest.raises(CheckpointError, match=r"begun\.safetensors"):
        train(config, tmp_path / "new")


def test_evaluation_is_that_of_attacks_made_one_by_one(tiny_run: list[str], tmp_path: Path) -> None:
    trainer = Trainer(load_config("scenes-undefended", tiny_run))
    scored = evaluate(
        trainer._network, trainer._val, epsilon=0.03, alpha=0.01, steps=(0, 2, 3), batch_size=3, device=torch.device("cpu")
    )
    assert scored.names == [pair.name for pair in trainer._val.pairs]
    for n in (0, 2, 3):
        for index in range(4):
            sample = trainer._val.read(index)
            image = torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255
            labels = torch.from_numpy(sample.labels)[None].long()
            trainer._network.eval()
            found = trainer._network(bim(trainer._network, image, labels, steps=n)).argmax(1)
            valid = labels != 255
            right = [int(((found == k) & (labels == k) & valid).sum()) for k in range(6)]
            assert scored.counts[n][index][:, 0].tolist() == pytest.approx(right, abs=2)  # batched sums round otherwise
    scores = trainer.evaluate()
    assert scores["selection"] == (scores["clean"] + scores["attacked"]) / 2
    assert scores["clean"] == pytest.approx(miou(scored.counts[0].sum(0)))


def test_a_split_without_labels_has_no_score(tiny_run: list[str]) -> None:
    trainer = Trainer(load_config("scenes-undefended", tiny_run))
    trainer._val = replace(trainer._val, decode=lambda indices: np.full_like(indices, 255))
    told = rf"the val split at {trainer._val.root} has no score: every pixel of the images that are evaluated \(4\) is ignored"
    with pytest.raises(DataError, match=told):
        trainer.evaluate()


def test_a_cuda_device_that_is_not_there_is_said_to_be_missing(tiny_run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        Trainer(load_config("scenes-undefended", tiny_run), device="cuda")


def test_a_batch_of_more_images_than_there_are_is_told(tiny_run: list[str]) -> None:
    told = " (some images more than once in each), fp32 on cpu"
    assert (
        Trainer(load_config("scenes-undefended", [*tiny_run, "train.batch_size=100"]))
        .summary()
        .endswith(f" steps of 100{told}")
    )
    assert "more than once" not in Trainer(load_config("scenes-undefended", tiny_run)).summary()
