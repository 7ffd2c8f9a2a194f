"""The exit status of the gate: 0 pass, 1 refuse, 3 inconclusive, and 2 for whatever kept it from running."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.errors import DdcatError
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.pipeline import run_job
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_bench.inputs import open_bundle_data
from ddcat_bench.publish import claim
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from tests.commands import call, refusal


@pytest.mark.parametrize(("verdict", "status"), [("pass", 0), ("refuse", 1), ("inconclusive", 3)])
def test_a_verdict(make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, verdict: str, status: int) -> None:
    monkeypatch.setattr("ddcat_bench.gate.pipeline.run_job", lambda *case, **options: SimpleNamespace(verdict=verdict))
    assert call("ddcat", "gate", make_bundle().path).returncode == status


@pytest.mark.parametrize(
    "fault",
    [MemoryError("no room"), ZeroDivisionError("of ours"), OSError(5, "Input/output error"), RecursionError()],
    ids=repr,
)
def test_a_fault_of_the_program_is_no_verdict(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def judge(*case: Any, **options: Any) -> None:
        raise fault

    monkeypatch.setattr("ddcat_bench.gate.pipeline.run_job", judge)
    ended = call("ddcat", "gate", make_bundle().path)
    assert ended.returncode == 2
    assert type(fault).__name__ in ended.stderr  # it is not hidden


def test_what_is_missing_or_wrong(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle, none = make_bundle().path, tmp_path / "none"
    refusal("ddcat", "gate", none)
    for wrong in (["--no-such-option"], ["--thresholds", none], ["--data-root", none], ["--split", "none"]):
        refusal("ddcat", "gate", bundle, *wrong)


def test_torchrun_does_not_pass_a_verdict_on(make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("RANK", "0")
    assert "use --jobs N" in refusal("ddcat", "gate", make_bundle().path)


def test_a_second_gate_with_the_same_out_is_refused_at_once(make_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    bundle, out = make_bundle().path, tmp_path / "gate"
    with claim(out, "gate"):
        for force in ([], ["--force"]):
            said = refusal("ddcat", "gate", bundle, "--out", out, *force)
            assert said.startswith(f"another process is at work on {out}")
    assert not out.exists()


def test_clips_that_fit_no_name_are_refused_before_anything_is_timed(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle().path
    said = refusal("ddcat", "gate", bundle, "--clips", "drive([0-9]+)")
    assert "finds no clip in the name of the image val_00000" in said
    assert "expected a regular expression" in refusal("ddcat", "gate", bundle, "--clips", "(")


def test_a_data_set_that_has_moved_is_asked_for(
    make_bundle: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scenes_copy: Path
) -> None:
    made = make_bundle()

    def at(root: Path | str) -> Bundle:
        data = made.manifest.data.model_copy(update={"root": str(root)})
        return Bundle(made.path, made.manifest.model_copy(update={"data": data}), made.digest, made.files)

    monkeypatch.chdir(tmp_path)
    with pytest.raises(DdcatError, match=rf"is not at old/scenes, seen from {tmp_path}: .*--data-root"):
        open_bundle_data(at("old/scenes"))
    (tmp_path / "emptied").mkdir()
    with pytest.raises(DdcatError, match=r"holds no generated scenes.*--data-root"):
        open_bundle_data(at(tmp_path / "emptied"))
    assert len(open_bundle_data(at("old/scenes"), data_root=scenes_copy)) == 5


@pytest.mark.parametrize("option", [("--steps", "5"), ("--seed", "1")], ids=" ".join)
def test_what_a_quick_gate_has_no_use_for_is_refused(option: tuple[str, str], tmp_path: Path) -> None:
    said = refusal("ddcat", "gate", tmp_path, "--quick", *option)
    assert said.startswith(f"{' '.join(option)}: --quick runs BIM, n = 3,")


def test_a_split_without_labels_is_refused_before_anything_is_timed(
    make_bundle: Callable[..., Bundle], checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path
) -> None:
    ignored = replace(scenes, decode=lambda indices: np.full_like(indices, 255))
    told = rf"every pixel of the 5 images of {scenes.root}, val, is ignored: .*use a split with labels"
    bundle = make_bundle()
    with pytest.raises(BenchError, match=told):
        run_job(GateJob(bundle, checkpoint, ignored), read_thresholds(DEFAULT, "fp32"), tmp_path / "gate", repeats=10)
    GateJob(bundle, checkpoint, scenes).check_labels()
