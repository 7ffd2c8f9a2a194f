"""
The folder of results, where whatever is there is whole.

An image is done when its record is there, which is written after its other files. So a run that was killed goes on where it
was, and a later run with more images does only those. What is done of a file that has changed since is removed first.
"""

import collections
import itertools
import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from ddcat.atomic_files import flush_names, read_json, translate_os_errors, write_bytes, write_json, write_parts
from ddcat.classes import Classes
from ddcat.engines.answer_statistics import Statistics, class_pixels
from ddcat.errors import DdcatError
from ddcat.predict.formats import FORMATS, Collected, OneEach, overlaid
from ddcat.predict.records import JOB, RECORDS, Answer, Distributions, Job, Record
from ddcat.predict.sources import VIDEOS, Source
from ddcat.predict.video import frames, write_video

__all__ = ["Results", "frame_name"]

_END = "frames.json"
_UNFINISHED = re.compile(r"\.(.+)\.[0-9a-f]{8}")  # of `ddcat.atomic_files`


def frame_name(source: Source, place: int) -> str:
    """Return the name of a frame of a video."""
    return f"{source.name}/{place:06}"


class Results:
    """
    A folder of results.

    Parameters
    ----------
    folder : Path
    job : Job
    of_worker : bool
        Another process has opened the folder, and holds its lock: nothing is checked or removed.

    Raises
    ------
    DdcatError
        Where the folder holds results of another job.
    WriteError
        Where it cannot be written.
    """

    def __init__(self, folder: Path, job: Job, *, of_worker: bool = False) -> None:
        self.folder, self.formats = folder, job.formats
        if of_worker:
            return
        file = folder / JOB
        if file.exists():
            try:
                before = Job.model_validate_json(json.dumps(read_json(file)))
            except ValidationError as cause:
                raise DdcatError(f"{file} was written by another version of ddcat: use another --out") from cause
            if before != job:
                raise DdcatError(f"{folder} holds predictions that differ in {_difference(before, job)}")
        elif folder.exists() and (not folder.is_dir() or any(place.name != ".lock" for place in folder.iterdir())):
            raise DdcatError(f"{folder} exists already and holds no {JOB}: use another --out")
        else:
            write_json(file, json.loads(job.model_dump_json()))
        self._remove_unfinished()
        self._before = self._records_by_mask()

    def forget_changed(self, source: Source) -> None:
        """Remove what there is of a source whose file has changed, or whose results are not all there, for a new start."""
        self._forget_others(source)
        if source.is_video:  # all its records are of one file
            records = [*self._end(source).parent.glob("*.json")]
            places = [f"{source.stem}/{record.stem}" for record in records if record.name != _END]
            others, elsewhere = [self.folder / "overlays" / f"{source.stem}.mp4"], {"overlay"}
        else:
            records = [record] if (record := self._record(source.name)).is_file() else []
            places, others, elsewhere = [source.stem], [], {"png"} if source.is_scene else set[str]()
        forms = [form for name in self.formats if isinstance(form := FORMATS[name], OneEach) and name not in elsewhere]
        files = [self.folder / form.place.replace("{stem}", place) for place in places for form in forms]
        if source.is_scene:
            files.append(self.folder / "masks" / f"{source.stem}.tif")
        if not records or (_stamp_in(records[0]) == source.stamp and all(path.exists() for path in files)):
            return
        with translate_os_errors(self.folder):
            for path in (*files, *others, *records):  # the records last: it may be killed here, too
                path.unlink(missing_ok=True)

    def _forget_others(self, source: Source) -> None:
        """Remove the records of earlier runs whose masks this source is to replace: those of the same name but its suffix."""
        own = self._end(source).parent if source.is_video else self._record(source.name)
        keys = [source.stem, *[f"{source.stem}/"] * source.is_video]
        others = [path for key in keys for path in self._before.get(key, ()) if own not in (path, path.parent)]
        with translate_os_errors(self.folder):
            for path in others:
                path.with_name(_END).unlink(missing_ok=True)  # of a video, which is to be read again
                path.unlink(missing_ok=True)
            if others and source.is_video:
                (self.folder / "overlays" / f"{source.stem}.mp4").unlink(missing_ok=True)

    def _records_by_mask(self) -> dict[str, list[Path]]:
        """Return the records by the stem of their masks, and of frames, and images called so, by the video's and a slash."""
        found = collections.defaultdict[str, list[Path]](list)
        root = self.folder / RECORDS
        for path in root.rglob("*.json"):
            name = PurePosixPath(path.relative_to(root).with_suffix("").as_posix())
            of_frame = name.parent.suffix.lower() in VIDEOS
            stem = name.parent.with_suffix("") / name.name if of_frame else name.with_suffix("")
            found[str(stem)].append(path)
            if of_frame or stem.name.isdecimal():
                found[f"{stem.parent}/"].append(path)
        return found

    def is_done(self, name: str) -> bool:
        """Return whether an image is done."""
        return self._record(name).is_file()

    def is_whole(self, source: Source) -> bool:
        """Return whether an image, or every frame of a video, is done."""
        return all(map(self.is_done, self.names(source))) if not source.is_video or self._end(source).is_file() else False

    def names(self, source: Source) -> list[str]:
        """Return the name of an image, or the names of a video's frames, once all of them were read."""
        if not source.is_video:
            return [source.name]
        count = read_json(self._end(source))["frames"]
        return [frame_name(source, place) for place in range(count)]

    def end_video(self, source: Source, count: int) -> None:
        """Note the number of frames of a video."""
        write_json(self._end(source), {"frames": count, "stamp": source.stamp})

    def add(self, answer: Answer, statistics: Statistics, *, stamp: str, without: Collection[str] = ()) -> None:
        """Write the files of an image or of a frame, `without` those of some forms, and its record last."""
        parts: dict[str, Any] = {}
        for name in self.formats:
            form = FORMATS[name]
            if name in without:
                continue
            if isinstance(form, Collected):
                parts[name] = form.part(answer)
            else:
                file = self.folder / form.place.replace("{stem}", answer.stem)
                write_bytes(file, form.encode(answer), flush_folder=False)
        height, width = answer.labels.shape
        pixels = class_pixels(answer.labels, len(answer.classes)).tolist()
        self.note(answer.name, (height, width), pixels, statistics, parts, stamp=stamp)

    def note(
        self,
        name: str,
        size: tuple[int, int],
        pixels: Sequence[int],
        statistics: Statistics,
        parts: dict[str, Any],
        *,
        stamp: str,
    ) -> None:
        """Write the record of an image whose other files are there: it is done."""
        record = Record(
            name=name, stamp=stamp, height=size[0], width=size[1], pixels=tuple(pixels),
            statistics=Distributions.of(statistics), parts=parts,
        )  # fmt: skip
        write_bytes(self._record(name), record.model_dump_json().encode() + b"\n", flush_folder=False)

    def read(self, name: str) -> Record:
        """Read the record of an image that is done."""
        file = self._record(name)
        try:
            return Record.model_validate_json(file.read_bytes())
        except (OSError, ValidationError) as cause:
            raise DdcatError(f"{file} is damaged: remove it, and predict again") from cause

    def collect(self, names: Sequence[str], classes: Classes) -> None:
        """
        Write the files that hold all images, one image in memory at a time.

        The names of all other files are flushed to the disk before. Until then a crash of the system may leave a record without
        a mask, or a mask without a record: `forget_changed` finds both, and the image is done again.
        """
        with translate_os_errors(self.folder):
            for folder, _, _ in os.walk(self.folder):
                flush_names(Path(folder))
        for form in (FORMATS[name] for name in self.formats):
            if isinstance(form, Collected):
                write_parts(self.folder / form.file, form.write(classes, lambda: map(self.read, names)))

    def draw_video(self, source: Source, classes: Classes) -> None:
        """Write the overlay of a video whose frames are all done."""
        file = self.folder / "overlays" / f"{source.stem}.mp4"
        if not file.exists():
            masks = (self.folder / "masks" / source.stem / f"{place:06}.png" for place in itertools.count())
            drawn = (overlaid(pixels, _labels(mask), classes) for pixels, mask in zip(frames(source), masks, strict=False))
            write_video(file, source, drawn)

    def _end(self, source: Source) -> Path:
        return self.folder / RECORDS / source.name / _END

    def _record(self, name: str) -> Path:
        return self.folder / RECORDS / f"{name}.json"

    def _remove_unfinished(self) -> None:
        for path in self.folder.rglob(".*"):
            if _UNFINISHED.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def _stamp_in(record: Path) -> str | None:
    """Return the stamp that a record holds; None: it is damaged."""
    try:
        return str(read_json(record)["stamp"])
    except (DdcatError, LookupError, TypeError):
        return None


def _difference(before: Job, now: Job) -> str:
    changed = next(name for name, value in before if value != getattr(now, name))
    old, new = getattr(before, changed), getattr(now, changed)
    entries = [name for name in {**old, **new} if old.get(name) != new.get(name)] if isinstance(old, dict) else []
    detail = f" ({entries[0]} {old.get(entries[0])}, now {new.get(entries[0])})" if entries else ""
    return f"{changed}{detail}: use another --out, or the same {changed}"


def _labels(mask: Path) -> npt.NDArray[np.uint8]:
    from PIL import Image  # noqa: PLC0415 -- only pictures need it

    with Image.open(mask) as image:
        return np.asarray(image)
