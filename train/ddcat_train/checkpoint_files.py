"""Where checkpoints are: what can be said of them without torch."""

from pathlib import Path

from ddcat_train.errors import CheckpointError

__all__ = ["BEST", "LAST", "check_checkpoint", "find_checkpoint"]

BEST, LAST = "best.safetensors", "last.safetensors"


def find_checkpoint(source: Path) -> Path:
    """Give the checkpoint file of a run directory, its best one, or the last where none was judged; any other path as it is."""
    if not source.is_dir():
        return source
    found = [source / choice for choice in (BEST, LAST) if (source / choice).is_file()]
    if not found:
        if (source / "manifest.json").is_file():
            raise CheckpointError(f"{source} is a bundle, expected a run or a checkpoint: use the one that it was made from")
        raise CheckpointError(f"{source} holds no {BEST}: use a run directory that ddcat train wrote")
    return found[0]


def check_checkpoint(source: Path) -> None:
    """
    Refuse a path where no checkpoint is.

    Raises
    ------
    CheckpointError
    """
    path = find_checkpoint(source)
    if not path.exists():
        raise CheckpointError(f"no such checkpoint: {path}")
