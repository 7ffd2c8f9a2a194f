"""What the sweep costs beside a plain one that finds the same."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ddcat_bench import cli
from ddcat_bench.attack import measure as attack_measure
from ddcat_bench.attack.evaluation import Evaluation
from ddcat_bench.attack.measure import measure, plain_sweep, sweep_markdown
from ddcat_bench.cli import app
from ddcat_bench.errors import BenchError
from ddcat_bench.result_files import read_result
from ddcat_bench.subjects import main_branch
from ddcat_bench.timing.plain import plain_network
from ddcat_bench.timing.results import SweepResult
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from ddcat_train.data.loader import evaluation_batches

CPU = torch.device("cpu")


def test_both_sweeps_find_the_same(checkpoint: Checkpoint, scenes: Dataset) -> None:
    [(_, images, labels)] = evaluation_batches(scenes, batch_size=5)
    ours, plain = main_branch(checkpoint, CPU).double(), plain_network(checkpoint, CPU).double()
    one = attack_measure._our_sweep(ours, images.double(), labels)
    assert one.shape == (8, 5, 40, 48)
    assert (one == plain_sweep(plain, images.double(), labels)).float().mean() > 0.999
    assert all(parameter.grad is not None for parameter in plain.parameters())  # what ours spares
    assert not any(parameter.requires_grad for parameter in ours.parameters())


def test_the_measurement(checkpoint: Checkpoint, scenes: Dataset) -> None:
    told: list[int] = []
    result = measure(Evaluation(checkpoint, scenes, batch_size=4), repeats=3, advance=told.append)
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
    evaluation = Evaluation(checkpoint, scenes)
    [(_, images, labels)] = evaluation_batches(scenes, batch_size=5)
    network = main_branch(checkpoint, CPU)
    assert attack_measure._sea_seen(network, evaluation, images, labels) > 0.3
    assert attack_measure._sea_seen(network, evaluation, images, (labels + 1).clamp(max=5)) <= 1
    nothing = torch.full_like(labels, 255)  # no pixel is right, so that every image is beaten from the last stage on
    assert attack_measure._sea_seen(network, evaluation, images, nothing) < 0.7


def test_the_option(run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.attack(run_directory, measure=True, repeats=1, batch=1, device="cpu", out=tmp_path / "measured")
    assert sorted(file.name for file in (tmp_path / "measured").iterdir()) == ["attack-measure.json", "attack-measure.md"]
    result = read_result(tmp_path / "measured/attack-measure.json", SweepResult)
    assert result.batch == 1
    assert "Ours is faster by" in capsys.readouterr().out


@pytest.mark.parametrize("option", [["--suite", "sea"], ["--seed", "1"], ["--devices", "2"]])
def test_what_it_has_no_use_for_is_refused(run_directory: Path, option: list[str]) -> None:
    refused = CliRunner().invoke(app, ["attack", str(run_directory), "--measure", *option]).exception
    assert isinstance(refused, BenchError)
    assert str(refused).startswith(f"{option[0]}: --measure times BIM")
