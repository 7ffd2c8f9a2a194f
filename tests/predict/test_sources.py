"""What the inputs name."""

import os
from pathlib import Path

import pytest

from ddcat.errors import DdcatError
from ddcat.predict.sources import find_sources


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "in/b.JPG",
        "in/a.png",
        "in/sub/c.webp",
        "in/sub/d.mp4",
        "in/notes.txt",
        "in/.hidden/e.png",
        "in/.f.png",
        "raw",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
    Path("empty.jpg").mkdir()


@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        (["in"], ["a.png", "b.JPG", "sub/c.webp", "sub/d.mp4"]),
        (["in/sub", "in/a.png"], ["c.webp", "d.mp4", "a.png"]),
        (["in/*.png"], ["a.png"]),
        (["in/**/*.webp"], ["sub/c.webp"]),
        (["*/sub/c.*"], ["in/sub/c.webp"]),
        (["raw"], ["raw"]),  # whatever its name
        (["in", "in"], ["a.png", "b.JPG", "sub/c.webp", "sub/d.mp4"]),
    ],
)
def test_inputs_name_files_in_a_fixed_order(inputs: list[str], names: list[str]) -> None:
    found = find_sources(inputs)
    assert [source.name for source in found] == names
    assert all(source.read() == b"x" for source in found)
    assert [source.is_video for source in found] == [name.endswith("mp4") for name in names]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["nowhere"], "no such file or folder: nowhere"),
        (["in/*.bmp"], r"in/\*.bmp holds or matches no image"),
        (["empty.jpg"], "empty.jpg holds or matches no image"),
        (["ftp://host/a"], "expected an address of s3://, gs://, or a path"),
        (["in/a.png", "in/sub/../a.png"], "would both have the mask a.png: give the folder above them"),
    ],
)
def test_what_names_nothing_or_two_things_is_told_in_a_line(inputs: list[str], message: str) -> None:
    with pytest.raises(DdcatError, match=message) as caught:
        find_sources(inputs)
    assert "\n" not in str(caught.value)


def test_images_of_other_formats_are_named() -> None:
    for name in ("in/x.bmp", "in/sub/y.HEIC", "in/.z.gif"):
        Path(name).write_bytes(b"x")
    lines: list[str] = []
    assert [source.name for source in find_sources(["in"], warn=lines.append)] == ["a.png", "b.JPG", "sub/c.webp", "sub/d.mp4"]
    assert lines == ["not taken: 2 files of other formats, such as in/sub/y.HEIC: convert them to JPEG, PNG or WebP"]


def test_two_images_of_one_stem_would_have_one_mask() -> None:
    Path("in/a.jpg").write_bytes(b"x")
    with pytest.raises(DdcatError, match=r"in/a.jpg and in/a.png would both have the mask a.png: rename one of them"):
        find_sources(["in"])


def test_pipes_are_never_read(tmp_path: Path) -> None:
    os.mkfifo("in/pipe.png")
    os.symlink("/dev/zero", "in/zero.jpg")
    assert [source.name for source in find_sources(["in"])] == ["a.png", "b.JPG", "sub/c.webp", "sub/d.mp4"]
    with pytest.raises(DdcatError, match=r"in/pipe\.png is a named pipe, expected a regular file"):
        find_sources(["in/pipe.png"])
