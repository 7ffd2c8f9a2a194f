"""The older names of options are still taken, and no help shows them."""

from pathlib import Path

import typer

from ddcat_bench.cli import app


def test_older_names_mean_the_new_ones() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    line = ["bundle", "--limit", "3", "--limits=ours.yaml", "--every", "2", "--devices", "4"]
    given = commands["gate"].make_context("gate", line).params
    assert (given["max_images"], given["thresholds"], given["query_stride"], given["jobs"]) == (3, Path("ours.yaml"), 2, 4)
    given = commands["attack"].make_context("attack", ["run", "--substitute", "other"]).params
    assert [Path(path) for path in given["surrogate"]] == [Path("other")]
    for name in ("gate", "attack"):
        assert not {"--limit", "--limits", "--every", "--devices", "--substitute"} & {
            option for parameter in commands[name].params for option in parameter.opts
        }
