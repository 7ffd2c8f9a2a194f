"""A model of another library as a segmenter: cut at its last layers, which every branch has of its own, or as it is."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as tree

from ddcat.error_text import first_line
from ddcat_train.choices import Head
from ddcat_train.errors import ConfigError
from ddcat_train.memory import lacks_memory
from ddcat_train.networks.eval_mode import eval_mode
from ddcat_train.networks.whole.base import Blueprint, WholeSegmenter, check_gradient, check_same, replace
from ddcat_train.networks.whole.calls import logits_of
from ddcat_train.networks.whole.cut import Cut, UncutError, chain_of, checked_logits, find_cut, same_values

__all__ = ["CutFeatures", "CutSegmenter", "Tap", "UncutSegmenter"]


class CutFeatures(NamedTuple):
    """What all branches share: what the model gives its last layers."""

    given: tuple[Any, ...]
    options: Mapping[str, Any]
    size: tuple[int, int]  # of the image

    def first(self, count: int) -> "CutFeatures":
        """Keep the first images of the batch."""
        given, options = tree.tree_map_only(Tensor, lambda values: values[:count], (self.given, dict(self.options)))
        return CutFeatures(given, options, self.size)


class _ReachedError(Exception):
    """The last layers are reached: nothing behind them is needed."""


class _StandIn(nn.Module):
    """Stands in the place of a layer, and has its attributes for code that asks for them, such as a stride."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self._state: dict[str, Any] = {"layer": layer}  # which is registered elsewhere

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            layer = self.__dict__.get("_state", {}).get("layer")
            if layer is None or name.startswith("__"):
                raise
            return getattr(layer, name)


class Passing(_StandIn):
    """Gives what it is given."""

    def forward(self, maps: Any) -> Any:
        """Return what is given."""
        return maps


class Tap(_StandIn):
    """Keeps what the layer in whose place it is would be given."""

    def arm(self, answer: Callable[..., Any] | None) -> None:
        """Prepare for a pass: `answer` gives results in the place of the layer; with None the pass ends there."""
        self._state.update(kept=None, answer=answer)

    def taken(self) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Return what the latest call was given, and forget it."""
        kept = self._state.get("kept")
        self._state.update(kept=None, answer=None)
        if kept is None:
            raise ConfigError("the model did not call the layers at which it is cut")
        given: tuple[tuple[Any, ...], Mapping[str, Any]] = kept
        return given

    def forward(self, *given: Any, **options: Any) -> Any:
        """Keep what is given."""
        self._state["kept"] = given, options
        answer = self._state.get("answer")
        if answer is None:
            raise _ReachedError
        return answer(*given, **options)


class CutSegmenter(WholeSegmenter):
    """
    A model that gives maps of logits, cut at its last layers.

    What comes before them is shared; the main branch is the model's own last layers, and the auxiliary and the mask branch are
    those of further models of the same blueprint.

    Parameters
    ----------
    heads : sequence of Head
        "main" among them; a model of another library has no head of deep supervision.

    Attributes
    ----------
    cut : Cut

    Raises
    ------
    ConfigError
        Where the model cannot be cut there.
    """

    def __init__(self, blueprint: Blueprint, *, classes: int, heads: Sequence[Head]) -> None:
        super().__init__(blueprint, classes)
        model = blueprint.build(classes)
        noise = self._noise()
        self.cut: Cut = find_cut(model, noise, classes, blueprint.cut)
        self.resizes, self.corners = self.cut.resizes, self.cut.corners
        with torch.no_grad(), eval_mode(model):
            expected = logits_of(model(noise.clone()))
        main = chain_of(model, self.cut.paths)
        branches = self._branches(blueprint, main, heads, lambda other: chain_of(other, self.cut.paths))
        for path in self.cut.paths[1:]:
            replace(model, path, Passing(model.get_submodule(path)))
        self._tap = Tap(model.get_submodule(self.cut.paths[0]))
        replace(model, self.cut.paths[0], self._tap)
        self.backbone, self.heads = model, branches
        self._check_cut(noise, expected)

    def _check_cut(self, planes: Tensor, expected: Tensor | None) -> None:
        """Refuse a cut behind which the model is another one: what is seen of layers is not all that a model computes."""
        leaf = planes.clone().requires_grad_()
        logits, again = (self._whole(leaf * 1, expected) for _ in range(2))
        check_same(logits, again)
        if not same_values(logits, expected):
            raise UncutError(f"the model is another one when it is cut at {self.cut}: name other layers by model.cut")
        check_gradient(logits, leaf)

    def _whole(self, planes: Tensor, expected: Tensor | None) -> Tensor:
        """Return the logits of the cut model, of the size of what is expected."""
        with torch.enable_grad(), eval_mode(self):
            given, options = self._shared_part(planes)
            logits: Tensor = self.heads["main"](*given, **options)
            if expected is not None and logits.shape != expected.shape:
                size = (expected.shape[-2], expected.shape[-1])
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=self.cut.corners)
        return logits

    def _shared_part(self, planes: Tensor) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        # An exception is the cheapest way out, but an exporter must see every module return; it drops what is not used.
        self._tap.arm(self.heads["main"] if torch.compiler.is_compiling() else None)
        try:
            with suppress(_ReachedError):
                self.backbone(planes)
        except (ValueError, RuntimeError) as cause:
            if torch.compiler.is_compiling() or lacks_memory(cause):
                raise
            size = " x ".join(map(str, planes.shape[2:]))
            raise ConfigError(
                f"the model fails on images of {size}: {first_line(cause)}; use images of another size, or model.multiple"
            ) from cause
        return self._tap.taken()

    def features(self, images: Tensor) -> CutFeatures:
        """Run the model to its last layers; images (N, 3, H, W) in [0, 1], RGB."""
        return CutFeatures(*self._shared_part(self.prepared(images)), (images.shape[-2], images.shape[-1]))


class UncutSegmenter(WholeSegmenter):
    """
    A model that gives maps of logits, and has no layers that branches could have of their own.

    Raises
    ------
    ConfigError
        Where it gives other things than logits.
    """

    def __init__(self, blueprint: Blueprint, *, classes: int) -> None:
        super().__init__(blueprint, classes)
        self.backbone = model = blueprint.build(classes)
        self.heads = nn.ModuleDict({"main": nn.Identity()})
        noise = self._noise().requires_grad_()
        with torch.enable_grad(), eval_mode(model):
            logits, again = (checked_logits(type(model).__name__, model(noise * 1), classes) for _ in range(2))
        check_same(logits, again)
        check_gradient(logits, noise)
        self.resizes = logits.shape[2:] != noise.shape[2:]

    def features(self, images: Tensor) -> CutFeatures:
        """Run the model; images (N, 3, H, W) in [0, 1], RGB."""
        return CutFeatures((logits_of(self.backbone(self.prepared(images))),), {}, (images.shape[-2], images.shape[-1]))
