"""What all console commands do at their end: one clear line and exit status 2 instead of a traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn

from ddcat.errors import DdcatError

__all__ = ["REFUSED", "run"]

REFUSED = 2  # exit status: refused, or bad input


def run(app: Callable[[], object]) -> NoReturn:
    """
    Run a command line application and leave the process with its exit status.

    Parameters
    ----------
    app : callable
        Takes its arguments from ``sys.argv``; a Typer application.
    """
    try:
        app()
    except DdcatError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(REFUSED)
    sys.exit(0)
