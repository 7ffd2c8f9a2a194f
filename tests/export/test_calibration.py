"""What int8 is calibrated on, and that ranges are those that PyTorch has."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from ddcat.bundle import Bundle
from ddcat.hashing import sha256_of_bytes
from ddcat_export.calibration import calibration_images, measure_ranges, training_attack
from ddcat_export.data import ExportData, PictureFolder, check_labels
from ddcat_export.errors import ExportError
from ddcat_export.fuse_batch_norm import fold_batch_norms
from ddcat_export.parity import sample_images
from ddcat_export.quantise import layers_of
from ddcat_train.attacks import pgd
from ddcat_train.checkpoints import Checkpoint, load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.data.dataset import Dataset
from ddcat_train.pixels import to_planes


@pytest.fixture(scope="module")
def checkpoint(run: Path) -> Checkpoint:
    return load_checkpoint(run)


def test_ranges_are_the_largest_magnitudes_in_pytorch(checkpoint: Checkpoint, bundle: Bundle) -> None:
    graph = bundle.files["model.onnx"]
    images = [sample_images((1, 64, 80), 1), sample_images((2, 49, 33), 0)]
    found = measure_ranges(graph, images)
    network = fold_batch_norms(checkpoint.segmenter())
    largest: dict[str, float] = {}

    def keep(name: str) -> None:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            largest[name] = max(largest.get(name, 0.0), inputs[0].abs().max().item())

        network.get_submodule(name).register_forward_pre_hook(hook)

    # of those in the backbone: the head's reads no tensor, but the parts that its context consists of
    layers = {name: name.removeprefix("segmenter.").partition("/")[0] for name in layers_of(graph) if ".backbone." in name}
    for module in layers.values():
        keep(module)
    with torch.no_grad():
        for batch in images:
            network(torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255)
    nodes = {node.name: node for node in onnx.load_model_from_string(graph).graph.node}
    assert len(layers) > 8
    for name, module in layers.items():
        assert found[nodes[name].input[0]] == pytest.approx(largest[module], rel=1e-4), name


@pytest.mark.parametrize("kind", ["clean", "mixed"])
def test_the_images_are_of_the_training_split(checkpoint: Checkpoint, scenes: Path, kind: str) -> None:
    segmenter = checkpoint.segmenter()
    images, calibration = calibration_images(
        ExportData(checkpoint, root=scenes),
        segmenter,
        kind,
        attack=training_attack(checkpoint),
        images=4,  # type: ignore[arg-type]
    )
    dataset = open_dataset("scenes", scenes, "train", rule=checkpoint.description.config.data.rule(evaluation=True))
    samples = [dataset.read((2 * index + 1) * len(dataset) // 8) for index in range(4)]  # the middle of each quarter
    assert calibration.list_sha256 == sha256_of_bytes("\n".join(sample.name for sample in samples).encode())
    assert (calibration.kind, calibration.images, calibration.split) == (kind, 4, "train")
    attacked = [not np.array_equal(image[0], sample.image) for image, sample in zip(images, samples, strict=True)]
    if kind == "clean":
        assert (attacked, calibration.attack) == ([False] * 4, None)
        return
    assert attacked == [False, True, False, True]
    assert calibration.attack == {"name": "PGD", "epsilon": 0.03, "alpha": 0.01, "steps": 3, "start": "random"}
    planes = torch.from_numpy(samples[3].image)[None].permute(0, 3, 1, 2).float() / 255
    labels = torch.from_numpy(samples[3].labels)[None].long()
    wanted = pgd(segmenter, planes, labels, epsilon=0.03, alpha=0.01, steps=3, start="random", seeds=torch.tensor([3]))
    difference = 255 * (wanted - planes).permute(0, 2, 3, 1).numpy()  # in grey levels
    found = images[3].astype(int) - samples[3].image
    assert np.abs(found).max() == 7  # 0.03 of 255, rounded toward zero
    assert np.abs(found - difference).max() < 1
    assert np.all(np.abs(found) <= np.abs(difference) + 1e-3)
    again, _ = calibration_images(
        ExportData(checkpoint, root=scenes), segmenter, "mixed", attack=training_attack(checkpoint), images=4
    )
    assert all(np.array_equal(one, other) for one, other in zip(images, again, strict=True))


def test_images_are_resized_for_a_graph_of_one_size(checkpoint: Checkpoint, scenes: Path) -> None:
    for sample in ExportData(checkpoint, root=scenes, size=(40, 56)).val(2):
        assert (sample.image.shape, sample.labels.shape) == ((1, 40, 56, 3), (1, 40, 56))
        assert set(np.unique(sample.labels)) <= {*range(len(checkpoint.description.classes)), 255}


def test_images_without_labels_have_those_of_the_model(checkpoint: Checkpoint, scenes: Path, tmp_path: Path) -> None:
    segmenter = checkpoint.segmenter()
    data = PictureFolder(checkpoint, folder=scenes / "JPEGImages", segmenter=segmenter, size=(40, 56))
    names = sorted(path.name for path in (scenes / "JPEGImages").iterdir())
    samples = data.train(2)
    assert [sample.name for sample in samples] == [names[0], names[-1]]
    assert data.train(2) is samples
    for sample in samples:
        assert sample.image.shape == (1, 40, 56, 3)
        with torch.no_grad():
            labels = segmenter(to_planes(sample.image)).argmax(1)
        np.testing.assert_array_equal(sample.labels, labels.numpy())
    pictures, said = data.pictures(3)
    assert (len(pictures), said.startswith(f"{scenes / 'JPEGImages'}: {names[0]}, ")) == (3, True)
    for refused in (lambda: data.val(1), data.val_dataset):
        with pytest.raises(ExportError, match="use --data-root instead of --calibration-folder"):
            refused()
    with pytest.raises(ExportError, match="expected a folder with images"):
        PictureFolder(checkpoint, folder=tmp_path, segmenter=segmenter)


def test_each_split_is_opened_once(checkpoint: Checkpoint, scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def note(name: str, root: Path, split: str, **options: object) -> Dataset:
        opened.append(split)
        return open_dataset(name, root, split, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("ddcat_export.data.open_dataset", note)
    data = ExportData(checkpoint, root=scenes)
    assert data.train(4) is data.train(4)
    data.val(2)
    data.train(2)
    pictures = data.pictures(3)
    assert pictures is not None
    assert len(pictures[0]) == 3
    assert opened == ["train", "val"]


def test_without_data_there_is_no_int8(checkpoint: Checkpoint) -> None:
    with pytest.raises(ExportError, match=r"need images of .*some/where.*; use --data-root DIR"):
        ExportData(checkpoint).train(1)


def test_a_label_that_the_network_does_not_know_is_refused() -> None:
    check_labels(torch.tensor([[0, 5, 255]]), 6, "data")
    check_labels(torch.tensor([[255]]), 6, "data")
    with pytest.raises(ExportError, match="data has label 6, expected 0 to 5: use the data set of the training"):
        check_labels(torch.tensor([[0, 6, 255]]), 6, "data")
