"""A lock is held by one process at a time, and ends with it."""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ddcat.errors import DdcatError
from ddcat.locks import locked

HOLDER = """
import sys, time
from pathlib import Path
from ddcat.locks import locked
with locked(Path(sys.argv[1]), "taken"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_one_is_refused_at_once_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    file = tmp_path / "deep/.out.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(file)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(DdcatError, match=r"^another one$"), locked(file, "another one"):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(10)
    assert file.exists()  # it had no time to remove it
    with locked(file, "another one"):
        pass
    assert not file.exists()


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    file = tmp_path / ".out.lock"
    with pytest.raises(ZeroDivisionError), locked(file, "taken"):
        raise ZeroDivisionError
    with locked(file, "taken"), pytest.raises(DdcatError, match="taken"), locked(file, "taken"):
        pass


def test_a_folder_that_was_made_for_it_and_stays_empty_goes_with_it(tmp_path: Path) -> None:
    with locked(tmp_path / "new/newer/.it.lock", "taken"):
        pass
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new/newer/.it.lock", "taken"):
        (tmp_path / "new/it").write_text("")
    assert [path.name for path in tmp_path.rglob("*")] == ["new", "it"]


def test_a_lock_whose_file_was_removed_does_not_remove_that_of_the_next(tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    with contextlib.ExitStack() as second:
        with locked(file, "taken"):
            file.unlink()  # with its folder, say
            second.enter_context(locked(file, "taken"))
        with pytest.raises(DdcatError, match="taken"), locked(file, "taken"):
            pass


def test_a_file_where_a_folder_is_to_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    message = r"^cannot write into .*out, which is not a folder: name another one$"
    with pytest.raises(DdcatError, match=message), locked(tmp_path / "out/.lock", "taken"):
        pass
