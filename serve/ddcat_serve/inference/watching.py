"""Watching a repository's folder, for those who copy bundles instead of calling the server."""

import asyncio
import logging

from ddcat_serve.errors import RequestError, ServeError
from ddcat_serve.inference.bundle_folder import BundleFolder, Print
from ddcat_serve.inference.repository import Repository

__all__ = ["watch"]

_INTERVAL = 2.0  # seconds
_log = logging.getLogger(__name__)

_Seen = dict[str, tuple[str, Print]]  # the newest version of each name, and what its files are like


async def watch(repository: Repository) -> None:
    """
    Load the newest version of a name when it has changed, until cancelled.

    A bundle that is still being copied is left alone until its files have not changed for one interval. A version that was
    refused is tried again when its files change. If the version that answers is removed, the newest that is left takes its
    place; if none is left, it goes on answering.
    """
    tried, before = _Seen(), _Seen()
    while True:
        await asyncio.sleep(_INTERVAL)
        try:
            now = await asyncio.to_thread(_look, repository.folder)
        except ServeError as error:  # a file system that is away for a while
            _log.warning("%s", error)
            continue
        settled = {name: seen for name, seen in now.items() if before.get(name) == seen}
        for name, seen in settled.items():
            if tried.get(name) != seen:
                try:
                    await repository.load(name, seen[0])
                except RequestError as error:
                    _log.warning("%s, version %s, was not loaded: %s", name, seen[0], error)
                    if error.status in (409, 503):  # a request loads or unloads it just now, or the folder is away
                        continue
                tried[name] = seen
        before = now


def _look(folder: BundleFolder) -> _Seen:
    return {name: (versions[-1], folder.fingerprint(name, versions[-1])) for name, versions in folder.contents().items()}
