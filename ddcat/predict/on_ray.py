"""
The computing of `ddcat predict` on many machines, by Ray Data.

Each worker opens the bundle, and writes the results of its files itself into the folder, which all machines share. A worker
that dies is replaced, and its files are done again where they have no record.
"""

import functools
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.data

from ddcat.bundle import TrustPolicy
from ddcat.engines.predictor import Predictor, open_bundle
from ddcat.error_text import first_line
from ddcat.errors import DdcatError
from ddcat.predict.compute import compute
from ddcat.predict.records import Job
from ddcat.predict.results import Results
from ddcat.predict.sources import Source
from ddcat.progress import progress

__all__ = ["Work", "compute_on_ray", "parts"]

_PARTS_EACH = 8  # of a worker: a slow part then delays the end by little


class Work(NamedTuple):
    """What every worker is told."""

    bundle: Path
    folder: Path
    job: Job
    threads: int
    streams: int
    abstain: bool
    trust: TrustPolicy


def compute_on_ray(work: Work, sources: Sequence[Source]) -> dict[str, str]:
    """
    Compute all that is not done, on the cluster that RAY_ADDRESS names, or on one that is started on this machine.

    Returns
    -------
    dict of str to str
        Why a source has no mask, by its name.

    Raises
    ------
    DdcatError
        Where Ray does not start or fails, no machine has enough cores, or a worker cannot open the bundle, has another engine,
        or cannot write.
    """
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)  # it tells of each step
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return _computed(work, sources)
    except DdcatError:
        raise
    except Exception as cause:  # Ray raises plain ones, too
        raise DdcatError(f"Ray failed ({first_line(cause)}): run it again, or without --ray") from cause


def _computed(work: Work, sources: Sequence[Source]) -> dict[str, str]:
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    workers = sum(have // work.threads for have in cores)
    if not workers:
        raise DdcatError(f"the machines of the cluster have at most {max(cores)} cores, expected {work.threads}: use --threads")
    absolute = work._replace(bundle=work.bundle.resolve(), folder=work.folder.resolve())
    rows = [
        {"sources": json.dumps([_absolute(source) for source in part])}
        for part in parts(sources, work.job.batch, _PARTS_EACH * workers)
    ]
    ray.data.DataContext.get_current().enable_progress_bars = False
    answers = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map(
        _Worker, fn_constructor_args=(absolute,), num_cpus=work.threads, num_gpus=_gpus(work.job),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
    )  # fmt: skip
    failures: dict[str, str] = {}
    with progress("predicting", len(sources)) as done:
        for answer in answers.iter_rows():
            if answer["fault"]:
                raise DdcatError(answer["fault"])
            failures |= json.loads(answer["failures"])
            done(answer["sources"])
    return failures


def parts(sources: Sequence[Source], batch: int, most: int) -> Iterator[tuple[Source, ...]]:
    """
    Split sources into about `most` parts: videos and TIFFs each for itself, and images so that batches stay what they are.

    An answer may depend on its batch-mates.
    """
    size = batch * -(-len(sources) // (batch * most))
    pictures = (source for source in sources if not source.is_scene)
    for is_video, some in itertools.groupby(pictures, lambda source: source.is_video):
        while part := tuple(itertools.islice(some, 1 if is_video else size)):
            yield part
    yield from ((source,) for source in sources if source.is_scene)


class _Worker:
    """An actor of Ray, which has the bundle open."""

    def __init__(self, work: Work) -> None:
        self._work = work

    @functools.cached_property
    def _opened(self) -> Predictor:
        work, known = self._work, self._work.job
        opened = open_bundle(work.bundle, threads=work.threads, streams=work.streams, trust=work.trust)
        here = known.model_copy(update={"bundle": opened.bundle.digest, "engine": Job.settings_of(opened.description)})
        if here != known:
            opened.close()
            raise DdcatError(
                f"a machine of the cluster has {here.engine} of {here.bundle}, expected {known.engine} of {known.bundle}"
            )
        return opened

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        sources = [Source(*values) for values in json.loads(row["sources"])]
        failures: dict[str, str] = {}
        fault = ""
        try:
            threshold = self._opened.threshold if self._work.abstain else None
            results = Results(self._work.folder, self._work.job, of_worker=True)
            compute(self._opened, sources, results, batch=self._work.job.batch, threshold=threshold, failures=failures)
        except DdcatError as error:
            fault = str(error)
        return {"sources": len(sources), "failures": json.dumps(failures), "fault": fault}


def _absolute(source: Source) -> Source:
    return source if "://" in source.address else source._replace(address=str(Path(source.address).absolute()))


def _gpus(job: Job) -> int:
    return 0 if str(job.engine["provider"]).startswith("CPU") else 1
