"""Loading the models of a server: bundles are verified, warmed up, and checked against their golden images."""

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, ValuesView
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from ddcat.bundle import NO_TRUST_POLICY, Bundle, TrustPolicy, open_bundle
from ddcat.engines import Engine, open_engine
from ddcat.engines.answer_statistics import golden_statistics
from ddcat.engines.golden import check_answers, read_golden
from ddcat.engines.tiled import TiledEngine
from ddcat.passport import PassportStatus, read_passport
from ddcat_serve.errors import RequestError, ServeError, quoted
from ddcat_serve.inference.admission_queue import AdmissionQueue
from ddcat_serve.inference.capacity import Turn, most_pixels
from ddcat_serve.inference.engine_worker import EngineWorker
from ddcat_serve.inference.memory import memory_limit, resident_bytes
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.inference.sources import NAME, Source
from ddcat_serve.inference.turns import Turns
from ddcat_serve.inference.warm_up import in_turns, measure_speed, warm_up
from ddcat_serve.observe.drift_monitor import DriftMonitor
from ddcat_serve.observe.usage import Batch
from ddcat_serve.settings import Settings

__all__ = [
    "Drain",
    "ModelTable",
    "Models",
    "Observe",
    "choose_model",
    "close_models",
    "find_model",
    "load_model",
    "load_models",
]

_log = logging.getLogger(__name__)

_MEMORY_SHARE = 0.5  # of the free memory, for the engines; the rest is for bodies, queued images and masks
_KEPT_SHARE = 0.25  # of the pixels of the largest call: an engine keeps memory between calls for at most as many
_CALL_SHARE = 1 / 3  # of the engine timeout: a call that is expected to take longer is refused

Models = Mapping[str, Mapping[str, ServedModel]]  # by name, then by version, in the order of the command line
Observe = Callable[[str, str, Batch], None]  # takes name and version of a model, and a batch


class ModelTable(Mapping[str, Mapping[str, ServedModel]]):
    """
    The models that answer, by name and then by version, which may change while the server runs.

    A change replaces one reference: a reader in any thread sees the models before it, or those after it.
    """

    def __init__(self) -> None:
        self._now: dict[str, Mapping[str, ServedModel]] = {}

    def __getitem__(self, name: str) -> Mapping[str, ServedModel]:
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now)

    def __len__(self) -> int:
        return len(self._now)

    def values(self) -> ValuesView[Mapping[str, ServedModel]]:
        """Return the versions of all models at this moment."""
        return self._now.values()

    def switch(self, name: str, model: ServedModel | None) -> list[ServedModel]:
        """Let a model answer under a name, or none; return those that answered under it so far."""
        before = self._now
        if model is None:
            self._now = {other: versions for other, versions in before.items() if other != name}
        else:
            self._now = {**before, name: {model.version: model}}
        return list(before.get(name, {}).values())


class Drain:
    """
    Deadline for answering accepted requests at shutdown, shared by HTTP, gRPC and all engines, so that theirs do not add up.

    It is `seconds` after `begin`, by a monotonic clock.
    """

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._end: float | None = None

    def begin(self) -> float:
        """Start the drain unless it has started; return the seconds that are left."""
        now = self._clock()
        if self._end is None:
            self._end = now + self._seconds
        return max(0.0, self._end - now)

    def cut(self) -> None:
        """End the drain now."""
        self._end = self._clock()


def find_model(models: Models, name: str, version: str | None = None) -> ServedModel:
    """Return a model, by default its last version; RequestError (404) if there is no such model or version."""
    versions = models.get(name)
    if versions is None:
        raise RequestError(404, f"no model is named {quoted(name)}; there is {', '.join(models) or 'none now'}")
    if version is None:
        return list(versions.values())[-1]
    if version not in versions:
        raise RequestError(404, f"{name} has no version {quoted(version)}; it has {', '.join(versions)}")
    return versions[version]


def choose_model(models: Models, name: str | None, version: str | None) -> ServedModel:
    """Return the model of a request, which need not name it if there is one; RequestError (400, 404) otherwise."""
    if name is None and len(models) > 1:
        raise RequestError(400, f"several models are served: choose one with ?model=, of {', '.join(models)}")
    if name is None and not models:
        raise RequestError(404, "no model is loaded now")
    return find_model(models, next(iter(models)) if name is None else name, version)


@contextlib.contextmanager
def load_models(
    sources: Sequence[Source | Path],
    *,
    settings: Settings,
    threads: int | None = None,
    trust: TrustPolicy = NO_TRUST_POLICY,
    observe: Observe = lambda name, version, batch: None,
    drain: Drain | None = None,
) -> Iterator[dict[str, dict[str, ServedModel]]]:
    """
    Verify, load and warm up bundles, and check their golden images; on exit, answer queued requests and free the engines.

    Bundles of the same name become versions 1, 2, ... in their order. `threads` are those of each engine, by default the
    physical cores; `trust` is the required proof of the bundles' origin; `observe` is called after each batch, in the thread of
    the engine; `drain` is a shutdown deadline shared with others, by default one that begins on exit.

    BundleError, EngineError or ServeError for a bundle that is incomplete or untrusted, does not run, or answers its golden
    images differently.
    """
    models: dict[str, dict[str, ServedModel]] = {}
    try:
        for given in sources:
            source = given if isinstance(given, Source) else Source(given)
            bundle = open_bundle(source.path, trust)
            name = source.name or bundle.manifest.name
            if not NAME.fullmatch(name):
                raise ServeError(
                    f"{source.path}: {name!r} is not a valid name of a model: use letters, digits, '.', '-' and '_'"
                )
            versions = models.setdefault(name, {})
            version, passport = str(len(versions) + 1), read_passport(bundle, trust)
            if passport.warning is not None:
                _log.warning("%s, version %s: %s", name, version, passport.warning)
            versions[version] = load_model(
                bundle, passport, name, version, settings=settings, threads=threads, observe=observe, share=1 / len(sources)
            )
        yield models
    finally:
        left = (drain or Drain(settings.drain_timeout)).begin()
        close_models([model for versions in models.values() for model in versions.values()], left)


def load_model(
    bundle: Bundle,
    passport: PassportStatus,
    name: str,
    version: str,
    *,
    settings: Settings,
    threads: int | None,
    observe: Observe,
    share: float,
    turns: Turns | None = None,
    beside: bool = False,
) -> ServedModel:
    """
    Open a verified bundle's engine, warm it up, check its golden images, and let it take requests.

    Its `passport` was accepted already: see `read_passport`. The engine may use a `share` of the engines' memory. `turns` are
    shared by engines of which some answer while others are loaded; `beside`: others answer meanwhile, and the warm-up is
    gentle. The rest is as for `load_models`.

    EngineError if it does not run, answers its golden images differently, or has a rule for tiles that cannot be blended.
    """
    turn: Turn | None = turns.load if turns is not None and beside else None
    engine = open_engine(bundle, threads=threads)
    try:
        examples = read_golden(bundle)
        throughput, overhead, trials = warm_up(
            bundle,
            engine,
            examples,
            tolerance=settings.golden_tolerance,
            batch_pixels=settings.batch_pixels,
            turn=turn,
        )
        gentle = in_turns(engine, turn)
        monitor = DriftMonitor(len(bundle.manifest.classes), golden_statistics(bundle, gentle, examples))
        cuts = bundle.manifest.preprocessing.tiles is not None
        corners = TiledEngine(gentle.infer, bundle.manifest).corners if cuts else None
        engine.rest()
    except BaseException:
        engine.close()
        raise
    call_pixels = min(settings.max_pixels, most_pixels(trials, _MEMORY_SHARE * share * (memory_limit() - resident_bytes())))
    without_files = dataclasses.replace(bundle, files={})  # the runtime has its own copy

    def observe_batch(batch: Batch) -> None:
        model.usage.count_batch(batch)
        observe(name, version, batch)

    worker = EngineWorker(
        name,
        engine,
        reopen=partial(_reopen, without_files, threads, settings.golden_tolerance),
        queue=AdmissionQueue(
            max_pixels=settings.queue_pixels,
            batch_pixels=throughput.batch_pixels,
            batch_images=bundle.manifest.shapes.batch.maximum,
            pixels_per_second=throughput.pixels_per_second,
            call_overhead=overhead,
            call_pixels=call_pixels,
            call_seconds=_CALL_SHARE * settings.engine_timeout,
        ),
        engine_timeout=settings.engine_timeout,
        kept_pixels=int(_KEPT_SHARE * call_pixels),
        measure=partial(
            measure_speed,
            shapes=bundle.manifest.shapes,
            examples=examples[:1],
            batch_pixels=throughput.batch_pixels,
            channels=bundle.manifest.preprocessing.channels,
        ),
        observe=observe_batch,
        turn=nullcontext if turns is None else turns.batch,
    )
    model = ServedModel(
        without_files,
        name=name,
        version=version,
        passport=passport,
        worker=worker,
        examples=examples if settings.demo else (),
        monitor=monitor,
        corners=corners,
    )
    return model


def _reopen(known: Bundle, threads: int | None, tolerance: float) -> Engine:
    """Open an engine from the bundle that was verified at the start; another bundle at its path is refused."""
    bundle = open_bundle(known.path, TrustPolicy(digests=(known.digest,)))
    engine = open_engine(bundle, threads=threads)
    try:
        check_answers(bundle, engine, read_golden(bundle), tolerance=tolerance)
    except BaseException:
        engine.close()
        raise
    return engine


def close_models(models: Sequence[ServedModel], timeout: float) -> None:
    """Close models in parallel, so that each has the whole timeout."""
    # daemon threads, which the interpreter does not wait for: a second signal interrupts the join and ends the process
    closing = [threading.Thread(target=model.close, args=(timeout,), name="close", daemon=True) for model in models]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join()
