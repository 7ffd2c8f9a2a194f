"""
The configuration of a training run: strict, saved resolved beside every result.

A configuration is YAML. `inherits:` names a preset or a file beside it, whose values it overrides one by one.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ddcat.extras import install
from ddcat_train.errors import ConfigError
from ddcat_train.names import (
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

__all__ = [
    "CONFIG",
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

CONFIG = "config.yaml"  # of a run, resolved
PRESETS = Path(__file__).parent / "presets"


def _fraction(value: Any) -> Any:
    if isinstance(value, str) and value.count("/") == 1 and value != "eps/n":
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def _known_backbone(name: str) -> str:
    ours, brought = get_args(BackboneName), sorted(entry_points(group=BACKBONE_GROUP).names)
    if name not in (*ours, *brought):
        raise ValueError(
            f"there is no such backbone: {', '.join((*ours, *brought))} would be right, or the name of an entry point "
            f"{BACKBONE_GROUP} of an installed package"
        )
    return name


def _hf_settings(source: Any) -> Any:
    if not isinstance(source, str | Path | dict):
        return source
    try:
        from ddcat_train.networks.hf import hf_settings  # noqa: PLC0415 -- heavy, and not everybody has it
    except ImportError as cause:
        raise ValueError(f"a library is not installed ({cause}): {install('train,hf')}") from cause
    return hf_settings(source)


Fraction = Annotated[float, BeforeValidator(_fraction)]  # 0.03, or "8/255"
Size = Annotated[tuple[int, int], BeforeValidator(_pair)]  # height and width, or one number for both


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Strict):
    """The data set."""

    name: DatasetName = Field(description="how it is laid out")
    root: Path = Field(description="where it lies")
    train_split: str = Field("train", description="that is learnt from")
    val_split: str = Field("val", description="that the network is judged on")
    long_side: int | None = Field(None, ge=33, description="resize every image to it when it is read; None: as it is")
    val_long_side: int | None = Field(None, ge=33, description="the same, where a network is judged; None: long_side")
    skip_corrupt: bool = Field(False, description="train on another image in the place of one that cannot be read, and count")

    @property
    def judged_long_side(self) -> int | None:
        """What the images that a network is judged on are resized to; None: they are as they are."""
        return self.long_side if self.val_long_side is None else self.val_long_side


class AugmentConfig(_Strict):
    """How training images are varied: `paper` scales, rotates, blurs, flips and crops; `plain` scales, flips and crops."""

    policy: AugmentationName = "paper"
    crop: Size = Field(description="height and width, or one number for both")
    scale: tuple[float, float] = Field((0.5, 2.0), description="smallest and largest factor")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if min(self.crop) < 33:
            raise ValueError(f"crop {self.crop} is too small: the networks take 33 x 33 and more")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} is not a range of positive factors")
        return self


class ModelConfig(_Strict):
    """The network."""

    backbone: Annotated[str, AfterValidator(_known_backbone)] = Field(description="one of ours, or an installed package's")
    context: ContextName = Field("pyramid", description="pyramid: PSPNet's pooling; aspp: DeepLabv3's")
    width: int = Field(64, ge=4, description="channels of a ResNet's first stage")
    stem: Stem = Field("deep", description="of a ResNet; plain: that of torchvision's weights")
    output_stride: Literal[8, 16] = Field(8, description="pixels of the image to one of the backbone's maps")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the heads' channels, in training")
    hf: Annotated[dict[str, Any], BeforeValidator(_hf_settings)] | None = Field(
        None, description="settings of a backbone of Hugging Face transformers, or its config.json; of backbone hf"
    )
    pretrained: Path | None = Field(
        None, description="a safetensors file of backbone weights, a checkpoint or a run, whose backbone is taken; None: random"
    )

    @property
    def architecture(self) -> str:
        """Backbone and context."""
        return f"{self.hf['model_type'] if self.hf else self.backbone} + {self.context}"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.backbone == "hf") != (self.hf is not None):
            raise ValueError(
                "model.backbone hf and model.hf, its settings or the path of its config.json, are for each other: name both"
            )
        if self.backbone not in get_args(BackboneName):
            return self  # what another package brings judges for itself
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
# Where the attack starts unless it is said: a divergence from x has no gradient at x, and PGD is BIM from a random start.
_RANDOM_START: tuple[MethodName, ...] = ("pgd-at", "segpgd-at", "trades")


class MethodConfig(_Strict):
    """How a batch becomes updates."""

    name: MethodName = Field(description="how a batch is learnt")
    deep_weight: float = Field(
        0.4, ge=0, description="of semseg's deep supervision; 0: no such head, as in the paper's equations"
    )
    adversarial_share: float = Field(0.5, gt=0, le=1, description="of the batch: the first floor(m * (1 - share)) stay clean")
    split: Split = Field("rank", description="the clean images are the first of every process's share, or of the whole batch")
    update: UpdateRule = Field("joint", description="one update of all losses, or two: Alg. 3, lines 8 and 9")
    predicted_mask: MaskSource = Field("forward", description="p is that of the train-mode forward, or of Alg. 2")
    mask_loss_on_ignored: bool = Field(True, description="Eq. 5 averages over all pixels, or over those that are not ignored")
    beta: float = Field(6.0, gt=0, description="weight of the divergence of TRADES")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for option, methods in _USED_BY.items():
            if self.name not in methods and getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"method.{option} is for {', '.join(methods)}: {self.name} has no use for it")
        return self

    def clean_images(self, count: int) -> int:
        """Say how many of a number of images stay clean: floor(m * (1 - share)), with the share exactly as it is written."""
        return math.floor(count * (1 - Decimal(str(self.adversarial_share))))


class AttackConfig(_Strict):
    """The attack of training, and of the evaluation during it."""

    epsilon: Fraction = Field(0.03, ge=0, le=1, description="most that a value in [0, 1] moves; 8/255 is understood")
    alpha: Literal["eps/n"] | Annotated[Fraction, Field(ge=0)] = Field(0.01, description="of a step; eps/n: epsilon / steps")
    steps: int = Field(3, ge=1)
    start: Start = Field("clean", description="at the image, anywhere in the ball, or at the image less epsilon")

    @property
    def step_size(self) -> float:
        """Of a step, in [0, 1] units."""
        return self.epsilon / self.steps if self.alpha == "eps/n" else self.alpha


class OptimConfig(_Strict):
    """SGD with the poly rule: lr * (1 - step / steps) ** power."""

    lr: float = Field(0.01, gt=0, description="of the backbone")
    head_lr_factor: float = Field(10.0, gt=0, description="of everything else, times lr")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0)
    power: float = Field(0.9, ge=0, description="of the poly rule")


class TrainConfig(_Strict):
    """The loop."""

    epochs: int = Field(ge=1, description="passes over the training split")
    batch_size: int = Field(16, ge=2, description="of an update, over all devices and portions")
    accumulate: int = Field(
        1, ge=1, description="portions that every device's share goes through the network in; batch norm sees one at a time"
    )
    workers: int = Field(2, ge=0, description="processes that read and augment images for a device; 0: the loop's own")
    precision: Literal["fp32", "bf16", "fp64"] = Field(
        "fp32",
        description="fp32: without TF32. bf16: of forwards, an attack's too; weights, images under attack and evaluations stay "
        "fp32",
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the average of weights that is used; None: the latest")
    evaluate_every: int = Field(1, ge=1, description="epochs")
    evaluate_images: int | None = Field(None, ge=1, description="evenly spread over the split; None: all")
    evaluate_batch: int = Field(8, ge=1, description="of a device")

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.batch_size < 2 * self.accumulate:
            raise ValueError(
                f"batch_size {self.batch_size} in {self.accumulate} portions leaves batch norm after pooling to one bin less "
                f"than 2 images: accumulate {self.batch_size // 2} would be possible"
            )
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
    seed: int = Field(0, ge=0, description="of all that is drawn")

    @model_validator(mode="before")
    @classmethod
    def _start_of_method(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        method, attack = tree.get("method"), tree.get("attack", {})
        random = isinstance(method, dict) and method.get("name") in _RANDOM_START
        if random and isinstance(attack, dict) and "start" not in attack:
            return tree | {"attack": attack | {"start": "random"}}
        return tree

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.method.name == "trades" and self.attack.start == "clean":
            raise ValueError(
                "attack.start clean is no start for trades: the divergence from x has no gradient there; say random"
            )
        images, share = self.train.batch_size, self.method.adversarial_share
        if self.method.name == "ddcat" and not self.method.clean_images(images):
            raise ValueError(
                f"method.adversarial_share {share} leaves none of {images} images clean, and ddcat marks pixels of clean ones "
                "alone: a smaller share, ddcat-m or ddcat-n would be right"
            )
        return self


def presets() -> list[str]:
    """Names of the configurations that come with ddcat; those that others only inherit from begin with an underscore."""
    return sorted(path.stem for path in PRESETS.glob("[!_]*.yaml"))


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
    tree = _read(_locate(source, Path()))
    for override in overrides:
        _override(tree, override)
    return parse_config(tree, source)


def parse_config(tree: Mapping[str, Any], where: str) -> Config:
    """Check a tree of values; `where` names their source in errors."""
    try:
        return Config.model_validate(tree)
    except ValidationError as cause:
        faults = [_explain(fault) for fault in cause.errors()]
        # a file that inherits nothing lacks whole sections, and so does one whose `inherits` is misspelt
        bare = any(fault["type"] == "missing" and fault["loc"] == ("model",) for fault in cause.errors())
        hint = "; 'inherits: PRESET' as its first line gives all that it does not say itself" if bare else ""
        raise ConfigError(f"{where}: " + "; ".join(faults) + hint) from cause


def dump_config(config: Config) -> str:
    """Write a configuration as YAML that `load_config` reads back to the same."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _locate(source: str, folder: Path) -> Path:
    for path in (folder / source, PRESETS / f"{source}.yaml"):
        if path.is_file():
            return path
    if (folder / source / CONFIG).is_file():
        raise ConfigError(f"{source} is a run: its {Path(source) / CONFIG} would be right, with --resume to continue it")
    nearest = difflib.get_close_matches(source, presets(), n=3)
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    raise ConfigError(f"{source} is neither a file nor a preset: {hint}'ddcat-train --list' names all presets")


def _read(path: Path, inherited: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path in inherited:
        raise ConfigError(f"{path} inherits from itself")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise ConfigError(f"{path} is not readable YAML: {' '.join(str(cause).split())}") from cause
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds no table of keys and values")
    parents = tree.pop("inherits", [])
    merged: dict[str, Any] = {}
    names = [parents] if isinstance(parents, str) else parents
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: inherits names a preset or a file, or a list of them")
    for parent in names:
        _merge(merged, _read(_locate(parent, path.parent), (*inherited, path)))
    _merge(merged, tree)
    return merged


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> None:
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write KEY=VALUE, for example optim.lr=0.02")
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {override}: {part} is a value, it has no keys")
    try:
        tree[last] = yaml.safe_load(value)
    except yaml.YAMLError as cause:
        raise ConfigError(f"--set {override}: the value is not YAML") from cause


def _explain(fault: Any) -> str:
    path = [str(part) for part in fault["loc"]]
    if fault["type"] == "extra_forbidden":
        section: Any = Config
        for part in path[:-1]:
            section = section.model_fields[part].annotation
        nearest = difflib.get_close_matches(path[-1], section.model_fields, n=1, cutoff=0)[0]
        return f"unknown key {'.'.join(path)}: the nearest is {'.'.join([*path[:-1], nearest])}"
    if fault["type"] == "missing":
        return f"{'.'.join(path)} is missing"
    where, message = ".".join(path), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):  # of a section: the message names its keys
        return f"{where}: {message}" if where else message
    return f"{where}: {message} (found {fault['input']!r})"
