"""A run that begins with all weights of another."""

from pathlib import Path

import pytest
import torch

from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import load_config
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer


@pytest.fixture(scope="module")
def run(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    overrides = [f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "train.epochs=1", "train.batch_size=4"]
    run = tmp_path_factory.mktemp("starts") / "run"
    train(load_config("scenes-ddcat", overrides), run)
    return run


def test_all_weights_are_taken_heads_included(run: Path, tiny_run: list[str]) -> None:
    trainer = Trainer(load_config("scenes-ddcat", [*tiny_run, f"model.start_from={run}"]))
    expected = load_checkpoint(run / BEST).part("model.")
    found = trainer._network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert f"starts from {run}, all branches included" in trainer.notes
    assert trainer.step == 0


def test_another_method_takes_the_branches_that_it_has(run: Path, tiny_run: list[str], tmp_path: Path) -> None:
    one = Trainer(load_config("scenes-sat", [*tiny_run, f"model.start_from={run / LAST}"]))
    expected = load_checkpoint(run / LAST).part("model.")
    assert all(torch.equal(value, expected[key]) for key, value in one._network.state_dict().items())
    one.save(tmp_path / "one.safetensors", resumable=False)
    three = Trainer(load_config("scenes-ddcat", [*tiny_run, f"model.start_from={tmp_path / 'one.safetensors'}"]))
    found, fresh = three._network.state_dict(), Trainer(load_config("scenes-ddcat", tiny_run))._network.state_dict()
    for key, value in found.items():
        absent = key.startswith(("heads.auxiliary.", "heads.mask."))
        assert torch.equal(value, fresh[key] if absent else expected[key]), key
    assert any("which has no branch auxiliary, mask: random weights there" in note for note in three.notes)


def test_what_cannot_be_resumed_says_what_is_left(run: Path, tmp_path: Path) -> None:
    (broken := tmp_path / "run").mkdir()
    for file in run.iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    (broken / LAST).write_bytes((run / LAST).read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=rf"--out NEW_FOLDER --set model\.start_from={broken / BEST}"):
        train(load_config(broken / "config.yaml"), broken, resume=True)


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["model.width=8"], CheckpointError, r"does not fit this network .*model\.pretrained takes its backbone alone"),
        (["model.context=aspp"], CheckpointError, "does not fit this network"),
        (["model.pretrained=x.safetensors"], ConfigError, "use it or pretrained, not both"),
    ],
)
def test_weights_of_another_network_are_refused(
    overrides: list[str], error: type[Exception], message: str, run: Path, tiny_run: list[str]
) -> None:
    with pytest.raises(error, match=message) as caught:
        Trainer(load_config("scenes-ddcat", [*tiny_run, f"model.start_from={run}", *overrides]))
    assert "\n" not in str(caught.value)
