import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu.slices import Task, progress_markdown, run_slice
from bench.paper.train_step_results import TrainStepResult
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.result_io import read_result

SCRIPT = Path(__file__).parents[2] / "bench/gpu/measure.py"
COMPILED = SCRIPT.with_name("compiled.py")
GOES_ON = """
import pathlib, sys, time
made, count = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[1] + ".count")
for _ in range(int(sys.argv[2])):
    count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
    if int(count.read_text()) >= int(sys.argv[2]):
        made.write_text("")
        break
    time.sleep(0.4)
"""


def writes(file: Path) -> tuple[object, ...]:
    return ("python", "-c", f"open({str(file)!r}, 'w').close()")


def test_slices_go_on_where_they_ended(tmp_path: Path) -> None:
    long, after = tmp_path / "long", tmp_path / "after"
    tasks = [
        Task(long, ("python", "-c", GOES_ON, long, 8), minutes=1.0),
        Task(after, writes(after), needs=long),
    ]
    slices = 0
    while not run_slice(tasks, tmp_path / "state.json", minutes=0.02):
        slices += 1
        assert slices < 20
    assert slices >= 1
    assert after.exists()
    state = json.loads((tmp_path / "state.json").read_text())
    assert [entry["ended"] for entry in state.values()] == ["done", "done"]
    assert 1 < state[str(long)]["slices"] <= slices + 1  # on a busy machine the other one needs a slice of its own
    assert (tmp_path / "long.count").read_text() == "8"


def test_what_fails_or_takes_too_long_is_left(tmp_path: Path) -> None:
    wrong, slow, capped, missing, last = (tmp_path / name for name in ("wrong", "slow", "capped", "missing", "last"))
    tasks = [
        Task(wrong, ("python", "-c", "raise SystemExit('error: no such thing')")),
        Task(slow, ("python", "-c", "import time; time.sleep(60)")),
        Task(capped, ("python", "-c", "import time; time.sleep(60)"), minutes=0.01),
        Task(missing, writes(missing), needs=tmp_path / "nothing makes this"),
        Task(last, writes(last)),
    ]
    assert not run_slice(tasks, tmp_path / "state.json", minutes=0.03)
    for _ in range(5):
        if run_slice(tasks, tmp_path / "state.json", minutes=0.03):
            break
    told = progress_markdown(tasks, tmp_path / "state.json")
    assert "failed with 1: error: no such thing" in told
    assert told.count("stopped after") == 2
    assert last.exists()
    assert not missing.exists()
    assert run_slice(tasks, tmp_path / "state.json", minutes=0.03)


@pytest.mark.slow
def test_rehearsal(tmp_path: Path) -> None:
    """All of it on a CPU, after a slice that is too short; a further one does nothing again."""
    out = tmp_path / "gpu"
    command = [sys.executable, str(SCRIPT), "--rehearse", "--out", str(out)]
    short = subprocess.run([*command, "--minutes", "0.05"], check=False, capture_output=True, text=True)
    assert short.returncode == 3
    assert "run it again" in short.stdout
    for _ in range(4):
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode != 3:
            break
    assert done.returncode == 0, done.stderr
    steps = sorted((out / "train-step").glob("*/train-step.json"))
    assert {read_result(path, TrainStepResult).contenders[0].precision for path in steps} == {"fp32", "bf16"}
    attacks = [read_result(path, AttackResult) for path in sorted((out / "attacks").glob("*/attack.json"))]
    assert [result.checkpoint.method for result in attacks] == ["ddcat", "pgd-at", "sat", "undefended"]
    assert (out / "train-step.md").read_text().count("| voc-") == 2
    assert "| pgd-at |" in (out / "attacks.md").read_text()
    page = (out / "engines/engines.md").read_text()
    assert "A rehearsal: these figures say nothing." in page
    assert page.count("refused: ") == (2 if not torch.cuda.is_available() else 0)
    assert (out / "progress.md").read_text().count("| done |") == 2 + 1 + 8 + 4
    again = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "$ " not in again.stdout


@pytest.mark.slow
def test_compiled_code_is_timed_beside_what_it_is_made_of(tmp_path: Path) -> None:
    options = f"--device cpu --batch 2 --crop 33 --width 4 --repeats 1 --out {tmp_path / 'it.json'}".split()
    subprocess.run([sys.executable, str(COMPILED), "scenes-ddcat", *options], check=True, capture_output=True)
    found = json.loads((tmp_path / "it.json").read_text())["median_seconds"]
    assert set(found) == {"training pass", "attack step"}
    assert all(set(each) == {"eager", "default", "reduce-overhead"} and min(each.values()) > 0 for each in found.values())
