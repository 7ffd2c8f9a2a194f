"""
Models of other libraries, tiny and with random weights, from a configuration to an engine.

Each is trained for two steps by DDC-AT, read back from its checkpoint alone, exported with all proofs, and its engine labels as
PyTorch does. `bench/any_model/table.py` adds the gate and the server.
"""

import contextlib
import importlib.util
import json
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ddcat
from bench.any_model.models import MODELS
from ddcat.engines import open_engine
from ddcat_export.errors import ExportError
from ddcat_train.checkpoints import LAST, load_checkpoint
from ddcat_train.config import Config, load_config
from ddcat_train.config import network as config_network
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.networks.whole import CutSegmenter, build_whole, sources
from ddcat_train.networks.whole.calls import logits_of
from ddcat_train.networks.whole.sources import builder
from ddcat_train.pixels import to_planes
from ddcat_train.run.trainer import Trainer

pytestmark = pytest.mark.slow

LIBRARIES = {
    "hf": "transformers", "smp": "segmentation_models_pytorch", "torchvision": "torchvision", "segmenter": "torch",
}  # fmt: skip
_KEPT: list[Any] = []  # operators live as long as what defined them
PEERS = Path(__file__).parents[2] / ".venv/peers"  # where `make` puts what does not fit every build of torch
QUICK_INT8 = ("SegFormer", "torchvision lraspp")  # int8 takes as long as all else


@pytest.fixture(scope="module", autouse=True)
def torchvision_beside_torch_of_a_cpu() -> None:
    """A build of torchvision for CUDA misses two operators beside torch's CPU build; no model here calls them."""
    if PEERS.is_dir() and str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    with contextlib.suppress(ImportError):
        try:
            importlib.import_module("torchvision")
        except RuntimeError:
            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
            _KEPT.append(library)
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            importlib.import_module("torchvision")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(root, train=8, val=2, size=(64, 64))
    return root


def needs(name: str) -> None:
    pytest.importorskip(LIBRARIES[MODELS[name].whole], reason="the library is not installed", exc_type=ImportError)
    if name.startswith("Mask2Former") or name == "EoMT":
        pytest.importorskip("scipy", reason="transformers needs scipy for models of queries")


def configured(name: str, scenes: Path, method: str = "ddcat", *overrides: str) -> Config:
    model = MODELS[name]
    values = [
        f"data.root={scenes}", "augment.crop=64", "train.epochs=1", "train.batch_size=4", f"model.whole={model.whole}",
        f"model.settings={json.dumps(model.settings)}", *overrides,
    ]  # fmt: skip
    return load_config(f"scenes-{method}", values)


def tensorrt_refuses(graph: bytes) -> list[str]:
    """What NVIDIA's parser does not take of a graph; nothing where its library is not installed."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        return []
    checks = importlib.import_module("ddcat_export.engines.tensorrt.parser_check")
    refused: list[str] = checks.check_nodes(graph).refused
    return refused


def trained(config: Config, folder: Path) -> list[float]:
    trainer = Trainer(config, device="cpu")
    losses = [float(trainer.train_step(batch)["loss"]) for batch in trainer.batches()]
    trainer.save(folder / LAST, resumable=False)
    return losses


@pytest.mark.parametrize("name", MODELS)
def test_trained_read_back_and_exported(name: str, scenes: Path, tmp_path: Path) -> None:
    needs(name)
    config = configured(name, scenes)
    torch.manual_seed(0)
    network = build_whole(config.model, classes=6, heads=("main", "auxiliary", "mask")).eval()
    if isinstance(network, CutSegmenter):
        torch.manual_seed(0)
        whole = builder(config.model, None, [])(6).eval()
        images = torch.rand(2, 3, 64, 64)
        with torch.no_grad():
            logits = logits_of(whole(network.prepared(images)))
            assert logits is not None
            expected = F.interpolate(logits, size=(64, 64), mode="bilinear")
            torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-5)
    assert np.isfinite(trained(config, tmp_path / "run")).all()
    sizes = ((64, 64),) if MODELS[name].fixed else None
    if sizes is not None and network.largest is not None:
        with pytest.raises(ExportError, match="so it exports for one image size only"):
            ddcat.export(tmp_path / "run", tmp_path / "bundle")
    done = ddcat.export(tmp_path / "run", tmp_path / "bundle", sizes=sizes)
    assert done.bundle.manifest.main_branch_only.spare_parameters > 0
    assert not tensorrt_refuses(done.bundle.files["model.onnx"])
    images = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8).numpy()
    segmenter = load_checkpoint(tmp_path / "run").segmenter()
    with torch.no_grad(), open_engine(done.bundle, threads=1) as engine:
        labels = segmenter(to_planes(images)).argmax(1).numpy()
        assert (engine.infer(images).labels == labels).mean() > 0.999
    if name in QUICK_INT8:
        options: dict[str, Any] = {"precision": "int8", "calibration_images": 4}
        quantised = ddcat.export(tmp_path / "run", tmp_path / "int8", sizes=sizes, **options)
        with open_engine(quantised.bundle, threads=1) as engine:
            assert (engine.infer(images).labels == labels).mean() > 0.8  # untrained: many pixels are near ties


@pytest.mark.parametrize(
    ("method", "overrides"),
    [
        ("pgd-at", []), ("sat", []), ("trades", []), ("ddcat-m", []), ("ddcat-n", []), ("segpgd-at", []), ("undefended", []),
        ("ddcat", ["method.update=two-step", "method.predicted_mask=algorithm-2", "train.ema=0.9", "train.accumulate=2"]),
    ],
)  # fmt: skip
def test_every_method_trains_a_segformer(method: str, overrides: list[str], scenes: Path, tmp_path: Path) -> None:
    needs("SegFormer")
    assert np.isfinite(trained(configured("SegFormer", scenes, method, *overrides), tmp_path)).all()
    assert ("mask" in load_checkpoint(tmp_path).segmenter().heads) == method.startswith("ddcat")


class Ensemble(nn.Module):
    """Two networks whose logits are added: it cannot be cut."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, classes, 1))
            for _ in range(2)
        )

    def forward(self, images: Tensor) -> Tensor:
        first, second = (member(images) for member in self.members)
        logits: Tensor = first + second
        return logits


def test_a_model_that_is_not_cut(scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "tests.integration.test_whole_models:Ensemble", "ddcat_train.segmenters")
    for module in (config_network, sources):
        monkeypatch.setattr(module, "entry_points", lambda **wanted: EntryPoints([entry]))
    values = [f"data.root={scenes}", "augment.crop=64", "train.epochs=1", "train.batch_size=4", "model.whole=mine"]
    config = load_config("scenes-pgd-at", [*values, "model.settings={}"])
    assert np.isfinite(trained(config, tmp_path / "run")).all()
    again = Trainer(load_config("scenes-pgd-at", [*values, "model.settings={}", f"model.start_from={tmp_path / 'run'}"]))
    assert any("all branches included" in note for note in again.notes)
    done = ddcat.export(tmp_path / "run", tmp_path / "bundle")
    images = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8).numpy()
    segmenter = load_checkpoint(tmp_path / "run").segmenter()
    with torch.no_grad(), open_engine(done.bundle, threads=1) as engine:
        labels = segmenter(to_planes(images)).argmax(1).numpy()
        assert (engine.infer(images).labels == labels).mean() > 0.999
