"""The gate on images larger than a tile: it cuts them as the server does."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddcat.bundle import Bundle
from ddcat.engines import open_engine
from ddcat.tiles import Tiles, blended_bands
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import attack_pool
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.gate.verdict import conclude, passport_of
from ddcat_bench.inputs import check_sizes
from ddcat_bench.judged import judged
from ddcat_bench.tiled import as_served, tiled_model
from ddcat_export import exporting
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.synthetic.generate import write_scenes
from tests.bench.gates import speed_of

TILES = Tiles(side=64, overlap=16)


@pytest.mark.parametrize("size", [(64, 64), (90, 150), (30, 100)])
def test_a_model_in_tiles_gives_the_labels_of_the_rule_and_gradients(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = torch.nn.Conv2d(3, 4, 9, padding=4)
    images = torch.rand(2, 3, *size, requires_grad=True)
    logits = tiled_model(network, TILES)(images)
    with torch.no_grad():
        for image, blended in zip(images, logits, strict=True):

            def planes(places: list[tuple[int, int]], image: torch.Tensor = image) -> np.ndarray:
                return np.concatenate([network(image[None, :, y : y + 64, x : x + 64]).numpy() for y, x in places])

            labels = np.concatenate([band.labels for band in blended_bands(*size, TILES, planes)])
            assert np.array_equal(blended.argmax(0).numpy(), labels)
    logits.square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().amin(1).min() > 0  # each pixel counts


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("large")
    write_scenes(folder, train=1, val=3, size=(80, 96))
    return open_dataset("scenes", folder, "val")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, run_directory: Path) -> Bundle:
    return exporting.export(run_directory, tmp_path_factory.mktemp("tiles") / "bundle", tiles=64).bundle


@pytest.mark.slow
def test_the_gate_judges_scenes_as_a_server_cuts_them(
    bundle: Bundle, checkpoint: Checkpoint, large: Dataset, tmp_path: Path
) -> None:
    check_sizes(bundle, large, cut=True)
    with pytest.raises(BenchError, match="are of other sizes"):
        check_sizes(bundle, large)
    image = large.read(0).image
    job = GateJob(bundle, checkpoint, large, budget=Budget(steps=2, queries=20, query_stride=2))
    with open_engine(bundle, threads=1) as engine, judged(bundle, threads=1) as other:
        labels = as_served(engine, bundle.manifest).infer(image[None]).labels
        assert np.array_equal(other.predict(image[None]), labels)
        measured = attack_pool(job, engine, tmp_path / "work")
    assert measured.logit_error is None
    assert measured.pilot.twin_agreement > 0.999  # it cuts as the engine does
    assert measured.pool[0].disagreement.agreement > 0.999  # as the model with the same tiles
    limits = read_thresholds(DEFAULT, "fp32")
    result = conclude(job, measured, speed_of("bundle", 0.5), limits, seconds=1.0)
    assert result.tiles == bundle.manifest.preprocessing.tiles == Tiles(side=64, overlap=16)
    assert "in tiles, as a server does" in result.protocol
    assert passport_of(bundle, result).tiles == result.tiles


@pytest.mark.slow
def test_scenes_that_fit_into_a_tile_are_judged_as_ever(bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset) -> None:
    job = GateJob(bundle, checkpoint, scenes)
    assert (job.tiles, job.scores) == (None, True)
    assert not GateJob(bundle, checkpoint, replace(scenes, rule=scenes.rule.with_long_side(90))).scores
