from pathlib import Path
from typing import Any

import pytest

from ddcat.bundle import Bundle, Trust, open_bundle, write_bundle
from ddcat.errors import BundleError
from ddcat.manifest import parse_manifest
from ddcat.passport import Finding, Passport, read_passport, write_passport
from tests.keys import write_keys


@pytest.fixture
def bundle(tmp_path: Path, make_manifest: Any, files: dict[str, bytes]) -> Bundle:
    return write_bundle(tmp_path / "bundle", make_manifest(), files)


def passport(bundle: Bundle, **changes: Any) -> Passport:
    finding = Finding(name="mIoU, clean", verdict="pass", found="+0.01 points", limit="within 0.05", reason="it is.")
    given: dict[str, Any] = {
        "manifest_sha256": bundle.digest, "verdict": "pass", "budget": "default", "data": "scenes, val", "images": 7,
        "findings": (finding,), "versions": {"ddcat": "1"},
    }  # fmt: skip
    return Passport(**{**given, **changes})


def test_it_travels_with_its_bundle(bundle: Bundle) -> None:
    assert read_passport(bundle) == (None, "none: the bundle has not been judged")
    write_passport(bundle, passport(bundle))
    opened = open_bundle(bundle.path)  # it is no surplus file
    found = read_passport(opened)
    assert found.passport == passport(bundle)
    assert found.known == "pass (default budget, 7 images, signature not checked; mIoU, clean: pass)"


def test_a_bundle_that_changed_has_lost_it(bundle: Bundle) -> None:
    write_passport(bundle, passport(bundle))
    engine = bundle.path / bundle.manifest.engine.file
    kept = engine.read_bytes()
    engine.write_bytes(kept + b"changed")
    with pytest.raises(BundleError, match="is not the file that was exported"):  # a changed file alone is no bundle any more
        open_bundle(bundle.path)
    engine.write_bytes(kept)
    manifest = bundle.path / "manifest.json"
    changed = parse_manifest(manifest.read_bytes(), "here").model_copy(update={"name": "another"})
    manifest.write_bytes(changed.to_bytes())  # as an export into its place would
    found = read_passport(open_bundle(bundle.path))
    assert found.passport is None
    assert f"speaks of another bundle, {bundle.digest[:12]}..." in found.known


def test_one_that_cannot_be_read_is_none(bundle: Bundle) -> None:
    (bundle.path / "passport.json").write_text('{"schema_version": 1}')
    found = read_passport(open_bundle(bundle.path))
    assert found.passport is None
    assert "manifest_sha256: Field required" in found.known


def test_signed_by_whom_it_should_be(bundle: Bundle, tmp_path: Path) -> None:
    (ours, our_public), (_, their_public) = write_keys(tmp_path, "ours"), write_keys(tmp_path, "theirs")
    write_passport(bundle, passport(bundle))
    with pytest.raises(BundleError, match="is not signed"):
        read_passport(bundle, Trust(our_public))
    write_passport(bundle, passport(bundle), key=ours)
    found = read_passport(open_bundle(bundle.path), Trust(our_public))
    assert found.passport is not None
    assert found.known == "pass (default budget, 7 images, signature checked; mIoU, clean: pass)"
    with pytest.raises(BundleError):
        read_passport(bundle, Trust(their_public))
    (bundle.path / "passport.json").write_bytes(passport(bundle, verdict="refuse").to_bytes())
    with pytest.raises(BundleError):
        read_passport(bundle, Trust(our_public))
