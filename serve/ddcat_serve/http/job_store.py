"""Asynchronous jobs on disk: a table in SQLite, and a file for each image and each result. They survive the server."""

import contextlib
import itertools
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ddcat.locks import locked
from ddcat_serve.errors import RequestError, ServeError

__all__ = ["JobRecord", "JobState", "JobStore", "open_store"]

JobState = Literal["queued", "running", "done", "failed"]

_FILE = re.compile(r"\.?([0-9a-f]{32})-")
_VERSION = 1  # of the table
_TABLE = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, state TEXT NOT NULL, model TEXT NOT NULL, version TEXT NOT NULL, bundle TEXT NOT NULL,
    passport TEXT NOT NULL, suffix TEXT NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL,
    submitted REAL NOT NULL, starts INTEGER NOT NULL, ended REAL, error TEXT
) STRICT
"""


class JobRecord(NamedTuple):
    """A job, as in the table."""

    id: str  # nobody can guess it
    state: JobState
    model: str  # it and the next two are what is to answer
    version: str
    bundle: str  # its digest
    passport: str  # the gate's verdict
    suffix: str  # of the result, without a dot: tif or png
    height: int  # of the image, and of the mask
    width: int
    submitted: float  # Unix time
    starts: int = 0  # how often a server began to compute it
    ended: float | None = None  # Unix time
    error: str | None = None  # why it failed


class JobStore:
    """
    The jobs of a folder, which one server at a time holds; thread-safe.

    At most `most` jobs are kept at once, finished ones included. A finished job is removed, with its result, after `expiry`
    seconds of the `clock`, which is Unix time.
    """

    def __init__(self, folder: Path, *, most: int, expiry: float, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._most, self.expiry, self._clock = folder, most, expiry, clock
        self._lock, self._uploads = threading.Lock(), 0
        self._database = sqlite3.connect(folder / "jobs.sqlite", check_same_thread=False, isolation_level=None)
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def image(self, job: str) -> Path:
        """Return where the image of a job is."""
        return self._folder / f"{job}-image"

    def result(self, job: JobRecord) -> Path:
        """Return where the result of a job is, or will be."""
        return self._folder / f"{job.id}-result.{job.suffix}"

    @contextlib.contextmanager
    def upload(self) -> Iterator[str]:
        """
        Reserve a place, and yield the name of a new job, whose image the caller writes and then adds.

        RequestError (429) if there are too many jobs.
        """
        self.expire()
        with self._lock:
            count = self._database.execute("SELECT count(*) FROM jobs").fetchone()[0] + self._uploads
            if count >= self._most:
                raise RequestError(
                    429, f"the server keeps {count} jobs already: delete one, or try again later", {"Retry-After": "60"}
                )
            self._uploads += 1
        job = secrets.token_hex(16)
        try:
            yield job
        finally:
            with self._lock:
                self._uploads -= 1
            if not self._has(job):
                self.image(job).unlink(missing_ok=True)

    def add(self, job: JobRecord) -> None:
        """Queue a job whose image is there."""
        with self._lock:
            marks = ", ".join("?" * len(job))
            self._database.execute(f"INSERT INTO jobs ({', '.join(job._fields)}) VALUES ({marks})", job)

    def get(self, job: str) -> JobRecord | None:
        """Return a job, if it is there."""
        return self._one("SELECT * FROM jobs WHERE id = ?", job)

    def start(self, unready: Collection[tuple[str, str]] = ()) -> JobRecord | None:
        """
        Take the oldest job that has not ended: one that was started before, too, whose end could not be written.

        Jobs of the `unready` models, by name and version, are passed over.
        """
        others = " AND (model, version) != (?, ?)" * len(unready)
        return self._one(
            "UPDATE jobs SET state = 'running', starts = starts + 1 WHERE id = "
            f"(SELECT id FROM jobs WHERE ended IS NULL{others} ORDER BY submitted, id LIMIT 1) RETURNING *",
            *itertools.chain.from_iterable(unready),
        )

    def put_back(self, job: str) -> None:
        """Queue a job again that was started, as if it had not been."""
        self._one("UPDATE jobs SET state = 'queued', starts = starts - 1 WHERE id = ? AND state = 'running' RETURNING *", job)

    def end(self, job: JobRecord, error: str | None = None) -> None:
        """End a job: its result is there, or an error says why not. Nothing is left of one that was removed meanwhile."""
        state = "done" if error is None else "failed"
        query = "UPDATE jobs SET state = ?, ended = ?, error = ? WHERE id = ? RETURNING *"
        if self._one(query, state, self._clock(), error, job.id) is None:
            self.result(job).unlink(missing_ok=True)
        self.image(job.id).unlink(missing_ok=True)

    def remove(self, job: str) -> bool:
        """Remove a job and its files; return whether it was there."""
        query = "DELETE FROM jobs WHERE id = ? RETURNING *"
        try:
            removed = self._one(query, job)
        except sqlite3.OperationalError as error:
            kept = self.get(job)
            if kept is None or error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise
            self._unlink(kept)  # even to remove a row takes room
            removed = self._one(query, job)
        if removed is not None:
            self._unlink(removed)
        return removed is not None

    def expire(self) -> None:
        """Remove the jobs that ended long ago."""
        with self._lock:
            rows = self._database.execute("SELECT id FROM jobs WHERE ended < ?", (self._clock() - self.expiry,)).fetchall()
        for (job,) in rows:
            self.remove(job)

    def close(self) -> None:
        """Close the table. All is on disk already."""
        with self._lock:
            self._database.close()

    def _prepare(self) -> None:
        found = self._database.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _VERSION):
            raise ServeError(f"{self._folder}: its jobs have version {found}, expected {_VERSION}: use another folder")
        if found == 0:
            self._database.executescript(f"BEGIN; {_TABLE}; PRAGMA user_version = {_VERSION}; COMMIT")  # all or nothing
        self._database.execute("UPDATE jobs SET state = 'queued' WHERE state = 'running'")  # the server was killed
        kept = {row[0] for row in self._database.execute("SELECT id FROM jobs")}
        for file in self._folder.iterdir():
            known = _FILE.match(file.name)
            if known and (file.name.startswith(".") or known[1] not in kept):  # of an upload or a result that was cut off
                file.unlink(missing_ok=True)

    def _unlink(self, job: JobRecord) -> None:
        self.image(job.id).unlink(missing_ok=True)
        self.result(job).unlink(missing_ok=True)

    def _has(self, job: str) -> bool:
        try:
            return self.get(job) is not None
        except sqlite3.Error:  # nobody can ask for it
            return False

    def _one(self, query: str, *values: Any) -> JobRecord | None:
        with self._lock:
            row = self._database.execute(query, values).fetchone()
        return None if row is None else JobRecord(*row)


@contextlib.contextmanager
def open_store(folder: Path, *, most: int, expiry: float) -> Iterator[JobStore]:
    """
    Open the jobs of a folder, which is made if it is missing; those that a killed server began are queued again.

    DdcatError if another server has it, or it cannot be written or read.
    """
    with locked(folder / ".lock", f"another server keeps its jobs in {folder}: use another folder"):
        try:
            store = JobStore(folder, most=most, expiry=expiry)
        except (sqlite3.Error, OSError) as cause:
            raise ServeError(f"the jobs in {folder} cannot be read: {cause}: use another folder") from cause
        try:
            yield store
        finally:
            store.close()
