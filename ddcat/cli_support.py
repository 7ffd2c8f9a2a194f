"""Shared parts of all console commands: common options, and errors as one line with exit status 2, without traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ddcat.errors import DdcatError
from ddcat.extras import needing
from ddcat.text import printable

__all__ = [
    "EXIT_USAGE",
    "BundleArgument",
    "ExpectDigest",
    "RequirePassport",
    "RequireSignature",
    "invoke",
    "parse_size",
    "run",
]

EXIT_USAGE = 2  # exit status of an error or of bad input
_LONGEST = 4000  # characters of an error: it may quote what others wrote

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Directory that ddcat export wrote.")]

# the arguments of `ddcat.bundle.TrustPolicy.from_options`
RequireSignature = Annotated[
    Path | None,
    typer.Option(metavar="PUB", help="Refuse a bundle that was not signed with the private key of this public key (PEM)."),
]
ExpectDigest = Annotated[
    list[str] | None,
    typer.Option(metavar="SHA", help="Refuse a bundle with another digest. Repeat it for several bundles."),
]
RequirePassport = Annotated[
    bool, typer.Option("--require-passport", help="Refuse a bundle that did not pass the full gate (without --quick).")
]

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # Click's; some releases of Typer hold a Click of their own


def parse_size(text: str, *, option: str = "--size", otherwise: str = "") -> tuple[int, int]:
    """
    Read a size, HEIGHTxWIDTH.

    Parameters
    ----------
    text : str
    option, otherwise : str
        The option, and its other values, for the error message.

    Raises
    ------
    DdcatError
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise DdcatError(f"{option} {text}: use HEIGHTxWIDTH, such as 180x240{otherwise and f',{otherwise}'}")
    return int(height), int(width)


def run(app: Callable[[], object], *, extras: str = "") -> NoReturn:
    """
    Run a command line application and leave the process with its exit status.

    Parameters
    ----------
    app : callable
        Takes its arguments from ``sys.argv``; a Typer application.
    extras : str
        Extras of the distribution that the application needs, separated by commas.
    """
    try:
        with needing(extras):
            status = invoke(app)
    except DdcatError as error:
        try:
            print(f"error: {printable(error, _LONGEST)}", file=sys.stderr, flush=True)
        except BrokenPipeError:  # nobody reads this either; Python's own flush at exit would fail, too
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
        sys.exit(error.exit_status)
    sys.exit(status)


def invoke(app: Callable[[], object]) -> int:
    """
    Run a command line application and return its exit status.

    Raises
    ------
    DdcatError
        Also where the command line is wrong, which Typer would show in a box of five lines, and where the output was closed,
        for which Typer has the status 1: the gate's for a refusal.
    """
    try:
        returned = app(standalone_mode=False) if isinstance(app, typer.Typer) else app()
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # its help is printed
            return EXIT_USAGE
        raise DdcatError(_usage(error)) from error
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise DdcatError("the output was closed before all of it was written: let its reader read to the end") from ended
        raise
    return returned if isinstance(returned, int) else 0


def _usage(error: Any) -> str:
    """Return the fault of a command line, and the command that explains it."""
    nearest = next(iter(getattr(error, "possibilities", None) or ()), None)  # the others may be far off
    message = error.message if nearest else error.format_message().replace("Value error, ", "")  # pydantic's
    message = " ".join(message.split()).rstrip(".")  # choices stand on lines
    if nearest:
        message += f"; did you mean {nearest}?"
    if error.ctx is not None:
        message += f"{'' if message.endswith('?') else ';'} see {error.ctx.command_path} --help"
    return message[:1].lower() + message[1:]
