"""Result folders are whole or not there."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from ddcat.errors import DdcatError, WriteError
from ddcat_bench.errors import BenchError
from ddcat_bench.publish import claim, publish
from tests.small_files import no_file_above


class Found(BaseModel):
    value: float = 0.5


def test_a_folder_of_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    publish(tmp_path / "out", "found", Found(), "A half.", {"plot.png": b"pixels"})
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == {
        "found.json": b'{\n  "value": 0.5\n}\n', "found.md": b"A half.", "plot.png": b"pixels",
    }  # fmt: skip
    assert capsys.readouterr().out.startswith("A half.\n")


@pytest.mark.parametrize("large", ["found.md", "plot.png"])
def test_a_disk_without_room_is_one_line(tmp_path: Path, large: str) -> None:
    markdown, plot = (bytes(1000 if name == large else 1) for name in ("found.md", "plot.png"))
    with no_file_above(100), pytest.raises(WriteError, match=rf"cannot write .*{large}: File too large: 0\.0 MB are needed"):
        publish(tmp_path / "out", "found", Found(), markdown.decode(), {"plot.png": plot})
    assert not list(tmp_path.iterdir())


def test_an_earlier_result_gives_way_only_to_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claim(out, "found"):
        publish(out, "found", Found(), "A half.", {"plot.png": b"pixels"})
    with pytest.raises(BenchError, match=r"exists already: use --force to replace the earlier result"), claim(out, "found"):
        pass
    with claim(out, "found", force=True):
        publish(out, "found", Found(value=1), "One.", force=True)
    assert {file.name for file in out.iterdir()} == {"found.json", "found.md"}
    assert (out / "found.md").read_text() == "One."
    assert [file.name for file in tmp_path.iterdir()] == ["out"]  # no lock, and nothing that was set aside


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_result_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(BenchError, match="was not written by this command"), claim(tmp_path, "found", force=force):
        pass
    with pytest.raises(BenchError, match="not written by this command"), claim(tmp_path / "photo.jpg", "found", force=force):
        pass
    assert (tmp_path / "photo.jpg").read_text() == "mine"


def test_a_folder_that_another_process_works_on_is_refused_at_once(tmp_path: Path) -> None:
    out, link = tmp_path / "out", tmp_path / "link"
    link.symlink_to(tmp_path, target_is_directory=True)
    for spelt in (out, link / "out", tmp_path / "x/../out"):
        with (
            claim(out, "found"),
            pytest.raises(DdcatError, match=r"another process is at work on .*out"),
            claim(spelt, "found"),
        ):
            pass
    with claim(out, "found"), claim(tmp_path / "other", "found"):
        pass


def test_a_reader_who_closes_the_pipe_costs_nothing(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from pydantic import BaseModel; from ddcat_bench.publish import publish\n"
        "class Found(BaseModel): value: float = 0.5\n"
        f"publish(Path({str(tmp_path / 'out')!r}), 'found', Found(), 'A half.' * 100_000)\n"
        f"Path({str(tmp_path / 'after')!r}).touch()"
    )
    done = subprocess.run(["bash", "-c", 'set -o pipefail; "$0" -c "$1" | true', sys.executable, program], check=False)
    assert done.returncode == 0
    assert (tmp_path / "after").exists()
