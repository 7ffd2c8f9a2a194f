"""A folder of bundles: NAME/VERSION/, with versions 1, 2, ... Everything else in it is passed over."""

import os
import re
from pathlib import Path

from ddcat.errors import BundleError
from ddcat_serve.errors import ServeError
from ddcat_serve.inference.sources import NAME

__all__ = ["BundleFolder", "Print"]

_VERSION = re.compile(r"[1-9][0-9]{0,17}")

Print = tuple[tuple[str, int, int], ...]  # name, size and time of each file of a bundle


class BundleFolder:
    """Bundles in a folder, by name and version."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def versions(self, name: str) -> list[str]:
        """Return the versions of a name, the newest last; [] if there is no such name."""
        if not NAME.fullmatch(name):
            return []
        try:
            with os.scandir(self.path / name) as entries:
                return sorted((entry.name for entry in entries if _VERSION.fullmatch(entry.name) and entry.is_dir()), key=int)
        except OSError:
            return []

    def contents(self) -> dict[str, list[str]]:
        """Return the versions of all names; ServeError if the folder cannot be listed."""
        try:
            with os.scandir(self.path) as entries:
                names = sorted(entry.name for entry in entries)
        except OSError as cause:
            raise ServeError(f"--repository {self.path} cannot be listed: {cause.strerror}") from cause
        return {name: versions for name in names if (versions := self.versions(name))}

    def bundle(self, name: str, version: str) -> Path:
        """Return the path of a bundle; raise BundleError if links lead out of the folder."""
        path = self.path / name / version
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{path} is a link that leads out of the repository: copy the bundle there")
        return path

    def fingerprint(self, name: str, version: str) -> Print:
        """Return what changes when a file of a bundle does; () if it is gone."""
        try:
            with os.scandir(self.path / name / version) as entries:
                found = [(entry.name, entry.stat()) for entry in entries]
        except OSError:
            return ()
        return tuple(sorted((file, about.st_size, about.st_mtime_ns) for file, about in found))
