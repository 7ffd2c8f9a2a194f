"""What the segmenters of other libraries' models share: how images are prepared, and how logits come back to their size."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.errors import ConfigError
from ddcat_train.networks.normalise import Normalise
from ddcat_train.networks.segmenter import Segmenter
from ddcat_train.networks.whole.cut import same_values

__all__ = ["Blueprint", "WholeSegmenter", "check_gradient", "check_same", "replace", "sample_of"]


class Blueprint(NamedTuple):
    """
    How a model is made, and what it asks of images.

    Attributes
    ----------
    build : callable
        Makes it for a number of classes, with its initial weights.
    mean, std : a float for each band
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


class WholeSegmenter(Segmenter):
    """
    A model of another library between padded images and logits of their size.

    Parameters
    ----------
    blueprint : Blueprint
        What builds the model is not kept: a segmenter can be copied.

    Attributes
    ----------
    resizes : bool
        False where the logits are of the size of the images already.
    corners : bool
        The model resizes its logits with aligned corners.
    """

    resizes = True
    corners = False

    def __init__(self, blueprint: Blueprint, classes: int) -> None:
        super().__init__()
        self.classes, self.largest, self.bands = classes, blueprint.largest, len(blueprint.mean)
        self.normalise = Normalise(blueprint.mean, blueprint.std)
        self._multiple, self._bgr = blueprint.multiple, blueprint.bgr
        # A model whose layers have few places is traced on more: no padded side is the multiple itself.
        more = self._multiple if self._multiple > 32 and self.largest is None else 0
        (a, b), (c, d) = self.traced
        self.traced = (a + more, b + more), (c + more, d + more)

    def prepared(self, images: Tensor) -> Tensor:
        """Return what the model is given for images in [0, 1]: normalised, and padded with the mean at the right and bottom."""
        height, width = images.shape[-2:]
        if self.largest is not None and not torch.compiler.is_compiling() and max(height, width) > self.largest:
            raise ConfigError(
                f"the model takes images up to {self.largest} x {self.largest}, got {height} x {width}: use "
                "augment.crop and data.long_side"
            )
        planes: Tensor = self.normalise(images)
        if self._bgr:
            planes = planes[:, [2, 1, 0]]
        rows, columns = self._padded((height, width))
        return planes if self._multiple == 1 else F.pad(planes, (0, columns - width, 0, rows - height))

    def low_resolution_logits(self, head: Head, features: Any) -> Tensor:
        """Apply one head; (N, K, h, w)."""
        logits: Tensor = self.heads[head](*features.given, **features.options)
        return logits

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits to the padded image, bilinear with the model's own corners, and cut the padding."""
        if self.resizes:
            logits = F.interpolate(logits, size=self._padded(size), mode="bilinear", align_corners=self.corners)
        return logits if self._multiple == 1 else logits[..., : size[0], : size[1]]

    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters of the model without the layers that every branch has of its own."""
        return tuple(self.backbone.parameters())

    def _padded(self, size: tuple[int, int]) -> tuple[int, int]:
        multiple = self._multiple
        # not -(-side // multiple): exported for any size, that is rounded towards zero
        height, width = ((side + multiple - 1) // multiple * multiple for side in size)
        return height, width

    def _noise(self) -> Tensor:
        """Return images (1, C, H, W) to try the model on."""
        size = sample_of(self._multiple) if self.largest is None else (self.largest, self.largest)
        return torch.randn(1, self.bands, *size, generator=torch.Generator().manual_seed(0))

    def _branches(
        self, blueprint: Blueprint, main: nn.Module, heads: Sequence[Head], part: Callable[[nn.Module], nn.Module]
    ) -> nn.ModuleDict:
        """Return the main branch beside the same part of a further model for each other branch."""
        if "deep" in heads:
            raise ConfigError("a whole model has no head of deep supervision: use method.deep_weight 0")
        branches: dict[str, nn.Module] = {}
        for name in heads:
            branches[name] = main if name == "main" else part(blueprint.build(2 if name == "mask" else self.classes))
        return nn.ModuleDict(branches)


def sample_of(multiple: int) -> tuple[int, int]:
    """Return a size of images to try a model on: multiples of a number, and large enough for pooling at a high stride."""
    height, width = ((least + multiple - 1) // multiple * multiple for least in (128, 160))
    return height, width


def replace(model: nn.Module, path: str, other: nn.Module) -> None:
    """Put another module in the place of one."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, other)


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
