"""Bundles to serve and their names, from the command line."""

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["NAME", "Source", "parse_source"]

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # as in manifests: the name is part of URLs


class Source(NamedTuple):
    """A bundle, and the name to serve it under. Default: the manifest's."""

    path: Path
    name: str | None = None


def parse_source(text: str) -> Source:
    """Parse BUNDLE or NAME=BUNDLE."""
    name, equals, path = text.partition("=")
    return Source(Path(path), name) if equals and NAME.fullmatch(name) and not Path(text).exists() else Source(Path(text))
