import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddcat_bench import cli
from ddcat_bench.errors import BenchError
from ddcat_bench.results import SpeedResult, read_result, to_json
from ddcat_bench.speed import draw_inputs, interleave, measure, ratios, timing
from ddcat_bench.tables import speed_markdown
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset

SECONDS = st.floats(1e-4, 100)


class Clock:
    """Time passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 5.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def worker(self, name: str, seconds: list[float]) -> Callable[[np.ndarray], None]:
        left = iter(seconds)

        def work(batch: np.ndarray) -> None:
            self.calls.append((name, int(batch.max())))
            self.now += next(left)

        return work


def test_the_two_take_turns_on_the_same_batches_and_warm_up_is_left_out() -> None:
    clock = Clock()
    batches = [np.full((1, 2, 2, 3), index, np.uint8) for index in range(4)]
    pairs = interleave(clock.worker("a", [9, 1, 2, 3]), clock.worker("b", [9, 10, 20, 30]), batches, warm_up=1, clock=clock)
    assert clock.calls == [(name, index) for index in range(4) for name in ("a", "b")]
    assert pairs == [(1, 10), (2, 20), (3, 30)]


def test_ratios_by_hand() -> None:
    # medians 2 and 4; ratios of the pairs 1/8, 2, 3/4
    assert ratios([(1, 8), (2, 1), (3, 4)]) == (0.5, 0.75)


@given(st.lists(SECONDS, min_size=1, max_size=40), st.floats(0.1, 10))
def test_both_ratios_of_proportional_times_are_their_factor(seconds: list[float], factor: float) -> None:
    assert ratios([(factor * value, value) for value in seconds]) == (pytest.approx(factor), pytest.approx(factor))


@given(st.lists(SECONDS, min_size=5, max_size=60))
def test_timing_keeps_every_call(seconds: list[float]) -> None:
    found = timing(seconds)
    assert found.seconds == tuple(seconds)
    assert min(seconds) <= found.lower_quartile <= found.median <= found.upper_quartile <= max(seconds)


def test_quartiles_by_hand() -> None:
    found = timing([5, 1, 4, 2, 3])
    assert (found.lower_quartile, found.median, found.upper_quartile) == (2, 3, 4)


@pytest.mark.parametrize(
    ("seconds", "stable"),
    [
        ([1.0] * 10, True),
        ([9.0, 9, 5, 5, 1, 1, 1, 1, 1, 1], True),  # the first windows do not count
        ([1.0] * 8 + [1.1, 1.1], True),
        ([1.0] * 8 + [1.11, 1.11], False),
        ([1.0] * 4 + [1.2, 1.2] + [1.0] * 4, False),
        ([1.0] * 6 + [1, 1, 50, 1, 1, 1, 1, 1, 1], True),  # one slow call does not move a window's median
    ],
)
def test_stability(seconds: list[float], stable: bool) -> None:
    assert timing(seconds).stable is stable


def test_a_result_from_a_clock_that_is_known(
    make_bundle: Callable, make_engine: Callable, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path
) -> None:
    bundle = make_bundle()
    readings = iter(np.cumsum([0, 2, 4] + [100, 2, 4] * 20).tolist())  # engine 2 s, PyTorch 4 s, a pause between pairs
    inputs = draw_inputs(bundle, scenes, repeats=10, batch=2)
    result = measure(bundle, make_engine(bundle), checkpoint, inputs, threads=1, clock=lambda: next(readings))
    assert result.engine.seconds == (2,) * 10
    assert result.pytorch.seconds == (4,) * 10
    assert (result.ratio_of_medians, result.median_of_ratios) == (0.5, 0.5)
    assert (result.batch, result.height, result.width, result.threads, result.warm_up) == (2, 40, 48, 1, 3)
    assert result.environment.threads == 1
    (tmp_path / "speed.json").write_text(to_json(result))
    assert read_result(tmp_path / "speed.json", SpeedResult) == result
    text = speed_markdown(result)
    assert "**0.500**" in text
    assert "| engine | 2000.00 | 2000.00 | 2000.00 | yes |" in text
    assert "Unstable" not in text
    unstable = result.model_copy(update={"pytorch": timing([1.0] * 8 + [2.0] * 2)})
    assert "**Unstable**" in speed_markdown(unstable)


def test_threads_must_be_the_same(
    make_bundle: Callable, make_engine: Callable, checkpoint: Checkpoint, scenes: Dataset
) -> None:
    bundle = make_bundle()
    with pytest.raises(BenchError, match="1 threads, PyTorch with 2"):
        measure(bundle, make_engine(bundle), checkpoint, draw_inputs(bundle, scenes, repeats=10, batch=1), threads=2)


def test_inputs_are_real_images_where_there_are_any(make_bundle: Callable, scenes: Dataset) -> None:
    inputs = draw_inputs(make_bundle(), scenes, repeats=10, batch=2)
    assert inputs.description == "5 images of scenes val, in turns"
    assert len(inputs.batches) == 13
    np.testing.assert_array_equal(np.concatenate(inputs.batches)[7], scenes.read(2).image)


@pytest.mark.parametrize("data", [True, False])
def test_other_sizes_are_noise(make_bundle: Callable, scenes: Dataset, data: bool) -> None:
    inputs = draw_inputs(make_bundle(height=64, width=96), scenes if data else None, repeats=10, batch=1)
    assert {batch.shape for batch in inputs.batches} == {(1, 64, 96, 3)}
    assert "noise" in inputs.description
    assert len(np.unique(np.concatenate(inputs.batches), axis=0)) == 13  # another one for each call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"repeats": 9}, "--repeats 9: 10 or more"),
        ({"size": (20, 64)}, "20x64"),
        ({"size": (64, 64), "batch": 2}, "batches of 2"),
        ({}, "--size"),
    ],
)
def test_inputs_that_cannot_be_had(make_bundle: Callable, arguments: dict, message: str) -> None:
    bundle = make_bundle(batch=1)
    with pytest.raises(BenchError, match=message):
        draw_inputs(bundle, None, **{"repeats": 10, "batch": 1, **arguments})


def test_the_command(
    make_bundle: Callable, make_engine: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_bundle()
    monkeypatch.setattr("ddcat_serve.engines.open_engine", lambda opened, threads: make_engine(opened))
    arguments = ["ddcat-bench", "speed", str(bundle.path), "--repeats", "10", "--threads", "1"]

    def status(*more: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", [*arguments, *more])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code

    assert status("--size", "40") == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
    assert status() == 0
    result = read_result(bundle.path.with_name("tiny.bundle-speed") / "speed.json", SpeedResult)
    assert len(result.engine.seconds) == 10
    assert min(result.engine.seconds) > 0
    assert "Engine / PyTorch" in capsys.readouterr().out
