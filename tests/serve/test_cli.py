import json
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import httpx
import numpy as np
import pytest

from ddcat.bundle import NO_TRUST_POLICY, Bundle, entries, write_bundle
from tests.bundles import with_golden
from tests.commands import call, refusal
from tests.serve.payloads import as_labels, as_png
from tests.serve.processes import introduced


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_real_server_from_start_to_end(bundle: Bundle, oracle: Callable, picture: np.ndarray, number: signal.Signals) -> None:
    with introduced(bundle.path, inside=["env"]) as (process, address, lines):  # the command, as a shell starts it
        assert any(bundle.digest in line and "integrity only" in line for line in lines)
        assert httpx.get(f"{address}/v2/health/ready").json() == {"ready": True}
        response = httpx.post(f"{address}/v1/segment", content=as_png(picture))
        np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])
        assert httpx.post(f"{address}/v1/segment", content=b"nothing").status_code == 415
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr is not None
        process.stderr.seek(0)
        logged = [json.loads(line) for line in process.stderr]
        assert [(line["path"], line["status"]) for line in logged if "path" in line] == [
            ("/v2/health/ready", 200), ("/v1/segment", 200), ("/v1/segment", 415),
        ]  # fmt: skip


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = call("ddcat-serve", "run", tmp_path / "never-read", "--port", str(port))
        grpc = call("ddcat-serve", "run", tmp_path / "never-read", "--port", "0", "--grpc-port", str(port))
    for found, option in ((result, "--port"), (grpc, "--grpc-port")):
        assert (found.returncode, found.stdout) == (2, "")
        assert (
            found.stderr
            == f"error: cannot listen at 127.0.0.1, port {port}: Address already in use: choose another with {option}\n"
        )


def test_an_invalid_address_is_refused(bundle: Bundle) -> None:
    said = refusal("ddcat-serve", "run", bundle.path, "--host", "192.0.2.1", "--port", "0")
    assert said.startswith("cannot listen at 192.0.2.1")
    assert refusal("ddcat-serve", "run", bundle.path, "--host", "a..b", "--port", "0") == (
        "cannot listen at a..b: it is not a valid host name: use an address of this machine for --host"
    )


@pytest.mark.parametrize("command", [["run", "--port", "0"], ["inspect"]])
@pytest.mark.parametrize("damage", ["tampered", "unlisted", "missing", "none", "manifest", "schema"])
def test_damaged_bundles_are_refused(bundle: Bundle, command: list[str], damage: str) -> None:
    graph = bundle.path / "model.onnx"
    named = graph
    if damage == "tampered":
        graph.write_bytes(graph.read_bytes()[:-1] + b"\0")
    elif damage == "unlisted":
        named = bundle.path / "extra.bin"
        named.write_bytes(b"")
    elif damage == "missing":
        graph.unlink()
    elif damage == "none":
        named = bundle.path / "nothing-here"
    else:
        named, change = bundle.path / "manifest.json", {"threshold": 3} if damage == "manifest" else {"schema_version": 1}
        named.write_text(json.dumps({**json.loads(named.read_text()), **change}))
    assert str(named) in refusal("ddcat-serve", command[0], named if damage == "none" else bundle.path, *command[1:])


def rewritten(bundle: Bundle, content: bytes | None = None, **engine: Any) -> Path:
    """The same bundle, whole, with another graph, or another entry of its engine."""
    files = bundle.files if content is None else {"model.onnx": content}
    entry = bundle.manifest.engine.model_copy(update=engine)
    manifest = bundle.manifest.model_copy(update={"engine": entry, "files": entries(files)})
    return write_bundle(bundle.path.with_name("other"), manifest, files).path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"content": b"no graph"}, "ONNX Runtime does not load the graph"),
        ({"provider": "CUDAExecutionProvider"}, "this onnxruntime has no CUDAExecutionProvider"),  # no silent fall-back
        (
            {"name": "openvino", "provider": "CPU", "effective_precision": "int8"},
            "computes in fp32 where int8 was asked for",
        ),
    ],
)
def test_an_engine_that_is_not_what_the_manifest_says_is_refused_at_the_start(
    bundle: Bundle, changes: dict[str, Any], said: str
) -> None:
    assert said in refusal("ddcat", "serve", rewritten(bundle, **changes), "--port", 0)


def test_a_missing_runtime(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ddcat.engines.onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert 'pip install ".[cpu]"' in refusal("ddcat", "serve", bundle.path, "--port", 0)


def test_inspect_says_what_is_in_it(bundle: Bundle) -> None:
    result = call("ddcat-serve", "inspect", bundle.path)
    assert result.returncode == 0, result.stderr
    for expected in (bundle.digest, "night, red, green, blue", "CPUExecutionProvider", "height 8 to 640", "Integrity only"):
        assert expected in result.stdout


def test_inspect_replays_golden_images(tmp_path: Path, bundle: Bundle, oracle: Callable, picture: np.ndarray) -> None:
    golden = with_golden(tmp_path / "golden", oracle, picture)
    found = [call("ddcat-serve", "inspect", path, "--replay").stdout.splitlines()[-1] for path in (bundle.path, golden.path)]
    assert found == ["there are no golden images", f"0 of {4 * picture[..., 0].size} golden labels differ"]


def test_ray_gets_the_arguments_or_is_asked_for(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "ddcat_serve.deploy.ray_app", raising=False)
    assert 'pip install ".[serve,ray,cpu]"' in refusal("ddcat", "ray", bundle.path)
    module = SimpleNamespace(Arguments=lambda **given: SimpleNamespace(**given, trust=NO_TRUST_POLICY), run=mock.Mock())
    monkeypatch.setitem(sys.modules, "ddcat_serve.deploy.ray_app", module)
    assert call("ddcat", "ray", bundle.path, "--replicas", 2).returncode == 0
    (arguments,), address = module.run.call_args
    assert (arguments.bundles, arguments.replicas, address) == (str(bundle.path), 2, {"host": "127.0.0.1", "port": 8000})


def test_neither_bundles_nor_a_repository() -> None:
    assert refusal("ddcat", "serve") == "expected either bundles or --repository FOLDER: name one of them"


def test_inspect_as_json_is_the_manifest(bundle: Bundle) -> None:
    found = json.loads(call("ddcat-serve", "inspect", bundle.path, "--json", "--expect-digest", bundle.digest).stdout)
    assert found == {
        "digest": bundle.digest,
        "trust": "the digest is the expected one",
        "manifest": json.loads(bundle.manifest.to_bytes()),
    }


@pytest.mark.parametrize("command", [["run", "--port", "0"], ["inspect"]])
@pytest.mark.parametrize("wanted", ["digest", "signature"])
def test_a_bundle_of_somebody_else_is_refused(bundle: Bundle, command: list[str], wanted: str, tmp_path: Path) -> None:
    (bundle.path / "model.onnx").write_bytes(b"never read")
    options = ["--expect-digest", "0" * 64] if wanted == "digest" else ["--require-signature", tmp_path / "key.pub"]
    refused = refusal("ddcat-serve", command[0], bundle.path, *command[1:], *options)
    said = f"has digest {bundle.digest}, expected" if wanted == "digest" else "is not signed"
    assert refused.startswith(f"{bundle.path} {said}")


def test_one_port_for_both_protocols_is_refused(bundle: Bundle) -> None:
    said = refusal("ddcat-serve", "run", bundle.path, "--port", "47391", "--grpc-port", "47391")
    assert said == "--grpc-port 47391 is also the port of HTTP: use another one"
