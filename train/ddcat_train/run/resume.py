"""The continuation of a run from its checkpoint: the checks that it is the same run, and the notes on what has changed."""

from collections.abc import Mapping

from ddcat_train.checkpoints import Checkpoint, Description, SplitEntry
from ddcat_train.config import Config
from ddcat_train.data import Dataset
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.optimizer import learning_rate
from ddcat_train.run.run_folder import MEASURES

__all__ = ["RANDOM", "changed_measures", "check_same_data", "note_more_epochs"]

RANDOM = "random."  # prefix of the random states in a checkpoint that a run resumes from


def check_same_data(checkpoint: Checkpoint, splits: Mapping[str, tuple[Dataset, SplitEntry]]) -> None:
    """
    Refuse a checkpoint that no run can continue from, or that has other images, classes or meanings of masks.
    Raises `CheckpointError` or `ConfigError`.

    Parameters
    ----------
    splits : mapping of str to (Dataset, SplitEntry)
        `train` and `val` as they are now.
    """
    saved = checkpoint.description
    if saved.step is None:
        raise ConfigError(f"{checkpoint.path} was imported and has no run to continue: name it as model.pretrained instead")
    if not checkpoint.part(RANDOM):
        raise CheckpointError(
            f"{checkpoint.path} holds only weights, and nothing to continue from: name it as model.pretrained of a new run"
        )
    for name, (split, now) in splits.items():
        entry = getattr(saved, name)
        if entry is not None and (now.images, now.list_sha256) != (entry.images, entry.list_sha256):
            raise ConfigError(
                f"the {name} split at {split.root} has changed: {now.images} images, whose list has SHA-256 "
                f"{now.list_sha256[:12]}, and {checkpoint.path} knows {entry.images}, {entry.list_sha256[:12]}: "
                "put the images back as they were, or begin a new run with another --out"
            )
    train, _ = splits["train"]
    if train.classes.names != saved.classes.names:
        raise ConfigError(
            f"the classes of {train.root} have changed: {', '.join(train.classes.names)} now, "
            f"{', '.join(saved.classes.names)} when {checkpoint.path} was written: put them back as they were, or "
            "begin a new run with another --out"
        )
    for name, (split, now) in splits.items():
        entry = getattr(saved, name)
        if entry is not None and entry.meaning_sha256 not in (None, now.meaning_sha256):
            raise ConfigError(
                f"the masks of {split.root} have other meanings than when {checkpoint.path} was written: put the values, "
                "ignore_label and colours of its classes.yaml back as they were, or begin a new run with another --out"
            )


def changed_measures(config: Config, saved: Description) -> list[str]:
    """Return the keys of the configuration that make scores incomparable with those before."""
    return [key for key in sorted(MEASURES) if _value(config, key) != _value(saved.config, key)]


def note_more_epochs(config: Config, saved: Description, *, step: int, steps: int) -> str:
    """Return the note for a finished run that continues with more epochs."""
    now = learning_rate(config.optim, step=step, steps=steps)
    last = learning_rate(saved.config.optim, step=step - 1, steps=step)
    return (
        f"train.epochs {saved.config.train.epochs} -> {config.train.epochs}: the learning rate rises from {last:.3g} to "
        f"{now:.3g}, its place in the longer run; the end is not that of a run begun with so many epochs"
    )


def _value(config: Config, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(config, section), name)
