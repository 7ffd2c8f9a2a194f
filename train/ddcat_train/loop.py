"""The training loop. It knows no method by name: a method turns a batch into updates, and the loop applies them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from ddcat.files import write_json, write_text
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import CONFIG, Config, dump_config, load_config
from ddcat_train.errors import ConfigError
from ddcat_train.logs import RunLog
from ddcat_train.trainer import Trainer

__all__ = ["Outcome", "train"]

SUMMARY = "summary.json"


class Outcome(NamedTuple):
    """How a run ended."""

    step: int
    steps: int
    scores: dict[str, float]  # of the latest evaluation
    signal: int | None  # that stopped it before its end


def train(config: Config, run: Path, *, resume: bool = False, device: str = "auto", save_every: float = 300.0) -> Outcome:
    """
    Train, and leave `best.safetensors`, `last.safetensors`, the log and the resolved configuration in a run directory.

    On SIGINT and SIGTERM the run stops after the step it is at, and can be resumed. On a CPU a resumed run ends with the same
    weights, to the bit, as one that was never stopped.

    Parameters
    ----------
    config : Config
    run : Path
        Created if necessary.
    resume : bool
        Continue from `last.safetensors`; from the start where there is none yet.
    device : "auto", "cpu" or "cuda"
    save_every : float
        Seconds between two checkpoints to resume from; one is written after every evaluation as well.

    Raises
    ------
    ConfigError
        Where the run exists and is not to be resumed, or was made with another configuration.
    DataError, CheckpointError
    """
    _check(config, run, resume=resume)
    trainer = Trainer(config, device=device)
    if (run / LAST).is_file():
        trainer.restore(load_checkpoint(run / LAST))
    write_text(run / CONFIG, dump_config(config))
    with _stop_requested() as stop, RunLog(run, step=trainer.step, steps=trainer.steps) as log:
        log.say(trainer.summary())
        saved = time.monotonic()
        for batch in trainer.batches():
            log.update(trainer.step + 1, trainer.apply(batch))
            evaluated = trainer.evaluation_due()
            if evaluated:
                log.evaluation(trainer.step, trainer.evaluate())
                if trainer.is_best():
                    trainer.save(run / BEST, resumable=False)
            if evaluated or stop or time.monotonic() - saved >= save_every:
                log.flush()  # before the checkpoint: a resumed run logs from there on
                trainer.save(run / LAST, resumable=True)
                saved = time.monotonic()
            if stop:
                break
    outcome = Outcome(trainer.step, trainer.steps, trainer.scores, stop[0] if trainer.step < trainer.steps else None)
    if outcome.signal is None:
        write_json(run / SUMMARY, {"steps": trainer.steps, "scores": trainer.scores, "best": trainer.best})
    return outcome


def _check(config: Config, run: Path, *, resume: bool) -> None:
    if not (run / CONFIG).is_file():
        if run.is_dir() and any(run.iterdir()):
            raise ConfigError(f"{run} is not empty and no run: name another folder with --out")
        return
    if not resume:
        raise ConfigError(f"{run} holds a run already: continue it with --resume, or name another folder with --out")
    before = load_config(str(run / CONFIG))
    differing = sorted(_differences(config.model_dump(), before.model_dump()))
    if differing:
        raise ConfigError(
            f"{run} was begun with another configuration ({', '.join(differing)} differ): resume it with "
            f"'ddcat-train {run / CONFIG} --resume'"
        )


def _differences(one: dict[str, object], other: dict[str, object], path: str = "") -> Iterator[str]:
    for key, value in one.items():
        before = other[key]
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _differences(value, before, f"{path}{key}.")
        elif value != before:
            yield f"{path}{key}"


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of the first; a second one is taken at its word."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
