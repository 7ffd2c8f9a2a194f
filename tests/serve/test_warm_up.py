"""How large a batch pays, on engines whose times are known."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest

from ddcat_serve.engines import Engine
from ddcat_serve.warm_up import measure_pace

IMAGE = np.zeros((10, 20, 3), np.uint8)


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
    pace = measure_pace(cast(Engine, engine), IMAGE, batch_pixels=16 * 200, clock=engine.clock)
    assert pace.batch_pixels == images * 200
    assert pace.pixels_per_second == pytest.approx(rate)
    assert max(engine.seen) <= 2 * images


@pytest.mark.parametrize(
    ("pixels", "images", "largest"), [(199, None, 1), (800, None, 4), (799, None, 2), (9999, 3, 2), (9999, 1, 1)]
)
def test_nothing_larger_is_tried_than_is_allowed(pixels: int, images: int | None, largest: int) -> None:
    engine = Timed(lambda n: 1.0)
    pace = measure_pace(cast(Engine, engine), IMAGE, batch_pixels=pixels, batch_images=images, clock=engine.clock)
    assert max(engine.seen) == largest
    assert pace.batch_pixels == pixels  # all of it paid as far as was tried
