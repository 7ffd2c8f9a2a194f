from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddcat.errors import DdcatError
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.data.synthetic.render import SCENE_CLASSES, render
from ddcat_train.data_cli import app


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(out, train=24, val=4, size=(64, 96), seed=5)
    return out


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def samples(dataset: Dataset) -> list[bytes]:
    return [dataset.read(index).image.tobytes() for index in range(len(dataset))]


def test_the_voc_reader_reads_them(generated: Path) -> None:
    for name in ("scenes", "voc"):
        dataset = open_dataset(name, generated, "train")
        assert dataset.name == name
        assert dataset.classes == SCENE_CLASSES
        assert len(dataset) == 24
        assert len(open_dataset(name, generated, "val")) == 4
        sample = dataset.read(0)
        assert sample.image.shape == (64, 96, 3)
    with Image.open(generated / "SegmentationClass/train_00000.png") as opened:
        assert opened.mode == "P"


def test_the_seed_alone_decides(generated: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "fewer", train=2, val=1, size=(64, 96), seed=5)
    whole, fewer = contents(generated), contents(tmp_path / "fewer")
    assert [name for name in fewer if not name.startswith("ImageSets") and fewer[name] != whole[name]] == []
    write_scenes(tmp_path / "other", train=4, val=2, size=(64, 96), seed=6)
    images = samples(open_dataset("scenes", tmp_path / "other", "train")) + [
        image for split in ("train", "val") for image in samples(open_dataset("scenes", generated, split))
    ]
    assert len(set(images)) == len(images)


def test_every_class_is_there_with_thin_ignored_borders(generated: Path) -> None:
    dataset = open_dataset("scenes", generated, "train")
    labels = np.stack([dataset.read(index).labels for index in range(len(dataset))])
    shares = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert (shares[:6] > 0.01).all()
    assert shares[6:255].sum() == 0
    assert 0.02 < shares[255] < 0.2
    areas = [cv2.erode((each == 255).astype(np.uint8), np.ones((3, 3)), borderValue=0) for each in labels]
    assert np.mean(areas) < 0.01  # lines of a pixel, of two between neighbours: hardly ever a square of 3x3


def test_colour_alone_does_not_tell_the_classes(generated: Path) -> None:
    """The nearest mean colour is a poor segmenter: the texture must be needed."""
    dataset = open_dataset("scenes", generated, "train")
    read = [dataset.read(index) for index in range(len(dataset))]
    pixels = np.concatenate([sample.image.reshape(-1, 3) for sample in read]).astype(np.float32)
    labels = np.concatenate([sample.labels.ravel() for sample in read])
    pixels, labels = pixels[labels != 255], labels[labels != 255]
    means = np.stack([pixels[labels == value].mean(0) for value in range(6)])
    guesses = ((pixels[:, None] - means) ** 2).sum(-1).argmin(1)
    recall = np.mean([(guesses[labels == value] == value).mean() for value in range(6)])
    assert 1 / 6 < recall < 0.5


@pytest.mark.parametrize("size", [(32, 32), (40, 130), (200, 64)])
def test_any_size_can_be_drawn(size: tuple[int, int]) -> None:
    for seed in range(5):
        image, labels = render(np.random.default_rng(seed), size)
        assert image.shape == (*size, 3)
        assert labels.shape == size
        assert image.std() > 10


def test_nothing_is_left_of_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(DdcatError, match="exists already"):
        write_scenes(tmp_path / "full", train=1, val=1)
    for option, value in (("--train", 0), ("--val", 0), ("--size", "8x96"), ("--seed", -1)):
        assert CliRunner().invoke(app, ["scenes", str(tmp_path / "new"), option, str(value)]).exit_code
    assert [file.name for file in tmp_path.iterdir()] == ["full"]
