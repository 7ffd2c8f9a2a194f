"""Swaps under load, with bundles that must never answer: the script that measures them, on a small engine."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import with_golden

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_twenty_swaps_fail_no_request_and_bad_bundles_never_answer(
    tmp_path: Path, oracle: Callable, picture: np.ndarray
) -> None:
    pytest.importorskip("aiohttp")
    bundle = with_golden(tmp_path / "bundle", oracle, picture)
    line = [sys.executable, ROOT / "bench/serving/swaps.py", bundle.path, "--size", "64x96", "--out", tmp_path / "found"]
    less = ["--seconds", "40", "--load", "0.25"]  # what is left of the machine beside other tests is enough for that
    done = subprocess.run([*line, *less], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["quiet"]["requests"] > 100
    for part in ("quiet", "swapped"):
        assert found[part]["statuses"] == {"200": found[part]["requests"]}
    good = [load["status"] for load in found["loads"] if load["version"] in ("1", "2")]
    assert good == [200] * 20
    assert found["versions_that_answered"] == 2
    bad = [(load["version"], load["status"], load["error"]) for load in found["loads"] if load["version"] > "2"]
    said = {"3": "is not the file that was exported", "4": "is not signed", "5": "the gate refused", "6": "does not answer as"}
    assert len(bad) == 20
    assert all(status == 400 and said[version] in error for version, status, error in bad)
    assert found["answers_of_bad_bundles"] == 0
    memory = found["memory"]
    assert memory["swaps"] == 50
    assert memory["end"]["threads"] <= memory["warm"]["threads"] + 4  # engines that were replaced leave none behind
    assert memory["end"]["files"] <= memory["warm"]["files"] + 4
    assert memory["mib_per_swap"] < 0.2
    assert "20 of 20 swaps succeeded" in (tmp_path / "found.md").read_text()
