"""Initial weights of a whole model, from a folder that was downloaded or a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddcat_train.errors import CheckpointError
from ddcat_train.networks.pretrained import summarise
from ddcat_train.whole_settings import hf_configuration

__all__ = ["load_hugging_face", "load_state"]

_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def load_hugging_face(settings: Mapping[str, Any], classes: int, weights: Path | None, notes: list[str]) -> nn.Module:
    """
    Build a segmentation model of transformers. Raises `CheckpointError`.

    Parameters
    ----------
    settings : mapping
        From `ddcat_train.whole_settings`.
    weights : Path, optional
        Folder of its weights; None: random ones.
    notes : list of str
        What is random in spite of them is added.
    """
    from transformers import (  # noqa: PLC0415 -- its classes are loaded by name, and some need further libraries
        AutoModelForSemanticSegmentation,
        AutoModelForUniversalSegmentation,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES  # noqa: PLC0415

    from ddcat_train.networks.huggingface import quiet  # noqa: PLC0415 -- as above

    semantic = settings["model_type"] in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES
    kind: Any = AutoModelForSemanticSegmentation if semantic else AutoModelForUniversalSegmentation
    configuration = hf_configuration({**settings, "num_labels": classes})
    model: nn.Module
    if weights is None:
        model = kind.from_config(configuration)
        return model
    if not any((weights / name).is_file() for name in _FILES):
        raise CheckpointError(
            f"{weights} holds no weights ({_FILES[0]} or {_FILES[2]}): download them ('hf download NAME --local-dir "
            f"{weights}'), or leave model.weights out for random ones"
        )
    with quiet():
        model, report = kind.from_pretrained(
            str(weights), config=configuration, dtype=torch.float32, ignore_mismatched_sizes=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    if report["error_msgs"]:
        raise CheckpointError(f"transformers does not take the weights of {weights}: {summarise(report['error_msgs'])}")
    other = [str(key) for key, *_ in report["mismatched_keys"]]
    _tell(weights, model, [*map(str, report["missing_keys"])], other, notes)
    return model


def load_state(model: nn.Module, weights: Path, notes: list[str]) -> None:
    """
    Load a model's own weights.

    Parameters
    ----------
    weights : Path
        A safetensors file, a file of `torch.save` with a state_dict, or a folder with `model.safetensors`.
    notes : list of str
        What the file lacks, or has for other classes, is added: it stays random.

    Raises
    ------
    CheckpointError
        Where there are none, or another model's.
    """
    file = weights / _FILES[0] if weights.is_dir() else weights
    if not file.is_file():
        raise CheckpointError(f"{weights} holds no weights: use a safetensors file, or leave model.weights out for random ones")
    own = model.state_dict()
    found = _read(file)
    surplus = [key for key in found if key not in own]
    other = [key for key in found if key in own and found[key].shape != own[key].shape]
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    if len(surplus) * 2 > len(found):
        raise CheckpointError(f"{file} is of another model: it has {summarise(surplus)}, and not {summarise(missing)}")
    _tell(weights, model, missing, other, notes)
    model.load_state_dict({**own, **{key: value for key, value in found.items() if key in own and key not in other}})


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError) as cause:
        raise CheckpointError(f"{file} cannot be read: {' '.join(str(cause).split())[:300]}") from cause
    except Exception as cause:  # pickle's: what is no tensor is refused
        raise CheckpointError(f"{file} holds more than tensors, and is not read: save its state_dict alone") from cause
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{file} holds no state_dict: use torch.save(model.state_dict(), FILE)")
    return content


def _tell(weights: Path, model: nn.Module, missing: Sequence[str], other: Sequence[str], notes: list[str]) -> None:
    random = [*missing, *other]
    if len(random) == len(model.state_dict()):
        raise CheckpointError(f"{weights} is of another model: nothing of it fits a {type(model).__name__}")
    if not random:
        return
    why = "of other classes" if not missing else "missing" if not other else "missing or of other classes"
    note = f"{weights}: {len(random)} tensors are {why} there and begin random: {summarise(random)}"
    if note not in notes:
        notes.append(note)
