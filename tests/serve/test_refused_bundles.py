"""What must never serve: the command says why in one line and ends with 2, before a request is taken."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddcat import cli
from ddcat.bundle import MANIFEST, Bundle, write_bundle


def rewritten(bundle: Bundle, **engine: Any) -> Path:
    """The same bundle, whole, with another entry of its engine."""
    entry = bundle.manifest.engine.model_copy(update=engine)
    return write_bundle(bundle.path.with_name("other"), bundle.manifest.model_copy(update={"engine": entry}), bundle.files).path


def altered(bundle: Bundle) -> Path:
    (bundle.path / "model.onnx").write_bytes(b"another graph")
    return bundle.path


def of_another_schema(bundle: Bundle) -> Path:
    manifest = bundle.path / MANIFEST
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"schema_version": 1}))
    return bundle.path


CASES: dict[str, tuple[Callable[[Bundle], Path], str]] = {
    "tampered file": (altered, "model.onnx is not the file that was exported"),
    "unknown schema": (of_another_schema, "has schema_version 1, and this ddcat reads 2 and 3"),
    "silent fall-back": (
        lambda bundle: rewritten(bundle, provider="CUDAExecutionProvider"),
        "this onnxruntime has no CUDAExecutionProvider",
    ),
    "precision in effect": (
        lambda bundle: rewritten(bundle, name="openvino", provider="CPU", effective_precision="int8"),
        "computes in fp32 where int8 was asked for",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_in_one_line(
    bundle: Bundle, case: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, said = CASES[case]
    refused_by_run(make(bundle), said, monkeypatch, capsys)


def test_a_missing_runtime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delitem(sys.modules, "ddcat.engines.onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused_by_run(bundle.path, 'pip install ".[cpu]"', monkeypatch, capsys)


def refused_by_run(path: Path, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["ddcat", "serve", str(path), "--port", "0"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    told = capsys.readouterr()
    assert (caught.value.code, told.out) == (2, "")
    assert told.err.startswith("error: ")
    assert said in told.err
    assert told.err.count("\n") == 1
