"""Backbones that are not of the house: trained for two steps, exported, and compared with PyTorch at many sizes."""

import importlib
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ddcat_export.errors import ExportError
from ddcat_export.graph import build_graph
from ddcat_export.sweep import LOGIT_TOLERANCE, shapes_of, sweep
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import load_config
from ddcat_train.data.generate import write_scenes
from ddcat_train.networks import Segmenter
from ddcat_train.trainer import Trainer

PAGE = (Path(__file__).parents[2] / "docs/backbones.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, train=8, val=2, size=(48, 48))
    return root


def trained(scenes: Path, folder: Path, *overrides: str) -> Segmenter:
    """The network after two steps of DDC-AT, as its checkpoint gives it."""
    fixed = [f"data.root={scenes}", "augment.crop=40", "train.epochs=1", "train.batch_size=4", "model.width=64"]
    trainer = Trainer(load_config("scenes-ddcat", [*fixed, *overrides]), device="cpu")
    for batch in trainer.batches():
        trainer.apply(batch)
    assert trainer.step == 2
    trainer.save(folder / LAST, resumable=False)
    return load_checkpoint(folder / LAST).segmenter()


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(found) == 1
    return str(found[0])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What docs/backbones.md shows, as `pip install` would leave it."""
    project = tomllib.loads(block("toml"))["project"]
    (tmp_path / "my_backbones.py").write_text(block("python"))
    info = tmp_path / f"my_backbones-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    entries = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(entries))
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield
    importlib.invalidate_caches()


@pytest.mark.usefixtures("package")
@pytest.mark.slow
def test_the_backbone_of_the_documentation(scenes: Path, tmp_path: Path) -> None:
    network = trained(scenes, tmp_path, "model.backbone=plain")
    assert type(network.backbone).__name__ == "Plain"
    for size in ((33, 33), (49, 70)):
        assert network.backbone(torch.zeros(1, 3, *size)).last.shape == (1, 64, -(-size[0] // 16), -(-size[1] // 16))
    assert (
        sweep(build_graph(network, sizes=None, logits=False, confidence=False), network, shapes_of(None)).logit_error
        <= LOGIT_TOLERANCE
    )


CONVNEXT = {"model_type": "convnextv2", "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
SWIN = {"model_type": "swin", "embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 7}


@pytest.mark.slow
def test_convnext_v2_at_every_shape(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    network = trained(scenes, tmp_path, "model.backbone=hf", f"model.hf={json.dumps(CONVNEXT)}")
    found = sweep(build_graph(network, sizes=None, logits=False, confidence=False), network, shapes_of(None))
    assert found.shapes == shapes_of(None)
    assert 0 < found.logit_error <= LOGIT_TOLERANCE


@pytest.mark.slow
def test_swin_at_a_size_off_its_grid(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    network = trained(scenes, tmp_path, "model.backbone=hf", f"model.hf={json.dumps(SWIN)}")
    size = (45, 70)
    found = sweep(build_graph(network, sizes=(size,), logits=False, confidence=False), network, shapes_of((size,)))
    assert 0 < found.logit_error <= LOGIT_TOLERANCE
    with pytest.raises(ExportError, match="for one size of images only, its code depends on it: --size HxW"):
        build_graph(network, sizes=None, logits=False, confidence=False)
