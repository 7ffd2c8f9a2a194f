from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from ddcat_train.config import Config, load_config
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.run import image_grid, summary
from ddcat_train.run.loop import train
from ddcat_train.run.plots import draw_curves
from tests.train.ranks import Together, call_together
from tests.train.runs import Finished


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


@pytest.fixture(autouse=True)
def panels_that_nobody_looks_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """To enlarge, write and log them takes a fifth of these runs."""
    monkeypatch.setattr(image_grid, "_LONGEST", 48)


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
