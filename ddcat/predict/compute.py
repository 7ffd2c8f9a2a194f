"""Sources through the engine into a folder of results: what is not done there, in groups that are the same in every run."""

import contextlib
import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ddcat.confidence import abstained
from ddcat.engines import Outputs
from ddcat.engines.answer_statistics import statistics_of
from ddcat.engines.cores import physical_cores
from ddcat.engines.errors import EngineError, InputError
from ddcat.engines.predictor import Predictor
from ddcat.errors import DdcatError, WriteError
from ddcat.predict.images import Picture, read_picture
from ddcat.predict.records import Answer
from ddcat.predict.results import Results, frame_name
from ddcat.predict.scenes import predict_scene
from ddcat.predict.sources import Source
from ddcat.predict.video import frame_count, frames
from ddcat.predict.workers import for_each
from ddcat.progress import progress

__all__ = ["compute", "useful_streams"]

_MOST_STREAMS = 4
_MOST_AT_THE_FILES = 4  # threads beyond the streams, which read and write files while those compute
_DRAWN_AT_THE_END = ("overlay",)  # of a video


class _Failure(NamedTuple):
    reason: str


class _Unit(NamedTuple):
    """An image, or a frame of a video, that is still to be done."""

    source: Source
    frame: int | None = None
    pixels: npt.NDArray[np.uint8] | None = None  # of a frame, which is decoded in its turn

    @property
    def name(self) -> str:
        return self.source.name if self.frame is None else frame_name(self.source, self.frame)

    @property
    def stem(self) -> str:
        return self.source.stem if self.frame is None else f"{self.source.stem}/{self.frame:06}"


def useful_streams(sources: Sequence[Source], *, batch: int, threads: int) -> int:
    """
    Return the streams of an engine on a CPU that compute the sources fastest.

    One thread for each of several batches takes less time than many threads for one batch after the other. A single image is
    computed by all threads, and so are TIFFs: see `compute`.
    """
    pictures = [source for source in sources if not source.is_scene]
    groups = _MOST_STREAMS if any(source.is_video for source in pictures) else -(-len(pictures) // batch)
    return max(1, min(_MOST_STREAMS, threads, groups))


def compute(
    opened: Predictor,
    sources: Sequence[Source],
    results: Results,
    *,
    batch: int,
    threshold: float | None = None,
    failures: dict[str, str],
) -> None:
    """
    Compute all that is not done, and note why a source has no mask.

    Parameters
    ----------
    opened : Predictor
        As many groups of images are computed at the same time as it has streams.
    sources : sequence of Source
    results : Results
    batch : int
        Images of one size that are computed at once.
    threshold : float, optional
        Of the confidence, to abstain by.
    failures : dict of str to str
        Is given the reason of each source that has no mask.
    """
    classes, rule = opened.classes, opened.bundle.manifest.preprocessing

    def load(unit: _Unit) -> Picture | _Failure:
        try:
            return read_picture(unit.source.read() if unit.pixels is None else unit.pixels, rule)
        except DdcatError as error:
            return _Failure(str(error))

    def store(unit: _Unit, answered: tuple[Picture, Outputs] | _Failure) -> None:
        if isinstance(answered, _Failure):
            failures[unit.source.name] = answered.reason
            return
        picture, outputs = answered
        labels = abstained(outputs.labels[0], None if outputs.confidence is None else outputs.confidence[0], threshold)
        answer = Answer(unit.name, unit.stem, picture.mask(labels), picture.original, classes)
        statistics = next(statistics_of(outputs, len(classes)))
        results.add(answer, statistics, stamp=unit.source.stamp, without=() if unit.frame is None else _DRAWN_AT_THE_END)

    free_stream = threading.BoundedSemaphore(opened.streams)

    def work(group: Sequence[_Unit]) -> None:
        loaded = [load(unit) for unit in group]
        with free_stream:
            answers = _infer(opened, loaded, batch)
        for unit, answer in zip(group, answers, strict=True):
            store(unit, answer)

    pictures = [source for source in sources if not source.is_scene]
    with progress("predicting", _count(pictures, results)) as done:
        at_the_files = min(_MOST_AT_THE_FILES, physical_cores())
        for_each(_waiting(pictures, results, batch, failures), work, threads=opened.streams + at_the_files, done=done)

    for source in sources:
        if source.is_scene and not results.is_whole(source):
            try:
                predict_scene(opened.undivided(), source, results, batch=batch, threshold=threshold)
            except EngineError as error:
                if not isinstance(error, InputError):
                    raise
                failures[source.name] = str(error)
            except WriteError:
                raise
            except DdcatError as error:
                failures[source.name] = str(error)


def _count(sources: Sequence[Source], results: Results) -> int:
    """Return the number of images and frames that are not done, as far as files state it."""
    total = 0
    for source in sources:
        if not results.is_whole(source):
            with contextlib.suppress(DdcatError):  # it is said in its turn
                total += frame_count(source) if source.is_video else 1
    return total


def _waiting(sources: Sequence[Source], results: Results, batch: int, failures: dict[str, str]) -> Iterator[Sequence[_Unit]]:
    """
    Yield the groups that are not done.

    The groups are the same when a run is resumed: an answer may depend on its batch-mates.
    """
    for is_video, some in itertools.groupby(sources, lambda source: source.is_video):
        if not is_video:
            yield from _not_done((_Unit(source) for source in some), results, batch)
            continue
        for source in some:
            if results.is_whole(source):
                continue
            count = 0
            try:
                for group in _grouped((_Unit(source, place, pixels) for place, pixels in enumerate(frames(source))), batch):
                    count += len(group)
                    if not all(results.is_done(unit.name) for unit in group):
                        yield group
            except DdcatError as error:
                failures[source.name] = str(error)
            else:
                results.end_video(source, count)


def _not_done(units: Iterable[_Unit], results: Results, batch: int) -> Iterator[Sequence[_Unit]]:
    return (group for group in _grouped(units, batch) if not all(results.is_done(unit.name) for unit in group))


def _grouped(units: Iterable[_Unit], batch: int) -> Iterator[tuple[_Unit, ...]]:
    waiting = iter(units)
    while group := tuple(itertools.islice(waiting, batch)):
        yield group


def _infer(
    opened: Predictor, pictures: Sequence[Picture | _Failure], batch: int
) -> Iterable[tuple[Picture, Outputs] | _Failure]:
    """Compute pictures of the same size together, and the others after each other."""
    answers: list[tuple[Picture, Outputs] | _Failure] = [p if isinstance(p, _Failure) else _Failure("") for p in pictures]
    by_size: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        if isinstance(picture, Picture):
            by_size.setdefault(picture.pixels.shape, []).append(place)
    most, least = opened.bundle.manifest.shapes.batch.maximum, opened.bundle.manifest.shapes.batch.minimum
    for size, places in by_size.items():
        if opened.cuts(size[0], size[1]):
            for place in places:
                answers[place] = _tiled(opened, pictures[place], batch)
            continue
        for at in range(0, len(places), most or len(places)):
            chosen = places[at : at + (most or len(places))]
            stacked = np.stack([picture.pixels for place in chosen if isinstance(picture := pictures[place], Picture)])
            try:
                outputs = opened.infer(_filled(stacked, least))
            except InputError as error:
                for place in chosen:
                    answers[place] = _Failure(str(error))
                continue
            for row, place in enumerate(chosen):
                picture = pictures[place]
                assert isinstance(picture, Picture)
                answers[place] = picture, outputs.of(slice(row, row + 1))
    return answers


def _tiled(opened: Predictor, picture: Picture | _Failure, batch: int) -> tuple[Picture, Outputs] | _Failure:
    assert isinstance(picture, Picture)
    try:
        return picture, opened.tiled(batch=batch).outputs(picture.pixels)
    except InputError as error:
        return _Failure(str(error))


def _filled(images: npt.NDArray[np.uint8], least: int) -> npt.NDArray[np.uint8]:
    """Repeat the last image where a batch is too small."""
    missing = max(0, least - len(images))
    return np.concatenate([images, np.repeat(images[-1:], missing, 0)]) if missing else images
