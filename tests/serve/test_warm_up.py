"""Golden images are replayed, whatever batches an engine takes; how large a batch pays, on engines whose times are known."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from ddcat.bundle import Bundle, write_bundle
from ddcat.engines import Engine, Outputs
from ddcat.engines.errors import EngineError
from ddcat.engines.golden import Example
from ddcat.manifest import DimRange, InputShapes
from ddcat_serve.errors import RequestError
from ddcat_serve.inference.capacity import Trial
from ddcat_serve.inference.model_registry import load_models
from ddcat_serve.inference.warm_up import Throughput, measure_speed, measure_throughput, warm_up
from ddcat_serve.settings import Settings
from tests.bundles import with_golden
from tests.serve.processes import wait_for

IMAGE = np.zeros((10, 20, 3), np.uint8)
ANY = DimRange(minimum=1, maximum=None)


class Timed:
    """An engine with a clock of its own: a batch of n takes seconds(n), the first of a size ten times as long."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now, self.seconds, self.seen = 0.0, seconds, list[int]()

    def clock(self) -> float:
        return self.now

    def infer(self, images: np.ndarray) -> Any:
        count = len(images)
        self.now += self.seconds(count) * (1 if count in self.seen else 10)
        self.seen.append(count)

    def rest(self) -> None:
        pass


@pytest.mark.parametrize(
    ("seconds", "images", "rate"),
    [
        (lambda n: 0.3 * n, 1, 200 / 0.3),  # one image fills it
        (lambda n: 0.29 * n + 0.01 * n**2, 1, 200 / 0.3),  # batches are slower
        (lambda n: 0.9 + 0.1 * n, 16, 16 * 200 / 2.5),  # all that is allowed
        (lambda n: max(1.0, 0.25 * n), 4, 800.0),  # four fill it
        (lambda n: 0.001 * n, 1, 200_000.0),  # a quick one is timed several times
    ],
)
def test_a_batch_grows_as_long_as_that_pays(seconds: Callable[[int], float], images: int, rate: float) -> None:
    engine = Timed(seconds)
    pace = measure_throughput(cast(Engine, engine), IMAGE, batch_pixels=16 * 200, batch=ANY, clock=engine.clock)
    assert pace.batch_pixels == images * 200
    assert pace.pixels_per_second == pytest.approx(rate)
    assert max(engine.seen) <= 2 * images


@pytest.mark.parametrize(
    ("pixels", "images", "largest"), [(199, None, 1), (800, None, 4), (799, None, 2), (9999, 3, 2), (9999, 1, 1)]
)
def test_nothing_larger_is_tried_than_is_allowed(pixels: int, images: int | None, largest: int) -> None:
    engine = Timed(lambda n: 1.0)
    batch = DimRange(minimum=1, maximum=images)
    pace = measure_throughput(cast(Engine, engine), IMAGE, batch_pixels=pixels, batch=batch, clock=engine.clock)
    assert max(engine.seen) == largest
    assert pace.batch_pixels == pixels  # all of it paid as far as was tried


@pytest.mark.parametrize(
    ("pixels", "batch", "images"),
    [(200, ANY, 1), (1700, ANY, 8), (100, DimRange(minimum=2, maximum=4), 2), (9999, DimRange(minimum=1, maximum=4), 4)],
)
def test_the_speed_is_measured_anew_at_the_batch_that_pays(pixels: int, batch: DimRange, images: int) -> None:
    engine = Timed(lambda n: 0.9 + 0.1 * n)
    shapes = InputShapes(batch=batch, height=ANY, width=ANY)
    examples = [Example("clean.0", IMAGE, IMAGE[..., 0])]
    found = measure_speed(cast(Engine, engine), shapes=shapes, examples=examples, batch_pixels=pixels, clock=engine.clock)
    assert engine.seen == [images, images]  # the first prepares
    assert found == pytest.approx(200 * images / (0.9 + 0.1 * images))


@pytest.mark.parametrize("fewest", [2, 3])
def test_the_smallest_batch_is_where_it_begins(fewest: int) -> None:
    engine = Timed(lambda n: 0.3 * n)
    batch = DimRange(minimum=fewest, maximum=None)
    pace = measure_throughput(cast(Engine, engine), IMAGE, batch_pixels=9999, batch=batch, clock=engine.clock)
    assert set(engine.seen) == {fewest, 2 * fewest}
    assert pace == (pytest.approx(200 / 0.3), fewest * 200)


def of_batches_from(fewest: int, bundle: Bundle) -> Bundle:
    """The same bundle, whose engine is never given fewer images at once."""
    shapes = bundle.manifest.shapes
    few = shapes.model_copy(update={"batch": shapes.batch.model_copy(update={"minimum": fewest})})
    manifest = bundle.manifest.model_copy(update={"shapes": few})
    return write_bundle(bundle.path.with_name("few"), manifest, bundle.files)


def test_an_engine_of_larger_batches_answers_its_golden_images_too(
    tmp_path: Path, oracle: Callable, picture: np.ndarray
) -> None:
    right = of_batches_from(2, with_golden(tmp_path / "right", oracle, picture))
    with load_models([right.path], settings=Settings(), threads=1) as models:
        assert models["small"]["1"].ready


def test_an_engine_of_larger_batches_that_answers_otherwise_is_refused(
    tmp_path: Path, oracle: Callable, picture: np.ndarray
) -> None:
    def otherwise(images: np.ndarray) -> tuple[np.ndarray, None]:
        return (oracle(images)[0] + 1) % 4, None

    wrong = of_batches_from(2, with_golden(tmp_path / "wrong", otherwise, picture))
    with (
        pytest.raises(EngineError, match=r"100\.00% of its golden labels differ"),
        load_models([wrong.path], settings=Settings(), threads=1),
    ):
        pass


@pytest.mark.parametrize("golden", [True, False])
def test_a_server_that_began_on_a_busy_machine_takes_large_images_as_soon_as_it_is_idle(
    tmp_path: Path, oracle: Callable, picture: np.ndarray, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, golden: bool
) -> None:
    monkeypatch.setattr("ddcat_serve.inference.engine_worker._IDLE_AFTER", 0.05)
    if golden:
        bundle = with_golden(tmp_path / "golden", oracle, picture)
    with monkeypatch.context() as busy:
        busy.setattr("ddcat_serve.inference.warm_up.measure_throughput", lambda *given, **named: Throughput(1.0, 4000))
        busy.setattr("ddcat_serve.inference.warm_up.try_sizes", lambda *given, **named: [Trial(64, 64.0, 0)])
        loading = load_models([bundle.path], settings=Settings(), threads=1)
        models = loading.__enter__()
    with contextlib.ExitStack() as closing:
        closing.push(loading)
        model = models["small"]["1"]
        with pytest.raises(RequestError) as refused:
            model.admit([(1, (600, 600))], 10.0)
        assert refused.value.status == 413
        wait_for(lambda: not model.worker._queue.refused_for_speed)
        [job] = model.admit([(1, (600, 600))], 1000.0)
        model.release(job)


def test_a_bundle_without_golden_images_is_said_to_be_unproven(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    with load_models([bundle.path], settings=Settings(), threads=1):
        pass
    assert "has no golden images" in caplog.text


def test_a_label_that_the_manifest_does_not_name_is_refused(bundle: Bundle) -> None:
    class Beyond(Timed):
        def infer(self, images: np.ndarray) -> Any:
            super().infer(images)
            return Outputs(np.full(images.shape[:3], len(bundle.manifest.classes), np.uint8), None, None)

    with pytest.raises(EngineError, match=r"small\.bundle gives label 4, but its manifest names 4 classes"):
        warm_up(bundle, cast(Engine, Beyond(lambda n: 0.1)), (), tolerance=0, batch_pixels=1)
