"""What is to be segmented: files, folders, patterns, addresses of a bucket, videos."""

import glob
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ddcat.error_text import first_line
from ddcat.errors import DdcatError
from ddcat.extras import needing
from ddcat.predict.records import JOB, RECORDS
from ddcat.regular_files import kind_of
from ddcat.text import printable

__all__ = ["IMAGES", "SCENES", "VIDEOS", "Source", "fault_of_name", "find_sources"]

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
SCENES = frozenset({".tif", ".tiff"})
VIDEOS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
_OTHER = frozenset({  # images and videos of other kinds: a folder that has them is not predicted whole
    ".avif", ".bmp", ".dng", ".exr", ".flv", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".mpeg", ".mpg", ".pgm", ".ppm", ".tga",
})  # fmt: skip
_EXTRAS = {"s3": "s3", "gs": "gs"}
_LONGEST = 230  # bytes of a part of a name: files of results have longer ones, and most systems take 255
_TAGS = ("ETag", "md5Hash", "etag")  # what S3 and Google's store say of an object's content


class Source(NamedTuple):
    """
    A file to be segmented.

    Attributes
    ----------
    name : str
        Its path within the folder that was given, with slashes; results have it, too.
    address : str
        A path, or the address of an object in a bucket.
    stamp : str
        Another one once the content has changed: size and time of change, or size and tag of an object.
    """

    name: str
    address: str
    stamp: str = ""

    @property
    def is_video(self) -> bool:
        """Whether it is a video, by its suffix."""
        return PurePosixPath(self.name).suffix.lower() in VIDEOS

    @property
    def is_scene(self) -> bool:
        """Whether it is a TIFF, by its suffix."""
        return PurePosixPath(self.name).suffix.lower() in SCENES

    @property
    def stem(self) -> str:
        """The name without its suffix: that of its mask."""
        return str(PurePosixPath(self.name).with_suffix(""))

    def read(self) -> bytes:
        """
        Read the whole file.

        Raises
        ------
        DdcatError
            Where it cannot be read; the message does not name it.
        """
        try:
            with self.open() as file:
                content: bytes = file.read()
                return content
        except Exception as cause:  # each store has exceptions of its own
            raise DdcatError(f"it cannot be read: {getattr(cause, 'strerror', None) or first_line(cause)}") from cause

    def open(self) -> Any:
        """Open the file for reading."""
        if "://" not in self.address:
            return Path(self.address).open("rb")
        files, path = _store(self.address)
        return files.open(path, "rb")


def fault_of_name(name: str) -> str | None:
    """Return why no results can have the name of a source; None: they can."""
    try:
        longest = max(len(part) for part in name.encode().split(b"/"))
    except UnicodeEncodeError:
        return "its name is not UTF-8: rename it"
    return f"its name has {longest} bytes: rename it to at most {_LONGEST}" if longest > _LONGEST else None


def find_sources(inputs: Sequence[str], *, warn: Callable[[str], None] = lambda line: None) -> list[Source]:
    """
    List the files that the inputs name, in the order of the inputs, those of a folder by name.

    Parameters
    ----------
    inputs : sequence of str
        Files, folders, patterns such as ``scenes/*.jpg``, and addresses of files, folders and patterns in a bucket. Of a
        folder, images, TIFFs and videos are taken, by their suffixes; a file is taken whatever its name.
    warn : callable
        Called with a line about images of a folder that are not taken.

    Raises
    ------
    DdcatError
        Where an input names no file, two files would have one mask, or the library of a bucket is missing.
    """
    sources: dict[str, Source] = {}
    for text in inputs:
        found = list(_remote(text) if "://" in text else _local(text, warn))
        if not found:
            raise DdcatError(f"{printable(text)} holds or matches no image (JPEG, PNG, WebP, TIFF) and no video")
        for source in found:
            before = sources.setdefault(source.stem, source)
            if before.address != source.address:
                beside = os.path.dirname(before.address) == os.path.dirname(source.address)
                advice = "rename one of them" if beside else "give the folder above them"
                raise DdcatError(
                    f"{printable(before.address)} and {printable(source.address)} would both have the mask "
                    f"{printable(source.stem)}.png: {advice}, or predict them into two folders"
                )
    for source in sources.values():
        folder, _, name = source.stem.rpartition("/")
        video = sources.get(folder)
        if video is not None and video.is_video and name.isdecimal():
            raise DdcatError(
                f"{printable(source.address)} and a frame of {printable(video.address)} would both have the mask "
                f"{printable(source.stem)}.png: rename one, or use another --out for it"
            )
    return list(sources.values())


def _local(text: str, warn: Callable[[str], None]) -> Iterator[Source]:
    path = Path(text).expanduser()
    if path.is_dir():
        files = sorted(_files_below(path))
        others = [file for file in map(PurePosixPath, files) if file.suffix.lower() in _OTHER and file.name[0] != "."]
        if others:
            count = "1 file" if len(others) == 1 else f"{len(others)} files"
            warn(f"not taken: {count} of other formats, such as {printable(others[0])}: convert them to JPEG, PNG or WebP")
        yield from _named(files, str(path), _stamp_of_file)
    elif path.exists():
        if not path.is_file():
            raise DdcatError(f"{printable(text)} is {kind_of(path.stat().st_mode)}, expected a regular file")
        yield Source(path.name, str(path), _stamp_of_file(str(path)))
    elif glob.has_magic(text):
        paths = sorted(name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        yield from _named(paths, _plain_part(str(path)), _stamp_of_file, every=True)
    else:
        raise DdcatError(f"no such file or folder: {printable(text)}")


def _files_below(folder: Path) -> Iterator[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and not _holds_results(os.path.join(place, name))]
        paths = (os.path.join(place, name) for name in files)
        yield from (path for path in paths if os.path.isfile(path))  # reading a pipe would never end


def _holds_results(folder: str) -> bool:
    """Return whether a folder is one of `ddcat.predict.results.Results`: masks are no images to be segmented."""
    return os.path.isfile(os.path.join(folder, JOB)) and os.path.isdir(os.path.join(folder, RECORDS))


def _remote(text: str) -> Iterator[Source]:
    files, path = _store(text)
    scheme = text.partition("://")[0]
    try:
        files.invalidate_cache()  # an earlier listing of this process
        if glob.has_magic(path):
            found, root, every = files.glob(path, detail=True), _plain_part(path), True
        elif files.isdir(path):
            found, root, every = files.find(path, detail=True), path, False
        elif files.exists(path):
            found, root, every = {path: files.info(path)}, str(PurePosixPath(path).parent), True
        else:
            raise DdcatError(f"no such object or folder: {printable(text)}")
    except DdcatError:
        raise
    except Exception as cause:  # each store has exceptions of its own
        raise DdcatError(f"{printable(text)} cannot be listed: {first_line(cause)}") from cause
    for source in _named(sorted(found), root.rstrip("/"), lambda name: _stamp_of_object(found[name]), every=every):
        yield source._replace(address=f"{scheme}://{source.address}")


def _stamp_of_file(path: str) -> str:
    try:
        about = os.stat(path)
    except OSError:  # reading it says why
        return ""
    return f"{about.st_size} {about.st_mtime_ns}"


def _stamp_of_object(about: Mapping[str, Any]) -> str:
    return f"{about.get('size')} {next((about[tag] for tag in _TAGS if tag in about), None)}"


def _named(paths: Sequence[str], root: str, stamp_of: Callable[[str], str], *, every: bool = False) -> Iterator[Source]:
    for path in paths:
        name = PurePosixPath(Path(path).relative_to(root).as_posix())
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and (every or name.suffix.lower() in IMAGES | SCENES | VIDEOS):
            yield Source(str(name), path, stamp_of(path))


def _plain_part(pattern: str) -> str:
    """Return the folders of a pattern before its first wildcard."""
    parts = Path(pattern).parts
    plain = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    return str(Path(*parts[:plain])) if plain else "."


def _store(address: str) -> tuple[Any, str]:
    scheme = address.partition("://")[0]
    if scheme not in _EXTRAS:
        raise DdcatError(f"{printable(address)}: expected an address of {', '.join(f'{s}://' for s in _EXTRAS)}, or a path")
    with needing(_EXTRAS[scheme]):
        import fsspec  # noqa: PLC0415 -- files of this machine need none

        try:
            files, path = fsspec.core.url_to_fs(address)
        except (ImportError, DdcatError):
            raise
        except Exception as cause:  # each store has exceptions of its own
            raise DdcatError(f"{printable(address)} cannot be opened: {first_line(cause)}") from cause
    return files, path
