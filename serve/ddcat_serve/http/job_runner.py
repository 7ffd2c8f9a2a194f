"""The thread that computes asynchronous jobs, one after the other, while requests are answered."""

import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from ddcat.atomic_files import write_bytes
from ddcat.error_text import first_line
from ddcat.errors import DdcatError, WriteError
from ddcat.predict.png import mask_png
from ddcat.preprocess import preprocess, restore
from ddcat_serve.errors import RequestError
from ddcat_serve.http.decoding import decode
from ddcat_serve.http.job_store import JobRecord, JobStore, open_store
from ddcat_serve.http.tiffs import read_scene
from ddcat_serve.inference.admission_queue import TooLarge
from ddcat_serve.inference.jobs import StoppedError
from ddcat_serve.inference.large_images import QueuedInference, part_of
from ddcat_serve.inference.model_registry import Models, find_model
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.settings import Settings

__all__ = ["JobRunner", "run_jobs"]

_MOST_STARTS = 3  # of a job, at which the server was killed each time
_PAUSE = 1.0  # seconds after which it looks again whether an engine takes requests
_EXPIRY_INTERVAL = 60.0  # seconds
_STOP_TIMEOUT = 5.0  # seconds in which the thread ends
_log = logging.getLogger(__name__)

U8 = npt.NDArray[np.uint8]


class JobRunner:
    """
    Computes the jobs of a store.

    A tile of a job has the longest timeout that a request may have: requests with shorter ones come before it.
    """

    def __init__(self, store: JobStore, models: Models, settings: Settings) -> None:
        self.store, self._models, self._settings = store, models, settings
        self._changed = threading.Condition()
        self._stopped = self._woken = False
        self._now: tuple[str, QueuedInference] | None = None  # the job that is computed
        self._rows = 0  # of it that are done
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Let it look for a new job, now or as soon as it has looked."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def progress(self, job: JobRecord) -> float:
        """Return the share of a job that is done."""
        if job.state != "running":
            return float(job.state == "done")
        with self._changed:
            return self._rows / job.height if self._now is not None and self._now[0] == job.id else 0.0

    def cancel(self, job: str) -> bool:
        """Remove a job, and stop computing it; return whether it was there."""
        removed = self.store.remove(job)
        with self._changed:
            if self._now is not None and self._now[0] == job:
                self._now[1].stop()
        return removed

    def stop(self) -> None:
        """Stop; a job that is computed now begins again at the next start."""
        with self._changed:
            self._stopped = True
            if self._now is not None:
                self._now[1].stop()
            self._changed.notify_all()
        self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                self._woken = False
            models = [model for versions in self._models.values() for model in versions.values()]
            unready = [(model.name, model.version) for model in models if not model.ready]  # some may be broken for good
            try:
                self.store.expire()
                job = self.store.start(unready)
                if job is not None:
                    self._attempt(job)
                    continue
            except (sqlite3.Error, OSError) as error:  # the disk is full, or the store was closed
                _log.error("jobs: the store cannot be used: %s", first_line(error))
            with self._changed:
                self._changed.wait_for(lambda: self._stopped or self._woken, _PAUSE if unready else _EXPIRY_INTERVAL)

    def _attempt(self, job: JobRecord) -> None:
        """Compute a job, and end it or put it back."""
        error: str | None = None
        try:
            if job.starts > _MOST_STARTS:
                raise RequestError(500, f"the server ended {_MOST_STARTS} times while it computed this job")
            model = find_model(self._models, job.model, job.version)
            if model.bundle.digest != job.bundle:
                raise RequestError(404, f"the bundle of {job.model}, version {job.version}, has changed: send the image again")
            self._compute(job, model)
        except StoppedError:
            self.store.put_back(job.id)
            with self._changed:
                if not self._stopped:
                    self._changed.wait(_PAUSE)  # the engine is opened again, or its model has left: the next attempt knows
            return
        except (WriteError, OSError) as cause:  # they name files of the server
            _log.error("jobs: job %s failed: %s", job.id, first_line(cause))
            error = "the server could not store or read the job, its log says why: send the image again"
        except (DdcatError, TooLarge, MemoryError) as cause:
            error = first_line(cause)
        except Exception:
            _log.exception("job %s failed", job.id)
            error = "the server failed; its log says why"
        self.store.end(job, error)

    def _compute(self, job: JobRecord, model: ServedModel) -> None:
        """Write the result of a job: the file that `ddcat predict` writes."""
        queued = QueuedInference(model, timeout=self._settings.max_timeout)
        with self._changed:
            if self._stopped:
                raise StoppedError("the server stops")
            self._now, self._rows = (job.id, queued), 0
        if self.store.get(job.id) is None:
            queued.stop()  # it was cancelled just before
        began, answered = time.monotonic(), False
        try:
            if job.suffix == "tif":
                self._segment_scene(job, model, queued)
            else:
                self._segment_image(job, model, queued)
            answered = True
        finally:
            model.usage.count_request(1, time.monotonic() - began, answered=answered)
            with self._changed:
                self._now = None

    def _segment_scene(self, job: JobRecord, model: ServedModel, queued: QueuedInference) -> None:
        with read_scene(str(self.store.image(job.id)), model.bundle.manifest.preprocessing) as scene:
            bands = (band.labels for band in queued.bands(scene.height, scene.width, scene.read))
            scene.write_mask(self.store.result(job), self._counted(bands), model.classes)

    def _segment_image(self, job: JobRecord, model: ServedModel, queued: QueuedInference) -> None:
        rule = model.bundle.manifest.preprocessing
        image = decode(self.store.image(job.id).read_bytes(), rule, max_pixels=self._settings.max_pixels)
        prepared = preprocess(image, rule)
        height, width, _ = prepared.pixels.shape
        bands = (band.labels for band in queued.bands(height, width, part_of(prepared.pixels)))
        labels = restore(np.concatenate(list(self._counted(bands, job.height / height))), prepared.size)
        write_bytes(self.store.result(job), mask_png(labels, model.classes))

    def _counted(self, bands: Iterable[U8], scale: float = 1.0) -> Iterator[U8]:
        rows = 0
        for band in bands:
            yield band
            rows += len(band)
            with self._changed:
                self._rows = round(rows * scale)


@contextlib.contextmanager
def run_jobs(models: Models, settings: Settings) -> Iterator[JobRunner | None]:
    """Run the jobs of the folder in the settings, if they name one, until the block ends; errors as `open_store`."""
    if settings.jobs is None:
        yield None
        return
    with open_store(settings.jobs, most=settings.max_jobs, expiry=settings.job_expiry) as store:
        runner = JobRunner(store, models, settings)
        try:
            yield runner
        finally:
            runner.stop()
