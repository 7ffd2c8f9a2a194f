"""The cost of the sweep beside a plain one with the same result."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.paper import sweep_speed
from bench.paper.reference_networks import plain_network
from bench.paper.sweep_speed import measure, plain_sweep, sweep_markdown
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.inputs import main_branch
from ddcat_bench.result_io import read_result
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches

CPU = torch.device("cpu")


def test_both_sweeps_have_the_same_labels(checkpoint: Checkpoint, scenes: Dataset) -> None:
    [(_, images, labels)] = evaluation_batches(scenes, batch_size=5)
    ours, plain = main_branch(checkpoint, CPU).double(), plain_network(checkpoint, CPU).double()
    one = sweep_speed._our_sweep(ours, images.double(), labels)
    assert one.shape == (8, 5, 40, 48)
    assert (one == plain_sweep(plain, images.double(), labels)).float().mean() > 0.999
    assert all(parameter.grad is not None for parameter in plain.parameters())  # what ours spares
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.slow
def test_the_measurement(checkpoint: Checkpoint, scenes: Dataset) -> None:
    told: list[int] = []
    result = measure(AttackJob(checkpoint, scenes, batch_size=4), repeats=3, advance=told.append)
    assert sum(told) == 8
    ratios = np.divide(result.plain.seconds, result.ours.seconds)
    assert (result.lower_quartile, result.median, result.upper_quartile) == pytest.approx(
        tuple(np.quantile(ratios, (0.25, 0.5, 0.75)))
    )
    assert (result.lowest, result.highest) == pytest.approx((ratios.min(), ratios.max()))
    assert result.median > 1.5  # 28 steps with all gradients against 7 without
    assert result.agreement > 0.99
    assert 0 < result.sea_seen <= 1
    assert f"**{result.median:.2f}**" in sweep_markdown(result)


def test_what_sea_need_not_see(checkpoint: Checkpoint, scenes: Dataset) -> None:
    evaluation = AttackJob(checkpoint, scenes)
    [(_, images, labels)] = evaluation_batches(scenes, batch_size=5)
    network = main_branch(checkpoint, CPU)
    assert sweep_speed._sea_seen(network, evaluation, images, labels) > 0.3
    assert sweep_speed._sea_seen(network, evaluation, images, (labels + 1).clamp(max=5)) <= 1
    nothing = torch.full_like(labels, 255)  # no pixel is right, so that every image is fooled from the last stage on
    assert sweep_speed._sea_seen(network, evaluation, images, nothing) < 0.7


def test_the_script(run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    out = tmp_path / "measured"
    line = f"sweep_speed.py {run_directory} --repeats 1 --batch 1 --device cpu --out {out}"
    monkeypatch.setattr(sys, "argv", line.split())
    sweep_speed.main()
    assert sorted(file.name for file in out.iterdir()) == ["attack-measure.json", "attack-measure.md"]
    assert read_result(out / "attack-measure.json", sweep_speed.SweepResult).batch == 1
    assert "Ours is faster by" in capsys.readouterr().out
