"""Curves and their error bars, sheets of images, and alarms that cannot be overlooked."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcat.metrics import miou
from ddcat_bench.attack import plots
from ddcat_bench.attack.alarms import raise_alarms
from ddcat_bench.attack.report import attack_markdown
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.bootstrap import Scheme, interval, scheme_of
from ddcat_bench.result_io import read_result
from tests.bench.suite import row_of

RESULTS = Path(__file__).parents[3] / "docs/results/camvid-methods"


@pytest.fixture(scope="module")
def measured() -> AttackResult:
    return read_result(RESULTS / "sat-0.json", AttackResult)


def test_the_interval_is_that_of_a_literal_bootstrap() -> None:
    counts = np.random.default_rng(3).integers(0, 50, (12, 3, 3))
    counts[:, 2] = 0  # a class that occurs nowhere
    generator = np.random.default_rng(0)
    draws = generator.multinomial(12, np.full(12, 1 / 12), size=500)
    drawn = [miou(sum(int(times) * image for times, image in zip(often, counts, strict=True))) for often in draws]
    one_by_one = scheme_of("scenes", [str(place) for place in range(12)])
    low, high = interval(counts, one_by_one, level=0.9, draws=500)
    assert (low, high) == pytest.approx(tuple(np.quantile(drawn, (0.05, 0.95))))
    assert low < miou(counts.sum(0)) < high
    alike = np.repeat(counts[:1], 12, axis=0)
    assert interval(alike, one_by_one) == pytest.approx((miou(alike[0]),) * 2)


def test_error_bars_of_video_are_over_draws_of_blocks_of_frames(measured: AttackResult) -> None:
    """One clip of 101 frames, which resemble their neighbours: drawn one by one they would seem to tell more."""
    [point] = plots._points(measured, {"n = 3": 3.0}, False)
    row = row_of(measured, "n = 3")
    counts = row.scores.array()
    low, high = interval(counts, Scheme("blocks", np.arange(101)))
    assert (point.miou - point.below, point.miou + point.above) == pytest.approx((low, high))
    one_by_one = interval(counts, Scheme("images", np.arange(101)))
    assert high - low > 1.5 * (one_by_one[1] - one_by_one[0])
    assert (
        plots._canvas(measured)[1].get_title().endswith("error bars: 95 % of bootstrap draws of circular blocks of 10 frames")
    )


def test_of_few_images_there_are_no_error_bars(measured: AttackResult) -> None:
    result = measured.model_copy(update={"data": measured.data.model_copy(update={"name": "scenes", "names": ("a", "b")})})
    [point] = plots._points(result, {"n = 3": 3.0}, False)
    assert point.below == point.above == 0
    assert plots._canvas(result)[1].get_title().endswith("no error bars: 2 images are too few to draw from")


def test_there_is_no_curve_over_epsilon_for_one_bound(measured: AttackResult) -> None:
    assert set(plots.plots(measured)) == {"attack.png"}


def test_alarms_come_first_and_in_red(measured: AttackResult) -> None:
    result = measured
    assert attack_markdown(result).startswith("# sat")
    assert not _reds(plots.curves(result))
    rows = tuple(row.model_copy(update={"scores": result.rows[0].scores}) if row.steps == 7 else row for row in result.rows)
    alarms = raise_alarms(rows, None, trained_steps=None)
    assert alarms
    wrong = result.model_copy(update={"alarms": alarms})
    text = attack_markdown(wrong)
    assert text.startswith(f"> **ALARM: {alarms[0].name}.** {alarms[0].evidence}.")
    assert _reds(plots.curves(wrong))


def _reds(png: bytes) -> int:
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3)
    return int((pixels == (255, 0, 0)).all(1).sum())


def test_transferred_attacks_have_a_curve_of_their_own(measured: AttackResult) -> None:
    own = [row for row in measured.rows if row.name == "BIM" and not row.eight_bit]
    moved = tuple(row.model_copy(update={"name": "transfer", "substitute": measured.checkpoint}) for row in own)
    result = measured.model_copy(update={"rows": (*measured.rows, *moved)})
    origin = f"sat {measured.checkpoint.sha256[:8]}"
    assert plots._transfers(result) == {origin: {f"transfer n = {row.steps} from {origin}": row.steps for row in own}}
    assert plots.curves(result) != plots.curves(measured)
