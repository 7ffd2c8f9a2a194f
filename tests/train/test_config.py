"""Configurations: presets, inheritance, overrides, and errors that name what to use."""

import os
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ddcat_train.choices import MethodName
from ddcat_train.config import MethodConfig, dump_config, load_config, parse_config, presets
from ddcat_train.errors import ConfigError
from ddcat_train.yaml_tree import load_tree

DIVIDING = ("ddcat", "ddcat-m", "ddcat-n")
# Options that are not for every method: the methods that take them, and a value that is not the default.
OPTIONS: dict[str, tuple[tuple[str, ...], Any]] = {
    "adversarial_share": (("sat", *DIVIDING), 0.75),
    "split": (("sat", *DIVIDING), "global"),
    "update": (DIVIDING, "two-step"),
    "predicted_mask": (DIVIDING, "algorithm-2"),
    "mask_loss_on_ignored": (DIVIDING, False),
    "beta": (("trades",), 1.0),
}


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_sound_and_survives_its_own_dump(preset: str, tmp_path: Path) -> None:
    config = load_config(preset)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(str(tmp_path / "config.yaml")) == config
    method = preset.replace("pir-at", "pgd-at").removesuffix("-corruptions").removesuffix("-fgsm").removesuffix("-4")
    assert method.endswith(f"-{config.method.name}")


def test_inheritance_merges_key_by_key_and_overrides_come_last(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("inherits: scenes-sat\noptim: {lr: 0.5}\n")
    (tmp_path / "top.yaml").write_text("inherits: base.yaml\noptim: {momentum: 0.5}\n")
    config = load_config(str(tmp_path / "top.yaml"), ["optim.power=2", "attack.epsilon=8/255", "augment.crop=[65, 97]"])
    assert (config.optim.lr, config.optim.momentum, config.optim.power) == (0.5, 0.5, 2.0)
    assert config.method.name == "sat"
    assert config.attack.epsilon == 8 / 255
    assert config.augment.crop == (65, 97)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lrr=1", "^--set: unknown key optim.lrr: the nearest is optim.lr"),
        ("optmi={}", "unknown key optmi: the nearest is optim"),
        ("optim.lr=fast", "optim.lr: Input should be a valid number"),
        ("optim.lr", "write KEY=VALUE"),
        ("train.epochs.deep=1", "a value, it has no keys"),
        ("seed=[", "not YAML"),
        ("train.batch_size=1", "batch_size: Input should be greater than or equal to 2"),
        ("augment.crop=20", "too small"),
        ("augment.scale=[2, 1]", "not a range"),
        ("augment.scale=1.5", "augment.scale: expected a list, such as [1, 2] .found 1.5"),
        ("train=5", "^--set: train: expected keys and values .found 5"),
        ("inherit=scenes-sat", "unknown key inherit: the nearest is inherits$"),
        ("model={backbone: convnext_tiny, width: 64}", "output_stride 8 is not for convnext_tiny: use 32"),
        ("model={backbone: convnext_tiny, width: 64, output_stride: 32}", "align_corners true is not for ConvNeXt"),
        ("model.drop_path=0.1", "drop_path is for ConvNeXt and mit"),
        ("model.backbone=resnet5", "resnet10, resnet18, .* an entry point ddcat.backbones"),
        ("model={backbone: mobilenet_v2, width: 8}", "model: width is for ResNets"),
        ("model={backbone: mobilenet_v2, stem: plain}", "model: stem plain is for ResNets"),
        ("method.name=ddcta", "'undefended', 'sat', 'ddcat', .* or 'gaussian'"),
        ("attack.epsilon=8/0", "attack.epsilon"),
        ("attack.epsilon=8", r"attack.epsilon: expected a bound in [0, 1], .* got 8; did you mean 8/255\?"),
        ("attack.alpha=2", r"attack.alpha: expected a step in [0, 1], .* got 2; did you mean 2/255\?"),
        ("attack.alpha='510/255'", r"attack.alpha: expected a step in [0, 1], .* got 2"),
        ("attack.alpha=fast", "attack.alpha: expected a step in [0, 1], such as 0.01 or 2/255, or eps/n"),
        ("attack.alpha=.nan", "attack.alpha: expected a step"),
        ("attack.alpha=true", "attack.alpha: expected a value that is not true or false"),
        ("optim.lr=on", "optim.lr: expected a value that is not true or false"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("train..epochs=3", "--set train..epochs=3: write KEY=VALUE"),
        ("batch_size=3", "unknown key batch_size: the nearest is train.batch_size$"),
        ("train.lr=3", "unknown key train.lr: the nearest is optim.lr$"),
        ("optim={lr: 1, lr: 2}", "not YAML: lr occurs twice"),
        ("seed=18446744073709551616", "seed: Input should be less than"),
        ("seed=" + "9" * 5001, "--set .*999.*: the value is not YAML: a value cannot be read"),
        ("seed=" + "[" * 3_000, "--set .*: the value is not YAML: it is nested too deeply"),
        ("seed=" + "x" * 5000, r"seed: Input should be a valid integer, .* \(found 'x+\.\.\.x+'\)"),
        ("x" * 5000 + "=1", "unknown key 'x+...x+': the nearest is"),
        ("model.width=1000000", "model.width: Input should be less than or equal to 1024"),
        ("augment.crop=1000000", "crop .* is too large: use 32766 or less"),
        ("optim.lr=.inf", "optim.lr: Input should be a finite number"),
        ("method.deep_weight=.nan", "method.deep_weight: Input should be"),
        ("method={name: sat, adversarial_share: 0}", "method.adversarial_share: Input should be greater than 0"),
        ("method={name: ddcat, adversarial_share: 1}", "leaves none of 16 images clean, .* ddcat-m or ddcat-n"),
    ],
)
def test_a_wrong_value_is_one_line_that_says_where(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")) as caught:
        load_config("scenes-undefended", [override])
    assert "\n" not in str(caught.value)
    assert "(found {" not in str(caught.value)  # a whole section would bury what is wrong


def test_many_faults_are_counted(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("inherits: scenes-undefended\n" + "".join(f"key{n}: 1\n" for n in range(500)))
    with pytest.raises(ConfigError, match=r"unknown key key9: .*; and 490 more$"):
        load_config(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("inherits: scenes-undefended\ntrain: {epochs: 50}\ntrain: {batch_size: 2}\n", r"train occurs twice \(line 3\)"),
        ("inherits: scenes-undefended\ntrain: {epochs: 50, epochs: 2}\n", r"epochs occurs twice \(line 2\)"),
        ("inherits: scenes-undefended\ninherits: scenes-sat\n", "inherits occurs twice"),
        ("inherits: scenes-undefended\nmodel: {hf: {a: {1: b, 0x1: c}}}\n", r"0x1 occurs twice \(line 2\)"),
        ("inherits: scenes-undefended\nmodel: {hf: {a: {yes: b, true: c}}}\n", "true occurs twice"),
        ("inherits: scenes-undefended\ntrain: {<<: {epochs: 2}, <<: {epochs: 3}}\n", r"<< occurs twice: '<<: .*' merges two"),
        ("a: &a [x, x, x, x, x, x, x, x, x]\n"
         + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
         + "inherits: scenes-undefended\nseed: *i\n", "more than 10000 values"),
        ("seed: &a [*a]\n", "an alias stands for what it is a part of"),
        ("seed: " + "[" * 3_000, "nested too deeply"),
        ("seed: " + "{a: " * 3_000, "nested too deeply"),
        ("seed: " + "9" * 5001, "a value cannot be read"),
        ("seed: 2020-99-99", "a value cannot be read"),
        ("#" * 2**21, "more than 1048576 bytes"),
        ("seed: !!python/object/apply:os.getpid []\n", "could not determine a constructor"),
        ("inherits: " + "x" * 5000, "mine.yaml: inherits: .* is neither a file nor a preset"),
        ("inherits: sub/../mine.yaml", "inherits from itself"),
        ("inherits: link.yaml", "inherits from itself"),
        *((f"inherits: {parents}", "inherits names a preset or a file") for parents in ("5", "[5]", "")),
        ("a: [", "not readable YAML"),
        ("- 1", "no table"),
        ("{}", "is missing"),
    ],
)  # fmt: skip
def test_a_file_that_would_take_for_ever_or_means_two_things_is_refused_in_one_line(
    tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link.yaml").symlink_to("mine.yaml")
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("name", ["mine.yml", "mine"])
def test_a_name_with_another_suffix_is_told(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("inherits: scenes-undefended\n")
    with pytest.raises(ConfigError, match=r"^mine(.yml)? is neither .*: did you mean mine.yaml\?"):
        load_config(name)


def test_a_fault_of_the_file_is_not_blamed_on_an_option(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("inherits: scenes-undefended\ntrain: {epoch: 2}\n")
    with pytest.raises(ConfigError, match=r"mine\.yaml: unknown key train\.epoch"):
        load_config(str(tmp_path / "mine.yaml"), ["seed=x"])


def test_a_file_that_is_inherited_by_many_ways_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "0.yaml").write_text("inherits: scenes-undefended\nseed: 7\n")
    for number in range(1, 40):
        (tmp_path / f"{number}.yaml").write_text(f"inherits: [{number - 1}.yaml, {number - 1}.yaml]\n")
    assert load_config(str(tmp_path / "39.yaml")).seed == 7


def test_a_chain_of_a_hundred_of_files_is_refused(tmp_path: Path) -> None:
    for number in range(1, 100):
        (tmp_path / f"{number}.yaml").write_text(f"inherits: {number + 1}.yaml\n")
    (tmp_path / "100.yaml").write_text("inherits: scenes-undefended\n")
    with pytest.raises(ConfigError, match="inherits through more than 50 files"):
        load_config(str(tmp_path / "1.yaml"))


def test_what_an_alias_stands_for_is_each_one_s_own(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("inherits: scenes-undefended\naugment: {crop: &size [65, 97], scale: &range [1, 2]}\n")
    assert load_config(str(tmp_path / "mine.yaml")).augment.crop == (65, 97)
    (tmp_path / "two.yaml").write_text("optim: &both {momentum: 0.5}\nother: *both\n")
    tree = load_tree(str(tmp_path / "two.yaml"), ["other.lr=1"])
    assert tree == {"optim": {"momentum": 0.5}, "other": {"momentum": 0.5, "lr": 1}}


def test_a_name_that_is_not_utf_8_is_refused_where_it_would_be_written_down() -> None:
    with pytest.raises(ConfigError, match=r"data\.root: a path must be UTF-8"):
        parse_config({"data": {"name": "scenes", "root": os.fsdecode(b"/data/caf\xe9")}}, "mine.yaml")


def test_every_fault_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("scenes-undefended", ["optim.lr=-1", "optim.lrr=1", "seed=-1"])
    assert all(name in str(caught.value) for name in ("optim.lr:", "optim.lrr", "seed"))


def test_an_unknown_preset_names_the_nearest_and_where_all_are() -> None:
    with pytest.raises(ConfigError, match=r"did you mean scenes-ddcat or .*'ddcat train --list' names all"):
        load_config("scene-ddcat")
    with pytest.raises(ConfigError, match=r"nor a preset: 'ddcat train --list'"):
        load_config("xyz")


def test_a_run_names_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(ConfigError, match=rf"{tmp_path} is a run: use its {tmp_path}/config\.yaml"):
        load_config(str(tmp_path))


def test_a_file_that_inherits_nothing_is_told_that_it_can(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("inherit: scenes-undefended\n")
    with pytest.raises(ConfigError, match=r"unknown key inherit: .*; 'inherits: PRESET' as its first line"):
        load_config(str(tmp_path / "x.yaml"))
    with pytest.raises(ConfigError) as caught:
        load_config("scenes-undefended", ["optim.lr=-1"])
    assert "inherits" not in str(caught.value)


@pytest.mark.parametrize("base", ["camvid-ddcat", "scenes-ddcat-m", "scenes-ddcat-n"])
def test_the_letter_of_the_paper_is_inherited(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"inherits: [{base}, _letter]\n")
    found, released = load_config(str(tmp_path / "mine.yaml")), load_config(base)
    letter = {"update": "two-step", "predicted_mask": "algorithm-2", "deep_weight": 0}
    assert found.method == released.method.model_copy(update=letter)
    assert found.attack == released.attack.model_copy(update={"start": "lower"})
    assert found == released.model_copy(update={"method": found.method, "attack": found.attack})
    assert "_letter" not in presets()


def test_the_undefended_method_has_its_old_name_too(tmp_path: Path) -> None:
    expected = load_config("voc-pspnet50-undefended")
    assert expected.method.name == "undefended"
    (tmp_path / "old.yaml").write_text(dump_config(expected).replace("name: undefended", "name: clean"))
    (tmp_path / "mine.yaml").write_text("inherits: [_voc, _pspnet50, _clean]\n")
    old = ("voc-pspnet50-clean", str(tmp_path / "old.yaml"), str(tmp_path / "mine.yaml"))
    assert [load_config(source) for source in old] == [expected] * 3
    assert load_config("voc-pspnet50-sat", ["method.name=clean"]).method.name == "undefended"
    assert not any("clean" in name for name in presets())


@pytest.mark.parametrize("method", get_args(MethodName))
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_is_taken_by_those_that_use_it_and_refused_by_the_others(option: str, method: str) -> None:
    methods, value = OPTIONS[option]
    overrides = [f"method.name={method}", f"method.{option}={value}"]
    if method in methods:
        assert getattr(load_config("scenes-undefended", overrides).method, option) == value
        return
    with pytest.raises(ConfigError, match=f"method.{option} is for {', '.join(methods)}: {method} has no use for it"):
        load_config("scenes-undefended", overrides)
    default = MethodConfig.model_fields[option].default  # as in the saved configuration of any run
    found = load_config("scenes-undefended", [f"method.name={method}", f"method.{option}={default}"])
    assert getattr(found.method, option) == default


@pytest.mark.parametrize("method", get_args(MethodName))
@pytest.mark.parametrize("base", ["scenes-sat", "scenes-ddcat", "scenes-trades"])
def test_where_an_attack_starts_follows_the_method_unless_it_is_said(base: str, method: str, tmp_path: Path) -> None:
    random = method in ("pgd-at", "segpgd-at", "trades")
    assert load_config(base, [f"method.name={method}"]).attack.start == ("random" if random else "clean")
    assert load_config(base, [f"method.name={method}", "attack.steps=5"]).attack.start == ("random" if random else "clean")
    assert load_config(base, [f"method.name={method}", "attack.start=lower"]).attack.start == "lower"
    (tmp_path / "mine.yaml").write_text(f"inherits: {base}\nmethod: {{name: {method}}}\nattack: {{start: clean}}\n")
    if method == "trades":
        with pytest.raises(ConfigError, match=r"start clean does not work with trades.* use random"):
            load_config(str(tmp_path / "mine.yaml"))
    else:
        assert load_config(str(tmp_path / "mine.yaml")).attack.start == "clean"


def part_of(values: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the keys, each with one of its values."""
    return st.fixed_dictionaries({}, optional=values)


@given(
    name=st.sampled_from(get_args(MethodName)),
    options=part_of(
        {
            "deep_weight": st.floats(0, 10),
            "adversarial_share": st.floats(0.01, 0.5),
            "split": st.sampled_from(["rank", "global"]),
            "update": st.sampled_from(["joint", "two-step"]),
            "predicted_mask": st.sampled_from(["forward", "algorithm-2"]),
            "mask_loss_on_ignored": st.booleans(),
            "beta": st.floats(0.01, 100),
        }
    ),
    attack=part_of(
        {
            "epsilon": st.floats(0, 1) | st.sampled_from(["8/255", "1/2"]),
            "alpha": st.floats(0, 1) | st.sampled_from(["eps/n", "2/255"]),
            "steps": st.integers(1, 20),
            "start": st.sampled_from(["random", "lower"]),
        }
    ),
)
@settings(max_examples=8, deadline=None)
def test_any_method_with_its_options_is_saved_and_read_back_the_same(
    name: str, options: dict[str, Any], attack: dict[str, Any]
) -> None:
    taken = {option: value for option, value in options.items() if option not in OPTIONS or name in OPTIONS[option][0]}
    base = load_config("scenes-undefended").model_dump() | {"method": {"name": name, **taken}, "attack": attack}
    config = parse_config(base, "drawn")
    assert parse_config(yaml.safe_load(dump_config(config)), "saved") == config
    assert all(getattr(config.method, option) == value for option, value in taken.items())


@given(count=st.integers(1, 4096), percent=st.integers(1, 100))
def test_the_clean_images_are_counted_with_the_share_as_it_is_written(count: int, percent: int) -> None:
    options = MethodConfig(name="sat", adversarial_share=percent / 100)
    assert options.clean_images(count) == count * (100 - percent) // 100
