"""Result folders are whole or not there."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from ddcat.errors import WriteError
from ddcat_bench.output import publish
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
