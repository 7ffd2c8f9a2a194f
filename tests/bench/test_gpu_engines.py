import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "bench/gpu/engines.py"


@pytest.mark.slow
def test_rehearsal(tmp_path: Path, run_directory: Path) -> None:
    """All of it on a CPU; a second time, nothing is exported again, and nothing changes but the clock's figures."""
    out = tmp_path / "gpu"
    command = [sys.executable, str(SCRIPT), str(run_directory), "--size", "40x48", "--repeats", "10", "--rebuilds", "2",
               "--out", str(out), "--rehearse"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    rows = [json.loads((out / f"{name}-fp32.json").read_text()) for name in ("ort", "openvino", "trt", "trt-rtx")]
    ort, openvino, *plans = rows
    assert all(row["rehearsal"] is True and row["environment"]["device"] == "cpu" for row in rows)
    for row, name in ((ort, "ort"), (openvino, "openvino")):
        assert (row["engine"], row["precision"]) == (name, "fp32")
        assert row["label_agreement"] > 0.999
        assert row["logit_error"] < 1e-4
        assert row["times_as_fast"]["median"] > 0
        assert len(row["engine_seconds"]["seconds"]) == len(row["pytorch_seconds"]["seconds"]) == 10
        assert [one["changed_labels"] for one in row["rebuilds"]] == [0, 0]
        assert row["inputs"].endswith("images of scenes val, in turns")
    assert all(
        f".[{extra}]" in row["refused"] or "no GPU" in row["refused"] for row, extra in zip(plans, ("gpu", "rtx"), strict=True)
    )
    page = (out / "engines.md").read_text()
    assert "A rehearsal: these figures say nothing." in page
    assert "| trt | fp32 | refused: " in page
    assert "processor" in page
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "--engine ort" not in again.stdout
    assert json.loads((out / "ort-fp32.json").read_text()) == ort


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "nothing", "--out", str(tmp_path / "gpu")])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert left.value.code == 2
    assert "--rehearse goes through it on a CPU" in capsys.readouterr().err
