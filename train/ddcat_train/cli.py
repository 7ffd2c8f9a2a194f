"""The command `ddcat train`."""

import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from ddcat.agent import launched, rank, under_agent
from ddcat.choices import Device
from ddcat_train.config import CONFIG, Config, dump_config, load_config, presets
from ddcat_train.distributed.partition import check_partition
from ddcat_train.errors import ConfigError, DataError
from ddcat_train.run.run_folder import check_run
from ddcat_train.yaml_tree import load_tree

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


def _list_presets(listed: bool) -> None:
    if not listed:
        return
    rows = [("preset", "data", "network", "method", "crop", "epochs")]
    for name in presets():
        tree = load_tree(name)  # not the configuration: to check a model of another library would take its import
        model, crop = tree["model"], tree["augment"]["crop"]
        network = model["settings"]["model_type"] if "whole" in model else f"{model['backbone']} + {model['context']}"
        sides = crop if isinstance(crop, list) else [crop, crop]
        epochs = str(tree["train"]["epochs"])
        rows.append((name, tree["data"]["name"], network, tree["method"]["name"], "{} x {}".format(*sides), epochs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:  # whole lines, for grep, however narrow the terminal
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    raise typer.Exit


@app.command()
def train(
    source: Annotated[str, typer.Argument(metavar="PRESET|CONFIG.yaml", help="A preset's name, or a configuration file.")],
    data_root: Annotated[Path | None, typer.Option(help="Folder of the data set; overrides data.root.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value; may be given again.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory. Default: runs/PRESET; for a run's own config.yaml, that run.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its last checkpoint, or from its start if it has none yet.")
    ] = False,
    device: Annotated[Device, typer.Option(help="Device to train on.")] = "auto",
    devices: Annotated[
        int | None,
        typer.Option(min=1, help="Number of devices of this machine, one process for each. Default: 1. Not under torchrun."),
    ] = None,
    save_every: Annotated[float, typer.Option(help="Minutes between two checkpoints to resume from.", min=0)] = 5.0,
    show: Annotated[
        bool, typer.Option("--show", help="Print the whole configuration, a file to train from, and do nothing.")
    ] = False,
    listed: Annotated[
        bool, typer.Option("--list", help="Print the presets and do nothing.", is_eager=True, callback=_list_presets)
    ] = False,
) -> None:
    """
    Train a segmenter, with or without a defence.

    The run directory holds the resolved configuration, the best and the last checkpoint, a summary with pictures, and the log
    as JSON lines and for TensorBoard. Ctrl-C and SIGTERM leave a run that `--resume` continues to the same weights.

    With several devices, `train.batch_size` counts the images of all of them. Several machines need torchrun, with the same
    arguments on each: `torchrun --nnodes 2 --nproc-per-node 8 ... -m ddcat train PRESET`.

    For example:

    - `ddcat train scenes-ddcat` trains on generated scenes (make them with `ddcat data scenes data/scenes`).

    - `ddcat train --list | grep cityscapes` names the presets for a data set; `ddcat train --show voc-pspnet50-ddcat`, one.

    - `ddcat train voc-pspnet50-ddcat --data-root /data/VOC2012 --set model.pretrained=resnet50.safetensors --out runs/mine`

    - `ddcat train camvid-sat --data-root /data/camvid --set optim.lr=0.005 --set attack.epsilon=8/255`

    - `ddcat train runs/mine/config.yaml --resume` continues where the run stopped.

    - `ddcat train cityscapes-pspnet50-ddcat --devices 8` trains on the 8 GPUs of this machine.
    """
    config = _resolve(source, data_root, overrides or [])
    if show:
        typer.echo(dump_config(config), nl=False)
        return
    if data_root is not None and not data_root.expanduser().is_dir():
        raise DataError(f"--data-root {data_root} is not a folder: name the one that holds the data set")
    folder = out or _default_folder(Path(source))
    more_epochs = any(override.startswith("train.epochs=") for override in overrides or [])
    starts = devices is not None and not launched()
    if starts and under_agent():
        raise ConfigError(f"--devices {devices} under torchrun: leave it out, and use its --nproc-per-node")
    if devices is not None:
        check_partition(config, devices)
    if not rank():
        check_run(config, folder, resume=resume, more_epochs=more_epochs)
    again = _again(folder, device, devices)

    from ddcat_train.distributed.ranks import check_device
    from ddcat_train.run.loop import train as run_training
    from ddcat_train.run.summary import MARKDOWN

    if devices is not None and starts:
        check_device(device, devices)
        if devices > 1:
            from ddcat_train.distributed.launch import launch

            launch(devices, reached=lambda: _reached(folder), again=again)
            return
    command = " ".join([_program(), *map(shlex.quote, sys.argv[2:])])
    outcome = run_training(
        config, folder, resume=resume, more_epochs=more_epochs, device=device, save_every=60 * save_every, command=command
    )
    if rank():
        return  # only the first process reports
    if outcome.signal is not None:
        name = signal.Signals(outcome.signal).name
        typer.echo(f"stopped by {name} at step {outcome.step} of {outcome.steps}; continue with: {again}", err=True)
        sys.exit(128 + outcome.signal)
    typer.echo(f"{folder}: {outcome.steps} steps; " + ", ".join(f"{k} {v:.3f}" for k, v in outcome.scores.items()))
    typer.echo(f"summary: {folder / MARKDOWN}")
    typer.echo(f"next: ddcat attack {shlex.quote(str(folder))} --suite paper")


def _reached(folder: Path) -> str:
    from ddcat_train.checkpoints import LAST, read_description

    last = folder / LAST
    return f"step {read_description(last).step}" if last.is_file() else "its start, for no checkpoint was written yet,"


def _program() -> str:
    """Return the program of this command; under torchrun its options are not known."""
    return "torchrun ... -m ddcat train" if under_agent() and not launched() else "ddcat train"


def _again(folder: Path, device: str, devices: int | None) -> str:
    """Return the command that continues a run."""
    options = ["--device", device] if device != "auto" else []
    options += ["--devices", str(devices)] if devices is not None else []
    return " ".join([_program(), shlex.quote(str(folder / CONFIG)), "--resume", *options])


def _resolve(source: str, data_root: Path | None, overrides: list[str]) -> Config:
    if data_root is not None:
        overrides = [*overrides, f"data.root={json.dumps(str(data_root))}"]
    return load_config(source, overrides)


def _default_folder(source: Path) -> Path:
    return source.parent if source.name == CONFIG else Path("runs") / source.stem
