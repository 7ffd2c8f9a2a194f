"""Files are whole or absent."""

import errno
import os
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ddcat.atomic_files import (
    append_text,
    atomic_directory,
    check_can_create,
    check_writable,
    read_json,
    remove_temp_files,
    replacing,
    unfinished,
    write_bytes,
    write_in_turn,
    write_json,
)
from ddcat.errors import BundleError, DdcatError, WriteError
from ddcat.regular_files import read_regular
from ddcat.temporary import temporary_directory


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that says at the very end that there is no room."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    write_bytes(target, b"before")
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_bytes(target, b"after")
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["result"]


@pytest.mark.usefixtures("full")
def test_a_full_disk_is_one_line_that_says_what_is_needed(tmp_path: Path) -> None:
    target = tmp_path / "result"
    target.write_bytes(b"before")
    with pytest.raises(WriteError, match=r"No space left on device: 3\.0 MB are needed and [\d.]+ MB are free") as caught:
        write_bytes(target, bytes(3_000_000))
    assert str(target) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(WriteError, match="No space left"):
        append_text(target, " and after")
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["result"]


def test_text_is_appended(tmp_path: Path) -> None:
    append_text(tmp_path / "file", "a line\n")
    append_text(tmp_path / "file", "zwölf\n")
    assert (tmp_path / "file").read_bytes() == "a line\nzwölf\n".encode()


def test_a_folder_that_cannot_be_written_in_is_refused(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "deep/er")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("no folder")
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(WriteError, match=rf"cannot write {path}: .*: use a writable folder"):
            check_writable(path)


def test_a_place_where_no_folder_could_be_made_is_refused_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_can_create(tmp_path / "deep/er")
    (tmp_path / "empty").mkdir()
    check_can_create(tmp_path / "empty")
    assert os.listdir(tmp_path) == ["empty"]
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(WriteError, match=rf"cannot write {tmp_path}/file: "):
        check_can_create(tmp_path / "file/run")
    asked: list[Path] = []
    monkeypatch.setattr("ddcat.atomic_files.check_writable", asked.append)
    check_can_create(tmp_path / "empty")
    assert asked == [tmp_path]  # the empty folder is replaced: that it can be written in is of no use


def test_where_a_disk_is_mounted_no_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(DdcatError, match=r"is a mount point and cannot be replaced: use a folder inside it"):
        check_can_create(tmp_path)
    check_can_create(tmp_path / "inside")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    write_bytes(tmp_path / "result.bin", b"whole")
    for name in (".result.bin.x1y2z3_4", ".other.bin.x1y2z3_4", ".result.bin.swp", "result.bin.x"):
        (tmp_path / name).write_bytes(b"half")
    remove_temp_files(tmp_path / "result.bin")
    assert sorted(os.listdir(tmp_path)) == [".other.bin.x1y2z3_4", ".result.bin.swp", "result.bin", "result.bin.x"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_what_is_written_has_the_permissions_that_the_umask_leaves(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_directory(tmp_path / "folder") as aside:
            write_bytes(aside / "file", b"")
            write_in_turn(aside / "other", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~mask
    assert {stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "folder").iterdir()} == {0o666 & ~mask}


def test_the_umask_of_the_process_is_never_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that other threads create meanwhile would be writable by everybody."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("it was changed"))
    with atomic_directory(tmp_path / "folder") as aside:
        write_bytes(aside / "file", b"")


def test_a_file_that_is_written_in_turn_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "result"
    unfinished(target).write_bytes(b"what a process left that was killed, and that is longer")
    write_in_turn(target, b"before")
    assert target.read_bytes() == b"before"
    monkeypatch.setattr(os, "fsync", lambda descriptor: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_in_turn(target, b"after")
    assert target.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["result"]


def test_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    unfinished(tmp_path / "result").symlink_to("victim")
    with pytest.raises(WriteError, match="cannot write"):
        write_in_turn(tmp_path / "result", b"theirs")
    assert (tmp_path / "victim").read_text() == "mine"


def test_writers_take_turns(tmp_path: Path) -> None:
    target, contents = tmp_path / "result", [bytes([value]) * 100_000 for value in range(8)]
    with ThreadPoolExecutor(len(contents)) as pool:
        for done in [pool.submit(write_in_turn, target, content) for content in contents * 5]:
            done.result()
            assert target.read_bytes() in contents
    assert os.listdir(tmp_path) == ["result"]


def test_a_regular_file_of_limited_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", most=5) == b"12345"
    with pytest.raises(DdcatError, match="is too large: 5 bytes, expected 4 at most"):
        read_regular(tmp_path / "file", most=4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", most=4)
    for place, kind in ((tmp_path, "a directory"), (Path("/dev/zero"), "a device")):
        with pytest.raises(BundleError, match=f"is {kind}, expected a regular file"):
            read_regular(place, most=4, error=BundleError)


def test_a_temporary_directory_is_found_where_the_usual_ones_are_read_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: object) -> None:
        if options.get("dir") is None:
            raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")
        return made(**options)

    made = tempfile.TemporaryDirectory
    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr("ddcat.temporary._SHARED_MEMORY", tmp_path)
    with temporary_directory() as folder:
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("ddcat.temporary._SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(WriteError, match="set TMPDIR to one that is, or mount a tmpfs at /tmp"), temporary_directory():
        pass


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="File name too long"):
        check_can_create(tmp_path / ("x" * 5000))


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "file", {"value": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_directory_appears_when_it_is_full(tmp_path: Path) -> None:
    target = tmp_path / "deep/target"
    with atomic_directory(target) as aside:
        (aside / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"
    assert os.listdir(target.parent) == ["target"]


def test_a_failure_leaves_no_directory(tmp_path: Path) -> None:
    def fail(aside: Path) -> None:
        (aside / "file").write_text("content")
        raise RuntimeError

    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "target") as aside:
        fail(aside)
    assert not list(tmp_path.iterdir())


def test_a_full_directory_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DdcatError, match="exists already"), atomic_directory(tmp_path):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("content", "message"), [(None, "cannot read"), ("{", "is not JSON"), ("[" * 100_000, "is not JSON")])
def test_json_that_is_not_there_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "file").write_text(content)
    with pytest.raises(DdcatError, match=message) as caught:
        read_json(tmp_path / "file")
    assert "\n" not in str(caught.value)


def test_a_directory_gives_way_when_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "made"
    for content in ("one", "two"):
        with replacing(path, "manifest.json", force=True) as place:
            assert place == path or (path / "manifest.json").read_text() == "one"  # the earlier one is still there
            with atomic_directory(place) as aside:
                (aside / "manifest.json").write_text(content)
        assert (path / "manifest.json").read_text() == content
    with pytest.raises(ZeroDivisionError), replacing(path, "manifest.json", force=True):
        raise ZeroDivisionError
    assert (path / "manifest.json").read_text() == "two"
    assert [file.name for file in tmp_path.iterdir()] == ["made"]
    with pytest.raises(DdcatError, match=r"holds no other\.json"), replacing(path, "other.json", force=True):
        pass
    with pytest.raises(DdcatError, match="exists already"), replacing(path, "manifest.json", force=False):
        pass
