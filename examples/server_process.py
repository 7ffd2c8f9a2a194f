"""A server of our own for as long as it is needed, and what it says of an image."""

import contextlib
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddcat.errors import DdcatError
from ddcat_train.run.image_grid import to_png

__all__ = ["ask", "served"]

_LISTENING = "listening at "
_STARTS_WITHIN, _ANSWERS_WITHIN, _STOPS_WITHIN = 120.0, 60.0, 60.0  # seconds


@contextlib.contextmanager
def served(*words: str | Path, say: Callable[[str], None] = lambda line: None) -> Iterator[str]:
    """
    Run `ddcat serve BUNDLE...` on a free port, and stop it by SIGTERM as an operator would.

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
    command = [str(Path(sys.executable).with_name("ddcat")), "serve", *map(str, words), "--port", "0"]
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


def ask(address: str, image: npt.NDArray[np.uint8]) -> bytes:
    """
    Send an image, (H, W, 3), as a PNG to a server, and give the mask that it answers with, a palette PNG.

    Raises
    ------
    DdcatError
        Where it does not answer as it should.
    """
    request = urllib.request.Request(f"{address}/v1/segment", to_png(image), {"Content-Type": "image/png"})
    try:
        with urllib.request.urlopen(request, timeout=_ANSWERS_WITHIN) as response:
            mask: bytes = response.read()
    except OSError as cause:
        raise DdcatError(f"the server did not answer as it should: {cause}") from cause
    return mask


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
