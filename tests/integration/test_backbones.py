"""Backbones that are not of the house: trained for two steps, exported, and compared with PyTorch at many sizes."""

import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from ddcat.bundle import open_bundle
from ddcat.engines import open_engine
from ddcat_export.errors import ExportError
from ddcat_export.onnx_export import build_graph
from ddcat_export.parity import LOGIT_TOLERANCE, check_parity, sample_images, shapes_of
from ddcat_export.twin.twin import twin_of
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import load_config
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_planes
from ddcat_train.run.trainer import Trainer

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
        trainer.train_step(batch)
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
        check_parity(build_graph(network, sizes=None, logits=False, confidence=False), network, shapes_of(None)).logit_error
        <= LOGIT_TOLERANCE
    )


HF = {
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "swin": {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 2, 4], "window_size": 7},
    "pvt_v2": {
        "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 4], "mlp_ratios": [2] * 4,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "sizes"),
    [("convnextv2", []), ("convnextv2", ["--size", "45x70"]), ("convnext", []), ("swin", ["--size", "45x70"]), ("pvt_v2", [])],
)
def test_backbones_of_transformers_are_exported_and_attacked(
    model: str, sizes: list[str], scenes: Path, tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    options = json.dumps({"model_type": model, **HF[model]})
    trained(scenes, tmp_path / "run", "model.backbone=hf", f"model.hf={options}")
    out = tmp_path / "bundle"
    line = [sys.executable, "-m", "ddcat", "export", str(tmp_path / "run"), "--engine", "ort", *sizes, "--out", str(out)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # with all proofs
    bundle = open_bundle(out)
    images = sample_images((2, 45, 70), 0)
    with open_engine(bundle, threads=1) as engine, torch.no_grad():
        labels = twin_of(bundle)(to_planes(images)).argmax(1).numpy()
        assert (labels == engine.infer(images).labels).mean() > 0.999


@pytest.mark.slow
def test_swin_is_for_one_size(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    options = json.dumps({"model_type": "swin", **HF["swin"]})
    network = trained(scenes, tmp_path, "model.backbone=hf", f"model.hf={options}")
    with pytest.raises(ExportError, match="for one image size only, because its code depends on the size: use --size HxW"):
        build_graph(network, sizes=None, logits=False, confidence=False)
