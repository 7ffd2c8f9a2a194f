"""What an engine costs, by a clock that the test winds."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ddcat.bundle import Bundle
from ddcat.engines import Outputs
from ddcat_bench.timing.throughput import draw_throughput, matrix_product_peak, measure_throughput, throughput_table


class Clockwork:
    """An engine whose time is proportional to the pixels, with a fixed part for each call."""

    def __init__(self) -> None:
        self.description = {"threads": 3}
        self.now = 0.0
        self.calls: list[tuple[int, ...]] = []

    def infer(self, images: np.ndarray) -> Outputs:
        self.calls.append(images.shape)
        self.now += 0.1 + 1e-4 * images[..., 0].size
        return Outputs(labels=images[..., 0])


def test_batches_and_sizes_that_the_engine_takes(make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_bench.timing.throughput.matrix_product_peak", lambda precision, device: 1000.0)
    engine = Clockwork()
    cost = measure_throughput(make_bundle(), engine, (40, 60), clock=lambda: engine.now)  # type: ignore[arg-type]
    assert [(row.batch, row.height, row.width) for row in cost.batches] == [(n, 40, 60) for n in (1, 2, 4, 8)]
    # half of 40 is below the smallest size that the engine takes
    assert [(row.height, row.width) for row in cost.sizes] == [(40, 60), (60, 90), (80, 120)]
    for row in (*cost.batches, *cost.sizes):
        seconds = 0.1 + 1e-4 * row.batch * row.height * row.width
        assert row.times.median == pytest.approx(seconds)
        assert row.images_per_second == pytest.approx(row.batch / seconds)
        work = 2 * row.batch * row.height * row.width / (64 * 64)  # the manifest's proof: one multiply-add at 64 x 64
        assert row.of_peak == pytest.approx(work / seconds / 1000)
    assert cost.threads == 3
    assert len(engine.calls) <= 12 * (len(cost.batches) + len(cost.sizes))
    assert ["8", "40x60", "2020.0"] in [cells[:3] for cells in throughput_table(cost)[1]]
    assert [drawing.title for drawing in draw_throughput(cost)] == [
        "images a second, by the batch", "milliseconds an image, by its size",
    ]  # fmt: skip


def test_an_engine_of_one_size_and_batch(make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_bench.timing.throughput.matrix_product_peak", lambda precision, device: 1.0)
    engine = Clockwork()
    cost = measure_throughput(make_bundle(40, 48, 2), engine, (40, 48), clock=lambda: engine.now)  # type: ignore[arg-type]
    assert [row.batch for row in cost.batches] == [2]
    assert [(row.batch, row.height, row.width) for row in cost.sizes] == [(2, 40, 48)]
    assert not draw_throughput(cost)


def test_a_matrix_product_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_bench.timing.throughput._PRODUCTS_WITHIN", 0.1)
    assert 1e8 < matrix_product_peak("fp32", torch.device("cpu")) < 1e14
