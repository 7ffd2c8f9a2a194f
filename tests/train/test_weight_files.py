"""Files of others: what holds no weights, or more than weights, is refused in one line."""

import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.config import ModelConfig
from ddcat_train.data_cli import app as data
from ddcat_train.errors import CheckpointError
from ddcat_train.networks import build_backbone, load_backbone
from ddcat_train.weight_import import import_checkpoint
from tests.train.released import saved


class Anything:
    """An object, whose class a file would have to be trusted for."""


CONTENTS: dict[str, tuple[Any, str]] = {
    "an object": (
        {"state_dict": {"x": torch.zeros(1)}, "args": Anything()},
        r"holds more than tensors \(\S*Anything\), and reading it could run code",
    ),
    "a list": ([torch.zeros(1)], "holds no weights, expected a dict of tensors"),
    "nothing": ({}, "holds no weights, expected a dict of tensors"),
    "no tensors": (
        {"state_dict": {"a": 1, "b": torch.zeros(1), "c": "x"}},
        "does not hold tensors alone: a, c are something else",
    ),
    "two networks": ({"module.a": torch.zeros(1), "a": torch.zeros(1)}, "with and without module."),
    "another network": ({"blocks.0.weight": torch.zeros(1), "norm.bias": torch.zeros(1)}, "keys begin with blocks, norm"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_holds_no_known_network_is_refused(tmp_path: Path, name: str) -> None:
    content, message = CONTENTS[name]
    with pytest.raises(CheckpointError, match=message) as caught:
        import_checkpoint(saved(tmp_path / "x.pth", content), tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
def test_a_truncated_file_is_one_line(tmp_path: Path, keep: float, zipped: bool) -> None:
    file = saved(tmp_path / "x.pth", {"a": torch.zeros(1000)}, _use_new_zipfile_serialization=zipped)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"truncated or not a file of torch\.save") as caught:
        import_checkpoint(file, tmp_path / "x.safetensors")
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        import_checkpoint(tmp_path / "none.pth", tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is a folder"):
        import_checkpoint(tmp_path, tmp_path / "x.safetensors")
    (tmp_path / "x.txt").write_text("no weights")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        import_checkpoint(tmp_path / "x.txt", tmp_path / "x.safetensors")


def test_where_the_import_may_write_is_said_before_it_reads(tmp_path: Path) -> None:
    file, out = saved(tmp_path / "x.pth", {}), tmp_path / "x.safetensors"
    given = CliRunner().invoke(data, ["import-checkpoint", str(file), str(tmp_path / "ours.json")])
    assert "use " in str(given.exception)
    assert "ours.safetensors" in str(given.exception)
    for path in (out, out.with_suffix(".json")):
        path.write_text("precious")
        given = CliRunner().invoke(data, ["import-checkpoint", str(file), str(out)])
        assert f"{path.name} exists already" in str(given.exception)
        assert path.read_text() == "precious"
        path.unlink()


def start_from(path: Path) -> None:
    load_backbone(build_backbone(ModelConfig(backbone="resnet18")), path)


@pytest.mark.parametrize("load", [load_checkpoint, start_from])
def test_a_file_of_torch_says_how_it_comes_in(load: Callable[[Path], object], tmp_path: Path) -> None:
    file = saved(tmp_path / "x.pth", {"weight": torch.zeros(1)})
    with pytest.raises(CheckpointError) as caught:
        load(file)
    command = f"ddcat data import-checkpoint {file} {tmp_path / 'x.safetensors'}"
    assert str(caught.value) == f"{file} is a file of torch.save: first '{command}'"


def test_torchs_advice_to_run_what_is_in_a_file_is_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_text("inherits: camvid-ddcat\n")
    with pytest.raises(CheckpointError, match=r"truncated or not a file of torch\.save") as caught:
        import_checkpoint(tmp_path / "x.pth", tmp_path / "x.safetensors")
    assert "weights_only" not in str(caught.value)


class Runs:
    """Pickled, it is a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = call, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (Runs(os.system, "false"), r"(posix|nt|os)\.system"),
        (Runs(print, "x"), r"(builtins|__builtin__)\.print"),
        (Runs(subprocess.call, ["false"]), r"(subprocess|commands)\.call"),  # protocol 2 of pickle has the names of Python 2
    ],
)
def test_what_would_run_code_is_named_by_each_of_torch_s_texts(tmp_path: Path, call: Runs, name: str, zipped: bool) -> None:
    file = saved(tmp_path / "x.pth", {"a": call}, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=rf"holds more than tensors \({name}\), and reading it could run code") as caught:
        import_checkpoint(file, tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("protocol", [0, 4, 5])
def test_a_pickle_that_torch_does_not_read_is_told_how_to_save_again(tmp_path: Path, protocol: int) -> None:
    file = tmp_path / "x.pth"
    file.write_bytes(pickle.dumps({"a": Runs(os.system, "false")}, protocol=protocol))
    with pytest.raises(CheckpointError, match="no pickle that can be read without running code"):
        import_checkpoint(file, tmp_path / "x.safetensors")
