"""The scripts of bench/cpu on a toy network."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddcat_train.checkpoints import load_checkpoint

SCRIPTS = Path(__file__).parents[2] / "bench/cpu"


def call(*words: object) -> None:
    done = subprocess.run([sys.executable, *map(str, words)], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_room_that_extras_take() -> None:
    line = [sys.executable, SCRIPTS / "extras_size.py", "serve", "serve,cpu"]
    printed = subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()
    found = [re.fullmatch(r"(\S+): (\d+) packages, (\d+) MiB, the largest .+", text) for text in printed]
    assert [match[1] for match in found if match] == ["serve", "serve,cpu"]
    assert 0 < int(found[0][3]) < int(found[1][3])  # type: ignore[index]


@pytest.mark.slow
def test_a_seeded_network_answers_like_a_trained_one(tmp_path: Path) -> None:
    for name in ("a", "b"):
        call(SCRIPTS / "random_checkpoint.py", "scenes-undefended", tmp_path / f"{name}.safetensors")
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    assert checkpoint.sha256() == load_checkpoint(tmp_path / "b.safetensors").sha256()
    images = torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = checkpoint.segmenter()(images)
    assert 0.1 < logits.std() < 10
    assert len(logits.argmax(1).unique()) > 5


@pytest.mark.slow
def test_agreement_and_heads(tmp_path: Path, run_directory: Path) -> None:
    bundle = tmp_path / "bundle"
    export = Path(sys.executable).with_name("ddcat-export")
    call(export, run_directory, "--engine", "ort", "--size", "40x48", "--logits", "--out", bundle)
    call(SCRIPTS / "agreement.py", bundle, "--shapes", "1x40x48", "2x40x48", "--out", tmp_path / "agreement.json")
    shapes = json.loads((tmp_path / "agreement.json").read_text())["shapes"]
    assert [shape["pixels"] for shape in shapes.values()] == [2 * 40 * 48, 4 * 40 * 48]
    for shape in shapes.values():
        assert 0 < shape["logit_error_p999"] <= shape["logit_error_max"] < 1e-4
        assert shape["equal_labels"] > 0.999 * shape["pixels"]
    call(SCRIPTS / "head_cost.py", bundle, "--repeats", "10", "--out", tmp_path / "heads.json")
    runtimes = json.loads((tmp_path / "heads.json").read_text())["runtimes"]
    assert set(runtimes) == {"PyTorch, eager", "ONNX Runtime", "OpenVINO"}
    for found in runtimes.values():
        assert 0 < found["logit_difference_max"] < 1e-4
        assert len(found["seconds"]["plain"]["seconds"]) == 10
        assert found["faster"]["median"] > 0
