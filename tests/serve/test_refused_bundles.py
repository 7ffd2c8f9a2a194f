"""What must never serve: the command says why in one line and ends with 2, before a request is taken."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddcat.bundle import MANIFEST, Bundle, write_bundle
from tests.commands import refusal


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
def test_it_is_refused_in_one_line(bundle: Bundle, case: str) -> None:
    make, said = CASES[case]
    assert said in refusal("ddcat", "serve", make(bundle), "--port", 0)


def test_a_missing_runtime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ddcat.engines.onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'pip install ".[cpu]"' in refusal("ddcat", "serve", bundle.path, "--port", 0)
