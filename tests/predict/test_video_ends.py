"""A video that is cut off is known by what its container states."""

import io
import struct
from pathlib import Path

import pytest

from ddcat.bundle import Bundle
from ddcat.errors import DdcatError
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat.predict.video_ends import check_end
from tests.predict.test_video import write

AVI = b"RIFF" + struct.pack("<I", 92) + b"AVI " + bytes(88)
MP4 = struct.pack(">I", 16) + b"ftyp" + bytes(8) + struct.pack(">IQ", 1, 84)[:4] + b"mdat" + struct.pack(">Q", 84) + bytes(68)
MKV = b"\x1a\x45\xdf\xa3\x84" + bytes(4) + b"\x18\x53\x80\x67\x40\x55" + bytes(0x55)


@pytest.mark.parametrize("whole", [AVI, AVI + AVI, MP4, MKV])
def test_what_is_shorter_than_it_states_is_refused(whole: bytes) -> None:
    check_end(io.BytesIO(whole))
    for size in (len(whole) - 1, len(whole) - 40):
        with pytest.raises(DdcatError, match=f"the video is cut off: it has {size} of {len(whole)} bytes"):
            check_end(io.BytesIO(whole[:size]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        AVI[:4] + bytes(4) + AVI[8:],  # its writer was interrupted
        MP4[:16] + bytes(4) + b"mdat" + bytes(20),  # up to the end
        MP4 + b"text of some tool",
        MKV[:13] + b"\x01" + b"\xff" * 7 + bytes(20),  # of a length that was not known
    ],
)
def test_what_states_nothing_passes(content: bytes) -> None:
    check_end(io.BytesIO(content))


@pytest.mark.parametrize("kind", ["mp4", "mkv", "avi"])
def test_a_cut_off_video_is_no_success(kind: str, bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / f"a.{kind}"
    write(file, 12)
    assert predict(bundle.path, find_sources([str(file)]), tmp_path / "out", formats=["png"])["images"] == 12
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 3 // 4])
    summary = predict(bundle.path, find_sources([str(file)]), tmp_path / "out", formats=["png"])
    assert (summary["images"], "the video is cut off" in summary["failed"][0]["reason"]) == (0, True)


def test_a_video_without_frames_is_no_success(bundle: Bundle, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="av is not installed")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame(format="s16", layout="mono", samples=80)
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    [failed] = predict(bundle.path, find_sources([str(tmp_path / "a.mkv")]), tmp_path / "out")["failed"]
    assert failed["reason"] == "the file has no video stream"
