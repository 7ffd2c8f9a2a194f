"""The summary of a run for people: curves and a page in Markdown, made from its files alone."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddcat.atomic_files import write_bytes, write_text
from ddcat_train.checkpoints import BEST, LAST, Description, read_description
from ddcat_train.config import CONFIG, AttackConfig, Config, MethodConfig
from ddcat_train.methods import METHODS
from ddcat_train.run.plots import draw_curves
from ddcat_train.run.run_log import LINES, PANELS, TIMING, read_lines
from ddcat_train.run.sessions import Session, read_sessions

__all__ = ["MARKDOWN", "SUMMARY", "write_summary"]

MARKDOWN = "summary.md"
SUMMARY = (MARKDOWN, "losses.png", "mask.png", "scores.png")  # the files
Lines = Sequence[Mapping[str, float]]


def write_summary(run: Path) -> None:
    """
    Write `losses.png`, `mask.png`, `scores.png` and `summary.md`, without curves that have no values.
    Raises `CheckpointError` or `WriteError`.

    Parameters
    ----------
    run : Path
        The directory of a run that has written a checkpoint.
    """
    description = read_description(run / LAST)
    config, step, steps = description.config, description.step or 0, description.steps or 0
    lines, timing = ([line for line in read_lines(run / name) if line["step"] <= step] for name in (LINES, TIMING))
    pictures = draw_curves(
        lines, title=run.resolve().name, batch_size=config.train.batch_size, per_epoch=steps // config.train.epochs
    )
    for name, png in pictures.items():
        write_bytes(run / name, png)
    panels = [path for path in sorted((run / PANELS).glob("step-*.png")) if _step_of(path) <= step]
    page = _render(
        name=run.resolve().name,
        run=shlex.quote(str(run)),
        log_folder=shlex.quote(str(run / "tensorboard")),
        config_file=CONFIG,
        config_path=shlex.quote(str(run / CONFIG)),
        description=description,
        config=config,
        images=description.val and description.val.images,
        scores=_scores(lines),
        best=BEST,
        step_size=_step_size(config.attack),
        attacks=METHODS[config.method.name].attacks,
        panels=PANELS,
        panel=(panels[-1].name, _step_of(panels[-1])) if panels else None,
        pictures=pictures,
        shares=_shares(lines),
        training=_training(config, description, lines),
        sessions=list(_sessions(read_sessions(run), timing, config.train.batch_size)),
    )
    write_text(run / MARKDOWN, page)


def _render(**values: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(MARKDOWN).render(values)


def _step_of(panel: Path) -> int:
    return int(panel.stem.removeprefix("step-"))


def _scores(lines: Lines) -> list[tuple[str, Mapping[str, float]]]:
    """Return the evaluations of the table, with their names."""
    evaluated = [line for line in lines if "val/selection" in line]
    if not evaluated:
        return []
    best = max(evaluated, key=lambda line: line["val/selection"])  # the first of equals, as in the run
    return [(BEST, best), (f"{LAST}, at its last evaluation", evaluated[-1])]


def _shares(lines: Lines) -> str:
    shares = [line["mask_share"] for line in lines if "mask_share" in line]
    tenth = len(shares) // 10
    if not tenth:
        return ""
    first, last = sum(shares[:tenth]) / tenth, sum(shares[-tenth:]) / tenth
    return f"M = 1 for {first:.1%} of them in the first tenth of the {len(shares):,} steps, for {last:.1%} in the last."


def _training(config: Config, description: Description, lines: Lines) -> dict[str, str]:
    data, train, optim, method, augment = config.data, config.train, config.optim, config.method, config.augment
    images = "" if description.train is None else f"{description.train.images:,} images of "
    changed = [
        f"{key} {value}"
        for key, value in method.model_dump().items()
        if key != "name" and value != MethodConfig.model_fields[key].default
    ]
    per_epoch = (description.steps or 0) // train.epochs
    rows = {
        "method": ", ".join([method.name, *changed]),
        "network": f"{description.architecture}, backbone from {config.model.pretrained or 'random weights'}",
        "data": f"{images}`{data.train_split}` of {data.name} in {data.root}"
        + (f", longer side {data.long_side}" if data.long_side else ""),
        "augmentation": f"{augment.policy}, scaled by {augment.scale[0]:g} to {augment.scale[1]:g}, crops of "
        f"{augment.crop[0]} x {augment.crop[1]}",
        "attack of training": _attack(config),
        "steps": f"{train.epochs} epoch{'s' * (train.epochs > 1)} of {per_epoch:,} steps of {train.batch_size} images"
        + (f", in {train.accumulate} micro-batches on each device" if train.accumulate > 1 else ""),
        "optimiser": f"SGD, lr {optim.lr:g} (heads and context: {optim.lr * optim.head_lr_factor:g}), momentum "
        f"{optim.momentum:g}, weight decay {optim.weight_decay:g}, poly rule of power {optim.power:g}",
        "weights that are used": "the latest" if train.ema is None else f"an average with decay {train.ema:g}",
        "precision": train.precision,
        "seed": str(config.seed),
    }
    if skipped := round(sum(line.get("skipped", 0) for line in lines)):
        rows["unreadable"] = f"{skipped:,} times another image took the place of one that could not be read"
    return rows


def _step_size(attack: AttackConfig) -> str:
    return "epsilon / n" if attack.alpha == "eps/n" else f"{attack.alpha:.4g}"


def _attack(config: Config) -> str:
    attack = config.attack
    if not METHODS[config.method.name].attacks:
        return "none"
    kinds = {"segpgd-at": "SegPGD", "trades": "PGD on the divergence"}
    kind = kinds.get(config.method.name, "PGD" if attack.start == "random" else "BIM")
    starts = {"clean": "at the image", "random": "at random in the ball", "lower": "at the image less epsilon"}
    start = starts[attack.start or config.method.start]
    return f"{kind}, epsilon {attack.epsilon:.4g}, n = {attack.steps} steps of {_step_size(attack)}, starts {start}"


def _sessions(sessions: Sequence[Session], timing: Lines, batch_size: int) -> Iterator[dict[str, Any]]:
    machine: list[str] = []
    for one in sessions:
        mine = [line for line in timing if one.first < line["step"] <= one.last]
        seconds, waited, steps = (sum(line[key] for line in mine) for key in ("seconds", "waited", "steps"))
        before, machine = machine, _machine(one)
        yield {
            "began": one.began.replace("T", " ").removesuffix("+00:00"),
            "first": one.first + 1,
            "last": one.last,
            "time": _duration(one.seconds),
            "in_steps": _duration(seconds),
            "waited": f"{waited / max(seconds, 1e-9):.1%}",
            "speed": f"{steps * batch_size / max(seconds, 1e-9):.1f}",
            "command": one.command,
            "machine": machine if machine != before else None,  # said once
        }


def _machine(one: Session) -> list[str]:
    machine = one.machine
    devices = one.device if one.processes == 1 else f"{one.processes} x {one.device}"
    return [
        f"{devices}, {one.threads} thread{'s' * (one.threads > 1)} of torch{' each' * (one.processes > 1)}; "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}",
        ", ".join(f"{name} {version}" for name, version in one.versions.items()),
        f"commit {one.git_commit}" if one.git_commit else "not from a git checkout: the commit is unknown",
    ]


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
