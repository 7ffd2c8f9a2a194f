"""
The configuration of a training run: strict, saved resolved beside every result.

A configuration is YAML. `inherits:` names a preset or a file beside it, whose values it overrides one by one.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ddcat.extras import install
from ddcat.schema import current_method
from ddcat_train.choices import (
    BACKBONE_GROUP,
    AugmentationName,
    BackboneName,
    ContextName,
    DatasetName,
    MaskSource,
    MethodName,
    Split,
    Start,
    Stem,
    UpdateRule,
)
from ddcat_train.errors import ConfigError
from ddcat_train.yaml_tree import CONFIG, PRESETS, load_tree, named, presets, shortened

__all__ = [
    "CONFIG",
    "PRESETS",
    "AttackConfig",
    "AugmentConfig",
    "Config",
    "DataConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimConfig",
    "TrainConfig",
    "dump_config",
    "load_config",
    "parse_config",
    "presets",
]


def _fraction(value: Any) -> Any:
    if isinstance(value, str) and value.count("/") == 1 and value != "eps/n":
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _in_unit(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        meant = f"; did you mean {value:g}/255?" if 1 < value <= 255 else ""
        raise ValueError(f"expected {name} in [0, 1], as the values of an image are, got {value:g}{meant}")
    return value


def _epsilon(value: float) -> float:
    return _in_unit("a bound", value)


def _alpha(value: Any) -> Any:
    number = _fraction(value)
    if number == "eps/n":
        return number
    try:
        number = float(number)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise ValueError("expected a step in [0, 1], such as 0.01 or 2/255, or eps/n")
    return _in_unit("a step", number)


def _utf8(path: Path) -> Path:
    try:
        str(path).encode()
    except UnicodeEncodeError as cause:
        raise ValueError("a path must be UTF-8, for it is written into the run's files: rename it, or use a link") from cause
    return path


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _known_backbone(name: str) -> str:
    ours, brought = get_args(BackboneName), sorted(entry_points(group=BACKBONE_GROUP).names)
    if name not in (*ours, *brought):
        raise ValueError(
            f"there is no such backbone: use {', '.join((*ours, *brought))}, or an entry point {BACKBONE_GROUP} of an "
            "installed package"
        )
    return name


def _hf_settings(source: Any, info: ValidationInfo) -> Any:
    if not isinstance(source, str | Path | dict):
        return source
    if info.mode == "json" and not isinstance(source, dict):  # in a checkpoint, which comes from anybody: read no file for it
        raise ValueError("expected the settings themselves, not the path of a file")
    try:
        from ddcat_train.huggingface_settings import hf_settings  # noqa: PLC0415 -- heavy, and not everybody has it
    except ImportError as cause:
        raise ValueError(f"a library is not installed ({cause}): {install('train,hf')}") from cause
    return hf_settings(source)


Fraction = Annotated[float, BeforeValidator(_fraction)]  # 0.03, or "8/255"
FilePath = Annotated[Path, AfterValidator(_utf8)]
Size = Annotated[tuple[int, int], BeforeValidator(_pair)]  # height and width, or one number for both


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false, which YAML also makes of yes, no, on and off, where pydantic would take them for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("expected a value that is not true or false (YAML reads yes, no, on and off as these)")
        return value


_MOST_FAULTS = 10  # in one message
_LONGEST = 32_766  # pixels of a side that OpenCV takes everywhere


class DataConfig(_Strict):
    """The data set."""

    name: DatasetName = Field(description="layout of the data set")
    root: FilePath = Field(description="folder of the data set")
    train_split: str = Field("train", description="split to train on")
    val_split: str = Field("val", description="split to evaluate on")
    long_side: int | None = Field(None, ge=33, description="longer side to which every image is resized; None: no resizing")
    val_long_side: int | None = Field(None, ge=33, description="the same, in evaluations; None: long_side")
    skip_corrupt: bool = Field(False, description="replace images with missing or damaged files in training, and count them")

    @property
    def eval_long_side(self) -> int | None:
        """Longer side to which images of evaluations are resized; None: no resizing."""
        return self.long_side if self.val_long_side is None else self.val_long_side


class AugmentConfig(_Strict):
    """Augmentation of training images: `paper` scales, rotates, blurs, flips and crops; `plain` scales, flips and crops."""

    policy: AugmentationName = "paper"
    crop: Size = Field(description="height and width of a crop, or one number for both")
    scale: tuple[float, float] = Field((0.5, 2.0), description="smallest and largest scale factor")

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if min(self.crop) < 33:
            raise ValueError(f"crop {self.crop} is too small: the networks take 33 x 33 and more")
        if max(self.crop) > _LONGEST:
            raise ValueError(f"crop {self.crop} is too large: use {_LONGEST} or less, which OpenCV can make")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} is not a range of positive factors: use (lowest, highest)")
        return self


class ModelConfig(_Strict):
    """The network."""

    backbone: Annotated[str, AfterValidator(_known_backbone)] = Field(
        description="a backbone of ddcat, or of an installed package"
    )
    context: ContextName = Field("pyramid", description="pyramid: PSPNet's pooling; aspp: DeepLabv3's")
    width: int = Field(64, ge=4, le=1024, description="channels of a ResNet's first stage")
    stem: Stem = Field("deep", description="stem of a ResNet; plain: that of torchvision's weights")
    output_stride: Literal[8, 16] = Field(8, description="stride of the backbone's maps, in pixels of the image")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout rate of the heads' channels")
    init: Literal["torch", "kaiming"] = Field(
        "torch", description="random initial weights of the backbone: torch's, or the released code's; not for hf"
    )
    hf: Annotated[dict[str, Any], BeforeValidator(_hf_settings)] | None = Field(
        None, description="settings of a backbone of Hugging Face transformers, or its config.json; for backbone hf"
    )
    start_from: FilePath | None = Field(
        None, description="checkpoint or run of the same network: all its weights are loaded, heads included"
    )
    pretrained: FilePath | None = Field(
        None, description="safetensors file, checkpoint or run: the weights of its backbone are loaded; None: random"
    )

    @property
    def architecture(self) -> str:
        """Backbone and context."""
        return f"{self.hf['model_type'] if self.hf else self.backbone} + {self.context}"

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if self.start_from is not None and self.pretrained is not None:
            raise ValueError("start_from has the backbone's weights, too: use it or pretrained, not both")
        if (self.backbone == "hf") != (self.hf is not None):
            raise ValueError(
                "model.backbone hf and model.hf, its settings or the path of its config.json, are for each other: name both"
            )
        if self.hf is not None and self.init != "torch":
            raise ValueError("init is for convolutional networks of ours: what transformers builds has its own")
        if self.backbone not in get_args(BackboneName):
            return self  # a package checks its own backbone
        resnet = self.backbone.startswith("resnet")
        if not resnet and self.width != 64:
            raise ValueError(f"width is for ResNets: {self.backbone} has one width")
        if not resnet and self.stem != "deep":
            raise ValueError(f"stem {self.stem} is for ResNets: {self.backbone} has one of its own")
        if resnet and self.output_stride != 8:
            raise ValueError("output_stride 16 is for mobilenet_v2 and hf: the ResNets have 8")
        return self


_DIVIDING: tuple[MethodName, ...] = ("ddcat", "ddcat-m", "ddcat-n")
_USED_BY: dict[str, tuple[MethodName, ...]] = {
    "adversarial_share": ("sat", *_DIVIDING),
    "split": ("sat", *_DIVIDING),
    "update": _DIVIDING,
    "predicted_mask": _DIVIDING,
    "mask_loss_on_ignored": _DIVIDING,
    "beta": ("trades",),
}
# A divergence from x has no gradient at x, and PGD is BIM from a random start.
_RANDOM_START: tuple[MethodName, ...] = ("pgd-at", "segpgd-at", "trades")


class MethodConfig(_Strict):
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


class AttackConfig(_Strict):
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


class OptimConfig(_Strict):
    """SGD with the poly rule: lr * (1 - step / steps) ** power."""

    lr: float = Field(0.01, gt=0, description="initial learning rate of the backbone")
    head_lr_factor: float = Field(10.0, gt=0, description="learning rate of everything else, times lr")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    power: float = Field(0.9, ge=0, description="exponent of the poly rule")
    poly_from: Literal[0, 1] = Field(
        0, description="first step number of the poly rule; 1: as released, the first rate is below lr and the last is 0"
    )


class TrainConfig(_Strict):
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


class Config(_Strict):
    """All of a training run."""

    data: DataConfig
    augment: AugmentConfig
    model: ModelConfig
    method: MethodConfig
    attack: AttackConfig = AttackConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    seed: int = Field(0, ge=0, lt=2**63, description="seed of all random draws")

    @model_validator(mode="after")
    def _start_of_method(self) -> Self:
        object.__setattr__(self, "attack", self.attack.for_method(self.method))  # frozen, but still being made
        return self

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if self.method.name == "trades" and self.attack.start == "clean":
            raise ValueError(
                "attack.start clean does not work with trades, for the divergence from x has no gradient there: use random"
            )
        images, share = self.train.batch_size, self.method.adversarial_share
        if self.method.name == "ddcat" and not self.method.clean_images(images):
            raise ValueError(
                f"method.adversarial_share {share} leaves none of {images} images clean, and ddcat marks pixels of clean ones "
                "alone: use a smaller share, ddcat-m or ddcat-n"
            )
        return self


def load_config(source: str, overrides: Sequence[str] = ()) -> Config:
    """
    Read a preset or a file, and apply overrides.

    Parameters
    ----------
    source : str
        The name of a preset, or the path of a YAML file.
    overrides : sequence of str
        Such as ``optim.lr=0.02``; the value is read as YAML.

    Raises
    ------
    ConfigError
        Naming the key and, for an unknown one, the nearest that exists.
    """
    return parse_config(load_tree(source, overrides), source)


def parse_config(tree: Mapping[str, Any], where: str) -> Config:
    """Check a tree of values; `where` names their source in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as cause:
        errors = cause.errors()
        faults = [_explain(fault) for fault in errors[:_MOST_FAULTS]]
        if len(errors) > _MOST_FAULTS:
            faults.append(f"and {len(errors) - _MOST_FAULTS} more")
        # a file that inherits nothing lacks whole sections, and so does one whose `inherits` is misspelt
        bare = any(fault["type"] == "missing" and fault["loc"] == ("model",) for fault in cause.errors())
        hint = "; 'inherits: PRESET' as its first line gives all that it does not say itself" if bare else ""
        raise ConfigError(f"{where}: " + "; ".join(faults) + hint) from cause


def dump_config(config: Config) -> str:
    """Return a configuration as YAML, which `load_config` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _explain(fault: Any) -> str:
    path = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        *section, key = path
        name = ".".join([*section, named(key)])
        return f"unknown key {name}: the nearest is {_nearest(section, key)}"
    if fault["type"] == "missing":
        return f"{'.'.join(path)} is missing"
    where, message = ".".join(named(part) for part in path), fault["msg"]
    message = message.removeprefix("Value error, ")
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):  # of a section: the message names its keys
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (found {shortened(fault['input'])})"


def _nearest(section: Sequence[str], key: str) -> str:
    """Return the key that was probably meant: one of the same section or, where its name fits better, of another."""
    nearest, highest = "", -1.0
    for path in _keys(Config):
        ratio = difflib.SequenceMatcher(None, key[:100], path[-1]).ratio() + 0.1 * (path[:-1] == tuple(section))
        if ratio > highest:
            nearest, highest = ".".join(path), ratio
    return nearest


def _keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*path, name))
