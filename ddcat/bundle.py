"""Writing a bundle, and reading one back with every byte checked against its manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ddcat.errors import BundleError
from ddcat.files import new_directory, write_bytes
from ddcat.hashing import sha256_of_bytes
from ddcat.manifest import FileEntry, Manifest, parse_manifest

__all__ = ["MANIFEST", "PASSPORT", "Bundle", "entries", "open_bundle", "write_bundle"]

MANIFEST = "manifest.json"
PASSPORT = "passport.json"
_BESIDE = {MANIFEST, PASSPORT, "report.html"}  # written by the gate, after the manifest that they speak of


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
    """

    path: Path
    manifest: Manifest
    digest: str
    files: Mapping[str, bytes]


def entries(files: Mapping[str, bytes]) -> dict[str, FileEntry]:
    """Hashes and sizes of files, in the order of their names."""
    return {name: FileEntry(sha256=sha256_of_bytes(files[name]), bytes=len(files[name])) for name in sorted(files)}


def write_bundle(path: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """
    Write a new bundle, whole or not at all.

    Parameters
    ----------
    path : Path
        Must not exist, or be an empty directory.
    manifest : Manifest
        Whose `files` are ``entries(files)``.
    files : mapping of str to bytes
    """
    if manifest.files != entries(files):
        raise BundleError(f"the manifest for {path} does not describe the files that were to be written")
    with new_directory(path) as aside:
        for name, content in files.items():
            write_bytes(aside / name, content)
        write_bytes(aside / MANIFEST, manifest.to_bytes())
    return open_bundle(path)


def open_bundle(path: Path) -> Bundle:
    """
    Read a bundle and check it: integrity only, for whoever can change a file can change its hash beside it.

    Raises
    ------
    BundleError
        Where there is no bundle, or a file is missing, altered or not listed in the manifest.
    """
    if not path.is_dir():
        raise BundleError(f"{path} is not a directory: a bundle is the directory that ddcat-export writes")
    try:
        content = (path / MANIFEST).read_bytes()
    except OSError as cause:
        raise BundleError(f"{path} holds no readable {MANIFEST}: a bundle is what ddcat-export writes") from cause
    manifest = parse_manifest(content, str(path / MANIFEST))
    present = {str(file.relative_to(path)) for file in path.rglob("*") if not file.is_dir()}
    surplus = sorted(present - _BESIDE - set(manifest.files))
    if surplus:
        raise BundleError(f"{path / surplus[0]} is not listed in the bundle's manifest: remove it, or export again")
    files = {name: _read(path / name, entry) for name, entry in manifest.files.items()}
    return Bundle(path, manifest, sha256_of_bytes(content), files)


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
