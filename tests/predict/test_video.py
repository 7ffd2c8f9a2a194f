"""Videos: every frame has the mask of its pixels, and the overlay the times of the original."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcat.bundle import Bundle
from ddcat.errors import DdcatError
from ddcat.predict.run import predict
from ddcat.predict.sources import Source, find_sources
from ddcat.predict.video import frames
from tests.predict.test_predict import digests, kill_and_resume

NEEDS_AV = "av is not installed"


def write(path: Path, count: int, side: int = 64) -> None:
    """A coloured square that moves over a grey ground."""
    av = pytest.importorskip("av", reason=NEEDS_AV)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"threads": "1"})
        stream.width, stream.height, stream.pix_fmt = side, side, "yuv420p"
        for place in range(count):
            picture = np.full((side, side, 3), 60, np.uint8)
            at = place % (side - 16)
            picture[at : at + 16, at : at + 16] = [(220, 30, 30), (30, 220, 30), (30, 30, 220)][place // 10 % 3]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def test_each_frame_has_its_mask_and_the_overlay_the_times_of_the_video(
    bundle: Bundle, oracle: Callable, tmp_path: Path
) -> None:
    write(tmp_path / "drive.mp4", 6, side=62)
    predict(bundle.path, find_sources([str(tmp_path / "drive.mp4")]), tmp_path / "out", formats=["png", "overlay"], batch=4)
    pictures = list(frames(Source("drive.mp4", str(tmp_path / "drive.mp4"))))
    masks = sorted((tmp_path / "out/masks/drive").iterdir())
    assert [mask.name for mask in masks] == [f"{place:06}.png" for place in range(6)]
    for mask, picture in zip(masks, pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(mask)), oracle(picture[None])[0][0])
    av = pytest.importorskip("av", reason=NEEDS_AV)
    times = []
    for file in (tmp_path / "drive.mp4", tmp_path / "out/overlays/drive.mp4"):
        with av.open(str(file)) as container:
            times.append([float(frame.pts * frame.time_base) for frame in container.decode(video=0)])
            assert container.streams.video[0].width == 62
    assert times[0] == times[1]


def test_a_video_that_changed_is_done_again(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in/drive").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(tmp_path / "in/drive/still.png")  # its mask lies among those of the frames
    for count in (7, 5):  # the second time fewer frames
        write(tmp_path / "in/drive.mp4", count, side=50 + 2 * count)
        predict(bundle.path, find_sources([str(tmp_path / "in")]), tmp_path / "out", formats=["png", "geojson", "overlay"])
    predict(bundle.path, find_sources([str(tmp_path / "in")]), tmp_path / "fresh", formats=["png", "geojson", "overlay"])
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_damaged_video_is_named_and_the_others_are_done(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in/good.mp4", 5)
    (tmp_path / "in/bad.mp4").write_bytes((tmp_path / "in/good.mp4").read_bytes()[:300])
    summary = predict(bundle.path, find_sources([str(tmp_path / "in")]), tmp_path / "out")
    assert summary["images"] == 5
    assert [entry["name"] for entry in summary["failed"]] == ["bad.mp4"]
    assert "\n" not in summary["failed"][0]["reason"]
    with pytest.raises(DdcatError, match="the video is cut off"):
        list(frames(Source("bad.mp4", str(tmp_path / "in/bad.mp4"))))
    (tmp_path / "in/bad.mp4").write_bytes((tmp_path / "in/good.mp4").read_bytes()[:32] + bytes(300))
    with pytest.raises(DdcatError, match="the video cannot be read"):
        list(frames(Source("bad.mp4", str(tmp_path / "in/bad.mp4"))))


def test_a_file_that_lists_others_and_one_without_pictures_are_no_videos(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av", reason=NEEDS_AV)
    (tmp_path / "in").mkdir()
    write(tmp_path / "good.mp4", 5)
    (tmp_path / "in/good.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    (tmp_path / "in/list.mp4").write_text("ffconcat version 1.0\nfile good.mp4\n")
    (tmp_path / "in/session.mp4").write_text(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )
    with av.open(str(tmp_path / "in/sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    summary = predict(bundle.path, find_sources([str(tmp_path / "in")]), tmp_path / "out")
    assert summary["images"] == 5
    assert [entry["name"] for entry in summary["failed"]] == ["list.mp4", "session.mp4", "sound.mp4"]
    monkeypatch.setattr(Source, "open", lambda source: io.BytesIO((tmp_path / "in" / source.name).read_bytes()))
    with pytest.raises(DdcatError, match="the video cannot be read"):
        list(frames(Source("session.mp4", "s3://bucket/session.mp4")))


@pytest.mark.slow
def test_a_video_of_300_frames_killed_ten_times_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    write(tmp_path / "drive.mp4", 300)
    options = ("--format", "coco", "--format", "overlay", "--batch", "3")
    met = kill_and_resume(bundle.path, str(tmp_path / "drive.mp4"), tmp_path / "killed", 10, *options)
    assert met == 10
    predict(bundle.path, find_sources([str(tmp_path / "drive.mp4")]), tmp_path / "whole", formats=["coco", "overlay"], batch=3)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
