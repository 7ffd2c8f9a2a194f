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

from ddcat_train.whole_settings import check_known, hf_configuration, read_settings

__all__ = ["hf_settings"]

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
    settings = dict(source) if isinstance(source, Mapping) else read_settings(Path(source))
    name = settings.get("model_type")
    if name not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        nearest = difflib.get_close_matches(str(name), MODEL_FOR_BACKBONE_MAPPING_NAMES, n=1, cutoff=0)[0]
        raise ValueError(f"model_type {name} is not a backbone of transformers: use convnextv2 or swin (nearest: {nearest})")
    known = _own_keys(AutoConfig.for_model(str(name)))
    if isinstance(source, Mapping):
        check_known(str(name), settings, known | {"model_type"})
    resolved = json.loads(
        hf_configuration({key: settings[key] for key in settings.keys() & known | {"model_type"}}).to_json_string(False)
    )
    return {"model_type": name, **{key: resolved[key] for key in sorted(known)}}


def _own_keys(configuration: PreTrainedConfig) -> set[str]:
    """Return the names of the settings of a kind of network, without those of all models of transformers."""
    return set(configuration.to_dict()) - set(PreTrainedConfig().to_dict()) - _OURS
