"""Writing a bundle, and reading one back with every byte checked against its manifest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from ddcat import signing
from ddcat.errors import BundleError
from ddcat.files import is_leftover, new_directory, write_bytes
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import FileEntry, Manifest, parse_manifest

__all__ = [
    "ANYONE",
    "INTEGRITY_ONLY",
    "MANIFEST",
    "PASSPORT",
    "PASSPORT_SIGNATURE",
    "SIGNATURE",
    "Bundle",
    "Trust",
    "entries",
    "open_bundle",
    "write_bundle",
]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
PASSPORT, PASSPORT_SIGNATURE = "passport.json", "passport.sig"
_BESIDE = {MANIFEST, SIGNATURE, PASSPORT, PASSPORT_SIGNATURE, "report.html"}  # the last by the gate, after the manifest

INTEGRITY_ONLY = "integrity only"


class Trust(NamedTuple):
    """
    What must be shown of who wrote a bundle; nothing by default.

    Attributes
    ----------
    public_key : Path, optional
        In PEM; the manifest must be signed by its owner.
    digests : tuple of str
        The bundle must have one of them; () for any.
    """

    public_key: Path | None = None
    digests: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, require_signature: Path | None, expect_digest: Sequence[str] | None) -> Self:
        """Take the values of --require-signature and --expect-digest, which `ddcat.command` describes."""
        return cls(require_signature, tuple(expect_digest or ()))


ANYONE = Trust()


@dataclass(frozen=True)
class Bundle:
    """
    A bundle whose files were read once and whose hashes hold.

    Attributes
    ----------
    path : Path
    manifest : Manifest
    digest : str
        SHA-256 of the manifest's bytes: it stands for the whole bundle.
    files : mapping of str to bytes
        The very bytes that were hashed; a runtime is given these, never the path.
    trust : str
        What is known of who wrote it, for a person.
    """

    path: Path
    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]
    trust: str = INTEGRITY_ONLY


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Hashes and sizes of files, in the order of their names."""
    return {name: FileEntry(sha256=sha256_of_bytes(files[name]), bytes=len(files[name])) for name in sorted(files)}


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes], *, key: Path | None = None) -> Bundle:
    """
    Write a new bundle, whole or not at all.

    Parameters
    ----------
    path : Path
        Must not exist, or be an empty directory.
    manifest : Manifest
        Whose `files` are ``entries(files)``.
    files : mapping of str to bytes
    key : Path, optional
        Private key to sign the manifest with: see `ddcat.signing`.
    """
    if manifest.files != entries(files):
        raise BundleError(f"the manifest for {path} does not describe the files that were to be written")
    content = manifest.to_bytes()
    beside = (
        {MANIFEST: content} if key is None else {MANIFEST: content, SIGNATURE: signing.sign(content, key, name=manifest.name)}
    )
    with new_directory(path) as aside:
        for name, data in {**files, **beside}.items():
            write_bytes(aside / name, data)
    return open_bundle(path)


def open_bundle(path: Path, trust: Trust = ANYONE) -> Bundle:
    """
    Read a bundle and check it: first that it is from whom it should be, then every byte.

    Without a public key or a digest that is integrity only, for whoever can change a file can change its hash beside it.

    Raises
    ------
    BundleError
        Where there is no bundle, it is not shown to be from whom it should be, or a file is missing, altered or not listed in
        the manifest.
    """
    if not path.is_dir():
        raise BundleError(f"{path} is not a directory: a bundle is the directory that ddcat-export writes")
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as cause:
        raise BundleError(f"{path} holds no readable {MANIFEST}: a bundle is what ddcat-export writes") from cause
    digest = sha256_of_bytes(content)
    known = _check_trust(path, content, digest, trust)
    manifest = parse_manifest(content, str(path / MANIFEST))
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    surplus = sorted(name for name in present - _BESIDE - set(manifest.files) if not _is_being_written(Path(name)))
    if surplus:
        raise BundleError(f"{path / surplus[0]} is not listed in the bundle's manifest: remove it, or export again")
    files = {name: _read(path / name, entry) for name, entry in manifest.files.items()}
    return Bundle(path, manifest, digest, files, known)


def _is_being_written(file: Path) -> bool:
    """Whether it is by a gate that writes its verdict at this moment, or was killed when it did."""
    return any(is_leftover(file, name) for name in _BESIDE)


def _check_trust(path: Path, content: bytes, digest: str, trust: Trust) -> str:
    known = []
    if trust.digests:
        if digest not in trust.digests:
            raise BundleError(f"{path} has digest {digest}, and not the expected {' or '.join(trust.digests)}: do not run it")
        known.append("the digest is the expected one")
    if trust.public_key is not None:
        try:
            signature = (path / SIGNATURE).read_bytes()
        except OSError as cause:
            raise BundleError(f"{path} is not signed, it has no readable {SIGNATURE}: ddcat-export --sign KEY signs") from cause
        signing.verify(content, signature, trust.public_key, where=str(path))
        known.append(f"the signature is by the owner of {trust.public_key}")
    if known:
        return "; ".join(known)
    signed = "its signature was not checked" if (path / SIGNATURE).exists() else "not signed"
    return f"{INTEGRITY_ONLY}: {signed}"


def _read(path: Path, entry: FileEntry) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise BundleError(f"{path} is listed in the bundle's manifest but cannot be read: export again") from cause
    found = sha256_of_bytes(content)
    if found != entry.sha256:
        raise BundleError(
            f"{path} is not the file that was exported: SHA-256 {found[:12]}..., the manifest says {entry.sha256[:12]}...: "
            "export again, and find out who changed it"
        )
    return content
