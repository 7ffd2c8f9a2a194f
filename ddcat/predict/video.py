"""Frames of a video, and a video of frames, by PyAV."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ddcat.atomic_files import written_aside
from ddcat.error_text import first_line
from ddcat.errors import DdcatError
from ddcat.extras import needing
from ddcat.predict.sources import Source
from ddcat.predict.video_ends import check_end

__all__ = ["frame_count", "frames", "write_video"]

U8 = npt.NDArray[np.uint8]
# what the suffixes of videos stand for; FFmpeg's other formats may be lists of further files, or listen to the network
_FORMATS = {"format_whitelist": "avi,matroska,webm,mov,mp4", "protocol_whitelist": "file"}


def frames(source: Source) -> Iterator[U8]:
    """
    Decode a video.

    Yields
    ------
    (H, W, 3) uint8
        Each frame in RGB, as it is stored: not turned.

    Raises
    ------
    DdcatError
        Where PyAV is missing, or the video is damaged; the message does not name it.
    """
    for frame in _decoded(source):
        yield frame.to_ndarray(format="rgb24")


def frame_count(source: Source) -> int:
    """Return the number of frames that the file states; 0 where it states none."""
    with _opened(source) as container:
        return int(container.streams.video[0].frames) if container.streams.video else 0


def write_video(path: Path, source: Source, pictures: Iterable[U8]) -> None:
    """
    Write an MP4 (H.264) with the times of another video's frames, whole or not at all. The same frames give the same bytes.

    Parameters
    ----------
    path : Path
    source : Source
        The other video.
    pictures : iterable of (H, W, 3) uint8
        One for each of its frames. H.264 has even sides only: the last row or column stands twice where need be.
    """
    av = _av()
    with written_aside(path) as aside, av.open(str(aside), "w", format="mp4") as container:
        stream: Any = None
        for frame, picture in zip(_decoded(source), pictures, strict=True):
            even = np.pad(picture, ((0, picture.shape[0] % 2), (0, picture.shape[1] % 2), (0, 0)), "edge")
            if stream is None:
                stream = container.add_stream("libx264", rate=_rate(frame), options={"threads": "1", "crf": "18"})
                stream.height, stream.width, stream.pix_fmt = even.shape[0], even.shape[1], "yuv420p"
                stream.codec_context.time_base = frame.time_base
            drawn = av.VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
            drawn.pts, drawn.time_base = frame.pts, frame.time_base
            container.mux(stream.encode(drawn))
        if stream is not None:
            container.mux(stream.encode())


def _rate(frame: Any) -> Any:
    return round(1 / (frame.duration * frame.time_base)) if frame.duration else 25


def _decoded(source: Source) -> Iterator[Any]:
    av = _av()
    try:
        with _opened(source) as container:
            if not container.streams.video:
                raise DdcatError("the file has no video stream")
            frame = None
            for frame in container.decode(video=0):
                yield frame
            if frame is None:
                raise DdcatError("the video has no frames")
    except av.FFmpegError as cause:
        raise _unreadable(cause) from cause


def _opened(source: Source) -> Any:
    av = _av()
    try:
        with source.open() as file:
            check_end(file)
        return av.open(source.address if os.path.exists(source.address) else source.open(), container_options=_FORMATS)
    except (av.FFmpegError, OSError) as cause:
        raise _unreadable(cause) from cause


def _unreadable(cause: Exception) -> DdcatError:
    return DdcatError(f"the video cannot be read: {getattr(cause, 'strerror', None) or first_line(cause)}")


def _av() -> Any:
    with needing("video"):
        import av  # noqa: PLC0415 -- images need none
    return av
