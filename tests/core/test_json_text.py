"""JSON of ours: a key that occurs twice is refused wherever it is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ddcat.atomic_files import read_json
from ddcat.bundle import open_bundle, write_bundle
from ddcat.errors import BundleError, DdcatError
from ddcat.json_text import parse_json
from ddcat.manifest import Manifest, parse_manifest
from ddcat.passport import Passport, read_passport

TOLD = "the key '.*' occurs twice, expected once"


def twice(text: str, key: str) -> str:
    """The same text, in which a key occurs twice."""
    assert f'"{key}":' in text
    return text.replace(f'"{key}":', f'"{key}": 1, "{key}":', 1)


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '[{"b": {"a": 1, "c": 2, "\\u0061": 3}}]'])
def test_a_key_that_stands_twice_is_named(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^the key 'a' occurs twice, expected once$"):
        parse_json(text)
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(DdcatError, match=r"file\.json is not JSON that ddcat reads: the key 'a' occurs twice"):
        read_json(tmp_path / "file.json")


@pytest.mark.parametrize("key", ["schema_version", "engine", "provider", "sha256"])
def test_in_a_manifest(make_manifest: Callable[[], Manifest], key: str) -> None:
    content = make_manifest().to_bytes().decode()
    parse_manifest(content.encode(), "x")
    with pytest.raises(BundleError, match=f"^x is not a manifest that ddcat reads: {TOLD}$"):
        parse_manifest(twice(content, key).encode(), "x")


def test_in_a_passport(make_manifest: Callable[[], Manifest], files: dict[str, bytes], tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", make_manifest(), files)
    passport = Passport(
        manifest_sha256=bundle.digest, verdict="refuse", budget="default", data="x", images=1, findings=(), versions={}
    )
    for content, known in ((passport.to_bytes().decode(), "refuse "), (twice(passport.to_bytes().decode(), "verdict"), "none")):
        (tmp_path / "bundle/passport.json").write_text(content)
        found = read_passport(open_bundle(tmp_path / "bundle"))
        assert found.summary.startswith(known)
    assert "the key 'verdict' occurs twice" in found.summary
    assert json.loads(content)["verdict"] == "refuse"
