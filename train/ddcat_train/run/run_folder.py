"""The folder of a run: the check that a training may use it, and the lock that keeps others out."""

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl

from ddcat.atomic_files import check_writable, is_temp_file, translate_os_errors
from ddcat_train.checkpoint_files import LAST
from ddcat_train.config import CONFIG, Config, load_config
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.yaml_tree import shortened

if TYPE_CHECKING:
    from ddcat_train.checkpoints import Description

__all__ = ["MAY_CHANGE", "MEASURES", "check_run", "locked"]

_LOCK = ".lock"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of a file system that has none
# They may change, and make scores incomparable with those before.
MEASURES = {"data.val_long_side", "train.evaluate_images"}
# They may change from session to session: the reading of images, and the evaluation. None of them changes the weights.
# `train.accumulate` does: batch norm sees one micro-batch at a time.
MAY_CHANGE = {"data.root", "data.skip_corrupt", "train.workers", "train.evaluate_batch", "train.evaluate_every", *MEASURES}
_EPOCHS = "train.epochs"
_MOST_SHOWN = 6


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """
    Lock a run folder, which is made if necessary; the end of the process releases it, however it ends.

    Raises
    ------
    ConfigError
        Where another process trains in it.
    WriteError
    """
    with translate_os_errors(run):
        new = not run.exists()
        run.mkdir(parents=True, exist_ok=True)
        # A record lock: unlike one of flock() it is not inherited by readers, which may outlive a process that was killed.
        descriptor = os.open(run / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            if sys.platform != "win32":
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            if cause.errno not in _NO_LOCKS:
                raise ConfigError(
                    f"another process is training in {run}: wait until it has ended, or name another folder with --out"
                ) from cause
        yield
    finally:
        with suppress(OSError):
            if new and os.listdir(run) == [_LOCK]:  # the run was refused: leave nothing behind
                shutil.rmtree(run)
        os.close(descriptor)


def check_run(config: Config, run: Path, *, resume: bool, more_epochs: bool = False) -> None:
    """
    Refuse a folder that holds anything but this run, and this run unless it is resumed. Raises `ConfigError`.

    Parameters
    ----------
    more_epochs : bool
        True where the user sets `train.epochs`: a finished run may get more epochs.
    """
    if str(run) != str(run).encode(errors="ignore").decode():
        shown = os.fsencode(run).decode(errors="backslashreplace")
        raise ConfigError(f"--out {shown} is not UTF-8, and the run's files must hold its path: use another name")
    with translate_os_errors(run):  # a name may be too long for any folder
        run.is_dir()
    check_writable(run)
    last = run / LAST
    if not (run / CONFIG).is_file() and not last.is_file():
        strange = (
            [path for path in run.iterdir() if path.name != _LOCK and not is_temp_file(path, CONFIG)] if run.is_dir() else []
        )
        if strange:
            raise ConfigError(f"{run} is not empty and is not a run: name another folder with --out")
        return
    if not resume:
        raise ConfigError(f"{run} holds a run already: continue it with --resume, or name another folder with --out")
    if last.is_file():  # its configuration, for anybody may have edited the file beside it
        from ddcat_train.checkpoints import BEST, read_description  # noqa: PLC0415 -- a new run is checked without torch

        try:
            begun = read_description(last)
        except CheckpointError as cause:
            kept = f" --set model.start_from={run / BEST}" if (run / BEST).is_file() else ""
            raise CheckpointError(f"{cause}. The run cannot be resumed: begin a new one with --out NEW_FOLDER{kept}") from cause
        _check_begun(config, begun, run, more_epochs)
        return
    differing = _differing(config, load_config(str(run / CONFIG)))
    if differing:
        raise ConfigError(
            f"{run} was begun with another configuration ({_shown(differing)}): resume it with "
            f"'ddcat train {run / CONFIG} --resume'"
        )


def _check_begun(config: Config, begun: "Description", run: Path, more_epochs: bool) -> None:
    differing = _differing(config, begun.config)
    if not differing:
        return
    fault = f"{run} was begun with another configuration ({_shown(differing)})"
    epochs = begun.config.train.epochs
    if set(differing) == {_EPOCHS} and more_epochs:
        if begun.step is None or begun.step != begun.steps:
            raise ConfigError(
                f"{fault} and is at step {begun.step} of {begun.steps}: a finished run can be given more epochs; continue this "
                f"one with its own {epochs} first"
            )
        if config.train.epochs > epochs:
            return
        raise ConfigError(f"{fault} and is finished with {epochs} epochs: --set {_EPOCHS} takes a larger number")
    back = ", ".join(f"{key} to {shortened(before)}" for key, (before, _) in list(differing.items())[:_MOST_SHOWN])
    more = f"; more epochs for a finished run: --resume --set {_EPOCHS}=N" if _EPOCHS in differing else ""
    pronoun = "it" if len(differing) == 1 else "them"
    raise ConfigError(f"{fault}: set {pronoun} back ({back}), or begin a new run with another --out{more}")


def _differing(config: Config, before: Config) -> dict[str, tuple[object, object]]:
    """Return the keys that must not differ and do, each with its values before and now."""
    differences = dict(_differences(before.model_dump(), config.model_dump()))
    return {key: differences[key] for key in sorted(differences.keys() - MAY_CHANGE)}


def _shown(differing: dict[str, tuple[object, object]]) -> str:
    keys = list(differing)
    rest = f" and {len(keys) - _MOST_SHOWN} others" if len(keys) > _MOST_SHOWN else ""
    return ", ".join(keys[:_MOST_SHOWN]) + rest + (" differs" if len(keys) == 1 else " differ")


def _differences(
    one: dict[str, object], other: dict[str, object], path: str = ""
) -> Iterator[tuple[str, tuple[object, object]]]:
    for key in one.keys() | other.keys():
        before, value = one.get(key), other.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            yield from _differences(before, value, f"{path}{key}.")
        elif value != before:
            yield f"{path}{key}", (before, value)
