"""A model of another library as a segmenter: cut at its last layers, which every branch has of its own."""

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
from ddcat_train.networks.normalise import Normalise
from ddcat_train.networks.segmenter import Segmenter
from ddcat_train.networks.whole.calls import logits_of
from ddcat_train.networks.whole.cut import Cut, UncutError, chain_of, find_cut, same_values

__all__ = [
    "Blueprint",
    "CutFeatures",
    "CutSegmenter",
    "Tap",
    "check_gradient",
    "check_same",
    "enlarged",
    "forget",
    "noise_of",
    "padded_planes",
    "padded_size",
    "replace",
    "sample_of",
    "sample_size",
]


class Blueprint(NamedTuple):
    """
    How a model is made, and what it asks of images.

    Attributes
    ----------
    build : callable
        Makes it for a number of classes, with its initial weights.
    mean, std : three floats
        Of its images in [0, 1].
    bgr : bool
        It takes blue, green, red, once normalised.
    multiple : int
        Of which height and width must be.
    largest : int, optional
        Pixels a side that it takes; None: any number.
    cut : str, optional
        See `find_cut`.
    """

    build: Callable[[int], nn.Module]
    mean: Sequence[float]
    std: Sequence[float]
    bgr: bool = False
    multiple: int = 1
    largest: int | None = None
    cut: str | None = None


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


class CutSegmenter(Segmenter):
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
        super().__init__()
        self.classes, self._blueprint = classes, blueprint._replace(build=forget)  # what built it is no part of it
        self.normalise = Normalise(blueprint.mean, blueprint.std)
        self.traced, self.largest = sample_size(blueprint, self.traced), blueprint.largest
        model = blueprint.build(classes)
        noise = noise_of(blueprint)
        self.cut: Cut = find_cut(model, noise, classes, blueprint.cut)
        with torch.no_grad(), eval_mode(model):
            expected = logits_of(model(noise.clone()))
        parts: dict[Head, nn.Module] = {"main": chain_of(model, self.cut.paths)}
        for name in heads:
            if name == "deep":
                raise ConfigError("a whole model has no head of deep supervision: use method.deep_weight 0")
            if name != "main":
                parts[name] = chain_of(blueprint.build(2 if name == "mask" else classes), self.cut.paths)
        for path in self.cut.paths[1:]:
            replace(model, path, Passing(model.get_submodule(path)))
        self._tap = Tap(model.get_submodule(self.cut.paths[0]))
        replace(model, self.cut.paths[0], self._tap)
        self.backbone = model
        self.heads = nn.ModuleDict({name: parts[name] for name in heads})
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

    def prepared(self, images: Tensor) -> Tensor:
        """Return what the model is given for images in [0, 1]: normalised and padded."""
        return padded_planes(images, self.normalise, self._blueprint)

    def features(self, images: Tensor) -> CutFeatures:
        """Run the model to its last layers; images (N, 3, H, W) in [0, 1], RGB."""
        return CutFeatures(*self._shared_part(self.prepared(images)), (images.shape[-2], images.shape[-1]))

    def low_resolution_logits(self, head: Head, features: CutFeatures) -> Tensor:
        """Apply one head; (N, K, h, w)."""
        logits: Tensor = self.heads[head](*features.given, **features.options)
        return logits

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits to the padded image, bilinear with the model's own corners, and cut the padding."""
        return enlarged(logits, size, self._blueprint, resizes=self.cut.resizes, corners=self.cut.corners)

    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters of the model up to its last layers."""
        return tuple(self.backbone.parameters())


def padded_planes(images: Tensor, normalise: Normalise, blueprint: Blueprint) -> Tensor:
    """Normalise images, and pad them with the mean at the right and at the bottom to a multiple."""
    height, width = images.shape[-2:]
    if blueprint.largest is not None and not torch.compiler.is_compiling() and max(height, width) > blueprint.largest:
        raise ConfigError(
            f"the model takes images up to {blueprint.largest} x {blueprint.largest}, got {height} x {width}: use "
            "augment.crop and data.long_side"
        )
    planes: Tensor = normalise(images)
    if blueprint.bgr:
        planes = planes[:, [2, 1, 0]]
    rows, columns = padded_size((height, width), blueprint)
    return planes if blueprint.multiple == 1 else F.pad(planes, (0, columns - width, 0, rows - height))


def padded_size(size: tuple[int, int], blueprint: Blueprint) -> tuple[int, int]:
    """Return the size to which images of a size are padded."""
    multiple = blueprint.multiple
    # not -(-side // multiple): exported for any size, that is rounded towards zero
    height, width = ((side + multiple - 1) // multiple * multiple for side in size)
    return height, width


def enlarged(logits: Tensor, size: tuple[int, int], blueprint: Blueprint, *, resizes: bool, corners: bool = False) -> Tensor:
    """Resize logits (N, K, h, w) to the padded image, and cut the padding: (N, K, H, W)."""
    if resizes:
        logits = F.interpolate(logits, size=padded_size(size, blueprint), mode="bilinear", align_corners=corners)
    return logits if blueprint.multiple == 1 else logits[..., : size[0], : size[1]]


def sample_size(
    blueprint: Blueprint, sizes: tuple[tuple[int, int], tuple[int, int]]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Make sizes large enough for a model whose layers have few places: no padded side is the multiple itself."""
    more = blueprint.multiple if blueprint.multiple > 32 and blueprint.largest is None else 0
    (a, b), (c, d) = sizes
    return (a + more, b + more), (c + more, d + more)


def sample_of(multiple: int) -> tuple[int, int]:
    """Return a size of images to try a model on: multiples of a number, and large enough for pooling at a high stride."""
    height, width = ((least + multiple - 1) // multiple * multiple for least in (128, 160))
    return height, width


def forget(classes: int) -> nn.Module:
    """Stand for `Blueprint.build` where it is not needed any more."""
    raise ValueError(f"the model of {classes} classes is built")


def check_same(logits: Tensor, again: Tensor) -> None:
    """Refuse a model that gives other logits the second time."""
    if not same_values(logits, again):
        raise ConfigError(
            "the model gives other logits each time: leave out what is random in eval(), such as F.dropout without "
            "training=self.training"
        )


def check_gradient(logits: Tensor, images: Tensor) -> None:
    """Refuse a model that gives its images no gradient."""
    if not _reaches(logits, images):
        raise ConfigError(
            "the model detaches its images, by torch.no_grad, detach or numpy, so no attack has a gradient: leave that out; "
            "layers that must not learn have requires_grad False"
        )


def _reaches(logits: Tensor, images: Tensor) -> bool:
    """Return True where the gradient of the logits reaches the images."""
    pending: list[Any] = [logits.grad_fn]
    seen: set[Any] = {None}
    while pending:
        step = pending.pop()
        if step not in seen:
            seen.add(step)
            if getattr(step, "variable", None) is images:
                return True
            pending += [before for before, _ in step.next_functions]
    return False


def noise_of(blueprint: Blueprint) -> Tensor:
    """Return images (1, 3, H, W) to try a model on."""
    size = sample_of(blueprint.multiple) if blueprint.largest is None else (blueprint.largest, blueprint.largest)
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


def replace(model: nn.Module, path: str, other: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, other)
