from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ddcat_train.choices import ContextName, MethodName
from ddcat_train.config import AttackConfig, Config, MethodConfig, ModelConfig, dump_config, load_config, parse_config
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.losses import valid_pixels
from ddcat_train.methods import METHODS, MicroBatch
from ddcat_train.networks import Segmenter, build_segmenter
from ddcat_train.run import summary
from ddcat_train.run.loop import train
from ddcat_train.run.plots import draw_curves
from tests.train import oracle, released, small
from tests.train.ranks import Together, call_together
from tests.train.runs import Finished


@pytest.fixture(scope="session", name="oracle")
def the_oracle() -> ModuleType:
    """The slow transcription of the paper's algorithms."""
    return oracle


@pytest.fixture(scope="session", name="released")
def the_released() -> ModuleType:
    """The files of others: keys, shapes, and what they compute."""
    return released


@pytest.fixture(scope="session", name="small")
def the_small() -> ModuleType:
    """A network, a linear model and images to attack, of a few pixels."""
    return small


@pytest.fixture(scope="session")
def tiny_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten scenes to train on and four to judge with, 48 x 48."""
    root = tmp_path_factory.mktemp("tiny") / "scenes"
    write_scenes(root, train=10, val=4, size=(48, 48))
    return root


@pytest.fixture
def tiny_run(tiny_scenes: Path) -> list[str]:
    """Overrides that make the scenes presets steps of a fraction of a second: 3 epochs of 3 steps."""
    return [
        f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "train.epochs=3", "train.batch_size=4",
        "train.evaluate_every=2",
    ]  # fmt: skip


@pytest.fixture
def tiny(tiny_scenes: Path) -> Callable[..., Config]:
    """Configurations whose steps are equal on any number of ranks: 3 epochs of 2 steps."""

    def config(method: str, *overrides: str) -> Config:
        fixed = [
            f"data.root={tiny_scenes}", "augment.crop=33", "model.width=4", "model.dropout=0", "train.epochs=3",
            "train.batch_size=6", "train.precision=fp64",
        ]  # fmt: skip
        return load_config(f"scenes-{method}", [*fixed, *overrides])

    return config


@pytest.fixture(autouse=True)
def curves_that_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """To draw them takes as long as the steps of these runs; those of `finished` are drawn."""

    def named(lines: Sequence[Mapping[str, float]], **_: object) -> dict[str, bytes]:
        known = {key for line in lines for key in line}
        names = {"losses.png": "loss", "mask.png": "mask_share", "scores.png": "val/clean"}
        return {name: b"" for name, key in names.items() if key in known}

    monkeypatch.setattr(summary, "draw_curves", named)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """What a configuration comes to when nothing befalls it; trained once, so only to be read."""
    runs: dict[str, Path] = {}

    def run_of(config: Config) -> Path:
        key = config.model_dump_json()
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("finished") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(summary, "draw_curves", draw_curves)
                train(config, runs[key])
        return runs[key]

    return run_of


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Together:
    """Call a function in processes, two of them, that can talk to each other, and give what each of them returned."""
    return lambda work, size=2: call_together(work, tmp_path_factory.mktemp("together"), size)


CLASSES = 5


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., MicroBatch]:
    """Smooth images with labels in blocks; `ignored` is the share of ignored pixels of the first images; half stay clean."""

    def make(count: int, size: tuple[int, int] = (33, 37), ignored: Sequence[float] = (), seed: int = 0) -> MicroBatch:
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(count, 3, 9, 9, dtype=torch.float64, generator=generator)
        images = nn.functional.interpolate(coarse, size, mode="bilinear", align_corners=True)
        images = images + 0.1 * torch.rand(images.shape, dtype=torch.float64, generator=generator)
        blocks = torch.randint(CLASSES, (count, 5, 5), generator=generator).double()[:, None]
        labels = nn.functional.interpolate(blocks, size, mode="nearest")[:, 0].long()
        for i, share in enumerate(ignored):
            labels[i][torch.rand(size, generator=generator) < share] = 255
        seeds = 7 + torch.arange(count)
        valid = valid_pixels(labels).clamp(min=1)
        return MicroBatch(images.clamp(0, 1), labels, seeds, count // 2, valid, labels.numel())

    return make


@pytest.fixture(scope="session")
def settings_of() -> Callable[[MethodName, dict[str, Any]], tuple[MethodConfig, AttackConfig]]:
    """Split what departs from a method's defaults into options and attack, as a configuration resolves them."""

    def make(method: MethodName, chosen: dict[str, Any]) -> tuple[MethodConfig, AttackConfig]:
        attack = {key: value for key, value in chosen.items() if key in AttackConfig.model_fields}
        options = {key: value for key, value in chosen.items() if key not in attack}
        tree = yaml.safe_load(dump_config(load_config("scenes-undefended")))
        config = parse_config(tree | {"method": {"name": method, **options}, "attack": attack}, "test")
        return config.method, config.attack

    return make


@pytest.fixture(scope="session")
def network_for(batch_of: Callable[..., MicroBatch]) -> Callable[..., Segmenter]:
    """
    Build a tiny network in train mode, in double precision, with lived-in batch-norm statistics.

    Every branch is balanced on the batch, so that it predicts several classes and an attack changes some; the mask branch can
    be forced by its bias instead.
    """

    def make(
        options: MethodConfig,
        batch: MicroBatch,
        *,
        context: ContextName = "pyramid",
        dropout: float = 0.0,
        mask_bias: float | None = None,
    ) -> Segmenter:
        torch.manual_seed(1)
        heads = METHODS[options.name].heads(options)
        model = ModelConfig(backbone="resnet10", context=context, width=8)
        network = build_segmenter(model, classes=CLASSES, heads=heads).double()
        with torch.no_grad():
            for module in network.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.3, 0.3)
                    module.momentum = 0.5
                if isinstance(module, nn.Dropout2d):
                    module.p = dropout
            for seed in range(3):
                network(batch_of(4, seed=10 + seed).images, heads=heads)
            for head, logits in network.eval()(batch.images, heads=heads).items():
                network.heads[head][-1].bias -= logits.mean((0, 2, 3))
            if mask_bias is not None:
                network.heads["mask"][-1].bias[1] = mask_bias
        return network.train()

    return make
