"""What a user gets wrong: one line that says what, where and what to do, exit status 2, nothing half-written."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from ddcat_train.data.synthetic.generate import write_scenes
from tests.commands import call, refusal

TINY = ["augment.crop=33", "model.width=4", "train.epochs=1", "train.batch_size=4"]


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes", train=6, val=2, size=(48, 48))
    return tmp_path / "scenes"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_scenes(folder / "scenes", train=6, val=2, size=(48, 48))
    command = ["ddcat", "train", *training(folder / "scenes"), "--out", folder / "run"]
    assert call(*command).returncode == 0
    return folder / "run"


def training(root: Path, *overrides: str) -> list[str]:
    return ["scenes-ddcat", "--data-root", str(root), *(p for o in [*TINY, *overrides] for p in ("--set", o))]


def assert_refused(result: "subprocess.CompletedProcess[str]", *words: str) -> None:
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == 2, result.stderr
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    assert "Traceback" not in result.stderr
    assert [word for word in words if word not in errors[0]] == []


def left(folder: Path) -> Sequence[str]:
    """Everything in a folder but what was put there as input."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "scenes" not in path.parts)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    result = call("ddcat", "train", *training(tmp_path / "nowhere"), "--out", tmp_path / "run")
    assert_refused(result, str(tmp_path / "nowhere"))
    assert left(tmp_path) == []


def test_a_corrupt_image_is_named(scenes: Path, tmp_path: Path) -> None:
    image = min((scenes / "JPEGImages").glob("*.jpg"))
    image.write_bytes(image.read_bytes()[:200])
    result = call("ddcat", "train", *training(scenes), "--out", tmp_path / "run")
    assert_refused(result, image.name)
    assert not list((tmp_path / "run").glob("*.safetensors*"))
    checked = call("ddcat", "data", "check", "scenes", scenes)
    assert checked.returncode == 2
    assert image.name in checked.stdout + checked.stderr


def test_a_truncated_checkpoint_is_refused_everywhere(run: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((run / "best.safetensors").read_bytes()[:-10])
    assert_refused(call("ddcat", "export", broken, "--engine", "ort", "--out", tmp_path / "bundle"), str(broken), "truncated")
    assert_refused(call("ddcat", "attack", broken, "--out", tmp_path / "result"), str(broken), "truncated")
    assert left(tmp_path) == ["broken.safetensors"]


@pytest.mark.slow
def test_a_tampered_bundle_and_a_taken_port_are_refused(run: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    assert call("ddcat", "export", run, "--engine", "ort", "--out", bundle).returncode == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_refused(call("ddcat", "serve", bundle, "--port", port), str(port), "--port")
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    assert_refused(call("ddcat", "serve", bundle), "model.onnx", "not the file that was exported")
    assert_refused(call("ddcat", "fidelity", bundle), "model.onnx", "not the file that was exported")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["ddcat", "train"], "missing argument 'PRESET|CONFIG.yaml'; see ddcat train --help"),
        (
            ["ddcat", "export", "x", "--precison", "int8"],
            "no such option: --precison; did you mean --precision? see ddcat",
        ),
        (["ddcat", "gate", "x", "--repeats", "3"], "invalid value for '--repeats': "),
        (["ddcat", "gaet", "x"], "no such command 'gaet'. Did you mean 'gate'? see ddcat --help"),
        (["ddcat", "serve", "x", "--port", "http"], "invalid value for '--port': "),
    ],
)
def test_wrong_options_are_one_line(command: list[str], said: str) -> None:
    assert refusal(*command).startswith(said)


@pytest.mark.parametrize("arguments", [["--help"], ["gate", "x", "--nope"]])
def test_a_reader_who_closes_the_pipe_is_not_the_status_of_a_refused_engine(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    script = Path(sys.executable).with_name("ddcat")
    ended = subprocess.run([script, *arguments], stdout=writing, stderr=writing, timeout=300, check=False)
    os.close(writing)
    assert ended.returncode == 2
