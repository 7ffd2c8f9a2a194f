"""A server of our own for as long as it is needed."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["served"]

_LISTENING = "listening at "


@contextlib.contextmanager
def served(bundle: Path) -> Iterator[str]:
    """
    Run `ddcat-serve run BUNDLE` on a free port, and stop it as an operator would.

    Yields
    ------
    str
        Its address, such as http://127.0.0.1:40123.

    Raises
    ------
    RuntimeError
        Where it does not start, or does not end with exit status 0 on SIGTERM.
    """
    command = [str(Path(sys.executable).with_name("ddcat-serve")), "run", str(bundle), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(_LISTENING):
                    yield line.removeprefix(_LISTENING).strip()
                    break
            else:
                raise RuntimeError(f"the server did not start: exit status {process.wait()}")
        finally:
            process.send_signal(signal.SIGTERM)
        if process.wait(timeout=60) != 0:
            raise RuntimeError(f"the server ended with exit status {process.returncode}")
