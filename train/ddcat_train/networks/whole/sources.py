"""Where whole models come from: transformers, segmentation_models_pytorch, torchvision, an installed package."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddcat.error_text import first_line
from ddcat.extras import install
from ddcat_train.choices import SEGMENTER_GROUP
from ddcat_train.config import ModelConfig
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks.whole.mask_transformer import MaskTransformerSegmenter
from ddcat_train.networks.whole.weights import load_hugging_face, load_state

__all__ = ["builder"]

Build = Callable[[int], nn.Module]


def builder(model: ModelConfig, weights: Path | None, notes: list[str]) -> Build:
    """
    Return what makes the model of a configuration for a number of classes.

    Parameters
    ----------
    model : ModelConfig
        With `whole`.
    weights : Path, optional
        Folder or file of its initial weights.
    notes : list of str
        What is random in spite of them is added.

    Raises
    ------
    ConfigError
        Where an installed package was to bring the model, and does not. When called: where a library is missing, or refuses
        the settings.
    CheckpointError
        When called: where there are no weights, or none that fit.
    """
    assert model.whole is not None  # the configuration says so
    settings = model.settings or {}
    make: Callable[[int], nn.Module]
    if model.whole == "hf":
        return lambda classes: _guarded(model, lambda: load_hugging_face(settings, classes, weights, notes))
    if model.whole in ("smp", "torchvision"):
        library = _smp if model.whole == "smp" else _torchvision
        make = lambda classes: library(settings, classes)  # noqa: E731
    elif model.whole == "segmenter":
        make = lambda classes: MaskTransformerSegmenter(classes, **settings)  # noqa: E731
    else:
        package = _entry(model.whole)
        make = lambda classes: _checked(package(classes, **settings), str(model.whole))  # noqa: E731

    def build(classes: int) -> nn.Module:
        made = _guarded(model, lambda: make(classes))
        if weights is not None:
            load_state(made, weights, notes)
        return made

    return build


def _guarded(model: ModelConfig, make: Callable[[], nn.Module]) -> nn.Module:
    name = str(model.whole) if model.architecture == model.whole else f"{model.whole} {model.architecture}"
    with _explained(name):
        return make()


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn what a library raises into one line."""
    try:
        yield
    except (ConfigError, CheckpointError):
        raise
    except Exception as cause:  # libraries' exceptions share no base
        text = " ".join(str(part) for part in _causes(cause))
        if "torchvision::nms" in text or "torchvision.ops" in text:
            raise ConfigError(
                f"{name}: the installed torchvision does not fit torch {torch.__version__}: install that of the same index "
                "and release as torch"
            ) from cause
        for library, package in (("scipy", "scipy"), ("torchvision", "torchvision"), ("timm", "timm")):
            if isinstance(cause, ImportError) and library in text:
                raise ConfigError(f"{name} needs {package}: pip install {package}") from cause
        if isinstance(cause, ImportError):
            needed = {"hf": install("train,hf"), "smp": "pip install segmentation-models-pytorch"}.get(
                name.split(maxsplit=1)[0], "install it"
            )
            raise ConfigError(f"{name}: a library is missing ({first_line(cause)}): {needed}") from cause
        raise ConfigError(f"{name} cannot be built of these settings: {first_line(cause)}") from cause


def _causes(fault: BaseException | None) -> Iterator[BaseException]:
    while fault is not None:
        yield fault
        fault = fault.__cause__ or fault.__context__


def _smp(settings: Mapping[str, Any], classes: int) -> nn.Module:
    import segmentation_models_pytorch as smp  # noqa: PLC0415 -- not everybody has it

    options = {key: value for key, value in settings.items() if key not in ("classes", "encoder_weights", "aux_params")}
    model: nn.Module = smp.create_model(**options, encoder_weights=None, classes=classes)  # nothing is downloaded
    return model


def _torchvision(settings: Mapping[str, Any], classes: int) -> nn.Module:
    from torchvision.models import get_model  # noqa: PLC0415 -- not everybody has it

    options = {key: value for key, value in settings.items() if key not in ("name", "weights", "weights_backbone")}
    model: nn.Module = get_model(settings["name"], weights=None, weights_backbone=None, num_classes=classes, **options)
    return model


def _entry(name: str) -> Callable[..., Any]:
    entries = tuple(entry_points(group=SEGMENTER_GROUP, name=name))  # one or more: the configuration asked for them
    if len(entries) > 1:
        raise ConfigError(f"several packages bring the segmenter {name}: {', '.join(entry.value for entry in entries)}")
    (entry,) = entries
    try:
        build: Callable[..., Any] = entry.load()
    except (ImportError, AttributeError) as cause:
        raise ConfigError(f"the segmenter {name} is not at {entry.value}, as its package says: {cause}") from cause
    return build


def _checked(model: Any, name: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ConfigError(f"the segmenter {name}: expected a torch.nn.Module, got a {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise ConfigError(
            f"the segmenter {name} is compiled by TorchScript, which can be neither cut nor exported: use the module that it "
            "was made of"
        )
    return model
