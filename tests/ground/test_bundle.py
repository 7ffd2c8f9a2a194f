"""A bundle is exactly what its manifest says, or it is refused."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddcat.bundle import MANIFEST, open_bundle, write_bundle
from ddcat.errors import BundleError
from ddcat.files import write_bytes
from ddcat.manifest import Manifest, Range, parse_manifest

MakeManifest = Callable[..., Manifest]
SIDE = {"minimum": 1, "maximum": None}


@pytest.fixture
def bundle(tmp_path: Path, make_manifest: MakeManifest, files: dict[str, bytes]) -> Path:
    return write_bundle(tmp_path / "bundle", make_manifest(), files).path


def test_what_was_written_is_read_back(bundle: Path, make_manifest: MakeManifest, files: dict[str, bytes]) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest == make_manifest()
    assert opened.files == files
    assert opened.digest == open_bundle(bundle).digest
    assert opened.manifest.class_table().palette == ((1, 2, 3), (4, 5, 6))


def test_the_same_manifest_gives_the_same_bytes(
    bundle: Path, tmp_path: Path, make_manifest: MakeManifest, files: dict[str, bytes]
) -> None:
    again = write_bundle(tmp_path / "again", make_manifest(), dict(reversed(files.items())))
    assert again.digest == open_bundle(bundle).digest


@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors"])
@pytest.mark.parametrize("where", [0, -1])
def test_a_changed_byte_is_refused(bundle: Path, name: str, where: int) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[where] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        open_bundle(bundle)


def test_a_missing_file_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx is listed .* but cannot be read"):
        open_bundle(bundle)


def test_a_file_that_nobody_listed_is_refused(bundle: Path) -> None:
    (bundle / "deep").mkdir()
    (bundle / "deep/surplus").write_text("")
    with pytest.raises(BundleError, match=r"deep/surplus is not listed"):
        open_bundle(bundle)


def test_the_gate_may_put_its_passport_beside(bundle: Path) -> None:
    digest = open_bundle(bundle).digest
    (bundle / "passport.json").write_text("{}")
    assert open_bundle(bundle).digest == digest


@pytest.mark.parametrize("name", ["passport.json", "passport.sig", "report.html"])
def test_a_bundle_opens_while_the_gate_writes_into_it(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = []

    def look(descriptor: int) -> None:
        aside.extend(file.name for file in bundle.glob(f".{name}.*"))
        open_bundle(bundle)

    monkeypatch.setattr(os, "fsync", look)
    write_bytes(bundle / name, b"{}")
    assert len(aside) == 1
    (bundle / f".{name}.swp").write_text("")
    with pytest.raises(BundleError, match=rf"\.{name}\.swp is not listed"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opset": "20"}, "opset"),
        ({"schema_version": 1}, "schema_version 1, and this ddcat reads 2"),
        ({"schema_version": "2"}, "schema_version"),
        ({"unknown": 1}, "unknown"),
        ({"name": "../up"}, "name"),
        ({"main_branch_only": {"spare_parameters": 1, "bytes_unchanged": False}}, "bytes_unchanged"),
        ({"files": {}}, "engine's file"),
        ({"files": {"../up": {"sha256": "0" * 64, "bytes": 1}}}, "files"),
        ({"classes": []}, "classes"),
        ({"golden": {"file": "none", "images": 1, "source": "x", "attack": {}}}, "golden file"),
        ({"shapes": {"batch": SIDE, "height": SIDE, "width": SIDE, "sizes": [[2, 3]]}}, "ranges"),
    ],
)
def test_a_manifest_is_strict(change: dict[str, Any], message: str, make_manifest: MakeManifest) -> None:
    content = json.loads(make_manifest().to_bytes()) | change
    with pytest.raises(BundleError, match=message) as caught:
        parse_manifest(json.dumps(content).encode(), MANIFEST)
    assert "\n" not in str(caught.value)


def test_no_bundle_is_written_whose_manifest_does_not_describe_it(
    tmp_path: Path, make_manifest: MakeManifest, files: dict[str, bytes]
) -> None:
    with pytest.raises(BundleError, match="does not describe"):
        write_bundle(tmp_path / "bundle", make_manifest(), files | {"model.onnx": b"other"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, lambda path: path.write_text("")])
def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "none")
    with pytest.raises(BundleError, match="ddcat-export writes"):
        open_bundle(tmp_path / "none")


def test_a_range_holds_its_ends() -> None:
    sizes = Range(minimum=33, maximum=64)
    assert [size in sizes for size in (32, 33, 64, 65)] == [False, True, True, False]
    assert 10**6 in Range(minimum=33, maximum=None)
    with pytest.raises(ValueError, match="below minimum"):
        Range(minimum=2, maximum=1)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b"{}", b'"text"', b"[" * 100_000])
def test_a_manifest_that_states_no_version_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"x/manifest\.json is not a manifest that ddcat reads") as caught:
        parse_manifest(content, "x/manifest.json")
    assert "\n" not in str(caught.value)
