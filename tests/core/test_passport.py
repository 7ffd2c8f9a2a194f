import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ddcat.bundle import Bundle, TrustPolicy, open_bundle, write_bundle
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
    assert read_passport(bundle) == (None, "none: the gate has not tested this bundle")
    write_passport(bundle, passport(bundle))
    opened = open_bundle(bundle.path)  # it is no surplus file
    found = read_passport(opened)
    assert found.passport == passport(bundle)
    assert found.summary == "pass (default budget, 7 images, signature not checked; mIoU, clean: pass)"


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
    assert f"is of another bundle, {bundle.digest[:12]}..." in found.summary


def test_one_that_cannot_be_read_is_none(bundle: Bundle) -> None:
    (bundle.path / "passport.json").write_text('{"schema_version": 1}')
    found = read_passport(open_bundle(bundle.path))
    assert found.passport is None
    assert "manifest_sha256: Field required" in found.summary


def test_signed_by_whom_it_should_be(bundle: Bundle, tmp_path: Path) -> None:
    (ours, our_public), (_, their_public) = write_keys(tmp_path, "ours"), write_keys(tmp_path, "theirs")
    write_passport(bundle, passport(bundle))
    with pytest.raises(BundleError, match="is not signed"):
        read_passport(bundle, TrustPolicy(our_public))
    write_passport(bundle, passport(bundle), key=ours)
    found = read_passport(open_bundle(bundle.path), TrustPolicy(our_public))
    assert found.passport is not None
    assert found.summary == "pass (default budget, 7 images, signature checked; mIoU, clean: pass)"
    with pytest.raises(BundleError):
        read_passport(bundle, TrustPolicy(their_public))
    (bundle.path / "passport.json").write_bytes(passport(bundle, verdict="refuse").to_bytes())
    with pytest.raises(BundleError):
        read_passport(bundle, TrustPolicy(our_public))


def test_a_passport_that_lets_a_bundle_run_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    (ours, public), asked = write_keys(tmp_path, "ours"), TrustPolicy(passport=True)
    with pytest.raises(BundleError, match=r"has no passport \(none: the gate has not tested this bundle\)"):
        read_passport(bundle, asked)
    for changes, said in (
        ({"verdict": "refuse"}, "did not pass the gate, its passport says refuse"),
        ({"verdict": "inconclusive"}, "did not pass the gate, its passport says inconclusive"),
        ({"budget": "quick"}, "with the quick budget alone, which tries no strong attack"),
        ({"manifest_sha256": "0" * 64}, "is of another bundle"),
    ):
        write_passport(bundle, passport(bundle, **changes))
        with pytest.raises(BundleError, match=said):
            read_passport(bundle, asked)
        assert read_passport(bundle).summary
    write_passport(bundle, passport(bundle))
    assert read_passport(bundle, asked).passport == passport(bundle)
    with pytest.raises(BundleError, match="is not signed"):
        read_passport(bundle, TrustPolicy(public, passport=True))
    write_passport(bundle, passport(bundle), key=ours)
    assert read_passport(bundle, TrustPolicy(public, passport=True)).passport == passport(bundle)
    (bundle.path / "passport.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match="is not signed in a form that this version reads"):
        read_passport(bundle, TrustPolicy(public))


def test_the_signature_is_over_everything_that_is_said(bundle: Bundle, tmp_path: Path) -> None:
    ours, public = write_keys(tmp_path, "ours")
    file, said = bundle.path / "passport.json", "2026-01-02T03:04:05Z"
    write_passport(bundle, passport(bundle, judged_at=said), key=ours)
    assert f"judged {said}, signature checked" in read_passport(bundle, TrustPolicy(public)).summary
    content = json.loads(file.read_text())
    for key, value in {"judged_at": "2027-01-02T03:04:05Z", "budget": "quick", "images": 8, "versions": {}}.items():
        file.write_text(json.dumps(content | {key: value}))
        with pytest.raises(BundleError, match=r"passport\.json is not signed by the owner"):
            read_passport(bundle, TrustPolicy(public))
    file.write_text(json.dumps(content))  # however it is indented
    assert read_passport(bundle, TrustPolicy(public)).passport == passport(bundle, judged_at=said)


def test_a_refusal_is_a_warning_that_names_what_was_refused(bundle: Bundle) -> None:
    findings = tuple(
        Finding(name=name, verdict=verdict, found="1", limit="2", reason="x.")
        for name, verdict in (("latency", "pass"), ("mIoU,\x1b[2J attacked", "refuse"))
    )
    write_passport(bundle, passport(bundle, verdict="refuse", findings=findings))
    found = read_passport(bundle)
    assert found.warning == r"the gate refused this bundle (mIoU,\x1b[2J attacked): do not rely on its answers"
    assert found.summary.isprintable()
    for verdict in ("pass", "inconclusive"):
        write_passport(bundle, passport(bundle, verdict=verdict))
        assert read_passport(bundle).warning is None


WRITER = """
import sys
import time
from pathlib import Path
from ddcat.bundle import open_bundle
from ddcat.passport import Passport, write_passport
bundle, verdict = open_bundle(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
while True:
    write_passport(bundle, Passport.model_validate_json(Path(sys.argv[3]).read_bytes()), key=Path(sys.argv[4]))
"""


def test_a_reader_sees_a_whole_and_signed_passport_whatever_becomes_of_its_writers(bundle: Bundle, tmp_path: Path) -> None:
    (ours, public), verdicts = write_keys(tmp_path, "ours"), ("pass", "refuse")
    write_passport(bundle, passport(bundle), key=ours)
    for _ in range(2):  # writers are killed, and others go on
        seen, reads, ends = set[str](), 0, time.monotonic() + 60
        with contextlib.ExitStack() as stack:
            for verdict in verdicts:
                given = tmp_path / verdict
                given.write_bytes(passport(bundle, verdict=verdict).to_bytes())
                line = [sys.executable, "-c", WRITER, bundle.path, verdict, given, ours]
                writer = stack.enter_context(subprocess.Popen([*map(str, line)], stdout=subprocess.PIPE, text=True))
                stack.callback(writer.kill)
                assert writer.stdout is not None
                assert writer.stdout.readline() == "ready\n"
            while (reads < 30 or seen != set(verdicts)) and time.monotonic() < ends:
                reads += 1
                found = read_passport(open_bundle(bundle.path), TrustPolicy(public))
                assert found.passport is not None
                seen.add(found.passport.verdict)
        assert seen == set(verdicts)
        assert read_passport(open_bundle(bundle.path), TrustPolicy(public)).passport is not None
    write_passport(bundle, passport(bundle))  # over what a killed one may have left
    assert not list(bundle.path.glob(".*"))
