"""
Write a bundle, and read one back with every byte checked against its manifest.

A bundle is a flat folder of regular files: the manifest, the files that it lists, its signature, and the files of the gate.
Nothing else may be there.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

from ddcat import signing
from ddcat.atomic_files import atomic_directory, unfinished, write_bytes
from ddcat.errors import BundleError
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import FileEntry, Manifest, parse_manifest
from ddcat.regular_files import kind_of, read_regular

__all__ = [
    "INTEGRITY_ONLY",
    "MANIFEST",
    "MOST_BYTES",
    "NO_TRUST_POLICY",
    "PASSPORT",
    "REPORT",
    "SIGNATURE",
    "Bundle",
    "TrustPolicy",
    "entries",
    "open_bundle",
    "write_bundle",
]

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
PASSPORT, REPORT = "passport.json", "report.html"  # by the gate, after the manifest; no program reads the report
_UNLISTED = {MANIFEST, SIGNATURE, PASSPORT, REPORT, *(unfinished(Path(name)).name for name in (PASSPORT, REPORT))}
MOST_BYTES = 2**22  # of a manifest, a signature or a passport

INTEGRITY_ONLY = "integrity only"


class TrustPolicy(NamedTuple):
    """
    The proof of its author that a bundle must bring. Default: none.

    Attributes
    ----------
    public_key : Path, optional
        In PEM; the manifest must be signed by its owner.
    digests : tuple of str
        The bundle must have one of them; () for any.
    passport : bool
        The gate must have passed it: see `ddcat.passport.read_passport`.
    """

    public_key: Path | None = None
    digests: tuple[str, ...] = ()
    passport: bool = False

    @classmethod
    def from_options(
        cls, require_signature: Path | None, expect_digest: Sequence[str] | None, require_passport: bool = False
    ) -> Self:
        """Return the policy of --require-signature, --expect-digest and --require-passport: see `ddcat.cli_support`."""
        return cls(require_signature, tuple(expect_digest or ()), require_passport)


NO_TRUST_POLICY = TrustPolicy()


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
        The bytes that were hashed; a runtime gets these, never the path.
    trust : str
        The proof of its author that was checked, for a person.
    """

    path: Path
    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]
    trust: str = INTEGRITY_ONLY


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Return hashes and sizes of files, in the order of their names."""
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
        Private key that signs the manifest: see `ddcat.signing`.
    """
    if manifest.files != entries(files):
        raise BundleError(f"the manifest for {path} does not describe its files")
    content = manifest.to_bytes()
    beside = (
        {MANIFEST: content} if key is None else {MANIFEST: content, SIGNATURE: signing.sign(content, key, name=manifest.name)}
    )
    with atomic_directory(path) as aside:
        for name, data in {**files, **beside}.items():
            write_bytes(aside / name, data)
    return open_bundle(path)


def open_bundle(path: Path, trust: TrustPolicy = NO_TRUST_POLICY) -> Bundle:
    """
    Read a bundle and check it: first its author, then every byte.

    Without a public key or a digest, only its integrity is checked: whoever can change a file can also change its hash.

    Raises
    ------
    BundleError
        Where there is no bundle, its author is not proven, or a file is missing, altered, not a regular file, or not listed in
        the manifest.
    """
    try:
        is_folder = path.is_dir()
    except OSError:  # a name that is too long, a folder above it that must not be entered
        is_folder = False
    if not is_folder:
        raise BundleError(f"{path} is not a directory: a bundle is the directory that ddcat export writes")
    try:
        content = read_regular(path / MANIFEST, most=MOST_BYTES, error=BundleError)
    except OSError as cause:
        inner = [folder.parent for folder in sorted(path.glob(f"*/{MANIFEST}"))]
        use = f"use {inner[0]}" if len(inner) == 1 else "a bundle is what ddcat export writes"
        raise BundleError(f"{path} holds no readable {MANIFEST}: {use}") from cause
    digest = sha256_of_bytes(content)
    known = _check_trust(path, content, digest, trust)
    manifest = parse_manifest(content, str(path / MANIFEST))
    _check_contents(path, manifest.files)
    files = {name: _read(path / name, entry) for name, entry in manifest.files.items()}
    return Bundle(path, manifest, digest, files, known)


def _check_contents(path: Path, listed: Mapping[str, FileEntry]) -> None:
    """Refuse unlisted files, and files that are not regular, before any of them is read."""
    if reserved := sorted(_UNLISTED & set(listed)):
        raise BundleError(f"{path / MANIFEST} lists {reserved[0]}, a reserved name: export again")
    try:
        for entry in sorted(os.scandir(path), key=lambda entry: entry.name):
            if entry.name not in listed and entry.name not in _UNLISTED:
                raise BundleError(f"{_first_in(path / entry.name)} is not listed in the bundle's manifest: remove it")
            if not entry.is_file(follow_symlinks=False):
                kind = kind_of(entry.stat(follow_symlinks=False).st_mode)
                raise BundleError(
                    f"{path / entry.name} is {kind}, and a bundle holds regular files only: copy the file itself there"
                )
    except OSError as cause:
        raise BundleError(f"{path} cannot be listed: {cause.strerror}") from cause


def _first_in(place: Path) -> Path:
    """Return the path itself or, for a folder, its first file, which says more."""
    while place.is_dir() and not place.is_symlink() and (inner := min(place.iterdir(), default=None)) is not None:
        place = inner
    return place


def _check_trust(path: Path, content: bytes, digest: str, trust: TrustPolicy) -> str:
    known = []
    if trust.digests:
        if digest not in trust.digests:
            raise BundleError(f"{path} has digest {digest}, expected {' or '.join(trust.digests)}: do not run it")
        known.append("the digest is the expected one")
    if trust.public_key is not None:
        try:
            signature = read_regular(path / SIGNATURE, most=MOST_BYTES, error=BundleError)
        except OSError as cause:
            raise BundleError(f"{path} is not signed, it has no readable {SIGNATURE}: use ddcat export --sign KEY") from cause
        signing.verify(content, signature, trust.public_key, where=str(path))
        known.append(f"the signature is by the owner of {trust.public_key}")
    if known:
        return "; ".join(known)
    signed = "its signature was not checked" if (path / SIGNATURE).exists() else "not signed"
    return f"{INTEGRITY_ONLY}: {signed}"


def _read(path: Path, entry: FileEntry) -> bytes:
    try:
        size = path.stat().st_size
        content = read_regular(path, most=entry.bytes, error=BundleError) if size == entry.bytes else b""
    except OSError as cause:
        raise BundleError(f"{path} is listed in the bundle's manifest but cannot be read: export again") from cause
    except MemoryError as cause:
        raise BundleError(f"{path} needs {entry.bytes} bytes of memory, more than is free: use a larger machine") from cause
    if size != entry.bytes:
        raise BundleError(
            f"{path} is not the file that was exported: it has {size} bytes, the manifest says {entry.bytes}: export again"
        )
    digest = sha256_of_bytes(content)
    if digest != entry.sha256:
        raise BundleError(
            f"{path} is not the file that was exported: SHA-256 {digest[:12]}..., the manifest says {entry.sha256[:12]}...: "
            "export again, and find out who changed it"
        )
    return content
