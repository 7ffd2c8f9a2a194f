"""Where golden images are from, of what size, and what is done to them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddcat_export.bundle_builder import shapes_of_engine
from ddcat_export.crop import center_crop
from ddcat_export.data import ExportData
from ddcat_export.errors import ExportError
from ddcat_export.golden_images import golden_images
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.errors import DataError


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 40), st.integers(1, 40))
def test_an_image_is_cut_or_mirrored(height: int, width: int, new_height: int, new_width: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    by_numpy = image
    for axis, wanted in enumerate((new_height, new_width)):
        more = max(0, wanted - by_numpy.shape[axis])
        before = -((by_numpy.shape[axis] - wanted) // 2) if more else 0
        sides = [(0, 0)] * 3
        sides[axis] = (before, more - before)
        by_numpy = np.pad(by_numpy, sides, mode="symmetric")
        start = (by_numpy.shape[axis] - wanted) // 2
        by_numpy = by_numpy.take(range(start, start + wanted), axis)
    np.testing.assert_array_equal(center_crop(image, (new_height, new_width)), by_numpy)


@pytest.fixture
def data(run: Path) -> Callable[..., ExportData]:
    """The data set of `run` in another folder: `given`, or as in its training."""

    def make(root: Path, *, given: bool = True, long_side: int | None = None) -> ExportData:
        checkpoint = load_checkpoint(run)
        config = checkpoint.description.config
        moved = config.data.model_copy(update={"root": root, "long_side": long_side, "val_long_side": None})
        description = checkpoint.description.model_copy(update={"config": config.model_copy(update={"data": moved})})
        return ExportData(dataclasses.replace(checkpoint, description=description), root=root if given else None)

    return make


def test_images_of_the_data_and_what_the_attack_makes_of_them(smallest: torch.nn.Module, scenes: Path, data: Callable) -> None:
    found = golden_images(smallest, data(scenes, given=False), shapes_of_engine("ort", None, minimum=33))
    val = open_dataset("scenes", scenes, "val")
    samples = [val.read(index) for index in (0, 1, 3, 5)]
    assert found.source == f"scenes, val: {', '.join(sample.name for sample in samples)}"
    assert list(found.images) == [f"{kind}.{index}" for index in range(4) for kind in ("clean", "adversarial")]
    for index, sample in enumerate(samples):
        clean, adversarial = found.images[f"clean.{index}"], found.images[f"adversarial.{index}"]
        np.testing.assert_array_equal(clean, sample.image)
        assert 0 < np.abs(clean.astype(int) - adversarial).max() <= 7  # 0.03 of 255, rounded toward zero
        assert (found.expected[f"clean.{index}"] != found.expected[f"adversarial.{index}"]).any()
    image = torch.from_numpy(found.images["adversarial.2"])[None].permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        labels = smallest.logits("main", smallest.features(image)).argmax(1)[0]
    np.testing.assert_array_equal(found.expected["adversarial.2"], labels.numpy())
    assert found.attack["name"] == "BIM"


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        (((40, 50),), [(40, 50)] * 2),
        (((90, 64), (40, 50)), [(40, 50), (90, 64)]),
        (tuple((40, 40 + 2 * n) for n in range(10)), [(40, 40), (40, 46), (40, 52), (40, 58)]),
    ],
)
def test_images_have_the_sizes_that_the_engine_takes(
    smallest: torch.nn.Module,
    scenes: Path,
    data: Callable,
    sizes: tuple[tuple[int, int], ...],
    wanted: list[tuple[int, int]],
) -> None:
    found = golden_images(smallest, data(scenes), shapes_of_engine("ort", sizes, minimum=33))
    assert [image.shape[:2] for name, image in found.images.items() if name.startswith("clean")] == wanted


def test_large_images_are_cut_and_small_ones_fill_the_smallest_size(
    smallest: torch.nn.Module, scenes: Path, data: Callable
) -> None:
    free = shapes_of_engine("ort", None, minimum=33)
    large = golden_images(smallest, data(scenes, long_side=320), free)
    assert large.images["clean.0"].shape == (256, 256, 3)
    small = golden_images(smallest, data(scenes, long_side=30), free)
    assert small.images["clean.0"].shape == (33, 33, 3)


def test_without_the_data_they_are_generated_and_said_to_be(smallest: torch.nn.Module, data: Callable, tmp_path: Path) -> None:
    free = shapes_of_engine("ort", None, minimum=33)
    found = golden_images(smallest, data(tmp_path / "none", given=False), free)
    assert found.source == "generated noise and waves, because the data set was missing"
    assert len(found.images) == 8
    with pytest.raises(DataError):
        golden_images(smallest, data(tmp_path / "none"), free)
    with pytest.raises(DataError):  # data that is there, but not whole
        golden_images(smallest, data(tmp_path, given=False), free)


def test_a_ladder_is_in_order_and_a_plan_has_upper_ends() -> None:
    ladder = shapes_of_engine("trt", ((64, 48), (40, 40), (64, 48)), minimum=33)
    assert ladder.sizes == ((40, 40), (64, 48))
    assert (ladder.batch.maximum, ladder.height.maximum, ladder.width.minimum) == (8, 64, 40)
    assert shapes_of_engine("trt", ((64, 48),), minimum=33, max_batch=2).model_dump() == {
        "batch": {"minimum": 1, "maximum": 2}, "height": {"minimum": 64, "maximum": 64},
        "width": {"minimum": 48, "maximum": 48}, "sizes": None,
    }  # fmt: skip
    with pytest.raises(ExportError, match=r"engine trt reserves memory .* use --size HxW, one or several"):
        shapes_of_engine("trt", None, minimum=33)
    with pytest.raises(ExportError, match="size 32x64 is too small: use 33x33 or more"):
        shapes_of_engine("ort", ((64, 64), (32, 64)), minimum=33)
