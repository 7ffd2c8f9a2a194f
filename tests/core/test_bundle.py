"""A bundle is exactly what its manifest says, or it is refused."""

import json
import math
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddcat.atomic_files import write_in_turn
from ddcat.bundle import MANIFEST, entries, open_bundle, write_bundle
from ddcat.errors import BundleError
from ddcat.manifest import DimRange, Manifest, parse_manifest
from ddcat.passport import read_passport
from ddcat.preprocess import FileRule, Resize

MakeManifest = Callable[..., Manifest]
SIDE = {"minimum": 1, "maximum": None}
NAN = math.nan
SOURCE = {
    "checkpoint": "x", "sha256": "0" * 64, "git_commit": None, "method": "ddcat", "attack": None, "architecture": "x",
    "step": 1,
}  # fmt: skip


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


def test_the_bundle_in_a_folder_is_named(bundle: Path) -> None:
    with pytest.raises(BundleError, match=re.escape(f"{bundle.parent} holds no readable {MANIFEST}: use {bundle}")):
        open_bundle(bundle.parent)
    (bundle.parent / "other").mkdir()
    (bundle.parent / "other" / MANIFEST).touch()
    with pytest.raises(BundleError, match="a bundle is what ddcat export writes"):
        open_bundle(bundle.parent)


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


@pytest.mark.parametrize("name", ["passport.json", "report.html"])
def test_a_bundle_opens_while_the_gate_writes_into_it(bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def look(descriptor: int) -> None:
        seen.append({file.name for file in bundle.iterdir()})
        open_bundle(bundle)

    monkeypatch.setattr(os, "fsync", look)
    write_in_turn(bundle / name, b"{}")
    assert f".{name}.new" in seen[0]
    assert {file.name for file in bundle.glob(".*")} == set()


@pytest.mark.parametrize(
    "name",
    [
        ".passport.json.ABCDEFGH",
        ".report.html.swp",
        "passport.json.new",
        "passport.sig",
        ".DS_Store",
        "report.htm",
        "Report.html",
    ],
)
def test_of_what_stands_beside_only_the_exact_names_are_taken(bundle: Path, name: str) -> None:
    (bundle / name).write_text("{}")
    with pytest.raises(BundleError, match=rf"{re.escape(name)} is not listed"):
        open_bundle(bundle)


def put_folder(place: Path) -> None:
    place.mkdir()


def put_link(place: Path) -> None:
    place.symlink_to("/etc")


def put_dangling_link(place: Path) -> None:
    place.symlink_to("nowhere")


def put_socket(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(place))


ODD = [put_folder, put_link, put_dangling_link, os.mkfifo, put_socket]


@pytest.mark.parametrize("put", ODD)
def test_whatever_nobody_listed_is_refused(bundle: Path, put: Callable[[Path], None]) -> None:
    put(bundle / "surplus")
    with pytest.raises(BundleError, match="surplus is not listed"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "golden.safetensors", "manifest.json", "passport.json", "report.html"])
@pytest.mark.parametrize("put", ODD)
def test_what_is_no_regular_file_is_refused_and_never_opened(bundle: Path, name: str, put: Callable[[Path], None]) -> None:
    (bundle / name).unlink(missing_ok=True)
    put(bundle / name)  # a pipe that was opened would hang here
    with pytest.raises(BundleError, match=rf"{re.escape(name)} is a .* regular file") as caught:
        open_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_link_to_the_very_file_is_no_file_of_the_bundle(bundle: Path) -> None:
    moved = (bundle / "model.onnx").rename(bundle.parent / "model.onnx")
    (bundle / "model.onnx").symlink_to(moved)
    with pytest.raises(BundleError, match="is a symbolic link"):
        open_bundle(bundle)
    current = bundle.with_name("current")
    (bundle / "model.onnx").unlink()
    moved.rename(bundle / "model.onnx")
    current.symlink_to(bundle)  # the folder itself may be named by a link: a release is switched so
    assert open_bundle(current).digest == open_bundle(bundle).digest


@pytest.mark.parametrize("name", ["model.onnx", "manifest.json", "passport.json"])
def test_a_sparse_file_of_a_terabyte_is_refused_unread(bundle: Path, name: str, make_manifest: MakeManifest) -> None:
    with (bundle / name).open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(BundleError, match=rf"{name} .*{2**40} bytes"):
        read_passport(open_bundle(bundle))


def test_what_the_manifest_says_of_a_files_size_is_held_against_it(
    bundle: Path, make_manifest: MakeManifest, files: dict[str, bytes]
) -> None:
    listed = {name: entry.model_dump() for name, entry in entries(files).items()}
    for size in (3, 50, 2**31):
        listed["model.onnx"]["bytes"] = size
        (bundle / MANIFEST).write_bytes(make_manifest(files=listed).to_bytes())
        with pytest.raises(BundleError, match=rf"model\.onnx .*it has 5 bytes, the manifest says {size}"):
            open_bundle(bundle)
    content = json.loads(make_manifest().to_bytes())
    content["files"]["model.onnx"]["bytes"] = 2**40  # a sparse file of that size would be read to the end
    with pytest.raises(BundleError, match=r"files\.model\.onnx\.bytes"):
        parse_manifest(json.dumps(content).encode(), MANIFEST)


def test_a_name_that_is_kept_for_the_gate_is_not_listed(bundle: Path, make_manifest: MakeManifest) -> None:
    listed = {name: entry.model_dump() for name, entry in entries({"passport.json": b"", "model.onnx": b"graph"}).items()}
    (bundle / MANIFEST).write_bytes(make_manifest(files=listed).to_bytes())
    with pytest.raises(BundleError, match=r"lists passport\.json, a reserved name: export again"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"opset": "20"}, "opset"),
        ({"schema_version": 1}, "schema_version 1, and this ddcat reads 2 and 3"),
        ({"schema_version": "2"}, "schema_version"),
        ({"unknown": 1}, "unknown"),
        ({"name": "../up"}, "name"),
        ({"main_branch_only": {"spare_parameters": 1, "bytes_unchanged": False}}, "bytes_unchanged"),
        ({"files": {}}, "engine's file"),
        ({"files": {"../up": {"sha256": "0" * 64, "bytes": 1}}}, "files"),
        ({"classes": []}, "classes"),
        ({"golden": {"file": "none", "images": 1, "source": "x", "attack": {}}}, "golden file"),
        ({"shapes": {"batch": SIDE, "height": SIDE, "width": SIDE, "sizes": [[2, 3]]}}, "ranges"),
        ({"preprocessing": {"mean": [NAN, 0, 0], "std": [1, 1, 1]}}, r"preprocessing\.mean\.0"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, math.inf, 1]}}, r"preprocessing\.std\.1"),
        ({"preprocessing": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, r"preprocessing\.std\.1"),
        ({"source": SOURCE | {"attack": {"steps": [{"epsilon": NAN}]}}}, r"source\.attack: .*nan is not a finite number"),
        ({"source": SOURCE | {"attack": {"steps": 10**400}}}, r"source\.attack"),
        ({"source": SOURCE | {"attack": {"name": "x" * 10**5}}}, r"source\.attack: .*100000 characters"),
        ({"source": SOURCE | {"step": 10**300}}, r"source\.step"),
        ({"source": SOURCE | {"method": "x" * 101}}, r"source\.method"),
        ({"classes": [{"name": "road", "colour": [1, 2, 3]}] * 2}, "two classes are named 'road'"),
        ({"classes": [{"name": name, "colour": [1, 2, 3]} for name in ("x" * 101, "y")]}, r"classes\.0\.name"),
        ({"classes": [{"name": name, "colour": [1, 2, 3]} for name in ("", "y")]}, r"classes\.0\.name"),
        ({"name": "x" * 70_000}, "name"),
        ({"versions": {"ddcat": "x" * 10**5}}, r"versions\.ddcat"),
        ({"x" * 10**6: 1}, r"xxx\.\.\.xxx"),
        ({"schema_version": "x" * 10**6}, r"schema_version .xxx.*\.\.\.xxx"),
    ],
)
def test_a_manifest_is_strict(change: dict[str, Any], message: str, make_manifest: MakeManifest) -> None:
    content = json.loads(make_manifest().to_bytes()) | change
    with pytest.raises(BundleError, match=message) as caught:
        parse_manifest(json.dumps(content).encode(), MANIFEST)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 3000


def test_of_schema_2_images_keep_their_size_but_where_they_were_evaluated(make_manifest: MakeManifest) -> None:
    content = json.loads(make_manifest().to_bytes())
    del content["preprocessing"]["orientation"], content["preprocessing"]["resize"]  # which schema 2 did not have
    content |= {"schema_version": 2, "data": content["data"] | {"long_side": 480}}
    manifest = parse_manifest(json.dumps(content).encode(), MANIFEST)
    assert (manifest.preprocessing.orientation, manifest.preprocessing.resize) == ("stored", None)
    assert manifest.evaluation_rule == FileRule(resize=Resize(to=480))
    content["data"]["long_side"] = None
    assert parse_manifest(json.dumps(content).encode(), MANIFEST).evaluation_rule.resize is None


def test_of_schema_3_images_are_evaluated_as_they_are_served(make_manifest: MakeManifest) -> None:
    rule = {"mean": [0, 0, 0], "std": [1, 1, 1], "orientation": "exif", "resize": {"to": [33, 40], "kernel": "linear"}}
    manifest = make_manifest(preprocessing=rule)
    assert manifest.schema_version == 3
    assert manifest.evaluation_rule == FileRule(orientation="exif", resize=Resize(to=(33, 40), kernel="linear"))
    assert parse_manifest(manifest.to_bytes(), MANIFEST) == manifest
    for wrong in ({"schema_version": 2}, {"data": manifest.data.model_dump() | {"long_side": 480}}):
        with pytest.raises(BundleError, match="schema"):
            parse_manifest(json.dumps(json.loads(manifest.to_bytes()) | wrong).encode(), MANIFEST)


def test_no_bundle_is_written_whose_manifest_does_not_describe_it(
    tmp_path: Path, make_manifest: MakeManifest, files: dict[str, bytes]
) -> None:
    with pytest.raises(BundleError, match="does not describe"):
        write_bundle(tmp_path / "bundle", make_manifest(), files | {"model.onnx": b"other"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, lambda path: path.write_text("")])
def test_what_is_no_bundle_is_said_to_be_none(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "none")
    with pytest.raises(BundleError, match="ddcat export writes"):
        open_bundle(tmp_path / "none")


def test_a_range_holds_its_ends() -> None:
    sizes = DimRange(minimum=33, maximum=64)
    assert [size in sizes for size in (32, 33, 64, 65)] == [False, True, True, False]
    assert 10**6 in DimRange(minimum=33, maximum=None)
    with pytest.raises(ValueError, match="below minimum"):
        DimRange(minimum=2, maximum=1)


@pytest.mark.parametrize("content", [b"\xff", b"{", b"[]", b"{}", b'"text"', b"[" * 100_000])
def test_a_manifest_that_states_no_version_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"x/manifest\.json is not a manifest that ddcat reads") as caught:
        parse_manifest(content, "x/manifest.json")
    assert "\n" not in str(caught.value)
