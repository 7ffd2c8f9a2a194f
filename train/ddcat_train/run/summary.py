"""The summary of a run for people: curves and a page in Markdown, made from its files alone."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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

_PICTURES = {
    "losses.png": "Losses of the training batches; strong: the running mean. {deep}",
    "scores.png": "mIoU on the validation images.",
    "mask.png": "Pixels whose combined prediction the attack changes (M = 1), and those that the mask branch gives to the "
    "auxiliary branch (p = 1), of all pixels of a batch. {shares}",
}


def write_summary(run: Path) -> None:
    """
    Write `losses.png`, `mask.png`, `scores.png` and `summary.md`, without curves that have no values.

    Parameters
    ----------
    run : Path
        The directory of a run that has written a checkpoint.

    Raises
    ------
    CheckpointError, WriteError
    """
    description = read_description(run / LAST)
    step, steps = description.step or 0, description.steps or 0
    lines, timing = ([line for line in read_lines(run / name) if line["step"] <= step] for name in (LINES, TIMING))
    config = description.config
    pictures = draw_curves(
        lines, title=run.resolve().name, batch_size=config.train.batch_size, per_epoch=steps // config.train.epochs
    )
    for name, png in pictures.items():
        write_bytes(run / name, png)
    parts = (
        _head(run, description),
        _scores(run, description, lines),
        _pictures(run, config, lines, step, pictures),
        _training(config, description, lines),
        _sessions(read_sessions(run), timing, config.train.batch_size),
        _next(run),
    )
    write_text(run / MARKDOWN, "\n".join(line for part in parts for line in part))


def _head(run: Path, description: Description) -> Iterator[str]:
    step, steps, config = description.step, description.steps, description.config
    yield f"# {run.resolve().name}\n"
    yield f"Method `{config.method.name}`, network {description.architecture}, data set `{config.data.name}`.\n"
    if step == steps:
        yield f"Finished: {steps:,} steps.\n"
    else:
        yield f"**Not finished**: step {step:,} of {steps:,}. `ddcat train {_quoted(run / CONFIG)} --resume` continues it.\n"


def _scores(run: Path, description: Description, lines: Lines) -> Iterator[str]:
    config, evaluated = description.config, [line for line in lines if "val/selection" in line]
    yield "## Scores\n"
    if not evaluated or description.val is None:
        yield "The network was not evaluated yet.\n"
        return
    images = description.val.images
    limit = config.train.evaluate_images
    yield (
        f"mIoU on {f'{limit} of the {images} images' if limit and limit < images else f'the {images} images'} of the split "
        f"`{config.data.val_split}`{', evenly spread over it' if limit and limit < images else ''}.\n"
    )
    yield "| checkpoint | step | clean | attacked | mean of both |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    best = max(evaluated, key=lambda line: line["val/selection"])  # the first of equals, as in the run
    for name, line in ((BEST, best), (f"{LAST}, at its last evaluation", evaluated[-1])):
        scores = " | ".join(f"{line[f'val/{key}']:.4f}" for key in ("clean", "attacked", "selection"))
        yield f"| {name} | {line['step']:,.0f} | {scores} |"
    attack = config.attack
    attacks = METHODS[config.method.name].attacks
    yield (
        f"\n*Attacked* is by BIM with the model's own gradients: epsilon {attack.epsilon:.4g} ({255 * attack.epsilon:.3g} grey "
        f"levels), n = {attack.steps} steps of {_step_size(attack)} from the image on. "
        + ("It is of the kind that the model was trained on" if attacks else "The model was trained without any attack")
        + ", and a weak attack: **stronger attacks leave less**, how much less this table does not say. "
        f"`ddcat attack {_quoted(run)} --suite paper` measures more steps and a PGD of 20 steps; no attack proves "
        f"that another one could not do more.\n\n`{BEST}` has the highest mean of both on these very images, so that its "
        "scores flatter it a little.\n"
    )


def _pictures(run: Path, config: Config, lines: Lines, step: int, drawn: Mapping[str, bytes]) -> Iterator[str]:
    panels = [path for path in sorted((run / PANELS).glob("step-*.png")) if int(path.stem.removeprefix("step-")) <= step]
    yield "## Pictures\n"
    if panels:
        at = int(panels[-1].stem.removeprefix("step-"))
        yield f"![some validation images]({PANELS}/{panels[-1].name})\n"
        yield f"The same validation images at every evaluation, here at step {at:,}: [all of them]({PANELS}/).\n"
    weight = config.method.deep_weight
    texts = {
        "deep": f"Deep supervision counts {weight:g} times in the sum." if weight else "",
        "shares": _shares(lines),
    }
    for name, text in _PICTURES.items():
        if name in drawn:
            yield f"![{name.removesuffix('.png')}]({name})\n"
            yield f"{text.format(**texts).rstrip()}\n"


def _shares(lines: Lines) -> str:
    shares = [line["mask_share"] for line in lines if "mask_share" in line]
    tenth = len(shares) // 10
    if not tenth:
        return ""
    first, last = sum(shares[:tenth]) / tenth, sum(shares[-tenth:]) / tenth
    return f"M = 1 for {first:.1%} of them in the first tenth of the {len(shares):,} steps, for {last:.1%} in the last."


def _training(config: Config, description: Description, lines: Lines) -> Iterator[str]:
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
    yield "## Training\n"
    yield "| | |"
    yield "| --- | --- |"
    for name, value in rows.items():
        yield f"| {name} | {value.replace('|', '&#124;')} |"
    yield f"\nAll of it: [{CONFIG}]({CONFIG}), from which this run can be repeated.\n"


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


def _sessions(sessions: Sequence[Session], timing: Lines, batch_size: int) -> Iterator[str]:
    yield "## Time and machine\n"
    yield "| began (UTC) | steps | time | in steps | of it waiting for images | images/s |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for one in sessions:
        mine = [line for line in timing if one.first < line["step"] <= one.last]
        seconds, waited, steps = (sum(line[key] for line in mine) for key in ("seconds", "waited", "steps"))
        began = one.began.replace("T", " ").removesuffix("+00:00")
        yield (
            f"| {began} | {one.first + 1:,} to {one.last:,} | {_duration(one.seconds)} | {_duration(seconds)} "
            f"| {waited / max(seconds, 1e-9):.1%} | {steps * batch_size / max(seconds, 1e-9):.1f} |"
        )
    yield (
        "\nUp to the latest checkpoint of each: what was done after it and lost is not in here. What is not in steps went into "
        "the start, evaluations and checkpoints.\n"
    )
    for number, one in enumerate(sessions):
        if number and _machine(one) == _machine(sessions[number - 1]):
            continue
        yield f"From step {one.first + 1:,} on:\n\n```sh\n{one.command}\n```\n"
        yield from (f"- {line}" for line in _machine(one))
        yield ""


def _machine(one: Session) -> list[str]:
    machine = one.machine
    devices = one.device if one.processes == 1 else f"{one.processes} x {one.device}"
    return [
        f"{devices}, {one.threads} thread{'s' * (one.threads > 1)} of torch{' each' * (one.processes > 1)}; "
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}",
        ", ".join(f"{name} {version}" for name, version in one.versions.items()),
        f"commit {one.git_commit}" if one.git_commit else "not from a git checkout: the commit is unknown",
    ]


def _next(run: Path) -> Iterator[str]:
    commands = {
        f"ddcat attack {_quoted(run)} --suite paper": "what stronger attacks leave",
        f"ddcat export {_quoted(run)} --engine ort --out bundle": "the main branch alone, as ONNX",
        "ddcat fidelity bundle": "compares the engine's labels with the model's",
        "ddcat speed bundle": "measures its speed",
        f"tensorboard --logdir {_quoted(run / 'tensorboard')}": "curves and pictures of every evaluation",
    }
    width = max(map(len, commands))
    yield "## What comes next\n"
    yield "```sh"
    yield from (f"{command:{width}}  # {why}" for command, why in commands.items())
    yield "```\n"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"
