"""
Settings of a whole model of another library: plain values, as a configuration and a checkpoint hold them.

Apart from the network, so that a configuration is read without one.
"""

import difflib
import json
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddcat_train.choices import SEGMENTER_GROUP

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

__all__ = ["NAMED_BY", "check_known", "hf_configuration", "read_settings", "resolved_settings"]

NAMED_BY = {"hf": "model_type", "smp": "arch", "torchvision": "name"}  # the setting that says which model it is

# Of transformers' models: what says nothing of the network, and what follows from the classes of the data
_NOT_SETTINGS = {
    "_name_or_path", "architectures", "dtype", "torch_dtype", "id2label", "label2id", "num_labels", "problem_type",
    "transformers_version", "auto_map", "output_attentions", "output_hidden_states", "return_dict", "use_cache",
    "chunk_size_feed_forward", "is_encoder_decoder",
}  # fmt: skip
_FOLLOWING = {"stage_names", "out_indices"}  # of out_features


def resolved_settings(kind: str, source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """
    Resolve the settings of a whole model: all of them, and only what plain JSON holds.

    Parameters
    ----------
    kind : str
        hf, smp, torchvision, or the name of an entry point.
    source : mapping, or path
        Settings by the names of the library, `NAMED_BY` among them. Or the folder of a downloaded model, or its `config.json`.

    Returns
    -------
    dict
        `settings`; and of a folder with a `preprocessor_config.json` also `mean`, `std` and `channels`.

    Raises
    ------
    ValueError
        Naming a setting that the library does not know or accept.
    ImportError
        Where transformers is needed and not installed.
    """
    found: dict[str, Any] = {}
    if isinstance(source, Mapping):
        settings = dict(source)
    else:
        folder = Path(source)
        settings = read_settings(folder)
        if kind == "smp":
            settings = _of_smp(settings, folder)
        found = _preprocessing((folder if folder.is_dir() else folder.parent) / "preprocessor_config.json")
    name = NAMED_BY.get(kind)
    if name is not None and not isinstance(settings.get(name), str):
        raise ValueError(f"model.settings does not say which model of {kind} it is: use its key {name}")
    if kind == "hf":
        settings = _of_transformers(settings, strict=isinstance(source, Mapping))
    return {"settings": settings, **found}


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a file, or of the `config.json` of a folder; what is wrong with them is a ValueError."""
    path = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as cause:
        raise ValueError(
            f"{path} cannot be read ({cause.strerror}): use the folder of a downloaded model, or a table"
        ) from cause
    except ValueError as cause:
        raise ValueError(f"{path} is not JSON: {cause}") from cause
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no table of settings")
    return content


def check_known(name: str, settings: Mapping[str, Any], known: Set[str]) -> None:
    """Refuse a setting that a model does not have by a ValueError."""
    for key in sorted(set(map(str, settings)) - known):
        nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0)[0]
        raise ValueError(f"{name} has no setting {key}: the nearest is {nearest}")


def hf_configuration(settings: Mapping[str, Any]) -> "PreTrainedConfig":
    """
    Build transformers' own configuration from settings.

    Raises
    ------
    ValueError
        Where transformers refuses them.
    """
    from transformers import AutoConfig  # noqa: PLC0415 -- heavy, and not everybody has it

    try:
        return AutoConfig.for_model(**settings)
    except Exception as cause:  # its exceptions share no base
        raise ValueError(f"transformers does not take these settings: {' '.join(str(cause).split())}") from cause


def _of_smp(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    if not isinstance(settings.get("_model_class"), str):
        raise ValueError(f"{folder} is not a model that segmentation_models_pytorch saved: its config.json has no _model_class")
    kept = {
        key: value for key, value in settings.items() if not key.startswith("_") and key not in ("classes", "encoder_weights")
    }
    return {"arch": settings["_model_class"], **kept}


def _of_transformers(settings: Mapping[str, Any], *, strict: bool) -> dict[str, Any]:
    from transformers.models.auto.modeling_auto import (  # noqa: PLC0415 -- heavy, and not everybody has it
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
        MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES,
    )

    name = settings["model_type"]
    known_models = [*MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, *MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES]
    if name not in known_models:
        raise ValueError(_no_segmenter(name, known_models))
    if strict:
        check_known(name, settings, set(hf_configuration({"model_type": name}).to_dict()))
    own = {key: value for key, value in settings.items() if key not in _NOT_SETTINGS}
    resolved: dict[str, Any] = json.loads(hf_configuration(own).to_json_string(False))
    return _stripped(resolved)


def _no_segmenter(name: str, known: Sequence[str]) -> str:
    """Say why a model of transformers is none for segmentation, and what to use."""
    from transformers import CONFIG_MAPPING  # noqa: PLC0415 -- as above
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES  # noqa: PLC0415 -- as above

    if name not in CONFIG_MAPPING:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
        return f"transformers has no model_type {name}: the nearest of its segmentation models is {nearest}"
    if name in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        return (
            f"model_type {name} is a backbone, expected a segmentation model: use model.backbone hf, or model_type upernet "
            "with it as backbone_config"
        )
    return (
        f"transformers has no {name} that maps images alone to classes of pixels: use a model that does, such as segformer or "
        f"upernet, or a module of your own around it, by an entry point of {SEGMENTER_GROUP}"
    )


def _stripped(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what are no settings, in the configuration of a backbone inside, too."""
    needless = _NOT_SETTINGS | (_FOLLOWING if settings.get("out_features") else set())
    return {
        key: _stripped(value) if isinstance(value, dict) and "model_type" in value else value
        for key, value in sorted(settings.items())
        if key not in needless
    }


def _preprocessing(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    settings = read_settings(path)
    found: dict[str, Any] = {}
    factor = settings.get("rescale_factor")
    if isinstance(factor, float) and settings.get("do_rescale", True) and not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise ValueError(f"{path} multiplies images by {factor:g}, expected 1/255: name model.mean and model.std yourself")
    if settings.get("do_normalize") is False or (settings.get("image_mean") is None and "do_normalize" not in settings):
        found |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    elif settings.get("image_mean") and settings.get("image_std"):
        found |= {"mean": settings["image_mean"], "std": settings["image_std"]}
    if settings.get("do_flip_channel_order"):
        found["channels"] = "BGR"
    return found
