"""Paths of checkpoints; needs no torch."""

from pathlib import Path

from ddcat_train.errors import CheckpointError

__all__ = ["BEST", "LAST", "check_checkpoint", "find_checkpoint"]

BEST, LAST = "best.safetensors", "last.safetensors"


def find_checkpoint(source: Path) -> Path:
    """Return the checkpoint file of a run directory, the best or, without one, the last; any other path as it is."""
    if not source.is_dir():
        return source
    files = [source / choice for choice in (BEST, LAST) if (source / choice).is_file()]
    if not files:
        if (source / "manifest.json").is_file():
            raise CheckpointError(f"{source} is a bundle, expected a run or a checkpoint: use the one that it was made from")
        raise CheckpointError(f"{source} holds no {BEST}: use a run directory that ddcat train wrote")
    return files[0]


def check_checkpoint(source: Path) -> None:
    """Raise a `CheckpointError` where a path holds no checkpoint."""
    path = find_checkpoint(source)
    if not path.exists():
        raise CheckpointError(f"no such checkpoint: {path}")
