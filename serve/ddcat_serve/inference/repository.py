"""
Models of a folder that are swapped while the server runs: each is verified and warmed up before it answers its first request.

One version of a name answers. Requests name a bundle, never a path, and every bundle is verified as at the start of a server.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ddcat.bundle import TrustPolicy
from ddcat.errors import DdcatError
from ddcat_serve.errors import RequestError, ServeError, quoted
from ddcat_serve.inference.bundle_folder import BundleFolder
from ddcat_serve.inference.bundle_loader import BundleLoader
from ddcat_serve.inference.memory import trim_malloc
from ddcat_serve.inference.model_registry import Drain, Models, ModelTable, close_models, load_models
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.inference.shadow import Shadow, ShadowReport
from ddcat_serve.inference.sources import Source
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings

__all__ = ["Listed", "Repository", "Switched", "open_models", "open_repository"]

_MOST_HISTORY = 10  # versions of a name that roll-backs can reach
_log = logging.getLogger(__name__)


class Switched(NamedTuple):
    """What a call has done."""

    name: str
    version: str | None  # the one that answers now; None: none
    before: str | None  # the one that answered before; the same if nothing has changed
    shadow: str | None = None  # the one that computes beside it, and that the next load lets answer
    report: ShadowReport | None = None  # its comparison with the one that answers, or answered before it


class Listed(NamedTuple):
    """A version in the folder that does not answer, and why."""

    name: str
    version: str
    state: str  # of the protocol: LOADING or UNAVAILABLE
    reason: str


@dataclass(eq=False)
class _Place:
    """What is known of a name."""

    task: "asyncio.Task[Switched] | None" = None  # the call in progress
    loading: str | None = None  # version
    refused: dict[str, str] = field(default_factory=dict)  # versions and reasons
    history: list[tuple[str, str]] = field(default_factory=list)  # versions that have answered and their digests, newest last
    retiring: list[threading.Thread] = field(default_factory=list)
    shadow: Shadow | None = None


class Repository:
    """
    Loads, swaps and unloads the models of a folder.

    Calls are made in the server's event loop; bundles are loaded in threads of their own. A new version computes a `share` of
    the requests beside the old one before it answers; 0: it answers at once. A replaced model answers the requests that it has
    accepted within `patience` seconds. `refusal` says why requests may not load models, None: they may.
    """

    def __init__(
        self, loader: BundleLoader, *, metrics: Metrics, share: float, patience: float, refusal: str | None = None
    ) -> None:
        self.models = ModelTable()
        self.refusal, self.started = refusal, False
        self.folder, self._loader, self._metrics = loader.folder, loader, metrics
        self._share, self._patience = share, patience
        self._places: dict[str, _Place] = {}
        self._lock = threading.Lock()  # of the next two
        self._pending: set[ServedModel] = set()  # opened, and not answering
        self._closed = False

    def list_silent(self) -> list[Listed]:
        """Return the versions in the folder that do not answer."""
        found = []
        for name, versions in self._contents().items():
            place, answering = self._places.get(name, _Place()), self._answering(name)
            for version in versions:
                shadow = place.shadow
                if shadow is not None and shadow.candidate.version == version:
                    found.append(Listed(name, version, "LOADING", f"shadow: {shadow.report()}"))
                elif place.loading == version:
                    found.append(Listed(name, version, "LOADING", ""))
                elif answering is None or answering.version != version:
                    found.append(Listed(name, version, "UNAVAILABLE", place.refused.get(version, "")))
        return found

    def shadows(self) -> list[tuple[ServedModel, ShadowReport]]:
        """Return all candidates, and what they made of the requests so far."""
        shadows = [place.shadow for place in list(self._places.values())]
        return [(shadow.candidate, shadow.report()) for shadow in shadows if shadow is not None]

    async def load(self, name: str, version: str | None = None) -> Switched:
        """
        Let a version answer, by default the newest; the one that answers now does so until then.

        With a share, the first call lets it compute beside the other, and the second one lets it answer. If the same bundle
        answers already, it goes on doing so. RequestError: 404 if there is no such bundle, 409 if another call for this name is
        in progress, 400 if the bundle is refused.
        """
        return await self._alone(name, lambda place: self._load(place, name, version))

    async def roll_back(self, name: str) -> Switched:
        """
        Undo the last load: end the shadow, or let the bundle answer that answered before, after the same checks.

        RequestError (400) if there is nothing to undo, or the bundle is no more the one that it was; otherwise as `load`.
        """
        return await self._alone(name, lambda place: self._roll_back(place, name))

    async def unload(self, name: str) -> Switched:
        """Let no version answer; raise RequestError (400) if none does, otherwise as `load`. Accepted requests are answered."""
        return await self._alone(name, lambda place: self._unload(place, name))

    def start(self) -> None:
        """
        Load the newest version of each name that is not refused, before the server takes requests.

        DdcatError if the folder holds no bundle, or all bundles of a name are refused.
        """
        found = self.folder.contents()
        if not found:
            path = self.folder.path
            raise ServeError(f"--repository {path} holds no bundle: expected folders such as {path}/camvid/1")
        for name, versions in found.items():
            place = self._places.setdefault(name, _Place())
            self._metrics.expect_swaps(name)
            first: DdcatError | None = None
            for version in reversed(versions):
                try:
                    model = self._open(place, name, version, None, len(found) + 1)
                except DdcatError as error:
                    self._refuse(place, name, version, error)
                    first = first or error
                    continue
                assert model is not None  # nothing answers yet
                self._put(name, model)
                break
            else:
                assert first is not None
                raise first
        self.started = True

    def close(self, timeout: float) -> None:
        """Answer the requests that were accepted, and free all engines; those left after `timeout` seconds fail."""
        with self._lock:
            self._closed = True
            pending = [*self._pending]
        served = [model for versions in self.models.values() for model in versions.values()]
        close_models([*served, *pending], timeout)
        for place in self._places.values():
            for thread in place.retiring:
                thread.join(timeout)

    async def _alone(self, name: str, call: Callable[[_Place], Coroutine[Any, Any, Switched]]) -> Switched:
        """Run a call to its end, even if its client leaves."""
        if not self._answering(name) and not await asyncio.to_thread(self.folder.versions, name):
            known = ", ".join(await asyncio.to_thread(self._contents)) or "none"
            raise RequestError(404, f"the repository has no model {quoted(name)}; it has {known}")
        place = self._places.setdefault(name, _Place())
        self._metrics.expect_swaps(name)
        if place.task is not None and not place.task.done():
            raise RequestError(409, f"{name}: another call loads or unloads it: try again when that has ended")
        place.task = asyncio.ensure_future(call(place))
        place.task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved, though nobody may wait
        return await asyncio.shield(place.task)

    async def _load(self, place: _Place, name: str, version: str | None) -> Switched:
        versions = await asyncio.to_thread(self.folder.versions, name)
        if version is None and versions:
            version = versions[-1]
        if version not in versions or version is None:
            has = f"it has {', '.join(versions)}" if versions else "its folder is gone"
            raise RequestError(404, f"{name} has no version {quoted(version)} in the repository: {has}")
        shadow, answering = place.shadow, self._answering(name)
        if shadow is not None and shadow.candidate.version == version and shadow.candidate.ready:
            return self._switch(place, name, shadow.candidate)
        self._end_shadow(place)
        model = await self._open_in_thread(place, name, version)
        if model is None:  # the same bundle answers
            return Switched(name, version, version)
        if self._share and answering is not None:
            place.shadow = answering.shadow = Shadow(model, answering, self._share)
            _log.info("%s: version %s computes %g of the requests beside %s", name, version, self._share, answering.version)
            return Switched(name, answering.version, answering.version, version, place.shadow.report())
        return self._switch(place, name, model)

    async def _roll_back(self, place: _Place, name: str) -> Switched:
        answering = self._answering(name)
        if place.shadow is not None and answering is not None:
            report = place.shadow.report()
            self._end_shadow(place)
            return Switched(name, answering.version, answering.version, None, report)
        if not place.history:
            raise RequestError(400, f"{name}: there is nothing to roll back to: no other version has answered since the start")
        version, digest = place.history[-1]
        model = await self._open_in_thread(place, name, version, digest)
        place.history.pop()
        if model is None:
            return Switched(name, version, version)
        return self._switch(place, name, model, remember=False)

    async def _unload(self, place: _Place, name: str) -> Switched:
        if self._answering(name) is None:
            raise RequestError(400, f"{name} is not loaded")
        return self._switch(place, name, None)

    def _switch(self, place: _Place, name: str, model: ServedModel | None, *, remember: bool = True) -> Switched:
        """Let a model answer, or none, by one change; then retire the one before, which answers what it has accepted."""
        shadow = place.shadow
        if shadow is not None and shadow.candidate is not model:
            self._end_shadow(place)
        place.shadow = None
        replaced = self._put(name, model)
        for old in replaced:
            old.shadow = None
            if remember:
                place.history = [*place.history, (old.version, old.bundle.digest)][-_MOST_HISTORY:]
            self._retire(place, old)
        self._metrics.count_swap(name)
        now, before = None if model is None else model.version, replaced[0].version if replaced else None
        report = shadow.report() if shadow is not None and shadow.candidate is model else None
        compared = "" if report is None else f"; as its shadow: {report}"
        _log.info("%s: version %s answers, and answered before: %s%s", name, now, before, compared)
        return Switched(name, now, before, None, report)

    def _put(self, name: str, model: ServedModel | None) -> list[ServedModel]:
        with self._lock:
            if self._closed:
                raise RequestError(503, "the server is stopping: use another one")
            if model is not None:
                self._pending.discard(model)
            return self.models.switch(name, model)

    def _end_shadow(self, place: _Place) -> None:
        if place.shadow is None:
            return
        candidate, place.shadow = place.shadow.candidate, None
        answering = self._answering(candidate.name)
        if answering is not None:
            answering.shadow = None
        with self._lock:
            self._pending.discard(candidate)
        self._retire(place, candidate)

    def _retire(self, place: _Place, model: ServedModel) -> None:
        """Close a model when it has answered, in a thread that nobody waits for."""

        def close() -> None:
            model.close(self._patience)
            trim_malloc()

        place.retiring = [thread for thread in place.retiring if thread.is_alive()]
        thread = threading.Thread(target=close, name=f"retire-{model.name}", daemon=True)
        place.retiring.append(thread)
        thread.start()

    async def _open_in_thread(self, place: _Place, name: str, version: str, digest: str | None = None) -> ServedModel | None:
        """Open a bundle in a thread that the process does not wait for; translate its refusal for the client."""
        result: Future[ServedModel | None] = Future()

        def work() -> None:
            try:
                result.set_result(self._open(place, name, version, digest, len({*self.models, name}) + 1))
            except BaseException as error:  # raised where it is waited for
                result.set_exception(error)

        place.loading = version
        # named as a thread of an engine: at its end the process does not free what it uses
        threading.Thread(target=work, name=f"engine-load-{name}", daemon=True).start()
        try:
            return await asyncio.wrap_future(result)
        except RequestError:
            raise
        except Exception as error:  # of any runtime
            reason = self._refuse(place, name, version, error)
            raise RequestError(400, f"load failed for model {name!r}, version {version}: {reason}") from error
        finally:
            place.loading = None

    def _open(self, place: _Place, name: str, version: str, digest: str | None, models: int) -> ServedModel | None:
        """Verify a bundle and make it a model; return None if the same bundle answers already."""
        for thread in place.retiring:  # so that a name never has more than two engines
            thread.join()
        answering = self._answering(name)
        model = self._loader.load(name, version, share=1 / models, answering=answering, digest=digest, beside=self.started)
        if model is None:
            return None
        with self._lock:
            place.refused.pop(version, None)
            if not self._closed:
                self._pending.add(model)
                return model
        model.close(0.0)
        raise RequestError(503, "the server is stopping: use another one")

    def _refuse(self, place: _Place, name: str, version: str, error: Exception) -> str:
        """Record that a bundle was refused; return the reason in one line, without paths of this machine."""
        known = isinstance(error, DdcatError)
        reason = str(error).replace(f"{self.folder.path}/", "") if known else "its engine failed; the server's log says why"
        _log.error("%s, version %s, is refused: %s", name, version, error, exc_info=None if known else error)
        place.refused[version] = reason
        self._metrics.count_refused_load(name)
        return reason

    def _contents(self) -> dict[str, list[str]]:
        try:
            return self.folder.contents()
        except ServeError as cause:
            raise RequestError(503, "the repository cannot be read now: try again later") from cause

    def _answering(self, name: str) -> ServedModel | None:
        versions: Mapping[str, ServedModel] = self.models.get(name, {})
        return next(iter(versions.values()), None)


@contextlib.contextmanager
def open_repository(
    folder: Path,
    *,
    settings: Settings,
    threads: int | None,
    trust: TrustPolicy,
    metrics: Metrics,
    drain: Drain,
    refusal: str | None = None,
) -> Iterator[Repository]:
    """
    Load the newest version of each name in a folder; on exit, answer queued requests and free the engines.

    Arguments are those of `Repository` and `load_models`, errors those of `Repository.start`.
    """
    loader = BundleLoader(BundleFolder(folder), settings=settings, threads=threads, trust=trust, observe=metrics.count_batch)
    patience = settings.max_timeout + settings.engine_timeout
    repository = Repository(loader, metrics=metrics, share=settings.shadow, patience=patience, refusal=refusal)
    try:
        repository.start()
        yield repository
    finally:
        repository.close(drain.begin())


@contextlib.contextmanager
def open_models(
    sources: Sequence[Source],
    *,
    settings: Settings,
    threads: int | None,
    trust: TrustPolicy,
    metrics: Metrics,
    drain: Drain,
    refusal: str | None,
) -> Iterator[tuple[Models, Repository | None]]:
    """Load the models of the settings' repository as `open_repository`, or of bundles as `load_models`."""
    if settings.repository is None:
        observe = metrics.count_batch
        with load_models(sources, settings=settings, threads=threads, trust=trust, observe=observe, drain=drain) as models:
            yield models, None
    else:
        with open_repository(
            settings.repository, settings=settings, threads=threads, trust=trust, metrics=metrics, drain=drain, refusal=refusal
        ) as repository:
            yield repository.models, repository
