"""
The command `ddcat`, and the older names of its parts.

A part is loaded when it is asked for: `ddcat serve` loads nothing of training, and each part starts without the libraries of
the others.
"""

import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from ddcat import __version__
from ddcat.agent import launched, report_to_agent
from ddcat.cli_support import EXIT_USAGE, run

__all__ = ["PARTS", "Part", "app", "bench", "data", "export", "main", "serve", "train"]


class Part(NamedTuple):
    """A command of `ddcat`."""

    module: str  # its Typer application is `app`
    command: str  # of that application; "" is the application itself
    extras: str  # of the distribution, without which it only explains itself
    panel: str  # of the help


_BENCH = "bench,export,cpu"
PARTS = {
    "train": Part("ddcat_train.cli", "", "train", "Train"),
    "data": Part("ddcat_train.data_cli", "", "train", "Train"),
    "export": Part("ddcat_export.cli", "", "train,export,cpu", "Export"),
    "attack": Part("ddcat_bench.cli", "attack", _BENCH, "Measure and prove"),
    "gate": Part("ddcat_bench.cli", "gate", _BENCH, "Measure and prove"),
    "compare": Part("ddcat_bench.cli", "compare", _BENCH, "Measure and prove"),
    "report": Part("ddcat_bench.cli", "report", _BENCH, "Measure and prove"),
    "fidelity": Part("ddcat_bench.cli", "fidelity", _BENCH, "Measure and prove"),
    "drift": Part("ddcat_bench.cli", "drift", _BENCH, "Measure and prove"),
    "speed": Part("ddcat_bench.cli", "speed", _BENCH, "Measure and prove"),
    "scenarios": Part("ddcat_bench.cli", "scenarios", _BENCH, "Measure and prove"),
    "zoo": Part("ddcat.zoo.cli", "", "", "Serve"),
    "predict": Part("ddcat.predict.cli", "", "cpu", "Serve"),
    "inspect": Part("ddcat_serve.cli", "inspect", "serve", "Serve"),
    "serve": Part("ddcat_serve.cli", "run", "serve,cpu", "Serve"),
    "triton": Part("ddcat_serve.cli", "triton", "serve,cpu", "Serve"),
    "ray": Part("ddcat_serve.cli", "ray", "serve,ray,cpu", "Serve"),
}


class _Parts(TyperGroup):
    """The commands of the table."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        names: Any = dict.fromkeys(PARTS)  # for "did you mean"; commands come from `get_command`
        self.commands = names

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the work."""
        return list(PARTS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Load a part."""
        if cmd_name not in PARTS:
            return None
        part = PARTS[cmd_name]
        command: Any = typer.main.get_command(importlib.import_module(part.module).app)
        if part.command:
            command = command.commands[part.command]
        command.name, command.rich_help_panel = cmd_name, part.panel
        return command


app = typer.Typer(
    cls=_Parts,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"ddcat {__version__}")
        raise typer.Exit


@app.callback()
def _ddcat(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """
    Train segmentation models that hold up under attack, export them, test each engine against its
    model, and serve it.

    `ddcat COMMAND --help` explains a command and gives examples.
    """


def main() -> None:
    """Run `ddcat`."""
    part = PARTS.get(sys.argv[1]) if len(sys.argv) > 1 else None
    _run(app, part.extras if part else "")


def train() -> None:
    """Run `ddcat-train`, which is `ddcat train`."""
    _run_as("train")


def data() -> None:
    """Run `ddcat-data`, which is `ddcat data`."""
    _run_as("data")


def export() -> None:
    """Run `ddcat-export`, which is `ddcat export`."""
    _run_as("export")


def bench() -> None:
    """Run `ddcat-bench`: `ddcat-bench gate` is `ddcat gate`."""
    _run_group("ddcat_bench.cli", _BENCH)


def serve() -> None:
    """Run `ddcat-serve`: `ddcat-serve run` is `ddcat serve`."""
    _run_group("ddcat_serve.cli", "serve,cpu")


def _run_as(*words: str, rest: Sequence[str] | None = None) -> None:
    sys.argv = ["ddcat", *words, *(sys.argv[1:] if rest is None else rest)]
    main()


def _run_group(module: str, extras: str) -> None:
    for name, part in PARTS.items():
        if part.module == module and sys.argv[1:2] == [part.command]:
            _run_as(name, rest=sys.argv[2:])
    _run(importlib.import_module(module).app, extras)  # its help, or what is wrong with the command


def _run(application: typer.Typer, extras: str) -> NoReturn:
    """Run an application and leave; a fault of the program ends with 2, for 1 says that the gate refused an engine."""
    try:
        if launched():
            report_to_agent(application)
        run(application, extras=extras)
    except Exception:  # whatever it is
        traceback.print_exc()
        sys.exit(EXIT_USAGE)
