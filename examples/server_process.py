"""A server of our own for as long as it is needed."""

import contextlib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ddcat.errors import DdcatError

__all__ = ["served"]

_LISTENING = "listening at "
_STARTS_WITHIN, _STOPS_WITHIN = 120.0, 60.0  # seconds


@contextlib.contextmanager
def served(*words: str | Path, say: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """
    Run `ddcat-serve run BUNDLE...` on a free port, and stop it by SIGTERM as an operator would.

    Parameters
    ----------
    *words : str or Path
        Bundles and options.
    say : callable, optional
        Is given each line that the server prints until it listens.

    Yields
    ------
    str
        Its address, such as http://127.0.0.1:40123.

    Raises
    ------
    DdcatError
        Where it does not start, or does not end with exit status 0.
    """
    command = [str(Path(sys.executable).with_name("ddcat-serve")), "run", *map(str, words), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _address(process, say)
            process.terminate()
            status = process.wait(_STOPS_WITHIN)
        except subprocess.TimeoutExpired as cause:
            raise DdcatError(f"the server was told to stop and still ran {_STOPS_WITHIN:.0f} s later") from cause
        finally:
            process.kill()  # without effect on one that has ended
    if status:
        raise DdcatError(f"the server ended with exit status {status}")


def _address(process: "subprocess.Popen[str]", say: Callable[[str], None]) -> str:
    assert process.stdout is not None
    patience = threading.Timer(_STARTS_WITHIN, process.kill)
    patience.start()
    try:
        for line in process.stdout:
            say(line.rstrip())
            if line.startswith(_LISTENING):
                return line.removeprefix(_LISTENING).strip()
    finally:
        patience.cancel()
    raise DdcatError(f"the server ended before it listened, with exit status {process.wait()}")
