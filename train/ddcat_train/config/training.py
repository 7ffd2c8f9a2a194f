"""The sections of a configuration that say how a network is trained, and on what."""

import math
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from ddcat.bands import Bands
from ddcat.preprocess import FileRule, Kernel, Orientation, Resize
from ddcat.schema import current_method
from ddcat_train.choices import (
    AugmentationName,
    CorruptionName,
    DatasetName,
    MaskSource,
    MethodName,
    OptimiserName,
    Split,
    Start,
    UpdateRule,
)
from ddcat_train.config.values import FilePath, Fraction, Section, Size, fraction

__all__ = ["AttackConfig", "AugmentConfig", "DataConfig", "MethodConfig", "OptimConfig", "TrainConfig"]

_LONGEST = 32_766  # pixels of a side that OpenCV takes everywhere


def _in_unit(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        meant = f"; did you mean {value:g}/255?" if 1 < value <= 255 else ""
        raise ValueError(f"expected {name} in [0, 1], as the values of an image are, got {value:g}{meant}")
    return value


def _epsilon(value: float) -> float:
    return _in_unit("a bound", value)


def _alpha(value: Any) -> Any:
    number = fraction(value)
    if number == "eps/n":
        return number
    try:
        number = float(number)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError("expected a step in [0, 1], such as 0.01 or 2/255, or eps/n")
    return _in_unit("a step", number)


class DataConfig(Section):
    """The data set."""

    name: DatasetName = Field(description="layout of the data set")
    root: FilePath = Field(description="folder of the data set")
    train_split: str = Field("train", description="split to train on")
    val_split: str = Field("val", description="split to evaluate on")
    long_side: int | None = Field(None, ge=33, description="longer side to which every image is resized; None: no resizing")
    val_long_side: int | None = Field(None, ge=33, description="the same, in evaluations; None: long_side")
    kernel: Kernel = Field(
        "area", description="how they are resized: area and linear by OpenCV, antialias by Pillow ([more](manifest.md))"
    )
    orientation: Orientation = Field(
        "stored", description="stored: pixels as the files have them; exif: turned as EXIF says, as the masks were drawn"
    )
    values: tuple[int, int] | None = Field(
        None,
        description="for files of 16 bits a channel: the values that become 0 and 255, as [0, 4095]; None: files of 8 bits",
    )
    bands: Bands | None = Field(
        None,
        description="for images of other bands, also in TIFF files: their number, or those to read, counted from 1, as "
        "[4, 3, 2]; None: red, green and blue; for the layout folder",
    )
    skip_corrupt: bool = Field(False, description="replace images with missing or damaged files in training, and count them")

    @property
    def eval_long_side(self) -> int | None:
        """Longer side to which images of evaluations are resized; None: no resizing."""
        return self.long_side if self.val_long_side is None else self.val_long_side

    def rule(self, *, evaluation: bool = False) -> FileRule:
        """Return how images are read: in training, or in evaluations and by the engines that are made of it."""
        to = self.eval_long_side if evaluation else self.long_side
        resize = None if to is None else Resize(to=to, kernel=self.kernel)
        return FileRule(orientation=self.orientation, values=self.values, bands=self.bands, resize=resize)

    @model_validator(mode="after")
    def _bands_of_a_folder(self) -> Self:
        if self.bands is not None and self.name != "folder":
            raise ValueError(f"data.bands is for the layout folder, not for {self.name}: leave it out")
        return self

    @field_validator("values")
    @classmethod
    def _check_values(cls, values: tuple[int, int] | None) -> tuple[int, int] | None:
        if values is not None and not 0 <= values[0] < values[1] <= 2**16 - 1:
            raise ValueError(f"expected two values of 16 bits, the lower first, got {values[0]} and {values[1]}")
        return values


class AugmentConfig(Section):
    """Augmentation of training images: `paper` scales, rotates, blurs, flips and crops; `plain` scales, flips and crops."""

    policy: AugmentationName = "paper"
    crop: Size = Field(description="height and width of a crop, or one number for both")
    scale: tuple[float, float] = Field((0.5, 2.0), description="smallest and largest scale factor")
    corruptions: tuple[CorruptionName, ...] = Field(
        (), description="of which one, at severity 1 to 3, is applied to a crop; none by default"
    )
    corrupted_share: float = Field(
        0.5, gt=0, le=1, description="share of the crops that are corrupted, where there are corruptions"
    )

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if min(self.crop) < 33:
            raise ValueError(f"crop {self.crop} is too small: the networks take 33 x 33 and more")
        if max(self.crop) > _LONGEST:
            raise ValueError(f"crop {self.crop} is too large: use {_LONGEST} or less, which OpenCV can make")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} is not a range of positive factors: use (lowest, highest)")
        return self


_DIVIDING: tuple[MethodName, ...] = ("ddcat", "ddcat-m", "ddcat-n")
_USED_BY: dict[str, tuple[MethodName, ...]] = {
    "adversarial_share": ("sat", *_DIVIDING),
    "split": ("sat", *_DIVIDING),
    "update": _DIVIDING,
    "predicted_mask": _DIVIDING,
    "mask_loss_on_ignored": _DIVIDING,
    "beta": ("trades",),
    "sigma": ("gaussian",),
}
# A divergence from x has no gradient at x, and PGD is BIM from a random start.
_RANDOM_START: tuple[MethodName, ...] = ("pgd-at", "segpgd-at", "trades")


class MethodConfig(Section):
    """The method of training: how a batch becomes updates."""

    name: Annotated[MethodName, BeforeValidator(current_method)] = Field(description="method of training")
    deep_weight: float = Field(
        0.4, ge=0, description="weight of semseg's deep supervision; 0: no such head, as in the paper's equations"
    )
    adversarial_share: float = Field(
        0.5, gt=0, le=1, description="attacked part of the batch: the first floor(m * (1 - share)) images stay clean"
    )
    split: Split = Field("rank", description="the clean images are the first of every process's slice, or of the whole batch")
    update: UpdateRule = Field("joint", description="one update of all losses, or two (Alg. 3, lines 8 and 9)")
    predicted_mask: MaskSource = Field("forward", description="p comes from the train-mode forward, or from Alg. 2")
    mask_loss_on_ignored: bool = Field(
        True, description="Eq. 5 averages over all pixels; false: over those that are not ignored"
    )
    beta: float = Field(6.0, gt=0, description="weight of the divergence of TRADES")
    sigma: float = Field(0.25, gt=0, le=2, description="deviation of the noise of gaussian, in [0, 1] units")

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        for option, methods in _USED_BY.items():
            if self.name not in methods and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"method.{option} is for {', '.join(methods)}: {self.name} has no use for it")
        return self

    @property
    def start(self) -> Start:
        """Start of its attack unless `attack.start` is set."""
        return "random" if self.name in _RANDOM_START else "clean"

    def clean_images(self, count: int) -> int:
        """Return how many of a number of images stay clean: floor(m * (1 - share)), with the share exactly as written."""
        return math.floor(count * (1 - Decimal(str(self.adversarial_share))))


class AttackConfig(Section):
    """The attack of training, and of the evaluation during it."""

    epsilon: Annotated[Fraction, AfterValidator(_epsilon)] = Field(
        0.03, description="largest change of a value in [0, 1]; fractions such as 8/255 are understood"
    )
    alpha: Annotated[Literal["eps/n"] | float, BeforeValidator(_alpha)] = Field(
        0.01, description="size of a step; eps/n: epsilon / steps"
    )
    steps: int = Field(3, ge=1, description="number of steps, n of the paper")
    start: Start | None = Field(
        None, description="start at the image, at random in the ball, or at the image less epsilon; None: the method's"
    )

    @property
    def step_size(self) -> float:
        """Size of a step, in [0, 1] units."""
        return self.epsilon / self.steps if self.alpha == "eps/n" else self.alpha

    def for_method(self, method: MethodConfig) -> Self:
        """Return the attack with its start: the method's where none is set."""
        return self if self.start is not None else self.model_copy(update={"start": method.start})


# Defaults that differ from SGD's: those of SegFormer's authors
_ADAMW = {"lr": 6e-5, "weight_decay": 0.01}
_OPTIMISERS: dict[str, OptimiserName] = {"momentum": "sgd", "betas": "adamw"}  # the keys that one of them alone uses


class OptimConfig(Section):
    """SGD or AdamW. The rate rises linearly over the warm-up, then falls by the poly rule: lr * (1 - step / steps) ** power."""

    name: OptimiserName = Field("sgd", description="sgd, or adamw: norms and biases are without weight decay")
    lr: float = Field(0.01, gt=0, description="learning rate of the backbone after the warm-up; adamw: 6e-5 by default")
    head_lr_factor: float = Field(10.0, gt=0, description="learning rate of everything else, times lr")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning rate of each layer of the backbone, times that of the layer behind it"
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="share of the run over which the rate rises to lr")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        (0.9, 0.999), description="decays of adamw's averages of gradients and of their squares"
    )
    weight_decay: float = Field(1e-4, ge=0, description="adamw: 0.01 by default, and apart from the gradient")
    clip_norm: float | None = Field(
        None, gt=0, description="norm to which the gradient of an update is shortened where it is longer; None: never"
    )
    power: float = Field(0.9, ge=0, description="exponent of the poly rule")
    poly_from: Literal[0, 1] = Field(
        0, description="first step number of the poly rule; 1: as released, the first rate is below lr and the last is 0"
    )

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        return _ADAMW | values if isinstance(values, dict) and values.get("name") == "adamw" else values

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        for option, name in _OPTIMISERS.items():
            if self.name != name and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"optim.{option} is for {name}: {self.name} has no use for it")
        return self


class TrainConfig(Section):
    """The loop."""

    epochs: int = Field(ge=1, description="passes over the training split")
    batch_size: int = Field(16, ge=2, description="images of an update, over all devices and micro-batches")
    last_batch: Literal["fill", "drop"] = Field(
        "fill", description="last batch of an epoch: filled up from its start, or dropped, as released"
    )
    class_weights: Literal["balanced"] | tuple[Annotated[float, Field(ge=0)], ...] | None = Field(
        None,
        description="weight of each class in the losses, in the order of the classes; balanced: the inverse of its share of "
        "the training pixels; None: equal weights",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="micro-batches into which every device's slice is cut; batch norm sees one at a time",
    )
    workers: int = Field(
        2, ge=0, description="processes that read and augment images, for each device; 0: the training process itself"
    )
    precision: Literal["fp32", "bf16", "fp64"] = Field(
        "fp32",
        description="fp32: without TF32. bf16: in all forwards; weights, images under attack and evaluations stay fp32",
    )
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of the average of weights that is evaluated and exported; None: the latest weights"
    )
    evaluate_every: int = Field(1, ge=1, description="epochs between evaluations")
    evaluate_images: int | None = Field(
        None, ge=1, description="number of images to evaluate on, evenly spread over the split; None: all"
    )
    evaluate_batch: int = Field(8, ge=1, description="images of an evaluation's batch, on each device")

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} in {self.accumulate} micro-batches leaves batch norm after pooling to one bin "
                f"less than 2 images: use accumulate {self.batch_size // 2} or less"
            )
        if self.class_weights is not None and not isinstance(self.class_weights, str) and not any(self.class_weights):
            raise ValueError("class_weights of 0 alone leave nothing to train on: use a number above 0 for some class")
        return self
