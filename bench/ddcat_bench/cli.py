"""The commands that measure and prove: `ddcat attack`, `ddcat gate` and others."""

import typer

from ddcat_bench.attack.cli import attack
from ddcat_bench.card.cli import report
from ddcat_bench.compare.cli import compare
from ddcat_bench.drift.cli import drift
from ddcat_bench.fidelity.cli import fidelity
from ddcat_bench.gate.cli import gate
from ddcat_bench.timing.scenarios_cli import scenarios
from ddcat_bench.timing.speed_cli import speed

__all__ = ["app"]

app = typer.Typer(
    help="Evaluate checkpoints and the engines made from them. Every result is also a JSON file.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

for _command in (attack, gate, compare, scenarios, drift, fidelity, speed, report):
    app.command()(_command)
