"""A bundle is exactly what its manifest says, or it is refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ddcat.bundle import MANIFEST, entries, open_bundle, write_bundle
from ddcat.errors import BundleError
from ddcat.manifest import Manifest, Range, parse_manifest

FILES = {"model.onnx": b"graph", "golden.safetensors": b"pictures"}
SIDES = {axis: {"minimum": 1, "maximum": None} for axis in ("batch", "height", "width")}


def manifest(**changes: Any) -> Manifest:
    content: dict[str, Any] = {
        "name": "scenes-ddcat",
        "files": {name: entry.model_dump() for name, entry in entries(FILES).items()},
        "source": {
            "checkpoint": "runs/scenes-ddcat/best.safetensors",
            "sha256": "0" * 64,
            "git_commit": None,
            "method": "ddcat",
            "attack": {"epsilon": 0.03, "alpha": 0.01, "steps": 3, "start": "clean"},
            "architecture": "resnet10 + pyramid",
            "step": 100,
        },
        "main_branch_only": {"spare_parameters": 10, "bytes_unchanged": True},
        "data": {"name": "scenes", "root": "x", "split": "val", "list_sha256": "1" * 64, "images": 3, "long_side": None},
        "classes": [{"name": "road", "colour": [1, 2, 3]}, {"name": "sky", "colour": [4, 5, 6]}],
        "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        "shapes": SIDES,
        "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", "height", "width", 3]}],
        "outputs": [{"name": "labels", "dtype": "uint8", "shape": ["batch", "height", "width"]}],
        "opset": 20,
        "engine": {
            "name": "ort",
            "file": "model.onnx",
            "requested_precision": "fp32",
            "effective_precision": "fp32",
            "provider": "CPUExecutionProvider",
        },
        "versions": {"ddcat": "0.1.0"},
    }
    return Manifest.model_validate_json(json.dumps(content | changes))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", manifest(), FILES).path


def test_what_was_written_is_read_back(bundle: Path) -> None:
    opened = open_bundle(bundle)
    assert opened.manifest == manifest()
    assert opened.files == FILES
    assert opened.digest == open_bundle(bundle).digest
    assert opened.manifest.class_table().palette == ((1, 2, 3), (4, 5, 6))


def test_the_same_manifest_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "again", manifest(), dict(reversed(FILES.items())))
    assert again.digest == open_bundle(bundle).digest


@pytest.mark.parametrize("name", FILES)
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
        ({"golden": {"file": "none", "images": 1, "source": "x", "attack": {}}}, "golden file"),
        ({"shapes": {**SIDES, "sizes": [[2, 3]]}}, "ranges"),
    ],
)
def test_a_manifest_is_strict(change: dict[str, Any], message: str) -> None:
    content = json.loads(manifest().to_bytes()) | change
    with pytest.raises(BundleError, match=message) as caught:
        parse_manifest(json.dumps(content).encode(), MANIFEST)
    assert "\n" not in str(caught.value)


def test_no_bundle_is_written_whose_manifest_does_not_describe_it(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not describe"):
        write_bundle(tmp_path / "bundle", manifest(), FILES | {"model.onnx": b"other"})
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
