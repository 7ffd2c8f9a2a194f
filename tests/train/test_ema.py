"""The moving average of the weights: what it is, who uses it, and that a run resumes with it."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ddcat.metrics import miou
from ddcat_train.checkpoints import BEST, LAST, load_checkpoint
from ddcat_train.config import load_config
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.evaluation import evaluate
from ddcat_train.networks import load_backbone
from ddcat_train.run.ema import init_ema, update_ema
from ddcat_train.run.loop import train
from ddcat_train.run.trainer import Trainer


def expected_average(states: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """The definition, in double precision: the first state is where the average starts."""
    average = {name: value.double() for name, value in states[0].items()}
    for step, state in enumerate(states[1:]):
        d = min(decay, (1 + step) / (10 + step))
        average = {
            name: d * average[name] + (1 - d) * value.double() if value.is_floating_point() else value.double()
            for name, value in state.items()
        }
    return average


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[name].double(), expected[name], rtol=1e-5, atol=1e-6) for name in expected)


def test_at_the_start_it_forgets_quickly() -> None:
    network = nn.Linear(3, 1)
    states = [copy.deepcopy(network.state_dict())]
    average = init_ema(network)
    for step in range(30):
        nn.init.normal_(network.weight)
        states.append(copy.deepcopy(network.state_dict()))
        update_ema(average, network, decay=0.7, step=step)
    assert close(average.state_dict(), expected_average(states, 0.7))
    assert not close(average.state_dict(), {name: value.double() for name, value in states[-1].items()})


def test_a_run_uses_the_average_and_trains_the_weights(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Tensor]] = []
    apply = Trainer.train_step

    def watched(self: Trainer, batch: object) -> object:
        states.extend([copy.deepcopy(self._network.state_dict())] if not states else [])
        log = apply(self, batch)  # type: ignore[arg-type]
        states.append(copy.deepcopy(self._network.state_dict()))
        return log

    monkeypatch.setattr(Trainer, "train_step", watched)
    config = load_config("scenes-ddcat", [*tiny_run, "train.ema=0.6", "train.evaluate_every=9"])
    scores = train(config, tmp_path / "ema").scores
    last, best = load_checkpoint(tmp_path / "ema" / LAST), load_checkpoint(tmp_path / "ema" / BEST)
    assert len(states) == 10
    assert close(last.part("model."), expected_average(states, 0.6))
    raw = last.part("training.")
    assert all(torch.equal(raw[name], value) for name, value in states[-1].items())
    assert not best.part("training.")  # what is only for resuming
    assert all(torch.equal(value, last.tensors[name]) for name, value in best.tensors.items())
    trainer = Trainer(config)
    scored = evaluate(
        best.segmenter(), trainer._val, epsilon=0.03, alpha=0.01, steps=(0, 3), batch_size=8, device=torch.device("cpu")
    )
    assert scores["clean"] == pytest.approx(miou(scored.counts[0].sum(0)))
    assert scores["attacked"] == pytest.approx(miou(scored.counts[3].sum(0)))

    # The average only watches: without one, the same weights are trained.
    train(load_config("scenes-ddcat", [*tiny_run, "train.evaluate_every=9"]), tmp_path / "plain")
    plain = load_checkpoint(tmp_path / "plain" / LAST)
    assert all(torch.equal(raw[name], value) for name, value in plain.part("model.").items())
    assert not plain.part("training.")


@pytest.mark.parametrize("method", ["sat", "ddcat"])
def test_methods_resume_with_it_to_the_same_bits(method: str, tiny_run: list[str], tmp_path: Path) -> None:
    config = load_config("scenes-undefended", [*tiny_run, "train.ema=0.5", "train.workers=0", f"method.name={method}"])
    trainer = Trainer(config)
    for batch in itertools.islice(trainer.batches(), 2):
        trainer.save(tmp_path / "first.safetensors", resumable=True)
        trainer.train_step(batch)
    trainer.save(tmp_path / "whole.safetensors", resumable=True)
    resumed = Trainer(config)
    torch.rand(7)  # whatever happens between two sessions
    resumed.restore(load_checkpoint(tmp_path / "first.safetensors"))
    assert resumed.step == 1
    resumed.train_step(next(resumed.batches()))
    resumed.save(tmp_path / "resumed.safetensors", resumable=True)
    whole, found = (load_checkpoint(tmp_path / f"{name}.safetensors").tensors for name in ("whole", "resumed"))
    assert whole.keys() == found.keys()
    assert [name for name in whole if not torch.equal(whole[name], found[name])] == []
    weight = "backbone.layer1.0.conv1.weight"
    assert not torch.equal(whole[f"model.{weight}"], whole[f"training.{weight}"])


@pytest.mark.parametrize("decay", [0, 1, -0.5])
def test_a_decay_that_is_none_is_refused(decay: float, tiny_run: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"train\.ema"):
        load_config("scenes-undefended", [*tiny_run, f"train.ema={decay}"])


# --- a run whose backbone another one starts from


@pytest.fixture(scope="module")
def robust(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an average that differs from its weights."""
    run = tmp_path_factory.mktemp("robust") / "run"
    overrides = [f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "train.epochs=1", "train.ema=0.5"]
    train(load_config("scenes-pgd-at", [*overrides, "train.evaluate_images=1"]), run)
    return run


@pytest.mark.parametrize("method", ["undefended", "ddcat"])
def test_methods_start_from_the_backbone_of_a_run(method: str, robust: Path, tiny_run: list[str]) -> None:
    expected = load_checkpoint(robust).segmenter().backbone.state_dict()
    for source in (robust, robust / LAST):
        overrides = [*tiny_run, f"model.pretrained={source}", f"method.name={method}", "train.ema=0.9"]
        trainer = Trainer(load_config("scenes-undefended", overrides))
        for network in (trainer._network, trainer.eval_network):
            found = network.backbone.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_with_another_backbone_is_refused(robust: Path, tiny_run: list[str], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"does not fit a ResNet .* has shape \(4, .* instead of \(8, "):
        Trainer(load_config("scenes-undefended", [*tiny_run, f"model.pretrained={robust}", "model.width=8"]))
    with pytest.raises(CheckpointError, match="use a run directory that ddcat train wrote"):
        Trainer(load_config("scenes-undefended", [*tiny_run, f"model.pretrained={tmp_path}"]))
    network = Trainer(load_config("scenes-undefended", [*tiny_run, "model.backbone=mobilenet_v2", "model.width=64"]))._network
    with pytest.raises(CheckpointError, match=r"is missing; .* is not a key of the network"):
        load_backbone(network.backbone, robust / BEST)
