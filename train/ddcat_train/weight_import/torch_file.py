"""Files of `torch.save`, of which only tensors are read."""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcat.error_text import first_line
from ddcat.hashing import sha256_of_file
from ddcat_train.errors import CheckpointError

__all__ = ["TorchFile", "read_torch_file"]

_HOLDERS = ("state_dict", "model")  # where a training script keeps the weights beside its epoch and its optimiser
_PARALLEL = "module."  # what DataParallel puts before every key
_REFUSED = re.compile(r"GLOBAL (\S+) (?:was not an allowed global|whose module \S+ is blocked)")  # torch has two texts
# Of a pickle that begins as one: torch.save writes protocol 2, and no other is read so.
_FOREIGN_PICKLE = re.compile(r"Weights only load failed.*(Unsupported operand|Can only|Trying to call)", re.DOTALL)
_AGAIN = "use a file of tensors alone, saved again by torch.save(checkpoint['state_dict'], FILE)"


@dataclass(frozen=True)
class TorchFile:
    """
    Content of a file of `torch.save`.

    Attributes
    ----------
    sha256 : str
        Of the file.
    tensors : dict of str to Tensor
        On the CPU, floats as float32; keys without `module.`.
    epoch : int or None
        As the file states it.
    """

    path: Path
    sha256: str
    tensors: dict[str, Tensor]
    epoch: int | None


def read_torch_file(path: Path) -> TorchFile:
    """
    Read the state dict of a file, bare or under `state_dict` or `model`.

    Raises
    ------
    CheckpointError
        Where it cannot be read, or would have to run code to be read: nothing but tensors and plain values is taken.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is {'a folder' if path.is_dir() else 'not there'}, expected a .pth file")
    content = _load(path)
    weights = content
    if isinstance(content, dict):
        weights = next((content[name] for name in _HOLDERS if isinstance(content.get(name), dict)), content)
    if not isinstance(weights, dict) or not weights:
        raise CheckpointError(f"{path} holds no weights, expected a dict of tensors, bare or as its state_dict")
    others = [str(key) for key, value in weights.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path} does not hold tensors alone: {', '.join(others[:5])} {'is' if len(others) == 1 else 'are'} something else"
        )
    tensors = {key.removeprefix(_PARALLEL): value for key, value in weights.items()}
    if len(tensors) < len(weights):
        raise CheckpointError(
            f"{path} holds keys with and without {_PARALLEL} that are the same otherwise, expected those of one network"
        )
    epoch = content.get("epoch") if weights is not content else None
    return TorchFile(
        path=path,
        sha256=sha256_of_file(path),
        tensors={key: value.float() if value.is_floating_point() else value for key, value in tensors.items()},
        epoch=epoch if isinstance(epoch, int) else None,
    )


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # if that one cannot be read, the error says so
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as cause:
        raise CheckpointError(f"cannot read {path}: {cause.strerror}") from cause
    except Exception as cause:  # a damaged or foreign file makes unpickling stumble over anything
        if refused := _REFUSED.search(str(cause)):
            name = refused[1] if "." in refused[1] else f"builtins.{refused[1]}"  # torch leaves that module out
            raise CheckpointError(
                f"{path} holds more than tensors ({name}), and reading it could run code: {_AGAIN}"
            ) from cause
        if _FOREIGN_PICKLE.search(str(cause)):
            raise CheckpointError(
                f"{path} is truncated or not a file of torch.save (no pickle that can be read without running code): {_AGAIN}"
            ) from cause
        # after "Weights only load failed." torch advises to run what is in the file
        line = first_line(cause).partition(" In PyTorch ")[0].rstrip(".")
        raise CheckpointError(f"{path} is truncated or not a file of torch.save ({line})") from cause
