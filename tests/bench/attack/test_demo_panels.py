import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from panels import make_panels
from PIL import Image
from torch import Tensor

from ddcat.classes import IGNORE_INDEX, colourise
from ddcat_train.data import Dataset

Pixels = npt.NDArray[np.uint8]


def pixels(png: bytes) -> Pixels:
    with Image.open(io.BytesIO(png)) as opened:
        assert opened.format == "PNG"
        assert opened.mode == "RGB"
        return np.asarray(opened)


def bright_is_one(images: Tensor) -> Tensor:
    """Class 1 where a pixel is bright, class 0 where it is dark: BIM darkens every pixel of class 1 by the whole of epsilon."""
    light = images.mean(1) - 0.5
    rest = [torch.full_like(light, -100.0)] * 4
    return torch.stack([-light, light, *rest], 1)


def dark_is_one(images: Tensor) -> Tensor:
    """The opposite, which is attacked in the opposite direction."""
    logits = bright_is_one(images)
    return torch.cat([logits[:, [1, 0]], logits[:, 2:]], 1)


@pytest.fixture
def all_of_class_one(scenes: Dataset) -> Dataset:
    return replace(scenes, decode=lambda indices: np.where(indices == IGNORE_INDEX, indices, np.uint8(1)).astype(np.uint8))


def test_panels_are_spread_over_the_split_and_hold_its_images(scenes: Dataset) -> None:
    panels = make_panels(bright_is_one, bright_is_one, scenes, defence="DDC-AT", images=2)
    assert [panel.name for panel in panels] == ["val_00001", "val_00003"]  # the middle ones of two halves of five
    for panel, index in zip(panels, (1, 3), strict=True):
        sample = scenes.read(index)
        image, *_, truth = (pixels(picture.png) for picture in panel.pictures)
        assert np.array_equal(image, sample.image)
        assert np.array_equal(truth, colourise(sample.labels, scenes.classes))
        assert [picture.title for picture in panel.pictures] == [
            "Image", "Attacked image", "Perturbation", "Undefended", "DDC-AT", "Truth",
        ]  # fmt: skip


@pytest.mark.parametrize(("model", "direction"), [(bright_is_one, -1), (dark_is_one, 1)])
def test_the_attack_is_that_on_the_undefended_model(
    all_of_class_one: Dataset, model: Callable[[Tensor], Tensor], direction: int
) -> None:
    other = dark_is_one if model is bright_is_one else bright_is_one
    panel = make_panels(model, other, all_of_class_one, defence="DDC-AT", images=1)[0]
    sample = all_of_class_one.read(2)
    scored = sample.labels != IGNORE_INDEX
    _, attacked, perturbation, *_ = (pixels(picture.png) for picture in panel.pictures)
    expected = sample.image.astype(int)
    expected[scored] += direction * 7  # 0.03 is 7.65 grey levels, rounded toward zero
    expected = expected.clip(0, 255)
    assert np.array_equal(attacked, expected)
    assert np.array_equal(perturbation, 128 + 18 * (expected - sample.image))
    assert "times 18" in panel.pictures[2].caption


def test_each_prediction_is_that_for_the_attack_on_its_own_model(all_of_class_one: Dataset) -> None:
    panel = make_panels(bright_is_one, dark_is_one, all_of_class_one, defence="DDC-AT", images=1)[0]
    sample = all_of_class_one.read(2)
    scored = sample.labels != IGNORE_INDEX
    clean = torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255
    for picture, model, direction in ((panel.pictures[3], bright_is_one, -1), (panel.pictures[4], dark_is_one, 1)):
        received = (torch.from_numpy(sample.image).int() + direction * 7 * torch.from_numpy(scored)[..., None]).clamp(0, 255)
        answer = model(received.permute(2, 0, 1)[None] / 255).argmax(1)[0].numpy().astype(np.uint8)
        assert np.array_equal(pixels(picture.png), colourise(answer, all_of_class_one.classes))
        before = model(clean).argmax(1)[0].numpy()
        shares = [(labels[scored] == 1).mean() for labels in (answer, before)]
        assert f"{shares[0]:.0%} of the pixels are right, {shares[1]:.0%} without attack" in picture.caption


def test_a_caption_says_whose_attack_it_is(scenes: Dataset) -> None:
    captions = [
        p.caption for p in make_panels(bright_is_one, dark_is_one, scenes, defence="SAT", images=1, steps=3)[0].pictures
    ]
    assert captions[1] == "BIM, n = 3, by the gradients of the undefended model"
    assert captions[3].startswith("its prediction for that attacked image")
    assert captions[4].startswith("its prediction under BIM, n = 3, by its own gradients")


def test_without_a_perturbation_all_is_grey(scenes: Dataset) -> None:
    panel = make_panels(bright_is_one, dark_is_one, scenes, defence="SAT", images=1, epsilon=0.0)[0]
    assert (pixels(panel.pictures[2].png) == 128).all()
