"""Console commands in this process, where a process of its own is not the matter: an import of torch takes seconds."""

import contextlib
import io
import os
import subprocess
import sys
from unittest import mock

from ddcat import cli

__all__ = ["call", "refusal"]

_MAINS = {"ddcat": cli.main, "ddcat-bench": cli.bench, "ddcat-serve": cli.serve}


def call(command: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run it to its end: the exit status, and all that it printed."""
    line = [command, *map(str, arguments)]
    try:
        with (
            mock.patch.object(sys, "argv", list(line)),
            mock.patch.dict(os.environ, COLUMNS="200"),  # no word is broken
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as errors,
        ):
            _MAINS[command]()
    except SystemExit as left:
        return subprocess.CompletedProcess(line, int(left.code or 0), out.getvalue(), errors.getvalue())
    raise AssertionError("a command leaves with its status")


def refusal(command: str, *arguments: object) -> str:
    """Run it; it must end with status 2 and print one line, an error. Gives what the line says."""
    ended = call(command, *arguments)
    assert (ended.returncode, ended.stdout) == (2, ""), ended.stderr
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    return ended.stderr.removeprefix("error: ").rstrip("\n")
