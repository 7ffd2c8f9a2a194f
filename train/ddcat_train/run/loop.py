"""The training loop. It knows no method by name: a method turns a batch into updates, and the trainer applies them."""

import time
from contextlib import closing, nullcontext
from pathlib import Path
from typing import NamedTuple

from ddcat.agent import rank
from ddcat.atomic_files import remove_temp_files, write_json, write_text
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import CONFIG, Config, dump_config
from ddcat_train.data.readers import report_dead_workers
from ddcat_train.errors import TrainError
from ddcat_train.memory import enough_memory
from ddcat_train.run.monitor import NONFINITE, RunMonitor
from ddcat_train.run.run_folder import check_run, locked
from ddcat_train.run.run_log import LINES, TIMING, RunLog, totals
from ddcat_train.run.sessions import SESSIONS, SessionRecorder
from ddcat_train.run.stopping import Stop, stop_requested
from ddcat_train.run.summary import MARKDOWN, SUMMARY, write_summary
from ddcat_train.run.trainer import Trainer

__all__ = ["Outcome", "check_run", "train"]

RESULT = "summary.json"
_LESS_TO_EVALUATE = "continue with --resume and a smaller train.evaluate_batch, data.val_long_side or train.evaluate_images"
_LESS_TO_TRAIN = (
    "continue on more devices (--resume --devices N), or begin a new run with a smaller train.batch_size or augment.crop, or "
    "with train.accumulate; these three change the result, so a run cannot change them"
)
_LESS_ELSE = "free some memory, and continue with --resume"
_LESS_TO_BUILD = "use a smaller model.width or backbone, or free some memory"


class Outcome(NamedTuple):
    """The end of a run."""

    step: int
    steps: int
    scores: dict[str, float]  # of the latest evaluation
    signal: int | None  # the one that stopped it before its end


def train(
    config: Config,
    run: Path,
    *,
    resume: bool = False,
    more_epochs: bool = False,
    device: str = "auto",
    save_every: float = 300.0,
    command: str = "ddcat_train.run.loop.train()",
) -> Outcome:
    """
    Train, and write `best.safetensors`, `last.safetensors`, the resolved configuration, the log, pictures and a summary to a
    run directory.

    On SIGINT and SIGTERM the run stops after the present step, and can be resumed; so it can after its process was killed.
    On a CPU a resumed run ends with the same weights, to the bit, as one that was never stopped and had as many processes.

    Under torch's elastic agent this is one process of several. They stop after the same step, whichever got the signal. Only
    the first writes; all must see the run directory.

    Parameters
    ----------
    run : Path
        Created if necessary.
    resume : bool
        Continue from `last.safetensors`; from the start where there is none yet.
    more_epochs : bool
        Continue a finished run whose `train.epochs` has become larger. From there on the learning rate follows the poly rule
        of the longer run, so the result is not that of a run begun with so many epochs.
    device : "auto", "cpu" or "cuda"
    save_every : float
        Seconds between two checkpoints to resume from; one is written before and after every evaluation as well.
    command : str
        The command line of the user, for the summary.

    Raises
    ------
    ConfigError
        Where the run exists and `resume` is False, another process trains in its folder, or it was begun with another
        configuration or data set; the keys that may change are `ddcat_train.run.run_folder.MAY_CHANGE`.
    WriteError
        Where the disk is full, or the directory is not writable; earlier files stay.
    DataError
        Where an image cannot be read; the steps before it are saved.
    TrainError
        Where a loss, a gradient or a weight is not finite, or memory runs out; no weights since then are saved.
    CheckpointError
    """
    if rank():
        return _train(config, run, device, save_every, command)
    check_run(config, run, resume=resume, more_epochs=more_epochs)
    with locked(run):
        check_run(config, run, resume=resume, more_epochs=more_epochs)  # another process may have written meanwhile
        for name in (CONFIG, LAST, BEST, LINES, TIMING, SESSIONS, RESULT, NONFINITE, *SUMMARY):
            for file in (run / name, (run / name).with_suffix(".json")):
                remove_temp_files(file)
        return _train(config, run, device, save_every, command)


def _train(config: Config, run: Path, device: str, save_every: float, command: str) -> Outcome:
    trainer = _begin(config, run, device)
    first = not trainer.ranks.rank
    if first:
        write_text(run / CONFIG, dump_config(config))
    session = SessionRecorder(run, trainer.step, command, trainer.device, trainer.ranks.size) if first else None
    with (
        enough_memory("the training", _LESS_ELSE),  # wherever no inner one names the place
        report_dead_workers(),
        stop_requested() as stop,
        RunLog(run, step=trainer.step, steps=trainer.steps, evaluated=trainer.evaluated) if first else nullcontext() as log,
    ):
        if log:
            for line in (trainer.summary(), *trainer.notes):
                log.say(line)
        loop = _Loop(trainer, run, RunMonitor(config, trainer, run, log), log, session)
        signal_number = _train_steps(loop, stop, save_every)
    outcome = Outcome(trainer.step, trainer.steps, trainer.scores, signal_number or None)
    if first:
        _write_result(trainer, run, outcome)
    trainer.ranks.destroy()
    return outcome


def _begin(config: Config, run: Path, device: str) -> Trainer:
    """Build the trainer at the step that the run has reached."""
    with enough_memory("building the network", _LESS_TO_BUILD):
        begun = load_checkpoint(run / LAST) if (run / LAST).is_file() else None
        trainer = Trainer(config, device=device, begun=begun)
        if begun is not None:
            trainer.restore(begun)
        trainer.check_ranks_agree()
    return trainer


class _Loop(NamedTuple):
    trainer: Trainer
    run: Path
    monitor: RunMonitor
    log: RunLog | None  # of the first rank, as the session
    session: SessionRecorder | None


def _train_steps(loop: _Loop, stop: Stop, save_every: float) -> int:
    """Train to the end of the run, or to a signal, and return the signal; 0 for none."""
    trainer = loop.trainer
    if trainer.longer:
        _save(loop)  # the checkpoint has the new number of epochs from here on
    if not trainer.evaluated:  # the last session ended in the evaluation
        _evaluate_and_save(loop)
    saved, when = trainer.step, time.monotonic()
    with closing(loop.monitor.batches(stop)) as batches:
        for batch in batches:
            late = time.monotonic() - when >= save_every
            signal_number, due, failed = trainer.ranks.all_reduce_max([stop.number, late, isinstance(batch, TrainError)])
            if (signal_number or due or failed) and saved != trainer.step:
                saved, when = _save(loop), time.monotonic()
            if isinstance(batch, TrainError):
                trainer.ranks.gather(str(batch))
                raise batch
            if failed:  # all ranks end by the same error: whichever ends first, that is the one that is told
                raise TrainError(next(filter(None, trainer.ranks.gather(""))))
            if signal_number or batch is None:
                return signal_number
            with enough_memory(f"step {trainer.step + 1}", _LESS_TO_TRAIN):
                values = trainer.train_step(batch)
            loop.monitor.record(batch, values)
            if not trainer.evaluated:
                _save(loop)  # an evaluation may take longer than --save-every
                saved, when = _evaluate_and_save(loop), time.monotonic()
    return 0


def _evaluate_and_save(loop: _Loop) -> int:
    """Evaluate, save, and return the step."""
    _evaluate(loop)
    saved = _save(loop)
    if loop.log and saved < loop.trainer.steps:  # at the end it is always written
        _summarise(loop.run)
    return saved


def _save(loop: _Loop) -> int:
    """Write the checkpoint to resume from, and return the step."""
    loop.monitor.flush()  # a resumed run logs from there on, and only finite weights are saved
    if loop.session:
        loop.session.save(loop.trainer.step)
    with enough_memory(f"saving step {loop.trainer.step}", _LESS_ELSE):
        loop.trainer.save(loop.run / LAST, resumable=True)
    return loop.trainer.step


def _evaluate(loop: _Loop) -> None:
    loop.monitor.flush()  # only finite weights are evaluated
    trainer, log = loop.trainer, loop.log
    with enough_memory(f"the evaluation after step {trainer.step}", _LESS_TO_EVALUATE):
        scores = trainer.evaluate()
        if log:
            log.evaluation(trainer.step, scores)
            log.panels(trainer.step, trainer.panels())
    if trainer.is_best():
        trainer.save(loop.run / BEST, resumable=False)


def _summarise(run: Path) -> None:
    with enough_memory(f"writing {run / MARKDOWN}", _LESS_ELSE):  # the weights are saved
        write_summary(run)


def _write_result(trainer: Trainer, run: Path, outcome: Outcome) -> None:
    if (run / LAST).is_file():
        _summarise(run)
    if outcome.signal is None:
        result = {"steps": trainer.steps, "scores": trainer.scores, "best": trainer.best, **totals(run)}
        write_json(run / RESULT, result)
