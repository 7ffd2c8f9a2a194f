"""
The configuration of a training run: strict, saved resolved beside every result.

A configuration is YAML. `inherits:` names a preset or a file beside it, whose values it overrides one by one.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from ddcat.bands import band_count
from ddcat_train import imagenet
from ddcat_train.config.network import ModelConfig
from ddcat_train.config.training import (
    AttackConfig,
    AugmentConfig,
    DataConfig,
    MethodConfig,
    OptimConfig,
    TrainConfig,
)
from ddcat_train.config.values import Section
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


_MOST_FAULTS = 10  # in one message


class Config(Section):
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
    def _no_deep_supervision(self) -> Self:
        method = self.method
        if self.model.whole is not None and method.deep_weight:
            if "deep_weight" in method.model_fields_set:
                raise ValueError("method.deep_weight: a whole model has no head of deep supervision: use 0, or leave it out")
            object.__setattr__(self, "method", method.model_copy(update={"deep_weight": 0.0}))
        return self

    @property
    def fill(self) -> tuple[float, ...]:
        """The value of each channel of the pixels that augmentation makes up."""
        return imagenet.MEAN if self.data.bands is None or self.model.mean is None else self.model.mean

    @model_validator(mode="after")
    def _check_bands(self) -> Self:
        bands, mean = band_count(self.data.bands), self.model.mean
        if self.model.bands != bands:
            found = "none" if mean is None else str(len(mean))
            raise ValueError(f"data has {bands} bands: expected {bands} numbers in model.mean and in model.std, got {found}")
        if bands == 3:
            return self
        if self.model.channels == "BGR":
            raise ValueError(
                f"model.channels BGR is for 3 bands, and data.bands has {bands}: leave it out, or order data.bands"
            )
        if self.model.pretrained is not None:
            raise ValueError(
                f"model.pretrained has weights for 3 bands, and data.bands has {bands}: leave it out, or use model.start_from "
                "with a checkpoint of these bands"
            )
        if self.augment.corruptions:
            raise ValueError(f"augment.corruptions are made for 3 bands, and data.bands has {bands}: leave them out")
        return self

    @model_validator(mode="after")
    def _check_consistent(self) -> Self:
        if self.method.name == "trades" and self.attack.start == "clean":
            raise ValueError(
                "attack.start clean does not work with trades, because the divergence from x has no gradient there: use random"
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
    return parse_config(load_tree(source, overrides), source, overrides)


def parse_config(tree: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Config:
    """Check a tree of values; errors name their source: `where`, or --set if the overrides alone are at fault."""
    try:
        return Config.model_validate(tree)
    except ValidationError as cause:
        errors = cause.errors()
        given = [override.partition("=")[0].split(".") for override in overrides]
        if all(any([*map(str, fault["loc"])][: len(path)] == path for path in given) for fault in errors):
            where = "--set"
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
    if fault["type"] == "tuple_type":
        fault = {**fault, "msg": "expected a list, such as [1, 2]"}
    if fault["type"] in ("model_type", "model_attributes_type", "dict_type"):
        fault = {**fault, "msg": "expected keys and values"}
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
    for path in [*_keys(Config), *([] if section else [("inherits",)])]:
        ratio = difflib.SequenceMatcher(None, key[:100], path[-1]).ratio() + 0.1 * (path[:-1] == tuple(section))
        if ratio > highest:
            nearest, highest = ".".join(path), ratio
    return nearest


def _keys(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*path, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*path, name))
