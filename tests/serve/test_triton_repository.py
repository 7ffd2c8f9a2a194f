"""The model repository for Triton: read by its protobuf, held against the engine's file, served by a real tritonserver."""

import contextlib
import dataclasses
import io
import os
import shutil
import signal
import subprocess
import sysconfig
import time
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from ddcat.bundle import Bundle, entries, write_bundle
from ddcat.engines import open_engine
from ddcat.errors import WriteError
from ddcat.manifest import DimRange, parse_manifest
from ddcat_serve.deploy.triton import write_repository
from ddcat_serve.errors import ServeError
from tests.commands import call, refusal
from tests.serve.payloads import as_png
from tests.serve.processes import free_port
from tests.small_files import no_file_above

ROOT = Path(__file__).parents[2]


def read(file: Path) -> pb.ModelConfig:
    config: pb.ModelConfig = text_format.Parse(file.read_text(), pb.ModelConfig())
    return config


def test_a_repository(bundle: Bundle, tmp_path: Path) -> None:
    written = set(map(str, write_repository(bundle, tmp_path / "repository")))
    assert written >= {
        "small/config.pbtxt", "small/configs/python.pbtxt", "small/1/model.onnx", "small/1/model.py",
        "small/bundle/manifest.json",
        "small-decode/config.pbtxt", "small-encode/1/model.py", "small-file/config.pbtxt",
    }  # fmt: skip
    config = read(tmp_path / "repository/small/config.pbtxt")
    assert (config.backend, config.default_model_filename, config.max_batch_size) == ("onnxruntime", "model.onnx", 4)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("image", pb.TYPE_UINT8, [-1, -1, 3])]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
        ("labels", pb.TYPE_UINT8, [-1, -1]), ("logits", pb.TYPE_FP32, [4, -1, -1]),
    ]  # fmt: skip
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.timeout_action, policy.max_queue_size) == (pb.ModelQueuePolicy.REJECT, 64)
    assert [list(warm.inputs["image"].dims) for warm in config.model_warmup] == [[8, 8, 3]]
    twin = read(tmp_path / "repository/small/configs/python.pbtxt")
    assert (twin.backend, twin.input, twin.output) == ("python", config.input, config.output)
    steps = read(tmp_path / "repository/small-file/config.pbtxt").ensemble_scheduling.step
    assert [step.model_name for step in steps] == ["small-decode", "small", "small-encode"]
    assert steps[0].output_map["size"] == steps[2].input_map["size"] == "size"  # the mask gets the size of the file
    for part in ("decode", "encode"):
        assert parse_manifest((tmp_path / f"repository/small-{part}/manifest.json").read_bytes(), part) == bundle.manifest
    assert (tmp_path / "repository/small/1/model.onnx").read_bytes() == bundle.files["model.onnx"]


def changed(bundle: Bundle, **parts: Any) -> Bundle:
    return dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update=parts))


@pytest.mark.parametrize(
    ("ladder", "warm", "dims"),
    [
        ({"sizes": ((37, 53), (40, 64))}, [[37, 53, 3], [40, 64, 3]], [[-1, -1, 3], [-1, -1]]),
        ({}, [[37, 53, 3]], [[37, 53, 3], [37, 53]]),
    ],
)
def test_every_size_of_a_ladder_or_the_only_one_is_warmed_up(
    make_bundle: Callable[..., Bundle], tmp_path: Path, ladder: dict[str, Any], warm: list[list[int]], dims: list[list[int]]
) -> None:
    bundle = make_bundle("any", logits=False) if ladder else make_bundle("any", 37, 53, logits=False)
    if ladder:
        ladder |= {"height": DimRange(minimum=37, maximum=40), "width": DimRange(minimum=53, maximum=64)}
    write_repository(changed(bundle, shapes=bundle.manifest.shapes.model_copy(update=ladder)), tmp_path / "repository")
    config = read(tmp_path / "repository/any/config.pbtxt")
    assert [list(call.inputs["image"].dims) for call in config.model_warmup] == warm
    assert [list(t.dims) for t in (*config.input, *config.output)] == dims


@pytest.mark.parametrize(
    ("engine", "kind"),
    [
        ({"name": "ort", "provider": "CPUExecutionProvider"}, pb.ModelInstanceGroup.KIND_CPU),
        ({"name": "ort", "provider": "CUDAExecutionProvider"}, pb.ModelInstanceGroup.KIND_GPU),
        ({"name": "trt", "provider": "TensorRT"}, pb.ModelInstanceGroup.KIND_GPU),
    ],
)
def test_it_computes_where_it_was_judged(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: dict[str, str], kind: int
) -> None:
    monkeypatch.setattr("ddcat_serve.deploy.triton.open_engine", lambda bundle, threads: contextlib.nullcontext())
    write_repository(changed(bundle, engine=bundle.manifest.engine.model_copy(update=engine)), tmp_path / "repository")
    for file, expected in (("config.pbtxt", kind), ("configs/python.pbtxt", pb.ModelInstanceGroup.KIND_CPU)):
        (group,) = read(tmp_path / "repository/small" / file).instance_group
        assert (group.count, group.kind) == (1, expected)


def test_a_disk_without_room_is_one_line(bundle: Bundle, tmp_path: Path) -> None:
    with no_file_above(40), pytest.raises(WriteError, match=r"cannot write .*config\.pbtxt: File too large"):
        write_repository(bundle, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_an_engine_that_triton_does_not_load_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = changed(bundle, engine=bundle.manifest.engine.model_copy(update={"name": "openvino"}))
    with pytest.raises(ServeError, match="--engine ort or trt"):
        write_repository(other, tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


def test_a_plan_of_tensorrt_for_rtx_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    engine = bundle.manifest.engine.model_copy(update={"name": "trt-rtx", "file": "model.plan", "provider": "TensorRT"})
    files = {**bundle.files, "model.plan": b"plan"}
    write_bundle(tmp_path / "rtx", changed(bundle, engine=engine, files=entries(files)).manifest, files)
    assert refusal("ddcat", "triton", tmp_path / "rtx", tmp_path / "repository") == (
        f"{tmp_path}/rtx holds a plan of TensorRT for RTX, and Triton's backend loads those of TensorRT alone: use "
        f"ddcat serve {tmp_path}/rtx, or ddcat export {tmp_path}/rtx --engine trt on the machine with the GPU"
    )
    assert not (tmp_path / "repository").exists()


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    printed = call("ddcat", "triton", bundle.path, tmp_path / "repository").stdout
    assert "small/config.pbtxt" in printed
    assert "serves small and small-file" in printed


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the tritonserver of nvidia-pytriton and this package; DDCAT_TRITON_VENV names one that is ready."""
    ready = os.environ.get("DDCAT_TRITON_VENV")
    if ready:
        return Path(ready)
    if sysconfig.get_platform() != "linux-x86_64":
        pytest.skip("nvidia-pytriton is for Linux on x86-64")
    folder = tmp_path_factory.mktemp("triton") / "venv"
    venv.create(folder, with_pip=True)
    needs = ["nvidia-pytriton==0.7.0", "numpy<2", f"{ROOT}[serve,cpu]"]  # with numpy 2 it gives empty outputs without a word
    done = subprocess.run([folder / "bin/pip", "install", "-q", *needs], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nvidia-pytriton cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return folder


@contextlib.contextmanager
def tritonserver(environment: Path, repository: Path, work: Path, *options: str) -> Iterator[tuple[Path, list[int]]]:
    """Start a real one; gives its log and its ports."""
    packages = next((environment / "lib").glob("python3.*/site-packages"))
    server = packages / "pytriton/tritonserver"
    version = packages.parent.name.removeprefix("python")
    shutil.copytree(server / "backends/python", work / "backends/python")
    shutil.copy(server / f"python_backend_stubs/{version}/triton_python_backend_stub", work / "backends/python")
    ports = [free_port() for _ in range(3)]
    line = [
        server / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={work / 'backends'}",
        *(f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), ports, strict=True)), *options,
    ]  # fmt: skip
    libraries = f"{packages / 'nvidia_pytriton.libs'}:{sysconfig.get_config_var('LIBDIR')}"
    variables = {**os.environ, "LD_LIBRARY_PATH": libraries, "VIRTUAL_ENV": str(environment)}
    variables["PATH"] = f"{environment / 'bin'}:{variables['PATH']}"
    variables.pop("PYTHONPATH", None)
    log = work / "log"
    with log.open("w") as written:
        process = subprocess.Popen(line, env=variables, stdout=written, stderr=written, start_new_session=True)
        try:
            yield log, ports
        finally:
            process.terminate()
            process.wait(60)
            with contextlib.suppress(ProcessLookupError):  # it leaves its helpers where it ends before they have begun
                os.killpg(process.pid, signal.SIGKILL)


def wait_until(ready: Callable[[], bool], seconds: float = 90) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with contextlib.suppress(Exception):  # nobody listens yet
            if ready():
                return True
        time.sleep(0.5)
    return False


@pytest.mark.slow
def test_a_real_tritonserver_gives_the_same_masks(
    environment: Path, bundle: Bundle, tmp_path: Path, picture: np.ndarray
) -> None:
    repository = tmp_path / "repository"
    write_repository(bundle, repository)
    images = np.stack([picture, picture[::-1], picture[:, ::-1]])
    with open_engine(bundle, threads=1) as engine:
        expected = engine.infer(images)
    with tritonserver(environment, repository, tmp_path / "work", "--model-config-name=python") as (log, (http, grpc, _)):
        over_http = triton_http.InferenceServerClient(f"127.0.0.1:{http}")
        assert wait_until(over_http.is_server_ready), log.read_text()[-3000:]
        assert over_http.is_model_ready("small-file")
        for client, module in ((over_http, triton_http), (triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc}"), triton_grpc)):
            sent = module.InferInput("image", list(images.shape), "UINT8")
            sent.set_data_from_numpy(images)
            found = client.infer("small", [sent])
            np.testing.assert_array_equal(found.as_numpy("labels"), expected.labels)
            np.testing.assert_allclose(found.as_numpy("logits"), expected.logits, rtol=1e-6)
        file = triton_http.InferInput("file", [1], "BYTES")
        file.set_data_from_numpy(np.array([as_png(picture)], np.object_))
        (mask,) = over_http.infer("small-file", [file]).as_numpy("mask")
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(mask))), expected.labels[0])
        file.set_data_from_numpy(np.array([b"rubbish"], np.object_))
        with pytest.raises(InferenceServerException, match="neither JPEG, PNG nor WebP"):
            over_http.infer("small-file", [file])


@pytest.mark.slow
def test_the_production_configuration_wants_nothing_but_its_backend(environment: Path, bundle: Bundle, tmp_path: Path) -> None:
    """This tritonserver has none for ONNX Runtime; all else of the configuration it takes."""
    write_repository(bundle, tmp_path / "repository")
    with tritonserver(environment, tmp_path / "repository", tmp_path / "work") as (log, _):
        assert wait_until(lambda: "unable to find backend library for backend 'onnxruntime'" in log.read_text()), (
            log.read_text()
        )
    failures = [line for line in log.read_text().splitlines() if "failed to load '" in line and line.startswith("E")]
    assert len(failures) == 1
    assert "failed to load 'small' version 1: Invalid argument: unable to find backend library" in failures[0]
