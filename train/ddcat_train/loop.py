"""The training loop. It knows no method by name: a method turns a batch into updates, and the loop applies them."""

import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

from ddcat.agent import rank
from ddcat.atomic_files import remove_temp_files, write_json, write_text
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import CONFIG, Config, dump_config
from ddcat_train.data.readers import readers_watched
from ddcat_train.errors import LostRankError, TrainError
from ddcat_train.logs import LINES, TIMING, RunLog, totals
from ddcat_train.memory import enough_memory
from ddcat_train.run_folder import check_run, locked
from ddcat_train.sessions import SESSIONS, Clock
from ddcat_train.stopping import Stop, stop_requested
from ddcat_train.summary import MARKDOWN, SUMMARY, write_summary
from ddcat_train.trainer import Trainer
from ddcat_train.watch import NONFINITE, Watch

__all__ = ["Outcome", "check_run", "train"]

RESULT = "summary.json"
_LESS_TO_JUDGE = "continue with --resume and a smaller train.evaluate_batch, data.val_long_side or train.evaluate_images"
_LESS_TO_LEARN = (
    "continue on more devices (--resume --devices N), or begin a new run with a smaller train.batch_size or augment.crop, or "
    "with train.accumulate; none of these three can change in a run, for they change what is learnt"
)
_LESS_ELSE = "free some memory, and continue with --resume"
_LESS_TO_BUILD = "use a smaller model.width or backbone, or free some memory"


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
    more_epochs: bool = False,
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
    more_epochs : bool
        Train a finished run on, whose `train.epochs` has become larger. The learning rate follows the poly rule of the longer
        run from there on, so it is not what a run of that length would have ended with.
    device : "auto", "cpu" or "cuda"
    save_every : float
        Seconds between two checkpoints to resume from; one is written before and after every evaluation as well.
    command : str
        What the user began this with, for the summary.

    Raises
    ------
    ConfigError
        Where the run exists and is not to be resumed, another process trains in its folder, or it was begun with another
        configuration or data set; what of it may have changed is `ddcat_train.run_folder.MAY_CHANGE`.
    WriteError
        Where the disk is full, or the directory is not to be written in; what was written before stays.
    DataError
        Where an image cannot be read; what was learnt before it is saved.
    TrainError
        Where a loss, a gradient or a weight is not finite, or memory does not suffice; no weights since then are saved.
    CheckpointError
    """
    if rank():
        return _train(config, run, device, save_every, command)
    check_run(config, run, resume=resume, more_epochs=more_epochs)
    with locked(run):
        check_run(config, run, resume=resume, more_epochs=more_epochs)  # of what another process left meanwhile
        for name in (CONFIG, LAST, BEST, LINES, TIMING, SESSIONS, RESULT, NONFINITE, *SUMMARY):
            for file in (run / name, (run / name).with_suffix(".json")):
                remove_temp_files(file)
        return _train(config, run, device, save_every, command)


def _train(config: Config, run: Path, device: str, save_every: float, command: str) -> Outcome:
    trainer = _begin(config, run, device)
    first = not trainer.ranks.rank
    if first:
        write_text(run / CONFIG, dump_config(config))
    clock = Clock(run, trainer.step, command, trainer.device, trainer.ranks.size) if first else None
    with (
        enough_memory("the training", _LESS_ELSE),  # in whatever has no line of its own
        readers_watched(),
        stop_requested() as stop,
        RunLog(run, step=trainer.step, steps=trainer.steps, judged=trainer.judged) if first else nullcontext() as log,
    ):
        if log:
            for line in (trainer.summary(), *trainer.notes):
                log.say(line)
        number = _go_on(_Loop(trainer, run, Watch(config, trainer, run, log), log, clock), stop, save_every)
    outcome = Outcome(trainer.step, trainer.steps, trainer.scores, number or None)
    if first:
        _conclude(trainer, run, outcome)
    trainer.ranks.leave()
    return outcome


def _begin(config: Config, run: Path, device: str) -> Trainer:
    """Build what is trained, at the step that the run has reached."""
    with enough_memory("building the network", _LESS_TO_BUILD):
        begun = load_checkpoint(run / LAST) if (run / LAST).is_file() else None
        trainer = Trainer(config, device=device, begun=begun)
        if begun is not None:
            trainer.restore(begun)
        trainer.check_equal()
    return trainer


class _Loop(NamedTuple):
    trainer: Trainer
    run: Path
    watch: Watch
    log: RunLog | None  # of the first rank, as the clock
    clock: Clock | None


def _go_on(loop: _Loop, stop: Stop, save_every: float) -> int:
    """Train to the end of the run, or to a signal, which it gives; 0 for none."""
    trainer = loop.trainer
    if trainer.longer:
        _save(loop)  # from here on the checkpoint, too, says of how many epochs the run is
    if not trainer.judged:  # it ended in the evaluation
        _judge(loop)
    saved, when = trainer.step, time.monotonic()
    with closing(loop.watch.batches(stop)) as batches:
        for batch in batches:
            late = time.monotonic() - when >= save_every
            number, due, failed = trainer.ranks.highest([stop.number, late, isinstance(batch, TrainError)])
            if (number or due or failed) and saved != trainer.step:
                saved, when = _save(loop), time.monotonic()
            if isinstance(batch, TrainError):
                raise batch
            if failed:
                raise LostRankError(f"rank {rank()} stopped, for another could not read its images")
            if number or batch is None:
                return number
            with enough_memory(f"step {trainer.step + 1}", _LESS_TO_LEARN):
                values = trainer.apply(batch)
            loop.watch.note(batch, values)
            if not trainer.judged:
                _save(loop)  # an evaluation may take longer than what --save-every asks for
                saved, when = _judge(loop), time.monotonic()
    return 0


def _judge(loop: _Loop) -> int:
    """Evaluate, save, and give the step."""
    _evaluate(loop)
    saved = _save(loop)
    if loop.log and saved < loop.trainer.steps:  # at the end it is written in any case
        _summarise(loop.run)
    return saved


def _save(loop: _Loop) -> int:
    """Write what a run resumes from, and give the step."""
    loop.watch.look()  # a resumed run logs from there on; and nothing is saved that is not finite
    if loop.clock:
        loop.clock.save(loop.trainer.step)
    with enough_memory(f"saving step {loop.trainer.step}", _LESS_ELSE):
        loop.trainer.save(loop.run / LAST, resumable=True)
    return loop.trainer.step


def _evaluate(loop: _Loop) -> None:
    loop.watch.look()  # nothing is judged that is not finite
    trainer, log = loop.trainer, loop.log
    with enough_memory(f"the evaluation after step {trainer.step}", _LESS_TO_JUDGE):
        scores = trainer.evaluate()
        if log:
            log.evaluation(trainer.step, scores)
            log.panels(trainer.step, trainer.panels())
    if trainer.is_best():
        trainer.save(loop.run / BEST, resumable=False)


def _summarise(run: Path) -> None:
    with enough_memory(f"writing {run / MARKDOWN}", _LESS_ELSE):  # what was learnt is saved
        write_summary(run)


def _conclude(trainer: Trainer, run: Path, outcome: Outcome) -> None:
    if (run / LAST).is_file():
        _summarise(run)
    if outcome.signal is None:
        result = {"steps": trainer.steps, "scores": trainer.scores, "best": trainer.best, **totals(run)}
        write_json(run / RESULT, result)
