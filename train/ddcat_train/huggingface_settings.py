"""
Settings of a backbone of Hugging Face transformers: plain values, as a configuration and a checkpoint hold them.

Apart from the network, so that a configuration is read without one.
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

__all__ = ["hf_configuration", "hf_settings"]

_OURS = {"out_features", "out_indices", "stage_names"}  # which stages are used follows from the output stride


def hf_settings(source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """
    Resolve the settings of a backbone: all of them, and only what plain JSON holds.

    Parameters
    ----------
    source : mapping, or path
        Settings by the names of transformers, `model_type` among them; others have their defaults. Or a `config.json`,
        or a folder that has one, whose other keys (a classifier's labels) are passed over.

    Raises
    ------
    ValueError
        Naming a setting that transformers does not know or accept.
    """
    settings = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    name = settings.get("model_type")
    if name not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        nearest = difflib.get_close_matches(str(name), MODEL_FOR_BACKBONE_MAPPING_NAMES, n=1, cutoff=0)[0]
        raise ValueError(f"model_type {name} is not a backbone of transformers: use convnextv2 or swin (nearest: {nearest})")
    known = _own_keys(AutoConfig.for_model(str(name)))
    if isinstance(source, Mapping):
        for key in sorted(map(str, settings.keys() - known - {"model_type"})):
            nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0)[0]
            raise ValueError(f"{name} has no setting {key}: the nearest is {nearest}")
    resolved = json.loads(
        hf_configuration({key: settings[key] for key in settings.keys() & known | {"model_type"}}).to_json_string(False)
    )
    return {"model_type": name, **{key: resolved[key] for key in sorted(known)}}


def _read(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as cause:
        raise ValueError(f"{file} cannot be read ({cause.strerror}): use a config.json of transformers") from cause
    except ValueError as cause:
        raise ValueError(f"{file} is not JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no table of settings")
    return content


def _own_keys(configuration: PreTrainedConfig) -> set[str]:
    """Return the names of the settings of a kind of network, without those of all models of transformers."""
    return set(configuration.to_dict()) - set(PreTrainedConfig().to_dict()) - _OURS


def hf_configuration(settings: Mapping[str, Any]) -> PreTrainedConfig:
    """
    Build transformers' own configuration from settings.

    Raises
    ------
    ValueError
        Where transformers refuses them.
    """
    try:
        return AutoConfig.for_model(**settings)
    except Exception as cause:  # its exceptions share no base
        raise ValueError(f"transformers does not take these settings: {' '.join(str(cause).split())}") from cause
