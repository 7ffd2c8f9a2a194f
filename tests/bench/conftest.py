import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from ddcat.bundle import Bundle, write_bundle
from ddcat.engines import Outputs
from ddcat.engines.base import check_images
from ddcat.manifest import DimRange, InputShapes, Preprocessing, TensorEntry
from ddcat_bench.inputs import main_branch
from ddcat_bench.timing.pytorch_models import torch_labels
from ddcat_train import imagenet
from ddcat_train.checkpoints import Checkpoint, Description, SplitEntry, build_network, load_checkpoint, save_checkpoint
from ddcat_train.config import Config, parse_config
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.networks import Segmenter
from tests.bench.suite import quiet_probe
from tests.bundles import manifest_on, small_manifest

Images = npt.NDArray[np.uint8]
HEIGHT, WIDTH = 40, 48


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scenes_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench") / "scenes"
    write_scenes(root, train=2, val=5, size=(HEIGHT, WIDTH))
    return root


@pytest.fixture(scope="session")
def scenes(scenes_root: Path) -> Dataset:
    return open_dataset("scenes", scenes_root, "val")


@pytest.fixture(scope="session")
def run_directory(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path, scenes: Dataset) -> Path:
    """A run whose network knows its few scenes by heart: random weights would give one answer everywhere."""
    return _write_run(tmp_path_factory.mktemp("runs") / "tiny", scenes_root, scenes, method="sat", seed=0)


@pytest.fixture(scope="session")
def checkpoint(run_directory: Path) -> Checkpoint:
    return load_checkpoint(run_directory)


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory, scenes_root: Path, scenes: Dataset) -> Checkpoint:
    """Of the same data, with other weights."""
    return load_checkpoint(
        _write_run(tmp_path_factory.mktemp("runs") / "other", scenes_root, scenes, method="undefended", seed=1)
    )


def _write_run(run: Path, root: Path, scenes: Dataset, *, method: str, seed: int) -> Path:
    config = _config(root, method)
    torch.manual_seed(seed)
    network = build_network(config, len(scenes.classes))
    _learn(network, scenes)
    description = Description(
        config=config,
        classes=scenes.classes,
        train=SplitEntry(images=2, list_sha256=open_dataset("scenes", root, "train").list_sha256()),
        val=SplitEntry(images=len(scenes), list_sha256=scenes.list_sha256()),
        step=12,
        steps=20,
        scores={},
        best=None,
        git_commit=None,
        versions={},
    )
    save_checkpoint(run / "best.safetensors", description, network)
    return run


@dataclass
class TorchEngine:
    """What an engine is, computed by PyTorch; `change` falsifies its labels."""

    checkpoint: Checkpoint
    shapes: InputShapes
    change: Callable[[Images], Images] = lambda labels: labels
    description: Mapping[str, str | int | bool] = field(default_factory=lambda: {"runtime": "PyTorch", "threads": 1})
    inputs: tuple[TensorEntry, ...] = ()
    outputs: tuple[TensorEntry, ...] = ()

    def __post_init__(self) -> None:
        self._network = main_branch(self.checkpoint, torch.device("cpu"))

    def infer(self, images: Images) -> Outputs:
        check_images(images, self.shapes)
        return Outputs(self.change(torch_labels(self._network, images)))

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *fault: object) -> None:
        pass


@pytest.fixture
def make_engine(checkpoint: Checkpoint) -> Callable[..., TorchEngine]:
    def make(
        bundle: Bundle, change: Callable[[Images], Images] = lambda labels: labels, *, threads: int | None = None
    ) -> TorchEngine:
        return TorchEngine(checkpoint, bundle.manifest.shapes, change)

    return make


@pytest.fixture
def make_bundle(tmp_path: Path, checkpoint: Checkpoint, scenes: Dataset) -> Callable[..., Bundle]:
    """Bundles of the tiny checkpoint; what serves for a graph in them is never loaded."""

    def make(height: int | None = None, width: int | None = None, batch: int | None = None) -> Bundle:
        known = small_manifest(content := b"no graph", "tiny", logits=False)
        sides = [DimRange(minimum=s or 33, maximum=s) for s in (height, width)]
        made_from = {
            "checkpoint": str(checkpoint.path), "sha256": checkpoint.sha256(), "method": "sat",
            "architecture": "resnet10 + pyramid", "step": 12,
        }  # fmt: skip
        manifest = manifest_on(
            scenes,
            known,
            source=known.source.model_copy(update=made_from),
            preprocessing=Preprocessing(mean=imagenet.MEAN, std=imagenet.STD),
            shapes=InputShapes(batch=DimRange(minimum=batch or 1, maximum=batch), height=sides[0], width=sides[1]),
        )
        return write_bundle(tmp_path / "tiny.bundle", manifest, {"model.onnx": content})

    return make


def _learn(network: Segmenter, scenes: Dataset) -> None:
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    [(_, images, labels)] = evaluation_batches(scenes, batch_size=len(scenes))
    network.train()
    for _ in range(30):
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels, ignore_index=255).backward()
        optimizer.step()


def _config(root: Path, method: str) -> Config:
    return parse_config(
        {
            "data": {"name": "scenes", "root": str(root)},
            "augment": {"policy": "plain", "crop": 33},
            "model": {"backbone": "resnet10", "width": 4},
            "method": {"name": method},
            "train": {"epochs": 1, "batch_size": 2, "workers": 0},
        },
        "the tests of bench",
    )


@pytest.fixture
def no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of a test leave out the probe for masked gradients, which is most of their work."""
    monkeypatch.setattr("ddcat_bench.attack.rank_work.run_probe", quiet_probe)


@pytest.fixture
def scenes_copy(tmp_path: Path, scenes_root: Path) -> Path:
    return shutil.copytree(scenes_root, tmp_path / "copy")


@pytest.fixture
def other_scenes(tmp_path: Path) -> Callable[[int], Path]:
    """Generate scenes with that many images in their val split."""

    def make(val: int) -> Path:
        root = tmp_path / f"scenes-{val}"
        write_scenes(root, train=1, val=val, size=(HEIGHT, WIDTH), seed=1)
        return root

    return make
