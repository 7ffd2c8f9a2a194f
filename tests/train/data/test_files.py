"""Which files of a data set are opened, and how: JPEG and PNG alone, regular files alone, and no other program."""

import io
import os
import re
import stat
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddcat_train.data import list_dataset, open_dataset
from ddcat_train.data.check import check
from ddcat_train.data.pictures import read_head, read_image, read_mask
from ddcat_train.data_cli import app
from ddcat_train.errors import DataError

ROOT = Path(__file__).parents[3]
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 10\n%%EndComments\n(x) (w) file closefile\n%%EOF\n"
PIXELS = np.arange(360, dtype=np.uint8).reshape(10, 12, 3)


@pytest.mark.parametrize("name", ["images/train/0.png", "images/train/0.jpg", "labels/train/0.png"])
def test_no_file_of_a_data_set_starts_a_program(small_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program = small_folder / "bin/gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {small_folder}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    if name.endswith(".jpg"):
        (small_folder / "images/train/0.png").unlink()
    (small_folder / name).write_bytes(POSTSCRIPT)
    dataset = list_dataset("folder", small_folder, "train")
    (fault,) = check(dataset).faults
    assert fault.message.endswith(f"{Path(name).name} is a PostScript file: convert it to {'JPEG or ' * ('images' in name)}PNG")
    with pytest.raises(DataError, match="is a PostScript file"):
        dataset.read(0)
    if "images" in name:
        with pytest.raises(DataError, match="is a PostScript file"):
            dataset.size(0)
    assert not (small_folder / "started").exists()


@pytest.mark.parametrize(
    "form", ["BMP", "DDS", "EPS", "GIF", "ICO", "JPEG2000", "PCX", "PDF", "PPM", "SGI", "TGA", "TIFF", "WEBP"]
)
@pytest.mark.parametrize("name", ["x.jpg", "x.png"])
def test_no_other_format_is_decoded_whatever_its_name(tmp_path: Path, form: str, name: str) -> None:
    picture = Image.fromarray(PIXELS)
    try:
        picture.save(tmp_path / name, format=form)
    except (KeyError, OSError, ValueError) as cause:
        pytest.skip(f"Pillow does not write {form}: {cause}")
    for read in (read_image, read_head, read_mask):
        with pytest.raises(DataError, match=rf"{name} is (a \w+( 2000)? file: convert it to|not a readable .*)") as caught:
            read(tmp_path / name)
        assert "0x" not in str(caught.value)


def test_images_are_opened_in_one_module_alone() -> None:
    files = [file for part in ("train", "export", "bench") for file in (ROOT / part / f"ddcat_{part}").rglob("*.py")]
    opens = re.compile(r"Image\.open|\bimread|\bimdecode|decode_image|decode_jpeg")
    opening = {file.name for file in files if opens.search(file.read_text(encoding="utf-8"))}
    codecs = {"arrays.py", "capture.py"}  # corruptions, which decode what they have just encoded
    assert opening == {"pictures.py", *codecs}


@pytest.mark.parametrize("name", ["images/train/1.png", "labels/train/1.png"])
def test_what_is_no_regular_file_is_told_and_never_waited_for(small_folder: Path, name: str) -> None:
    file = small_folder / name
    os.mkfifo(small_folder / "pipe")
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(small_folder / "pipe")):
        file.unlink()
        make(file)
        result = CliRunner().invoke(app, ["check", "folder", str(small_folder)])
        assert isinstance(result.exception, DataError), file
        kind = "named pipe" if stat.S_ISFIFO(file.stat().st_mode) else "device"
        assert f"unreadable: {file} is a {kind}, expected a regular file" in result.output
        with pytest.raises(DataError, match=r"1\.png"):
            open_dataset("folder", small_folder, "train").read(1)


@pytest.mark.parametrize("name", ["images/train/1.png", "labels/train/1.png"])
def test_an_empty_file_is_told(small_folder: Path, name: str) -> None:
    (small_folder / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"1\.png is not a readable .* \(it is empty\): replace it$"):
        open_dataset("folder", small_folder, "train").read(1)


def test_a_file_larger_than_any_image_is_not_read(small_folder: Path) -> None:
    with (small_folder / "images/train/1.png").open("wb") as file:
        file.truncate(1 << 40)  # holes
    with pytest.raises(DataError, match=r"1\.png has 1,099,511,627,776 bytes: at most"):
        open_dataset("folder", small_folder, "train").read(1)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_grey_with_alpha_and_one_bit_are_images(tmp_path: Path) -> None:
    grey = np.where(np.arange(120).reshape(10, 12) % 3 == 0, np.uint8(255), np.uint8(0))
    expected = np.repeat(grey[..., None], 3, axis=2)
    for mode in ("L", "LA", "1", "RGBA", "P"):
        Image.fromarray(grey).convert(mode).save(tmp_path / "x.png")
        assert np.array_equal(read_image(tmp_path / "x.png"), expected), mode
    transparent = np.stack([grey, np.zeros_like(grey)], axis=2)
    Image.fromarray(transparent).save(tmp_path / "x.png")
    assert np.array_equal(read_image(tmp_path / "x.png"), expected)


def test_too_large_an_image_is_told_with_its_size(tmp_path: Path) -> None:
    rows = zlib.compress(bytes(1751) * 13500)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 14000, 13500, 1, 0, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(content + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match=r"x\.png is too large \(189 Mpx, at most 179\): cut it into tiles$"):
            read(tmp_path / "x.png")


def test_the_orientation_of_a_large_png_may_stand_behind_its_pixels(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    with io.BytesIO() as buffer:
        Image.fromarray(noise).save(buffer, format="PNG")
        content = buffer.getvalue()
    assert len(content) > 1 << 17
    data = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    chunk = len(data).to_bytes(4, "big") + b"eXIf" + data + zlib.crc32(b"eXIf" + data).to_bytes(4, "big")
    (tmp_path / "x.png").write_bytes(content)
    assert read_head(tmp_path / "x.png") == (200, 300, 1)
    for changed in (content[:-12] + chunk + content[-12:], content[:33] + chunk + content[33:]):
        (tmp_path / "x.png").write_bytes(changed)
        assert read_head(tmp_path / "x.png") == (200, 300, 6)
    (tmp_path / "x.png").write_bytes(content[:-1000])  # cut off
    assert read_head(tmp_path / "x.png") == (200, 300, 1)


def test_the_orientation_is_read_from_either_format(tmp_path: Path) -> None:
    for value in (1, 3, 6, 8, 0, 9, 77):
        exif = Image.Exif()
        exif[0x0112] = value
        for name in ("x.jpg", "x.png"):
            Image.fromarray(PIXELS).save(tmp_path / name, exif=exif)
            assert read_head(tmp_path / name) == (10, 12, value if 1 <= value <= 8 else 1)
    with io.BytesIO() as buffer:
        Image.fromarray(PIXELS).save(buffer, format="JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
        (tmp_path / "x.jpg").write_bytes(buffer.getvalue())
    assert read_head(tmp_path / "x.jpg") == (10, 12, 1)
