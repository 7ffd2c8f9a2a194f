"""Whole models of other libraries as segmenters."""

from collections.abc import Iterator, Sequence
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ddcat.error_text import first_line
from ddcat_train.choices import Head
from ddcat_train.config import ModelConfig
from ddcat_train.errors import ConfigError
from ddcat_train.networks.eval_mode import eval_mode
from ddcat_train.networks.segmenter import Segmenter
from ddcat_train.networks.whole.base import Blueprint, sample_of
from ddcat_train.networks.whole.cut import BY_A_PACKAGE, UncutError, advice_on
from ddcat_train.networks.whole.families import FAMILIES, QUERIES, Family
from ddcat_train.networks.whole.queries import QuerySegmenter
from ddcat_train.networks.whole.segmenter import CutSegmenter, UncutSegmenter
from ddcat_train.networks.whole.sources import builder
from ddcat_train.whole_settings import NAMED_BY

__all__ = ["Blueprint", "CutSegmenter", "QuerySegmenter", "UncutSegmenter", "build_whole"]

_MULTIPLES = (32, 64, 128)  # tried in turn where the family is not known
_ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
_FIXED = ("image_size", "img_size", "input_size")  # settings that may be the only size of its images


def build_whole(
    model: ModelConfig, *, classes: int, heads: Sequence[Head], weights: Path | None = None, notes: list[str] | None = None
) -> Segmenter:
    """
    Build a whole model of another library, and cut it. Raises `ConfigError` or `CheckpointError`.

    Parameters
    ----------
    model : ModelConfig
        With `whole`.
    weights : Path, optional
        Folder or file of its initial weights; None: random ones.
    notes : list of str, optional
        Where it is cut, and what is random, is added.
    """
    notes = [] if notes is None else notes
    settings = model.settings or {}
    key = (str(model.whole), str(settings.get(NAMED_BY.get(str(model.whole), ""), "")).lower())
    family = FAMILIES.get(key, Family())
    build = builder(model, weights, notes)
    first = [build(classes)]
    multiple, largest = _sizes(model, family, first[0])
    blueprint = Blueprint(
        lambda number: first.pop() if first and number == classes else build(number),
        mean=model.mean or family.mean,
        std=model.std or family.std,
        bgr=model.channels == "BGR" if model.channels is not None or model.mean is not None else family.bgr,
        multiple=multiple,
        largest=largest,
        cut=model.cut or family.cut,
    )
    if key in QUERIES:
        if model.cut is not None:
            raise ConfigError(f"model.cut: the layers of a {key[1]} that make classes and masks are known: leave it out")
        return QuerySegmenter(blueprint, QUERIES[key], classes=classes, heads=heads)
    sizes = f"multiples of {multiple}" if largest is None else f"{largest} x {largest}, the only size that it takes"
    segmenter: Segmenter
    try:
        segmenter = cut = CutSegmenter(blueprint, classes=classes, heads=heads)
        branches = f"each branch has {cut.cut} of its own"
    except UncutError as fault:
        if model.cut is not None:
            raise
        if [*heads] != ["main"]:
            raise ConfigError(f"{fault}; a method without branches, such as pgd-at, trains it as it is") from fault
        segmenter, branches = UncutSegmenter(blueprint, classes=classes), "it is not cut"
    notes.append(f"{model.architecture}: {branches}; images are padded to {sizes}")
    return segmenter


def _sizes(model: ModelConfig, family: Family, network: nn.Module) -> tuple[int, int | None]:
    """Return the multiple of images' sides, and their largest size or None for any."""
    if model.multiple is not None:
        fixed = (
            model.multiple > max(_MULTIPLES) and _fault(network, (model.multiple, 2 * model.multiple), model.bands) is not None
        )
        return model.multiple, model.multiple if fixed else None
    faults: list[tuple[int, int, str]] = []
    for multiple in _multiples(model, family, network):
        fault = _fault(network, sample_of(multiple), model.bands)
        if fault is None:
            return multiple, None
        faults.append((*sample_of(multiple), fault))
    stated: list[tuple[int, int, str]] = []
    setting = family.multiple if isinstance(family.multiple, str) else None
    for side in dict.fromkeys(_stated_sides(model, network, setting)):
        fault = _fault(network, (side, side), model.bands)
        if fault is None:
            return side, side
        stated.append((side, side, fault))
    asked = _asked(network)
    if asked:
        raise ConfigError(
            f"{model.architecture} asks for {', '.join(asked)} besides images: wrap it in a module that takes images alone, "
            f"{BY_A_PACKAGE}"
        )
    height, width, fault = [*stated, *faults, (*sample_of(_MULTIPLES[0]), "no setting says their size")][0]
    raise ConfigError(
        f"{model.architecture} takes no images (N, {model.bands}, H, W) of {height} x {width}: {fault}; {advice_on(fault)}"
    )


def _multiples(model: ModelConfig, family: Family, network: nn.Module) -> Sequence[int]:
    """Return multiples that the sides of images of any size may have to be of."""
    patch = _patch(model)
    if isinstance(family.multiple, int):  # what is over beside whole patches would be left out
        return (patch if patch is not None and family.multiple % patch else family.multiple,)
    if family.multiple is not None:  # a backbone inside may take other sizes than the one that is stated
        return () if patch is None else (patch,)
    stride = getattr(getattr(network, "encoder", None), "output_stride", None)  # as smp's check of sizes asks
    return (stride,) if isinstance(stride, int) else _MULTIPLES


def _asked(network: nn.Module) -> list[str]:
    """Return the arguments without a default that a model asks for besides images."""
    others = [*signature(network.forward).parameters.values()][1:]
    return [given.name for given in others if given.default is given.empty and given.kind not in _ANY_NUMBER]


def _patch(model: ModelConfig) -> int | None:
    """Return the pixels a side of a patch of the backbone inside, if there is one that has patches."""
    patch: Any = ((model.settings or {}).get("backbone_config") or {}).get("patch_size")
    return patch if isinstance(patch, int) else None


def _stated_sides(model: ModelConfig, network: nn.Module, setting: str | None) -> Iterator[int]:
    """Yield sides of images that settings or layers state."""
    names = (*((setting,) if setting else ()), *_FIXED)
    stated: Any = getattr(network, "config", None) or {}
    settings = model.settings or {}
    stated = stated if isinstance(stated, dict) else vars(stated)
    places = [settings.get("backbone_config") or {}, settings, stated, *map(vars, network.modules())]
    patch = _patch(model) or 1
    for place in places:
        for name in names:
            side = place.get(name)
            side = side[0] if isinstance(side, list | tuple) and len(set(side)) == 1 else side
            if isinstance(side, int):
                yield (side + patch - 1) // patch * patch


def _fault(network: nn.Module, size: tuple[int, int], bands: int) -> str | None:
    """Return what a model says against images of a size; None: it takes them."""
    try:
        with torch.no_grad(), eval_mode(network):
            network(torch.zeros(1, bands, *size))
    except Exception as cause:  # a library's exceptions share no base
        return first_line(cause)
    return None
