import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.paper.train_step_results import TrainStepResult
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.result_io import read_result

SCRIPT = Path(__file__).parents[2] / "bench/gpu/train_step.py"
COMPILED = SCRIPT.with_name("compiled.py")


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """All of it on a CPU; a second time, nothing is done again."""
    command = [sys.executable, str(SCRIPT), "--rehearse", "--out", str(tmp_path / "gpu")]
    subprocess.run(command, check=True, capture_output=True)
    steps = sorted((tmp_path / "gpu/train-step").glob("*/train-step.json"))
    assert len(steps) == 8
    ours = {read_result(path, TrainStepResult).contenders[0].precision for path in steps}
    assert ours == {"fp32", "bf16"}
    attacks = [read_result(path, AttackResult) for path in sorted((tmp_path / "gpu/attacks").glob("*/attack.json"))]
    assert [result.checkpoint.method for result in attacks] == ["ddcat", "pgd-at", "sat", "undefended"]
    assert (tmp_path / "gpu/train-step.md").read_text().count("| voc-") == 8
    assert "| pgd-at |" in (tmp_path / "gpu/scenes.md").read_text()
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "$ " not in again.stdout


@pytest.mark.slow
def test_compiled_code_is_timed_beside_what_it_is_made_of(tmp_path: Path) -> None:
    options = f"--device cpu --batch 2 --crop 33 --width 4 --repeats 1 --out {tmp_path / 'it.json'}".split()
    subprocess.run([sys.executable, str(COMPILED), "scenes-ddcat", *options], check=True, capture_output=True)
    found = json.loads((tmp_path / "it.json").read_text())["median_seconds"]
    assert set(found) == {"training pass", "attack step"}
    assert all(set(each) == {"eager", "default", "reduce-overhead"} and min(each.values()) > 0 for each in found.values())
