"""A trained model in Python: `ddcat.load`."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import ddcat
from ddcat.errors import DdcatError
from ddcat.metrics import miou
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.errors import DataError
from ddcat_train.evaluation import evaluate
from ddcat_train.model import Model


@pytest.fixture(scope="module")
def run(tiny_scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "run"
    overrides = ["augment.crop=33", "model.width=4", "train.epochs=1", "train.batch_size=4"]
    ddcat.train("scenes-ddcat", folder, data_root=str(tiny_scenes), overrides=overrides, device="cpu")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return ddcat.load(str(run))


def test_it_is_the_main_branch(model: Model, run: Path) -> None:
    images = torch.rand(2, 3, 41, 36)
    with torch.no_grad():
        assert torch.equal(model(images), load_checkpoint(run).segmenter()(images))
    assert model.classes.names == load_checkpoint(run).description.classes.names


def test_a_prediction_is_the_class_of_each_pixel(model: Model, tiny_scenes: Path) -> None:
    image = cv2.imread(str(next((tiny_scenes / "JPEGImages").glob("val*"))))[..., ::-1]
    labels = model.predict(np.ascontiguousarray(image))
    assert (labels.shape, labels.dtype) == (image.shape[:2], np.uint8)
    planes = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    assert np.array_equal(labels, model(planes).argmax(1)[0].numpy())


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 3), np.float32), "image.jpg"])
def test_another_image_is_refused(image: Any, model: Model) -> None:
    with pytest.raises(DataError, match=re.escape("expected a uint8 array (height, width, 3) in RGB, got ")):
        model.predict(image)


def test_scores_are_those_of_the_evaluation(model: Model, tiny_scenes: Path) -> None:
    found = model.evaluate(epsilon=0.06, steps=(0, 2), limit=3)
    dataset = open_dataset("scenes", tiny_scenes, "val")
    counts = evaluate(
        model, dataset, epsilon=0.06, alpha=0.02, steps=(0, 2), batch_size=1, device=torch.device("cpu"), limit=3
    ).counts
    assert found.miou == {n: miou(rows.sum(0)) for n, rows in counts.items()}
    assert found.images == 3
    assert set(found.pixel_accuracy) == {0, 2}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 40, 40, dtype=torch.uint8), "got uint8 of shape (1, 3, 40, 40); divide 8-bit images by 255"),
        (torch.zeros(3, 40, 40), "got float32 of shape (3, 40, 40)"),
        (torch.full((1, 3, 40, 40), 255.0), "expected values in [0, 1], got levels of 0 to 255"),
        (torch.zeros(1, 3, 5, 5), "an image is too small for this network, which gives NaN for it: use images of 33 x 33"),
    ],
)
def test_images_that_it_would_label_wrongly_are_refused(images: torch.Tensor, message: str, model: Model) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        model(images)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit 0 and batch_size 1: expected 1 or more"),
        ({"batch_size": 0}, "limit None and batch_size 0: expected 1 or more"),
        ({"steps": ()}, r"steps \(\): expected numbers of 0 or more"),
        ({"steps": (0, -1)}, r"steps \(0, -1\): expected numbers of 0 or more"),
        ({"epsilon": 8}, r"epsilon 8: expected a bound in \[0, 1\]"),
    ],
)
def test_an_evaluation_of_nothing_is_refused(options: dict[str, Any], message: str, model: Model) -> None:
    with pytest.raises(DdcatError, match=message):
        model.evaluate(**options)


def test_it_is_attacked_like_any_model(model: Model) -> None:
    images, labels = torch.rand(1, 3, 33, 33), torch.zeros(1, 33, 33, dtype=torch.int64)
    assert float((ddcat.attack(model, images, labels, "bim") - images).abs().max()) <= 8 / 255 + 1e-6


def test_the_package_is_light_and_says_what_it_has() -> None:
    program = "import sys, ddcat; print(*dir(ddcat)); print(*{name.partition('.')[0] for name in sys.modules})"
    names, modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert set(ddcat.__all__) < set(names.split())
    assert not {"torch", "numpy", "pydantic", "onnx", "ddcat_train"} & set(modules.split())
    with pytest.raises(AttributeError, match="module 'ddcat' has no attribute 'lode'"):
        ddcat.lode  # noqa: B018


def test_every_name_is_in_the_table_and_of_the_type_that_a_checker_sees() -> None:
    source = Path(ddcat.__file__).read_text(encoding="utf-8")
    for name, (module, _) in ddcat._MODULES.items():
        assert f"from {module} import {name} as {name}\n" in source
        assert callable(getattr(ddcat, name))
    assert set(ddcat._MODULES) == set(ddcat.__all__)
