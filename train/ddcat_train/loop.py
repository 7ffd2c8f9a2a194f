"""The training loop. It knows no method by name: a method turns a batch into updates, and the loop applies them."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from ddcat.files import check_writable, is_leftover, remove_leftovers, write_json, write_text
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import CONFIG, Config, dump_config, load_config
from ddcat_train.data.loader import readers_watched
from ddcat_train.errors import ConfigError, LostRankError, TrainError
from ddcat_train.logs import LINES, TIMING, RunLog, totals
from ddcat_train.sessions import SESSIONS, Clock
from ddcat_train.summary import SUMMARY, write_summary
from ddcat_train.trainer import Trainer
from ddcat_train.watch import NONFINITE, Watch
from ddcat_train.worker import rank, under_agent

__all__ = ["Outcome", "check_run", "train"]

RESULT = "summary.json"
_MAY_CHANGE = {
    "data.root",
    "data.skip_corrupt",
    "train.workers",
}  # between sessions: how images are come by, not what is learnt


class Outcome(NamedTuple):
    """How a run ended."""

    step: int
    steps: int
    scores: dict[str, float]  # of the latest evaluation
    signal: int | None  # that stopped it before its end


def train(
    config: Config,
    run: Path,
    *,
    resume: bool = False,
    device: str = "auto",
    save_every: float = 300.0,
    command: str = "ddcat_train.loop.train()",
) -> Outcome:
    """
    Train, and leave `best.safetensors`, `last.safetensors`, the resolved configuration, the log, pictures and a summary in a
    run directory.

    On SIGINT and SIGTERM the run stops after the step it is at, and can be resumed, as it can after its process was killed.
    On a CPU a resumed run ends with the same weights, to the bit, as one that was never stopped and had as many processes.

    Under torch's elastic agent this is one process of several. They stop after the same step, whichever got the signal, and
    the first alone writes; all must see the run directory.

    Parameters
    ----------
    config : Config
    run : Path
        Created if necessary.
    resume : bool
        Continue from `last.safetensors`; from the start where there is none yet.
    device : "auto", "cpu" or "cuda"
    save_every : float
        Seconds between two checkpoints to resume from; one is written before and after every evaluation as well.
    command : str
        What the user began this with, for the summary.

    Raises
    ------
    ConfigError
        Where the run exists and is not to be resumed, or was made with another configuration or data set; `data.root`,
        `data.skip_corrupt` and `train.workers` may have changed.
    WriteError
        Where the disk is full, or the directory is not to be written in; what was written before stays.
    DataError
        Where an image cannot be read; what was learnt before it is saved.
    TrainError
        Where a loss, a gradient or a weight is not finite; no weights since then are saved.
    CheckpointError
    """
    first = rank() == 0
    if first:  # it may write to the directory before another one looks
        check_run(config, run, resume=resume)
        for name in (CONFIG, LAST, BEST, LINES, TIMING, SESSIONS, RESULT, NONFINITE, *SUMMARY):
            for file in (run / name, (run / name).with_suffix(".json")):
                remove_leftovers(file)
    resumed = (run / LAST).is_file()
    trainer = Trainer(config, device=device, resumed=resumed)
    if resumed:
        trainer.restore(load_checkpoint(run / LAST))
    trainer.check_equal()
    if first:
        write_text(run / CONFIG, dump_config(config))
    clock = Clock(run, trainer.step, command, trainer.device, trainer.ranks.size) if first else None
    with (
        readers_watched(),
        _stop_requested() as stop,
        RunLog(run, step=trainer.step, steps=trainer.steps, judged=trainer.judged) if first else nullcontext() as log,
    ):
        if log:
            for line in (trainer.summary(), *trainer.notes):
                log.say(line)
        loop = _Loop(trainer, run, Watch(config, trainer, run, log), log, clock)
        number = _go_on(loop, stop, save_every)
    outcome = Outcome(trainer.step, trainer.steps, trainer.scores, number or None)
    if first:
        _conclude(trainer, run, outcome)
    trainer.ranks.leave()
    return outcome


class _Loop(NamedTuple):
    trainer: Trainer
    run: Path
    watch: Watch
    log: RunLog | None  # of the first rank, as the clock
    clock: Clock | None


def _go_on(loop: _Loop, stop: Callable[[], int], save_every: float) -> int:
    """Train to the end of the run, or to a signal, which it gives; 0 for none."""
    trainer = loop.trainer
    if not trainer.judged:  # it ended in the evaluation
        _judge(loop)
    saved, when = trainer.step, time.monotonic()
    for batch in loop.watch.batches():
        late = time.monotonic() - when >= save_every
        number, due, failed = trainer.ranks.highest([stop(), late, isinstance(batch, TrainError)])
        if (number or due or failed) and saved != trainer.step:
            saved, when = _save(loop), time.monotonic()
        if isinstance(batch, TrainError):
            raise batch
        if failed:
            raise LostRankError(f"rank {rank()} stopped, for another could not read its images")
        if number:
            return number
        loop.watch.note(batch, trainer.apply(batch))
        if not trainer.judged:
            _save(loop)  # an evaluation may take longer than what --save-every asks for
            saved, when = _judge(loop), time.monotonic()
    return 0


def _judge(loop: _Loop) -> int:
    """Evaluate, save, and give the step."""
    _evaluate(loop)
    saved = _save(loop)
    if loop.log and saved < loop.trainer.steps:  # at the end it is written in any case
        write_summary(loop.run)
    return saved


def _save(loop: _Loop) -> int:
    """Write what a run resumes from, and give the step."""
    loop.watch.look()  # a resumed run logs from there on; and nothing is saved that is not finite
    if loop.clock:
        loop.clock.save(loop.trainer.step)
    loop.trainer.save(loop.run / LAST, resumable=True)
    return loop.trainer.step


def _evaluate(loop: _Loop) -> None:
    loop.watch.look()  # nothing is judged that is not finite
    trainer, log = loop.trainer, loop.log
    scores = trainer.evaluate()
    if log:
        log.evaluation(trainer.step, scores)
        log.panels(trainer.step, trainer.panels())
    if trainer.is_best():
        trainer.save(loop.run / BEST, resumable=False)


def _conclude(trainer: Trainer, run: Path, outcome: Outcome) -> None:
    if (run / LAST).is_file():
        write_summary(run)
    if outcome.signal is None:
        result = {"steps": trainer.steps, "scores": trainer.scores, "best": trainer.best, **totals(run)}
        write_json(run / RESULT, result)


def check_run(config: Config, run: Path, *, resume: bool) -> None:
    """
    Refuse a run directory that holds something else than this run, or this run when it is not to be resumed.

    Raises
    ------
    ConfigError
    """
    check_writable(run)
    if not (run / CONFIG).is_file():
        if run.is_dir() and any(not is_leftover(path, CONFIG) for path in run.iterdir()):
            raise ConfigError(f"{run} is not empty and no run: name another folder with --out")
        return
    if not resume:
        raise ConfigError(f"{run} holds a run already: continue it with --resume, or name another folder with --out")
    before = load_config(str(run / CONFIG))
    differing = sorted(set(_differences(config.model_dump(), before.model_dump())) - _MAY_CHANGE)
    if differing:
        raise ConfigError(
            f"{run} was begun with another configuration ({', '.join(differing)} differ): resume it with "
            f"'ddcat-train {run / CONFIG} --resume'"
        )


def _differences(one: dict[str, object], other: dict[str, object], path: str = "") -> Iterator[str]:
    for key, value in one.items():
        before = other.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _differences(value, before, f"{path}{key}.")
        elif value != before:
            yield f"{path}{key}"


@contextmanager
def _stop_requested() -> Iterator[Callable[[], int]]:
    """
    Collect SIGINT and SIGTERM instead of dying of the first; a second one is taken at its word.

    Gives a function that says which one asks for a stop, 0 for none. Where an agent started this process, the agent's end is
    one as well: nobody would end the ranks if one of them died.
    """
    received: list[int] = []
    agent = os.getppid() if under_agent() else None

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, handler in before.items():
            signal.signal(other, handler)

    def requested() -> int:
        if received:
            return received[0]
        return signal.SIGTERM if agent not in (None, os.getppid()) else 0

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
