"""Scenarios by a clock that the test winds: what waits is counted, and what so few requests do not tell is not told."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from ddcat.bundle import Bundle
from ddcat.engines import Outputs
from ddcat_bench.result_io import read_result
from ddcat_bench.timing.scenarios import LOADS, Clock, ScenariosResult, arrivals, latencies, run_scenarios, scenarios_markdown
from tests.commands import call, refusal


class Clockwork:
    """An engine that takes 10 ms for a call and 1 ms for each image in it."""

    def __init__(self) -> None:
        self.time = 0.0
        self.clock = Clock(lambda: self.time, self.sleep)

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def infer(self, images: np.ndarray) -> Outputs:
        self.time += 0.010 + 0.001 * len(images)
        return Outputs(labels=np.zeros(images.shape[:3], np.uint8))


def test_the_scenarios_of_an_engine_of_known_speed(make_bundle: Callable[..., Bundle]) -> None:
    engine = Clockwork()
    files = [simplejpeg.encode_jpeg(np.full((40, 48, 3), grey, np.uint8)) for grey in (0, 255)]
    told: list[int] = []
    rows, _, steady = run_scenarios(
        make_bundle(), engine, files, seconds=30.0, clock=engine.clock, advance=told.append  # type: ignore[arg-type]
    )  # fmt: skip
    assert steady
    assert sum(told) == 2 * (1 + len(LOADS)) + 1
    single = [row for row in rows if row.name == "single stream"]
    assert [row.boundary for row in single] == ["arrays", "files"]
    for row in single:
        assert row.latencies is not None
        assert row.latencies.p99 == pytest.approx(0.011)
        assert row.images_per_second == pytest.approx(1 / 0.011)
    for row in (row for row in rows if row.name == "server"):
        assert row.latencies is not None
        assert row.load is not None
        assert row.offered == pytest.approx(row.load / 0.011)
        # a queue of Poisson arrivals and a constant time of service (Pollaczek and Khinchine)
        expected = 0.011 * (1 + row.load / (2 * (1 - row.load)))
        assert row.latencies.mean == pytest.approx(expected, rel=0.25)
        assert row.images_per_second == pytest.approx(row.load / 0.011, rel=0.05)
    offline = {row.batch: row.images_per_second for row in rows if row.name == "offline"}
    assert offline == {batch: pytest.approx(batch / (0.010 + 0.001 * batch)) for batch in (1, 2, 4, 8)}


@pytest.mark.parametrize(("requests", "told"), [(9, ()), (10, ("p50",)), (64, ("p50", "p90")), (662, ("p50", "p90", "p99"))])
def test_percentiles_need_their_requests(requests: int, told: tuple[str, ...]) -> None:
    found = latencies([0.1 * (place + 1) for place in range(requests)])
    assert tuple(name for name in ("p50", "p90", "p99") if getattr(found, name) is not None) == told
    assert found.longest == pytest.approx(0.1 * requests)


def test_arrivals_come_at_their_rate_and_repeat() -> None:
    times = list(arrivals(50.0, 100.0, seed=1))
    assert len(times) == pytest.approx(5000, rel=0.05)
    gaps = np.diff([0.0, *times])
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as of a Poisson process
    assert times == list(arrivals(50.0, 100.0, seed=1))
    assert len(list(arrivals(0.01, 1.0, seed=1))) == 10


def test_the_command(
    make_bundle: Callable[..., Bundle], make_engine: Callable[..., object], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bundle, out = make_bundle(), tmp_path / "out"
    monkeypatch.setattr("ddcat.engines.open_engine", lambda opened, threads: make_engine(opened))
    words = ["ddcat", "scenarios", bundle.path, "--seconds", 0.1, "--size", "40x48", "--out", out]
    assert "# tiny: scenarios" in call(*words).stdout
    assert str(out) in refusal(*words)  # there is a result already
    result = read_result(out / "scenarios.json", ScenariosResult)
    assert (result.height, result.width, result.seconds) == (40, 48, 0.1)
    rows = [
        line
        for line in (out / "scenarios.md").read_text().splitlines()
        if line.startswith(("| single", "| server", "| offline"))
    ]
    assert len(rows) == len(result.rows)
    unsteady = result.model_copy(update={"steady": False})
    assert "**Not steady**" in scenarios_markdown(unsteady)
    assert "**Not steady**" not in scenarios_markdown(result.model_copy(update={"steady": True, "others": 0.0}))
