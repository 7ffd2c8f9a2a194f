"""`ddcat gate`, from its arguments to its files."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddcat.bundle import Bundle, open_bundle
from ddcat.passport import read_passport
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.pipeline import run_job
from ddcat_bench.gate.report import gate_brief
from ddcat_bench.gate.results import GateResult
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.gate.verdict import passport_of
from ddcat_bench.gate.words import title
from ddcat_bench.result_io import read_result
from ddcat_bench.timing.results import SpeedResult
from ddcat_bench.timing.serving_memory import Serving
from ddcat_export.errors import ExportError
from ddcat_export.twin.base import NotSupportedError
from ddcat_export.twin.operators import OPERATORS
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from tests.bench.gates import near
from tests.commands import call

LIMITS = read_thresholds(DEFAULT, "fp32")


def test_the_command(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: SpeedResult) -> None:
    timed: list[object] = []
    served: list[Serving] = []

    def measured(*arguments: object, peak: Callable[[Serving], object], **options: object) -> SpeedResult:
        peak(Serving("engine", str(bundle.path), "cpu", 1, (1, 40, 48)))
        timed.append(arguments)
        return near(speed, others=2.0)  # not a quiet machine

    monkeypatch.setattr("ddcat_bench.gate.pipeline.measure", measured)
    monkeypatch.setattr("ddcat_bench.gate.pipeline.serving_peak", served.append)
    monkeypatch.setattr("ddcat_bench.gate.pipeline.physical_cores", lambda: 1)
    out = tmp_path / "gate"
    wide = tmp_path / "limits.yaml"
    wide.write_text(DEFAULT.read_text())
    told = call("ddcat", "gate", bundle.path, "--quick", "--thresholds", wide, "--out", out)
    assert told.returncode == 3  # so few images decide nothing
    assert (len(timed), len(served)) == (3, 1)  # timed again, but its memory is taken once
    assert told.stdout.startswith("# Gate: inconclusive")
    result = read_result(out / "gate.json", GateResult)
    assert told.stderr.endswith(f"{title(result)}\n")
    assert "latency could not be measured on this machine" in told.stderr
    assert {file.name for file in out.iterdir()} == {"gate.json", "gate.md", "gate.xml", "report.html"}
    why = [finding for finding in result.findings if finding.verdict != "pass"]
    assert why
    assert all(f"- **{finding.verdict}** " in told.stdout for finding in why)
    assert len(told.stdout.splitlines()) < 25  # the rest is in gate.md
    assert told.stdout == f"{gate_brief(result)}\n{out}: gate.json, gate.md, gate.xml, report.html\n"
    opened = open_bundle(bundle.path)
    found = read_passport(opened)
    assert found.passport is not None
    assert found.passport == passport_of(opened, result).model_copy(update={"judged_at": found.passport.judged_at})
    assert json.loads((bundle.path / "passport.json").read_text())["budget"] == "quick"
    assert (bundle.path / "report.html").read_bytes() == (out / "report.html").read_bytes()
    page = (out / "report.html").read_text()
    shown = page.count("data:image/webp")
    assert shown % 5 == 0
    assert shown < 2 * 3 * 5  # of three images, clean and attacked, those on which a label differs
    assert "No label differs on" in page
    assert not list(tmp_path.glob("*.work"))


def test_a_graph_that_cannot_be_attacked_is_refused_before_anything_is_timed(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def antialias(inputs: Any, attributes: Any) -> Any:
        raise NotSupportedError("a form that only images show")

    monkeypatch.setitem(OPERATORS, "Resize", OPERATORS["Resize"]._replace(run=antialias))
    with pytest.raises(ExportError, match=r"does not support Resize at .* with a form that only images show"):
        run_job(GateJob(bundle, checkpoint, scenes), LIMITS, tmp_path / "gate", repeats=10)
    assert not (tmp_path / "gate").exists()


@pytest.mark.slow
def test_two_processes_find_what_one_finds(bundle: Bundle, tmp_path: Path) -> None:
    found = []
    for devices in (1, 2):
        out = tmp_path / f"gate-{devices}"
        words = ["gate", str(bundle.path), "--quick", "--repeats", "10", "--jobs", str(devices), "--out", str(out)]
        line = [sys.executable, "-m", "ddcat", *words]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 3, done.stderr  # few images
        found.append(read_result(out / "gate.json", GateResult))
    assert found[0].threats == found[1].threats
    assert found[0].members == found[1].members
