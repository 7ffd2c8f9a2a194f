"""Configurations: presets, inheritance, overrides, and errors that name what would be right."""

from pathlib import Path

import pytest

from ddcat_train.config import dump_config, load_config, presets
from ddcat_train.errors import ConfigError


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_sound_and_survives_its_own_dump(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config
    assert preset.endswith(config.method.name) or preset.endswith(f"{config.method.name}-fgsm")


def test_inheritance_merges_key_by_key_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("inherits: scenes-sat\noptim: {lr: 0.5}\n")
    (tmp_path / "top.yaml").write_text("inherits: base.yaml\noptim: {momentum: 0.5}\n")
    config = load_config(str(tmp_path / "top.yaml"), ["optim.power=2", "attack.epsilon=8/255", "augment.crop=[65, 97]"])
    assert (config.optim.lr, config.optim.momentum, config.optim.power) == (0.5, 0.5, 2.0)
    assert config.method.name == "sat"
    assert config.attack.epsilon == 8 / 255
    assert config.augment.crop == (65, 97)


def test_one_number_is_a_square_and_a_step_may_be_a_share_of_epsilon() -> None:
    config = load_config("scenes-sat", ["augment.crop=65", "attack.alpha=eps/n"])
    assert config.augment.crop == (65, 65)
    assert config.attack.alpha == "eps/n"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "unknown key optim.lrr: the nearest is optim.lr"),
        ("optmi={}", "unknown key optmi: the nearest is optim"),
        ("train.epoch=3", "unknown key train.epoch: the nearest is train.epochs"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number"),
        ("optim.lr", "write KEY=VALUE"),
        ("train.epochs.deep=1", "a value, it has no keys"),
        ("seed=[", "not YAML"),
        ("train.batch_size=1", "batch_size: Input should be greater than or equal to 2"),
        ("augment.crop=20", "too small"),
        ("augment.scale=[2, 1]", "not a range"),
        ("model.output_stride=16", "for mobilenet_v2"),
        ("model.backbone=resnet5", "resnet10, resnet18, .* an entry point ddcat.backbones"),
        ("model={backbone: mobilenet_v2, width: 8}", "model: width is for ResNets"),
        ("model={backbone: mobilenet_v2, stem: plain}", "model: stem plain is for ResNets"),
        ("method.name=ddcta", "'clean', 'sat', 'ddcat', .* or 'trades'"),
        ("attack.epsilon=8/0", "attack.epsilon"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_where(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as caught:
        load_config("scenes-clean", [override])
    assert "\n" not in str(caught.value)


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("scenes-clean", ["optim.lr=-1", "optim.lrr=1", "seed=-1"])
    assert all(name in str(caught.value) for name in ("optim.lr:", "optim.lrr", "seed"))


def test_an_unknown_preset_names_the_nearest_and_where_all_are() -> None:
    with pytest.raises(ConfigError, match=r"did you mean scenes-ddcat or .*'ddcat-train --list' names all"):
        load_config("scene-ddcat")
    with pytest.raises(ConfigError, match=r"nor a preset: 'ddcat-train --list'"):
        load_config("xyz")


@pytest.mark.parametrize(
    ("content", "message"),
    [("a: [", "not readable YAML"), ("- 1", "no table"), ("inherits: self.yaml", "inherits from itself"), ("{}", "is missing")],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "self.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(str(tmp_path / "self.yaml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", ["camvid-ddcat", "scenes-ddcat-m", "scenes-ddcat-n"])
def test_the_letter_of_the_paper_is_inherited(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"inherits: [{base}, _letter]\n")
    found, released = load_config(str(tmp_path / "mine.yaml")), load_config(base)
    letter = {"update": "two-step", "predicted_mask": "algorithm-2", "deep_weight": 0}
    assert found.method == released.method.model_copy(update=letter)
    assert found.attack == released.attack.model_copy(update={"start": "lower"})
    assert found == released.model_copy(update={"method": found.method, "attack": found.attack})
    assert "_letter" not in presets()
