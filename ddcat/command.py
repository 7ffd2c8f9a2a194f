"""What all console commands share: options are written alike, an error is one clear line and exit status 2, no traceback."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, NoReturn, TypeVar

import typer

from ddcat.errors import DdcatError
from ddcat.extras import needing
from ddcat.text import printable

__all__ = [
    "DEVICES",
    "REFUSED",
    "ExpectDigest",
    "RequirePassport",
    "RequireSignature",
    "parse_choice",
    "parse_size",
    "run",
]

REFUSED = 2  # exit status: refused, or bad input
_LONGEST = 4000  # characters of an error: it may quote what others wrote
DEVICES = ("auto", "cpu", "cuda")

# the three together are what `ddcat.bundle.Trust.from_options` takes
RequireSignature = Annotated[
    Path | None, typer.Option(metavar="PUB", help="Refuse a bundle that the owner of this public key (PEM) did not sign.")
]
ExpectDigest = Annotated[
    list[str] | None,
    typer.Option(metavar="SHA", help="Refuse a bundle of another digest; may be given again, for each bundle."),
]
RequirePassport = Annotated[
    bool, typer.Option("--require-passport", help="Refuse a bundle that did not pass ddcat-bench gate with its default budget.")
]

_Choice = TypeVar("_Choice", bound=str)


def parse_choice(option: str, text: str, choices: Sequence[_Choice]) -> _Choice:
    """
    Read the value of an option that is one of several.

    Raises
    ------
    DdcatError
        Which lists them.
    """
    for choice in choices:
        if text == choice:
            return choice
    raise DdcatError(f"{option} {text}: {', '.join(choices[:-1])} or {choices[-1]} would be right")


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


def run(app: Callable[[], object], *, extras: str = "") -> NoReturn:
    """
    Run a command line application and leave the process with its exit status.

    Parameters
    ----------
    app : callable
        Takes its arguments from ``sys.argv``; a Typer application.
    extras : str
        Of the distribution, with commas between them: what the application needs beyond what every installation has.
    """
    try:
        with needing(extras):
            app()
    except DdcatError as error:
        print(f"error: {printable(error, _LONGEST)}", file=sys.stderr)
        sys.exit(REFUSED)
    sys.exit(0)
