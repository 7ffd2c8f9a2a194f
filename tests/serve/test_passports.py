"""What the gate said of a bundle decides whether it is served where that is asked for, and is never hidden."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.passport import Finding, Passport, write_passport
from tests.commands import call, refusal
from tests.keys import write_keys
from tests.serve.payloads import as_png
from tests.serve.processes import introduced


def judged(bundle: Bundle, verdict: str, *, budget: str = "default", key: Path | None = None) -> Bundle:
    finding = Finding(name="mIoU, clean", verdict=verdict, found="+0.01 points", limit="within 0.05", reason="it is.")
    passport = Passport(
        manifest_sha256=bundle.digest, verdict=verdict, budget=budget, data="scenes, val", images=7, findings=(finding,),
        versions={},
    )  # fmt: skip
    write_passport(bundle, passport, key=key)
    return bundle


COMMANDS: dict[str, Callable[[Bundle, Path], list[object]]] = {
    "run": lambda bundle, _: ["run", bundle.path, "--port", "0"],
    "triton": lambda bundle, folder: ["triton", bundle.path, folder / "repository"],
    "ray": lambda bundle, _: ["ray", bundle.path],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bundle_that_did_not_pass_is_refused_where_a_passport_is_asked_for(
    bundle: Bundle, command: str, tmp_path: Path
) -> None:
    if command == "ray":
        pytest.importorskip("ray")
    line = ["ddcat-serve", *COMMANDS[command](bundle, tmp_path), "--require-passport"]
    assert "has no passport (none: the gate has not tested this bundle)" in refusal(*line)
    for verdict in ("refuse", "inconclusive"):
        judged(bundle, verdict)
        assert f"did not pass the gate, its passport says {verdict}" in refusal(*line)
    judged(bundle, "pass", budget="quick")
    assert "passed the gate with the quick budget alone" in refusal(*line)
    _, public = write_keys(tmp_path, "ours")
    judged(bundle, "pass")
    assert "is not signed" in refusal(*line, "--require-signature", public)
    assert not (tmp_path / "repository").exists()


def test_a_bundle_that_passed_is_served_and_one_that_was_refused_with_a_warning(
    make_bundle: Callable[..., Bundle], picture: np.ndarray
) -> None:
    passed = judged(make_bundle("passed"), "pass")
    with introduced(passed.path, "--require-passport") as (process, address, lines):
        assert httpx.post(f"{address}/v1/segment", content=as_png(picture)).status_code == 200
        assert not any("warning" in line.lower() for line in lines)
    bad = judged(make_bundle("bad"), "refuse")
    said = "the gate refused this bundle (mIoU, clean): do not rely on its answers"
    with introduced(bad.path) as (process, address, lines):
        assert any(line.strip() == f"WARNING: {said}" for line in lines)
        assert httpx.post(f"{address}/v1/segment", content=as_png(picture)).status_code == 200
        assert process.stderr is not None
        process.stderr.seek(0)
        logged = [json.loads(line) for line in process.stderr]
    assert [(line["level"], line["message"]) for line in logged if "gate" in line.get("message", "")] == [
        ("warning", f"bad, version 1: {said}")
    ]


def test_a_refused_bundle_is_written_for_triton_with_a_warning(bundle: Bundle, tmp_path: Path) -> None:
    for verdict, warned in (("refuse", True), ("pass", False)):
        judged(bundle, verdict)
        done = call("ddcat-serve", "triton", bundle.path, tmp_path / "repository")
        assert (done.returncode, "warning: " in done.stderr) == (0, warned)
        shutil.rmtree(tmp_path / "repository")
