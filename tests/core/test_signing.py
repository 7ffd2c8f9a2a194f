"""A bundle is opened for who asks that it be signed only if it is, by that key, as it is."""

import base64
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from ddcat import signing
from ddcat.bundle import MANIFEST, NO_TRUST_POLICY, SIGNATURE, TrustPolicy, entries, open_bundle, write_bundle
from ddcat.errors import BundleError
from ddcat.manifest import Manifest
from tests.keys import write_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    write_keys(folder, "ours")
    write_keys(folder, "theirs", ec.generate_private_key(ec.SECP384R1()))
    write_keys(folder, "other kind", ed25519.Ed25519PrivateKey.generate())
    return folder


@pytest.fixture
def signed(make_manifest: Callable[..., Manifest], files: dict[str, bytes], keys: Path, tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "bundle", make_manifest(), files, key=keys / "ours.pem").path


def test_a_signature_holds_under_its_key(signed: Path, keys: Path) -> None:
    assert open_bundle(signed).trust == "integrity only: its signature was not checked"
    opened = open_bundle(signed, TrustPolicy(keys / "ours.pub"))
    assert opened.trust == f"the signature is by the owner of {keys / 'ours.pub'}"
    both = open_bundle(signed, TrustPolicy(keys / "ours.pub", ("0" * 64, opened.digest)))
    assert both.trust.startswith("the digest is the expected one; the signature")


def test_the_librarys_own_command_verifies_it(signed: Path, keys: Path) -> None:
    command = ["verify", "key", signed, "--signature", signed / SIGNATURE, "--public_key", keys / "ours.pub"]
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, command), "--ignore_unsigned_files"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_who_changes_a_file_and_its_hash_breaks_the_signature(
    signed: Path, keys: Path, files: dict[str, bytes], make_manifest: Callable[..., Manifest]
) -> None:
    changed = files | {"model.onnx": b"evil"}
    (signed / "model.onnx").write_bytes(b"evil")
    manifest = make_manifest(files={name: entry.model_dump() for name, entry in entries(changed).items()})
    (signed / MANIFEST).write_bytes(manifest.to_bytes())
    assert open_bundle(signed).files["model.onnx"] == b"evil"  # which is why integrity is not enough
    with pytest.raises(BundleError, match=r"is not signed by the owner of .*ours\.pub \(Signature mismatch\)"):
        open_bundle(signed, TrustPolicy(keys / "ours.pub"))


def test_a_changed_file_is_refused_though_the_signature_holds(signed: Path, keys: Path) -> None:
    (signed / "model.onnx").write_bytes(b"evil")
    with pytest.raises(BundleError, match=r"model\.onnx is not the file that was exported"):
        open_bundle(signed, TrustPolicy(keys / "ours.pub"))


@pytest.mark.parametrize(
    ("damage", "key", "message"),
    [
        ("none", "theirs.pub", r"is not signed by the owner of .*theirs\.pub \(Key mismatch"),
        ("none", "ours.pem", r"cannot verify with .*ours\.pem .*a PEM file with a key on the curve"),
        ("none", "other kind.pub", "cannot verify with .*a PEM file with a key on the curve"),
        ("none", "none.pub", "cannot verify with .*No such file"),
        ("removed", "ours.pub", "is not signed, it has no readable manifest.sig"),
        ("empty", "ours.pub", "is not signed by the owner"),
        ("text", "ours.pub", "is not signed by the owner"),
        ("forged", "ours.pub", "is not signed by the owner"),
    ],
)
def test_what_is_not_signed_is_refused(signed: Path, keys: Path, damage: str, key: str, message: str) -> None:
    place = signed / SIGNATURE
    content = json.loads(place.read_text())
    if damage == "removed":
        place.unlink()
    elif damage == "forged":
        payload = base64.b64decode(content["dsseEnvelope"]["payload"]).replace(b"sha256", b"SHA256")
        content["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
        place.write_text(json.dumps(content))
    elif damage != "none":
        place.write_text({"empty": "", "text": "{}"}[damage])
    with pytest.raises(BundleError, match=message) as caught:
        open_bundle(signed, TrustPolicy(keys / key))
    assert "\n" not in str(caught.value)


def test_another_digest_is_refused_before_the_files_are_read(signed: Path) -> None:
    digest = open_bundle(signed).digest
    assert open_bundle(signed, TrustPolicy(digests=(digest,))).trust == "the digest is the expected one"
    (signed / "model.onnx").unlink()
    with pytest.raises(BundleError, match=f"has digest {digest}, expected {'1' * 64}: do not run it"):
        open_bundle(signed, TrustPolicy(digests=("1" * 64,)))


@pytest.mark.parametrize(
    ("key", "message"), [("ours.pub", "private key"), ("other kind.pem", "lliptic|curve"), ("no", "No such")]
)
def test_a_key_that_cannot_sign_is_refused_at_once(keys: Path, key: str, message: str) -> None:
    signing.check_key(keys / "ours.pem")
    with pytest.raises(BundleError, match=f"cannot sign with .*{message}.*use a PEM file"):
        signing.check_key(keys / key)


def test_the_library_that_is_not_there_is_one_line(signed: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(BundleError, match=r'pip install "\.\[sign\]"'):
        open_bundle(signed, TrustPolicy(keys / "ours.pub"))
    assert open_bundle(signed).trust.startswith("integrity only")


def test_no_network_is_asked(signed: Path, keys: Path) -> None:
    program = (
        "import socket, sys, pathlib\n"
        "def refuse(*arguments, **options):\n    raise RuntimeError('network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from ddcat.bundle import TrustPolicy, open_bundle\n"
        "print(open_bundle(pathlib.Path(sys.argv[1]), TrustPolicy(pathlib.Path(sys.argv[2]))).trust)"
    )
    line = [sys.executable, "-c", program, str(signed), str(keys / "ours.pub")]
    assert "the signature is by" in subprocess.run(line, capture_output=True, text=True, timeout=60, check=True).stdout


def test_what_the_options_of_commands_ask_for() -> None:
    assert TrustPolicy.from_options(None, None) == TrustPolicy.from_options(None, []) == NO_TRUST_POLICY
    assert TrustPolicy.from_options(Path("ours.pub"), ["0" * 64, "1" * 64]) == TrustPolicy(
        Path("ours.pub"), ("0" * 64, "1" * 64)
    )
