"""Files are whole or absent."""

import os
import stat
from pathlib import Path

import pytest

from ddcat.errors import DdcatError
from ddcat.files import new_directory, read_json, write_bytes, write_json


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    write_bytes(target, b"before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(target, b"after")
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["result"]


def test_a_file_is_readable_as_the_umask_says(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~mask


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_directory_appears_when_it_is_full(tmp_path: Path) -> None:
    target = tmp_path / "deep/target"
    with new_directory(target) as aside:
        (aside / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert os.listdir(target.parent) == ["target"]


def test_a_failure_leaves_no_directory(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        (aside / "file").write_text("content")
        raise RuntimeError

    with pytest.raises(RuntimeError), new_directory(tmp_path / "target") as aside:
        fail(aside)
    assert not list(tmp_path.iterdir())


def test_a_full_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DdcatError, match="exists already"), new_directory(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read"), ("{", "is not JSON")])
def test_json_that_is_not_there_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    with pytest.raises(DdcatError, match=message) as caught:
        read_json(tmp_path / "file")
    assert "\n" not in str(caught.value)
