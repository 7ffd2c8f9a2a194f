"""Checkpoints: read whole and strictly, or refused in one line."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddcat import provenance
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint, read_description
from ddcat_train.config import load_config
from ddcat_train.errors import CheckpointError, ConfigError, TrainError
from ddcat_train.methods import OptimizerStep
from ddcat_train.run.run_log import read_lines
from ddcat_train.run.sessions import read_sessions
from ddcat_train.run.trainer import Trainer


@pytest.fixture
def run(tiny_run: list[str], tmp_path: Path) -> Path:
    trainer = Trainer(load_config("scenes-ddcat", tiny_run))
    trainer.save(tmp_path / "run" / BEST, resumable=False)
    trainer.save(tmp_path / "run" / LAST, resumable=True)
    return tmp_path / "run"


def rewrite(path: Path, tensors: dict[str, torch.Tensor], **changes: object) -> None:
    header = json.loads(path.with_suffix(".json").read_text()) | changes
    save_file(tensors, path, {"ddcat": json.dumps(header)})


def test_a_checkpoint_knows_its_network_configuration_and_data(run: Path) -> None:
    checkpoint = load_checkpoint(run)
    description = checkpoint.description
    assert checkpoint.path == run / BEST
    assert description.config.method.name == "ddcat"
    assert description.architecture == "resnet10 + pyramid"
    assert description.attack == {"epsilon": 0.03, "alpha": 0.01, "steps": 3, "start": "clean"}
    assert description.classes.names[0] == "background"
    assert (description.train.images, description.val.images) == (10, 4)
    assert set(checkpoint.segmenter().heads) == {"main", "auxiliary", "mask", "deep"}
    assert json.loads((run / "best.json").read_text()) == json.loads(description.model_dump_json())


def test_it_says_what_it_was_really_attacked_with(tiny_run: list[str], tmp_path: Path) -> None:
    for method, override, start in (
        ("undefended", "attack.start=lower", None),
        ("sat", "attack.start=clean", "clean"),
        ("sat", "attack.start=lower", "lower"),
        ("pgd-at", "attack.steps=2", "random"),
    ):
        config = load_config(f"scenes-{method}", [*tiny_run, override])
        Trainer(config).save(tmp_path / "x.safetensors", resumable=False)
        attack = load_checkpoint(tmp_path / "x.safetensors").description.attack
        assert (attack and attack["start"]) == start


def test_a_run_without_a_best_one_gives_its_last(run: Path) -> None:
    (run / BEST).unlink()
    assert load_checkpoint(run).path == run / LAST


@pytest.mark.parametrize("keep", [0, 4, 1000, -1])
def test_a_truncated_checkpoint_is_one_line(run: Path, keep: int) -> None:
    path = run / BEST
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_checkpoint_of_ours_is_refused(run: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="not a checkpoint that ddcat train wrote"):
        load_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="use a run directory that ddcat train wrote"):
        load_checkpoint(tmp_path)
    (tmp_path / "manifest.json").touch()
    with pytest.raises(CheckpointError, match="is a bundle, expected a run or a checkpoint: use the one that it was made from"):
        load_checkpoint(tmp_path)


def test_another_version_is_named(run: Path) -> None:
    tensors = load_file(run / BEST)
    rewrite(run / BEST, tensors, format=2)
    with pytest.raises(CheckpointError, match="format 2"):
        load_checkpoint(run)
    rewrite(run / BEST, tensors, surprise=1)
    with pytest.raises(CheckpointError, match="another version of ddcat: surprise"):
        load_checkpoint(run)


def test_weights_that_do_not_fit_their_description_are_named(run: Path) -> None:
    tensors = load_file(run / BEST)
    del tensors["model.heads.mask.4.bias"]
    rewrite(run / BEST, tensors)
    with pytest.raises(CheckpointError, match=r"heads\.mask\.4\.bias"):
        load_checkpoint(run).segmenter()


def test_weights_alone_are_nothing_to_continue_from(run: Path, tiny_run: list[str]) -> None:
    trainer = Trainer(load_config("scenes-ddcat", tiny_run))
    with pytest.raises(CheckpointError, match="holds only weights, and nothing to continue from: name it as"):
        trainer.restore(load_checkpoint(run / BEST))


def test_a_run_does_not_continue_with_other_classes(run: Path, tiny_run: list[str]) -> None:
    saved = load_checkpoint(run / LAST)
    classes = saved.description.classes
    other = replace(classes, names=("asphalt", *classes.names[1:]))
    changed = replace(saved, description=saved.description.model_copy(update={"classes": other}))
    trainer = Trainer(load_config("scenes-ddcat", tiny_run))
    with pytest.raises(ConfigError, match=rf"have changed: {classes.names[0]}, .* now, asphalt, .* put them back as they were"):
        trainer.restore(changed)


def test_a_checkpoint_of_before_it_said_whether_it_was_judged_is_read(tiny_run: list[str], tmp_path: Path) -> None:
    Trainer(load_config("scenes-undefended", tiny_run)).save(tmp_path / "now.safetensors", resumable=False)
    told = read_description(tmp_path / "now.safetensors").model_dump(mode="json", exclude={"judged"})
    save_file({"value": torch.zeros(1)}, tmp_path / "before.safetensors", {"ddcat": json.dumps(told)})
    assert read_description(tmp_path / "before.safetensors").judged


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("model", {"width": 1000}, r"does not fit its own description: .* has shape .* instead of"),
        ("model", {"width": 1_000_000}, "less than or equal to 1024"),
        ("model", {"backbone": "hf", "hf": "/etc"}, "expected the settings themselves, not the path of a file"),
    ],
)
def test_a_description_that_asks_for_what_it_must_not_have_is_refused(
    run: Path, section: str, values: dict[str, object], message: str
) -> None:
    config = json.loads((run / "best.json").read_text())["config"]
    rewrite(run / BEST, load_file(run / BEST), config=config | {section: config[section] | values})
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(run).segmenter()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


def test_a_key_that_stands_twice_is_refused(run: Path) -> None:
    text = (run / "best.json").read_text().replace('"step":', '"step": 1, "step":', 1)
    save_file(load_file(run / BEST), run / BEST, {"ddcat": text})
    for read in (load_checkpoint, read_description):
        with pytest.raises(CheckpointError, match="the key 'step' occurs twice"):
            read(run / BEST)
    (run / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "step": 3}\n')
    with pytest.raises(TrainError, match=r"line 2 of .*log\.jsonl is not JSON that ddcat reads \(the key 'step' occurs twice"):
        read_lines(run / "log.jsonl")
    for content, told in (
        ('[{"step": 1, "step": 2}]', "occurs twice"),
        ('[{"step": 1}]', "0.command: Field required; remove it"),
    ):
        (run / "sessions.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"sessions\.json .*{told}"):
            read_sessions(run)


def test_the_hash_is_that_of_the_file_that_was_read(run: Path, tiny_run: list[str]) -> None:
    expected = hashlib.sha256((run / LAST).read_bytes()).hexdigest()
    checkpoint = load_checkpoint(run / LAST)
    Trainer(load_config("scenes-undefended", tiny_run)).save(run / LAST, resumable=True)  # a run that goes on meanwhile
    assert checkpoint.sha256() == expected != hashlib.sha256((run / LAST).read_bytes()).hexdigest()


def test_a_checkpoint_names_the_code_that_ran(run: Path, tiny_run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(load_config("scenes-undefended", tiny_run))
    begun = trainer._commit
    monkeypatch.setattr(provenance, "git_commit", lambda: "edited meanwhile")
    trainer.save(run / LAST, resumable=True)
    assert read_description(run / LAST).git_commit == begun != "edited meanwhile"


def test_micro_batches_that_move_other_parameters_are_refused(tiny_run: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(load_config("scenes-undefended", [*tiny_run, "train.accumulate=2"]))
    step, calls = trainer._method.step, []

    def odd(*arguments: Any, **options: Any) -> list[OptimizerStep]:
        calls.append(1)
        return [update._replace(parameters=update.parameters[len(calls) - 1 :]) for update in step(*arguments, **options)]

    monkeypatch.setattr(trainer, "_method", replace(trainer._method, step=odd))
    with pytest.raises(ValueError, match="undefended moves other parameters in one micro-batch of a batch than in another"):
        trainer.train_step(next(trainer.batches()))
