"""Optional libraries: extras of the distribution that only some commands need."""

import contextlib
from collections.abc import Iterator

from ddcat.error_text import first_line
from ddcat.errors import DdcatError

__all__ = ["install", "needing"]


@contextlib.contextmanager
def needing(extras: str, error: type[DdcatError] = DdcatError) -> Iterator[None]:
    """Raise an error that names the extras to install, where a library is missing."""
    try:
        yield
    except ImportError as cause:
        if not isinstance(cause, ModuleNotFoundError) and (cause.name or "").startswith("ddcat"):
            raise  # a name that one of our own modules lacks: a fault of the program
        raise error(f"a library is missing ({first_line(cause)}): {install(extras)}") from cause


def install(extras: str) -> str:
    """Return the command that installs extras. The distribution is in no index: its name there may be somebody else's."""
    return f'pip install ".[{extras}]" in a clone of ddcat'
