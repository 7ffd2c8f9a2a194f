"""Where a model is cut: its last layers, which every branch has of its own."""

import difflib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat.error_text import first_line
from ddcat_train.choices import SEGMENTER_GROUP
from ddcat_train.errors import ConfigError
from ddcat_train.memory import lacks_memory
from ddcat_train.networks.whole.calls import Call, are_probabilities, logits_of, observe

__all__ = [
    "BY_A_PACKAGE",
    "Chain",
    "Cut",
    "UncutError",
    "advice_on",
    "chain_of",
    "checked_logits",
    "find_cut",
    "same_values",
]

BY_A_PACKAGE = f"by an entry point of {SEGMENTER_GROUP}"
_OF_SIZES = (
    f"name by model.multiple of which size, in pixels, they must be, or wrap it in a module that takes them, {BY_A_PACKAGE}"
)
_OF_CHANNELS = (
    "let its settings fit each other and the bands of the data (num_channels of transformers, in_channels of smp), or if it "
    "takes other images, such as (N, H, W, 3), wrap it in a module that takes these, "
    f"{BY_A_PACKAGE}"
)

_TOLERANCE = 1e-4  # of the logits' standard deviation
_MOST_NAMED = 3


def advice_on(fault: str) -> str:
    """Return what to do about what a model says against images."""
    return _OF_CHANNELS if "channels" in fault else _OF_SIZES


class UncutError(ConfigError):
    """A model cannot be cut; methods without branches can train it as it is."""


class Cut(NamedTuple):
    """
    The last layers of a model.

    Attributes
    ----------
    paths : tuple of str
        Modules that are called one after the other; the first may be given several things, the last gives logits.
    resizes : bool
        False where the logits are of the size of the images already.
    corners : bool
        The model resizes its logits with aligned corners.
    """

    paths: tuple[str, ...]
    resizes: bool
    corners: bool

    def __str__(self) -> str:
        return "+".join(self.paths)


class Chain(nn.Sequential):
    """Layers one after the other, of which the first may be given several things."""

    def forward(self, *given: Any, **options: Any) -> Any:
        """Apply all layers."""
        first, *rest = self
        maps = first(*given, **options)
        for part in rest:
            maps = part(maps)
        return maps


def chain_of(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """Return the layers at these paths as one module."""
    parts = [model.get_submodule(path) for path in paths]
    return parts[0] if len(parts) == 1 else Chain(*parts)


def find_cut(model: nn.Module, images: Tensor, classes: int, wanted: str | None = None) -> Cut:
    """
    Find where to cut a model, and check that nothing but a resize follows.

    Parameters
    ----------
    model : nn.Module
        Maps images to logits (N, K, h, w), or to what holds them: see `logits_of`.
    images : (N, C, H, W) float
        Normalised, to try it on.
    wanted : str, optional
        Paths of modules, joined by "+". Default: the classifier and the layers that lead to it, back to one with weights.

    Raises
    ------
    ConfigError
        Where there is no such module, or something else follows it; with the cuts that would do.
    """
    name = type(model).__name__
    try:
        calls, output = observe(model, images)
    except Exception as cause:  # a library's exceptions share no base
        if lacks_memory(cause):
            raise
        shown = " x ".join(map(str, images.shape[2:]))
        raise ConfigError(
            f"{name} takes no images (N, {images.shape[1]}, H, W) of {shown}: {first_line(cause)}; {advice_on(str(cause))}"
        ) from cause
    logits = checked_logits(name, output, classes)
    size = (images.shape[-2], images.shape[-1])
    if wanted is None:
        found = next(_candidates(model, calls, logits, size), None)
        if found is None:
            raise UncutError(
                f"no layer of {name} gives its logits, or more than a resize follows it: name one by model.cut, or {_ADVICE}"
            )
        return found
    paths = tuple(wanted.split("+"))
    _check_paths(model, paths, calls, lambda: _others(model, calls, logits, size))
    cut = _fit(model, paths, calls, logits, size)
    if cut is None:
        raise ConfigError(
            f"model.cut {wanted}: these layers do not give the logits of {name}, or more than a resize follows them; "
            f"{_others(model, calls, logits, size)}"
        )
    return cut


def checked_logits(name: str, output: Any, classes: int) -> Tensor:
    """Return the logits (N, K, h, w) of what a model gives, or raise a ConfigError that says what it gives."""
    logits = logits_of(output)
    if logits is None:
        raise ConfigError(f"{name} gives {_form(output)}, expected logits (N, K, h, w): {_ADVICE}")
    if logits.shape[1] != classes and logits.shape[-1] == classes:
        raise ConfigError(f"{name} gives logits (N, h, w, K), expected (N, K, h, w): let it return logits.permute(0, 3, 1, 2)")
    if logits.shape[1] != classes:
        raise ConfigError(f"{name} gives logits of {logits.shape[1]} classes, expected {classes}: let it have as many classes")
    if logits.dtype != torch.float32:
        raise ConfigError(f"{name} gives logits in {logits.dtype}, expected torch.float32: call .float() on it")
    if are_probabilities(logits):
        raise ConfigError(f"{name} gives probabilities, expected logits: leave its softmax out")
    return logits


_ADVICE = f"wrap it in a module that returns them, {BY_A_PACKAGE}"


def _check_paths(model: nn.Module, paths: Sequence[str], calls: Sequence[Call], others: Any) -> None:
    modules, times = dict(model.named_modules()), Counter(call.path for call in calls)
    for path in paths:
        if path not in modules or not path:
            nearest = difflib.get_close_matches(path, [name for name in modules if name], n=1, cutoff=0)
            raise ConfigError(
                f"model.cut: {type(model).__name__} has no module {path}: the nearest is {''.join(nearest)}; {others()}"
            )
        if times[path] != 1:
            often = "does not call" if not times[path] else f"calls {times[path]} times"
            raise ConfigError(f"model.cut: {type(model).__name__} {often} {path}, expected once; {others()}")


def _others(model: nn.Module, calls: Sequence[Call], logits: Tensor, size: tuple[int, int]) -> str:
    names = []
    for cut in _candidates(model, calls, logits, size):
        names.append(str(cut))
        if len(names) == _MOST_NAMED:
            break
    return f"use {' or '.join(names)}" if names else f"none fits: {_ADVICE}"


def _candidates(model: nn.Module, calls: Sequence[Call], logits: Tensor, size: tuple[int, int]) -> Iterator[Cut]:
    """Yield cuts that fit, the best first: back from each layer that could be the classifier, and the modules that hold it."""
    often = Counter(call.path for call in calls)
    once = {call.path: call for call in calls if often[call.path] == 1}
    tried: set[tuple[str, ...]] = set()
    for paths in _proposals(model, once, logits.shape[1]):
        if paths not in tried:
            tried.add(paths)
            cut = _fit(model, paths, calls, logits, size)
            if cut is not None:
                yield cut


def _proposals(model: nn.Module, once: Mapping[str, Call], classes: int) -> Iterator[tuple[str, ...]]:
    calls = list(once.values())
    last = [call for call in reversed(calls) if _gives(call, classes) and _weights(model, call.path)]
    for call in last:
        if list(model.get_submodule(call.path).children()):
            continue
        alone, holders = _holders(model, call.path)
        for path in (call.path, *alone):
            if path in once:
                leading, hidden = _leading(model, once[path], calls)
                if hidden:
                    yield (*leading, *_trailing(model, once[path], calls))
        for path in holders:
            if path in once:
                yield _trailing(model, once[path], calls)
        yield _trailing(model, call, calls)
    for call in last:  # what ends in other operations than layers
        yield _trailing(model, call, calls)
    for call in calls:  # a classifier of other channels, of which a layer without weights makes classes, such as PixelShuffle
        if _gives(call, classes) and not _weights(model, call.path):
            classifier, found = _leading(model, call, calls)
            if found and classifier[0] in once:
                before, _ = _leading(model, once[classifier[0]], calls)
                rest = (*classifier, *_trailing(model, call, calls))
                yield (*before, *rest)
                yield rest


def _gives(call: Call, classes: int) -> bool:
    return isinstance(call.result, Tensor) and call.result.ndim == 4 and call.result.shape[1] == classes


def _weights(model: nn.Module, path: str) -> int:
    """Count the weights of layers, without biases and norms."""
    return sum(1 for parameter in model.get_submodule(path).parameters() if parameter.ndim > 1)


def _leading(model: nn.Module, call: Call, calls: Sequence[Call]) -> tuple[list[str], bool]:
    """Return the modules that lead to a call, back to the first with weights; and whether there is one."""
    paths: list[str] = []
    while len(call.given) == 1 and isinstance(call.given[0], Tensor):
        before = [other for other in calls if other.ended < call.began and other.result is call.given[0]]
        if not before:
            break
        call = before[-1]  # of those that hold each other, the innermost began last
        paths.insert(0, call.path)
        if _weights(model, call.path):
            return paths, True
    return paths, False


def _trailing(model: nn.Module, call: Call, calls: Sequence[Call]) -> tuple[str, ...]:
    """Return the classifier and the modules without weights that follow it, such as an upsampling."""
    paths = [call.path]
    for other in calls:
        follows = other.began > call.ended and len(other.given) == 1 and other.given[0] is call.result
        if follows and isinstance(other.result, Tensor):
            if _weights(model, other.path):
                break
            paths.append(other.path)
            call = other
    return tuple(paths)


def _holders(model: nn.Module, path: str) -> tuple[list[str], list[str]]:
    """Return the modules that hold a layer alone, and those that hold it beside others with weights, from the inside out."""
    inner = _weights(model, path)
    outer = list(accumulate(path.split(".")[:-1], lambda one, other: f"{one}.{other}"))[::-1]
    return [p for p in outer if _weights(model, p) == inner], [p for p in outer if _weights(model, p) > inner]


def _fit(model: nn.Module, paths: Sequence[str], calls: Sequence[Call], logits: Tensor, size: tuple[int, int]) -> Cut | None:
    """Return the cut if these layers give the model's logits up to a resize, else None."""
    by_path: dict[str, list[Call]] = {}
    for call in calls:
        by_path.setdefault(call.path, []).append(call)
    if any(len(by_path.get(path, ())) != 1 for path in paths):
        return None
    own = [by_path[path][0] for path in paths]
    for one, other in pairwise(own):
        if len(other.given) != 1 or not same_values(one.result, other.given[0]):
            return None
    low = own[-1].result
    if not isinstance(low, Tensor) or low.ndim != 4 or low.shape[1] != logits.shape[1] or not low.is_floating_point():
        return None
    if low.shape == logits.shape:
        resizes, corners = tuple(low.shape[2:]) != size, False
        return Cut(tuple(paths), resizes, corners) if same_values(low, logits) else None
    for corners in (False, True):
        if same_values(F.interpolate(low, size=tuple(logits.shape[2:]), mode="bilinear", align_corners=corners), logits):
            return Cut(tuple(paths), True, corners)
    return None


def same_values(one: Any, other: Any) -> bool:
    """Return True for tensors that are the same up to rounding."""
    if one is other:
        return True
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    one, other = one.detach(), other.detach()
    return bool((one - other).abs().max() <= _TOLERANCE * max(float(other.std()), 1e-30))


def _form(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    keys = f" with {', '.join(map(repr, output))}" if hasattr(output, "keys") else ""
    return f"a {type(output).__name__}{keys}"
