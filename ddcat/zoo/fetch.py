"""Fetch a model of the zoo: each file is read whole, held to its size and SHA-256, and only then written or unpacked."""

import io
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path

from ddcat.atomic_files import atomic_directory, write_bytes
from ddcat.bundle import TrustPolicy, open_bundle
from ddcat.errors import DdcatError
from ddcat.hashing import sha256_of_bytes
from ddcat.regular_files import read_regular
from ddcat.zoo.index import Entry, StoredFile

__all__ = ["FETCHED", "default_source", "fetch", "verify"]

FETCHED = ("model.safetensors", "bundle")  # in the folder of a model: its checkpoint, and its engine
_FOLDER = "zoo"
_TIMEOUT = 60.0  # seconds without a byte
_PART = 2**20  # bytes
_WHOLE = 2**28  # bytes of a bundle, unpacked


def default_source() -> str:
    """
    Return the folder `zoo` here or beside the installed package, as a clone has it.

    Raises
    ------
    DdcatError
        Where there is none.
    """
    places = (Path(_FOLDER), Path(__file__).parents[2] / _FOLDER)
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise DdcatError("there is no folder zoo here: run it in a clone of ddcat, or use --from FOLDER or --from URL")
    return str(found)


def fetch(entry: Entry, out: Path, source: str, *, advance: Callable[[int], None] = lambda done: None) -> None:
    """
    Copy a model into a new folder, whole or not at all: its checkpoint, and its engine as a bundle.

    Parameters
    ----------
    entry : Entry
    out : Path
        Must not exist, or be an empty directory.
    source : str
        A folder, or a URL that begins with https:// or http://, under which the files lie.
    advance : callable
        Called with the number of bytes just read.

    Raises
    ------
    DdcatError
        Where a file is missing or is not the one of the index.
    """
    checkpoint, engine = FETCHED
    with atomic_directory(out) as aside:
        write_bytes(aside / checkpoint, _read(entry.checkpoint, source, advance))
        _unpack(_read(entry.bundle, source, advance), aside / engine, entry.bundle.name)
        verify(entry, aside)


def verify(entry: Entry, folder: Path) -> None:
    """
    Check that a folder holds a model as the index has it, byte for byte.

    Raises
    ------
    DdcatError
        Naming the file that is not.
    """
    checkpoint, engine = FETCHED
    path = folder / checkpoint
    try:
        content = read_regular(path, most=2 * entry.checkpoint.bytes)
    except OSError as cause:
        raise DdcatError(f"{path} cannot be read ({cause.strerror}): fetch the model again") from cause
    _check(content, entry.checkpoint, str(path))
    open_bundle(folder / engine, TrustPolicy(digests=(entry.digest,)))


def _read(file: StoredFile, source: str, advance: Callable[[int], None]) -> bytes:
    if source.startswith(("https://", "http://")):
        where = f"{source.rstrip('/')}/{file.name}"
        content = _download(where, file, advance)
    else:
        where = str(Path(source) / file.name)
        try:
            content = read_regular(Path(where), most=2 * file.bytes)
        except OSError as cause:
            raise DdcatError(f"{where} cannot be read ({cause.strerror}): --from names the folder with the files") from cause
        advance(len(content))
    _check(content, file, where)
    return content


def _download(url: str, file: StoredFile, advance: Callable[[int], None]) -> bytes:
    content = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer:  # http or https: see `_read`
            while len(content) <= file.bytes and (part := answer.read(_PART)):
                content += part
                advance(len(part))
    except (urllib.error.URLError, OSError, ValueError) as cause:
        raise DdcatError(f"{url} cannot be fetched ({cause}): check the address and the network, and try again") from cause
    return bytes(content)


def _check(content: bytes, file: StoredFile, where: str) -> None:
    digest = sha256_of_bytes(content)
    if len(content) != file.bytes or digest != file.sha256:
        raise DdcatError(
            f"{where} is not the file of the zoo: SHA-256 {digest[:12]}... and {len(content)} bytes, "
            f"expected {file.sha256[:12]}... and {file.bytes}: fetch it from another place"
        )


def _unpack(content: bytes, folder: Path, name: str) -> None:
    """Unpack a ZIP file of known content; the bundle's own check follows."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if (
            any(Path(member.filename).name != member.filename for member in members)
            or sum(m.file_size for m in members) > _WHOLE
        ):
            raise DdcatError(f"{name} is not a ZIP file of a bundle")
        folder.mkdir()
        for member in members:
            write_bytes(folder / member.filename, archive.read(member))
