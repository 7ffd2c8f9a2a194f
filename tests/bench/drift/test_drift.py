"""The drift figure's false alarms and what it sees: on answers whose drift is known, and what it refuses."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ddcat.engines import Outputs
from ddcat.engines.answer_statistics import Statistics, describe, psi
from ddcat.engines.golden import Example
from ddcat_bench.drift import measure as drift
from ddcat_bench.drift.measure import DriftResult, drift_markdown, measure_drift
from ddcat_bench.errors import BenchError
from ddcat_bench.inputs import main_branch
from ddcat_bench.result_io import read_result
from ddcat_serve.observe.drift_monitor import MIN_IMAGES, DriftMonitor
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from tests.commands import call, refusal


@pytest.fixture
def golden(monkeypatch: pytest.MonkeyPatch, scenes: Dataset) -> None:
    """The first scene is golden, with labels of one class; streams are short, and see the few scenes again and again."""
    image = scenes.read(0).image
    examples = (Example("adversarial.0", image, np.zeros(image.shape[:2], np.uint8)),)
    clean = (Example("clean.0", image, np.zeros(image.shape[:2], np.uint8)),)
    monkeypatch.setattr(drift, "read_golden", lambda bundle: (*clean, *examples))
    monkeypatch.setattr(drift, "FEWEST", 4)
    monkeypatch.setattr(drift, "STREAMS", 3)
    monkeypatch.setattr(drift, "LENGTH", 25)
    monkeypatch.setattr(drift, "STEPS", 2)


@pytest.mark.usefixtures("golden")
def test_answers_like_the_golden_ones_raise_no_alarm_and_others_do(
    make_bundle: Callable, make_engine: Callable, checkpoint: Checkpoint, scenes: Dataset
) -> None:
    network, bundle = main_branch(checkpoint, torch.device("cpu")), make_bundle()
    alike = make_engine(bundle, np.zeros_like)
    images, scores, rows = measure_drift(bundle, alike, network, scenes, epsilon=8 / 255)
    assert images == len(scenes) - 1  # the golden one is no sample
    assert [(row.reference, row.traffic, row.order) for row in rows] == [
        (reference, traffic, order)
        for reference in ("1 golden images", "2 clean images")
        for traffic in ("clean", "attack", "adaptive")
        for order in ("in order", "shuffled")
    ]
    assert all(row.above_large == row.above_small == row.ever == row.median == 0 for row in rows)
    assert len(set(scores.values())) == 1
    other = make_engine(bundle, np.ones_like)
    other.outputs = bundle.manifest.outputs  # labels alone: then the golden labels are those of the bundle
    rows = measure_drift(bundle, other, network, scenes, epsilon=8 / 255)[2]
    assert [row.above_large for row in rows] == [1] * 6 + [0] * 6  # far from the golden labels, and like themselves
    classes = len(scenes.classes)
    assert rows[0].median == pytest.approx(psi(np.eye(classes)[0], np.eye(classes)[1]))


@pytest.mark.usefixtures("golden")
def test_the_confidence_counts_as_it_does_in_the_server(
    make_bundle: Callable, make_engine: Callable, checkpoint: Checkpoint, scenes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, bundle = main_branch(checkpoint, torch.device("cpu")), make_bundle()
    engine = make_engine(bundle)
    clean = {scenes.read(place).image.tobytes() for place in range(len(scenes))}

    def infer(images: np.ndarray) -> Outputs:  # sure of clean images alone
        sure = 0.95 if images[0].tobytes() in clean else 0.05
        return Outputs(np.zeros(images.shape[:3], np.uint8), None, np.full(images.shape[:3], sure, np.float32))

    monkeypatch.setattr(engine, "infer", infer)
    rows = measure_drift(bundle, engine, network, scenes, epsilon=8 / 255)[2]
    assert [row.above_large for row in rows] == [0, 0, 1, 1, 1, 1] * 2


@pytest.mark.usefixtures("golden")
def test_the_adaptive_attack_keeps_the_areas(checkpoint: Checkpoint, scenes: Dataset) -> None:
    network = main_branch(checkpoint, torch.device("cpu"))
    image = torch.from_numpy(scenes.read(1).image.transpose(2, 0, 1).copy())[None].float() / 255
    with torch.no_grad():
        own = network(image).argmax(1)
        wanted = F.cross_entropy(network(image), own.flip(2))
        sent = drift._sent(network, image, 32 / 255)
        assert torch.equal(sent["clean"], image)
        assert F.cross_entropy(network(sent["adaptive"]), own.flip(2)) < wanted  # toward its mirror image
        assert F.cross_entropy(network(sent["attack"]), own) > F.cross_entropy(network(image), own)
    assert all((sent[name] - image).abs().max() <= 32 / 255 + 1e-6 for name in ("attack", "adaptive"))


def test_too_few_images_are_refused(
    make_bundle: Callable, make_engine: Callable, checkpoint: Checkpoint, scenes: Dataset
) -> None:
    bundle = make_bundle()
    with pytest.raises(BenchError, match=r"0 golden images, and .* 5 others"):
        measure_drift(bundle, make_engine(bundle), main_branch(checkpoint, torch.device("cpu")), scenes, epsilon=0.03)


@pytest.mark.usefixtures("golden")
def test_the_command(make_bundle: Callable, make_engine: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle, out = make_bundle(), tmp_path / "out"
    monkeypatch.setattr("ddcat.engines.open_engine", make_engine)
    assert "--epsilon 9/0: use a number above 0" in refusal("ddcat", "drift", bundle.path, "--epsilon", "9/0", "--out", out)
    done = call("ddcat", "drift", bundle.path, "--epsilon", "8/255", "--out", out)
    assert done.returncode == 0
    result = read_result(out / "drift.json", DriftResult)
    assert (out / "drift.md").read_text() == drift_markdown(result)
    assert drift_markdown(result) in done.stdout
    assert result.epsilon == pytest.approx(8 / 255)
    assert {row.traffic for row in result.rows} == {"clean", "attack", "adaptive"}


def answers(*kinds: int) -> list[Statistics]:
    """Answers that are all of one class."""
    return [describe(np.full((64, 64), kind, np.uint8), 3) for kind in kinds]


def test_the_figure_is_that_of_the_server_from_the_same_image_on() -> None:
    reference, stream = answers(0, 0, 1), answers(*[0] * 15, *[1] * 30)
    readings = drift._readings(DriftMonitor(3, reference), stream)
    assert len(readings) == len(stream) - MIN_IMAGES + 1
    served, told = DriftMonitor(3, reference), []
    for answer in stream:  # as they come to a server
        kind = int(answer.classes.argmax())
        looked = served.observe(Outputs(np.full((1, 64, 64), kind, np.uint8)))
        assert looked is not None
        looked.result(10)
        told.append(max(served.totals().drift.values(), default=None))
    served.close()
    assert readings == pytest.approx(told[MIN_IMAGES - 1 :])


def test_what_comes_in_parts_rings_in_order_and_not_shuffled() -> None:
    drive = answers(*[0] * 100, *[1] * 100)
    rows = {row.order: row for row in drift._rows("all", drive, {"clean": drive}, 3)}
    assert rows["in order"].ever == 1
    assert rows["in order"].above_large > 0.3
    assert rows["shuffled"].above_large < 0.1
    assert rows["shuffled"].median < rows["in order"].median


@pytest.mark.parametrize("order", ["in order", "shuffled"])
def test_streams_are_of_the_given_answers(order: Any) -> None:
    given = answers(*range(3), *range(2))
    streams = list(drift._streams(given, order))
    assert (len(streams), {len(stream) for stream in streams}) == (drift.STREAMS, {drift.LENGTH})
    for stream in streams:
        places = [next(place for place, one in enumerate(given) if one is answer) for answer in stream]
        assert sorted(places) == sorted([*range(5)] * (drift.LENGTH // 5))
        if order == "in order":
            assert all((place + 1) % 5 == after for place, after in pairwise(places))
