"""Curves that are drawn from a log: read back from their pixels."""

import io
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from ddcat_train.config import load_config
from ddcat_train.run import plots
from ddcat_train.run.plots import draw_curves
from tests.train.runs import Finished


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.format == "PNG"
        return np.asarray(opened.convert("RGB")).astype(int)


def of_colour(picture: np.ndarray, colour: str) -> np.ndarray:
    """Places, (row, column), in the area of the data that are of a colour, or nearly."""
    area = picture[40:430, 90:735]
    wanted = np.array(to_rgb(colour)) * 255
    return np.argwhere(np.abs(area - wanted).max(-1) < 12)


def draw(lines: list[dict[str, float]]) -> dict[str, bytes]:
    return draw_curves(lines, title="a run", batch_size=16, per_epoch=23)


def test_what_the_log_has_no_values_for_is_not_drawn() -> None:
    losses = [{"step": step, "loss": 1 / step, "main": 1 / step} for step in (1, 2, 3)]
    assert draw([]) == {}
    assert set(draw(losses)) == {"losses.png"}
    judged = [*losses, {"step": 3, "val/clean": 0.5, "val/attacked": 0.2, "val/selection": 0.35}]
    assert set(draw(judged)) == {"losses.png", "scores.png"}
    assert set(draw([line | {"mask_share": 0.1, "chosen_share": 0.0} for line in losses])) == {"losses.png", "mask.png"}


def test_a_share_that_falls_is_seen_to_fall() -> None:
    lines = [{"step": step, "mask_share": 0.4 - 0.003 * step, "chosen_share": 0.05} for step in range(1, 101)]
    picture = pixels(draw(lines)["mask.png"])
    mask, chosen = (of_colour(picture, colour) for colour in ("tab:green", "tab:orange"))
    heights = [mask[mask[:, 1] == column, 0].mean() for column in sorted(set(mask[:, 1]))]
    assert heights[-1] - heights[0] > 200  # from a height of 40 % down to 10 %
    assert np.diff(heights).min() > -2
    assert np.ptp(chosen[:, 0]) < 6  # level, and
    assert chosen[:, 0].mean() > mask[:, 0].max()  # beneath


@pytest.mark.parametrize("count", [1, 2, 39, 80, 1000])
def test_smoothing_keeps_a_constant_and_a_line_and_the_number_of_values(count: int) -> None:
    assert np.allclose(plots._smooth(np.full(count, 3.5)), 3.5)
    half = count // 80
    smoothed = plots._smooth(np.arange(count, dtype=float))
    assert len(smoothed) == count
    inside = slice(half, count - half)
    assert np.allclose(smoothed[inside], np.arange(count)[inside])


def test_smoothing_is_the_mean_of_a_window() -> None:
    values = np.random.default_rng(0).random(400)  # so a window is 5 steps to either side
    smoothed = plots._smooth(values)
    assert smoothed[200] == pytest.approx(values[195:206].mean())
    assert smoothed[0] == pytest.approx(values[:6].mean())
    assert smoothed[399] == pytest.approx(values[394:].mean())


def test_a_value_that_sticks_out_does_not_flatten_the_others() -> None:
    lines = [{"step": step, "loss": 1000.0 if step == 1 else 1 + 0.001 * step} for step in range(1, 401)]
    rows = of_colour(pixels(draw(lines)["losses.png"]), "black")[:, 0]
    assert np.median(rows) < 195  # in the upper half of the area


def test_a_run_leaves_its_curves(tiny_run: list[str], finished: Finished) -> None:
    for method, expected in (("undefended", {"losses.png", "scores.png"}), ("ddcat", {"losses.png", "mask.png", "scores.png"})):
        config = load_config(f"scenes-{method}", tiny_run)
        run = finished(config)
        assert {path.name for path in run.glob("*.png")} == expected
        lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        again = draw_curves(lines, title=run.name, batch_size=config.train.batch_size, per_epoch=3)
        for name in expected:
            assert np.array_equal(pixels((run / name).read_bytes()), pixels(again[name]))
