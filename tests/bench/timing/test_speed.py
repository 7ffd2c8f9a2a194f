from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddcat.bundle import Bundle
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import read_result, to_json
from ddcat_bench.timing import serving_memory
from ddcat_bench.timing.interleave import timing
from ddcat_bench.timing.pytorch_models import EAGER, torch_labels
from ddcat_bench.timing.results import SpeedResult
from ddcat_bench.timing.serving_memory import Serving, serving_peak
from ddcat_bench.timing.speed import Inputs, draw_inputs, measure, speed_markdown
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from tests.bundles import small_bundle
from tests.commands import call, refusal

PEAKS = {"engine": 100 << 20, "original": 300 << 20, "main branch": 200 << 20}


@pytest.fixture
def measured(make_engine: Callable, checkpoint: Checkpoint) -> Callable[..., SpeedResult]:
    """Time an engine of a bundle beside PyTorch; the memory is what `peak` says."""

    def run(bundle: Bundle, inputs: Inputs, *, threads: int = 1, peak: Any = lambda serving: None, **more: Any) -> SpeedResult:
        return measure(bundle, make_engine(bundle), checkpoint, inputs, threads=threads, peak=peak, **more)

    return run


def test_a_result_from_a_clock_that_is_known(
    measured: Callable, make_bundle: Callable, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    bundle = make_bundle()
    took = {"engine": 2, "original": 6, "main branch": 4}  # seconds
    names, readings = list(took), [0]
    for turn in range(13):
        for name in names[turn % 3 :] + names[: turn % 3]:
            readings += [readings[-1] + 100, readings[-1] + 100 + took[name]]  # a pause before each call
    clock = iter(readings[1:])
    inputs = draw_inputs(bundle, scenes, repeats=10, batch=2)
    served: list[Serving] = []

    def now() -> float:
        assert not torch.backends.cudnn.allow_tf32  # PyTorch is in fp32
        return next(clock)

    def peak(serving: Serving) -> int:
        served.append(serving)
        return PEAKS[serving.name]

    result = measured(bundle, inputs, clock=now, peak=peak)
    assert torch.backends.cudnn.allow_tf32  # as it was
    assert {entry.name: entry.times.seconds for entry in result.contenders} == {n: (s,) * 10 for n, s in took.items()}
    assert {ratio.baseline: ratio.median for ratio in result.ratios} == {"original": 3, "main branch": 2}
    assert {entry.name: entry.peak_memory for entry in result.contenders} == PEAKS
    assert {serving.path for serving in served} == {str(bundle.path), str(checkpoint.path)}
    assert {serving.shape for serving in served} == {(2, 40, 48)}
    assert (result.batch, result.height, result.width, result.threads, result.warm_up) == (2, 40, 48, 1, 3)
    assert result.engine_bytes == len(b"no graph")
    assert result.parameter_bytes == sum(
        4 * v.numel() for k, v in checkpoint.part("model.").items() if v.is_floating_point() and "heads.deep" not in k
    )
    assert result.environment.threads == 1
    (tmp_path / "speed.json").write_text(to_json(result))
    assert read_result(tmp_path / "speed.json", SpeedResult) == result
    text = speed_markdown(result)
    assert "| engine | 2000.00 | 2000.00 | 2000.00 | yes |  | 100 |" in text
    assert "| PyTorch, original | 6000.00 | 6000.00 | 6000.00 | yes | **3.00** (3.00 to 3.00) | 300 |" in text
    assert "Unstable" not in text
    drifting = result.contenders[1].model_copy(update={"times": timing([1.0] * 8 + [2.0] * 2)})
    unstable = result.model_copy(update={"contenders": (result.contenders[0], drifting, result.contenders[2])})
    assert "**Unstable**" in speed_markdown(unstable)


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(make_bundle: Callable, checkpoint: Checkpoint, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(make_bundle().manifest.to_bytes())
    small, large = (
        serving_peak(Serving("original", str(checkpoint.path), "cpu", 1, (1, side, side), str(manifest))) for side in (33, 513)
    )
    assert small is not None
    assert large is not None
    assert 50 << 20 < small < large < small + (1 << 30)


def test_a_process_that_dies_says_why() -> None:
    with pytest.raises(BenchError, match="nowhere"):
        serving_peak(Serving("engine", "nowhere", "cpu", 1, (1, 33, 33)))


def test_threads_must_be_the_same(measured: Callable, make_bundle: Callable, scenes: Dataset) -> None:
    bundle = make_bundle()
    with pytest.raises(BenchError, match="1 threads, expected 2"):
        measured(bundle, draw_inputs(bundle, scenes, repeats=10, batch=1), threads=2)


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
        ({"repeats": 9}, "--repeats 9: use 10 or more"),
        ({"size": (20, 64)}, "20x64"),
        ({"size": (64, 64), "batch": 2}, "batches of 2"),
        ({}, "--size"),
    ],
)
def test_inputs_that_cannot_be_had(make_bundle: Callable, arguments: dict, message: str) -> None:
    bundle = make_bundle(batch=1)
    with pytest.raises(BenchError, match=message):
        draw_inputs(bundle, None, **{"repeats": 10, "batch": 1, **arguments})


def test_the_command(make_bundle: Callable, make_engine: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle()
    monkeypatch.setattr("ddcat.engines.open_engine", lambda opened, threads: make_engine(opened))
    monkeypatch.setattr("ddcat_bench.timing.serving_memory.serving_peak", lambda serving: PEAKS[serving.name])
    words = ["ddcat", "speed", bundle.path, "--repeats", 10, "--threads", 1]
    assert "HEIGHTxWIDTH" in refusal(*words, "--size", 40)
    done = call(*words)
    assert done.returncode == 0
    result = read_result(bundle.path.with_name("tiny.bundle-speed") / "speed.json", SpeedResult)
    assert all(len(entry.times.seconds) == 10 and min(entry.times.seconds) > 0 for entry in result.contenders)
    assert "PyTorch, original" in done.stdout


def test_a_compiled_model_is_another_contender(
    measured: Callable, make_bundle: Callable, scenes: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def compiled(network: object) -> object:
        asked.append(network)
        return network

    monkeypatch.setattr("ddcat_bench.timing.speed.torch.compile", compiled)
    bundle = make_bundle()
    inputs = draw_inputs(bundle, scenes, repeats=10, batch=1)
    result = measured(bundle, inputs, compiled=True)
    assert len(asked) == 1
    assert [entry.name for entry in result.contenders] == ["engine", "original", "main branch", "compiled"]
    assert "| PyTorch, compiled |" in speed_markdown(result)

    def broken(network: object) -> object:
        def fail(images: object) -> object:
            raise RuntimeError("no compiler\nof any kind")

        return fail

    monkeypatch.setattr("ddcat_bench.timing.speed.torch.compile", broken)
    with pytest.raises(BenchError, match=r"cannot compile the main branch here: no compiler: install a C\+\+ compiler"):
        measured(bundle, inputs, compiled=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch.compile itself calls it
def test_the_compiled_model_labels_as_the_eager_one(checkpoint: Checkpoint, scenes: Dataset) -> None:
    images = np.stack([scenes.read(0).image])
    cpu = torch.device("cpu")
    eager, compiled = (torch_labels(EAGER[name](checkpoint, cpu), images) for name in ("main branch", "compiled"))
    assert (eager == compiled).mean() > 0.999


def test_a_served_model_answers_and_its_memory_is_known(make_bundle: Callable, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """What a process of its own does, in this one."""
    manifest = tmp_path / "manifest.json"
    manifest.write_bytes(make_bundle().manifest.to_bytes())
    serving_memory._serve(Serving("original", str(checkpoint.path), "cpu", 1, (1, 33, 33), str(manifest)))
    serving_memory._serve(Serving("engine", str(small_bundle(tmp_path / "small").path), "cpu", 1, (1, 16, 16)))
    assert serving_memory.resident("VmHWM") > 50 << 20  # type: ignore[operator]
