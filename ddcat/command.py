"""What all console commands share: sizes are written alike, and an error is one clear line and exit status 2, no traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn

from ddcat.errors import DdcatError

__all__ = ["REFUSED", "parse_size", "run"]

REFUSED = 2  # exit status: refused, or bad input


def parse_size(text: str, *, otherwise: str = "") -> tuple[int, int]:
    """
    Read the value of --size, HEIGHTxWIDTH.

    Parameters
    ----------
    text : str
    otherwise : str
        What else the option takes, for the error message.

    Raises
    ------
    DdcatError
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise DdcatError(f"--size {text}: HEIGHTxWIDTH, such as 180x240,{otherwise} would be right")
    return int(height), int(width)


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
