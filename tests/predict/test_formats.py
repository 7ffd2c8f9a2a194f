"""Polygons, GeoJSON, Label Studio and CVAT: what other programs read of them is the mask."""

import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from ddcat.bundle import Bundle
from ddcat.predict.cvat import cvat_masks
from ddcat.predict.formats import overlaid
from ddcat.predict.label_studio import brush_run_lengths
from ddcat.predict.polygons import outlines, without_holes
from ddcat.predict.records import Answer
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from tests.bundles import CLASSES

MASKS = arrays.arrays(np.bool_, st.tuples(st.integers(1, 15), st.integers(1, 15)))
FORMATS = ["png", "coco-polygons", "geojson", "label-studio", "cvat", "overlay"]


def area(ring: list[tuple[int, int]]) -> float:
    """By the shoelace formula; of a ring that runs clockwise on a screen it is positive."""
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True)) / 2


@settings(deadline=None)
@given(MASKS)
def test_outlines_enclose_the_area_and_run_along_the_edges_of_its_pixels(mask: np.ndarray) -> None:
    polygons = outlines(mask)
    assert all(area(polygon.outline) > 0 and all(area(hole) < 0 for hole in polygon.holes) for polygon in polygons)
    assert sum(area(ring) for polygon in polygons for ring in (polygon.outline, *polygon.holes)) == mask.sum()
    for polygon in polygons:
        for ring in (polygon.outline, *polygon.holes):
            sides = list(zip(ring, [*ring[1:], ring[0]], strict=True))
            assert all((x1 == x2) != (y1 == y2) for (x1, y1), (x2, y2) in sides)
            assert all((one[0][0] == one[1][0]) != (two[0][0] == two[1][0]) for one, two in pairwise(sides))


@settings(deadline=None)
@given(MASKS)
def test_pycocotools_fills_polygons_with_the_mask(mask: np.ndarray) -> None:
    rings = [[float(side) for corner in without_holes(polygon) for side in corner] for polygon in outlines(mask)]
    filled = coco.decode(coco.merge(coco.frPyObjects(rings, *mask.shape))) if rings else np.zeros(mask.shape)
    assert np.array_equal(filled, mask)


def test_an_area_in_a_hole_of_another_is_its_own() -> None:
    mask = np.ones((9, 9), bool)
    mask[1:8, 1:8] = False
    mask[2:7, 2:7] = True
    mask[4, 4] = False
    outer, inner = outlines(mask)
    assert outer == ([(0, 0), (9, 0), (9, 9), (0, 9)], [[(1, 1), (1, 8), (8, 8), (8, 1)]])
    assert inner.outline == [(2, 2), (7, 2), (7, 7), (2, 7)]
    assert [sorted(hole) for hole in inner.holes] == [[(4, 4), (4, 5), (5, 4), (5, 5)]]


def read_bits(packed: np.ndarray) -> np.ndarray:
    """By the published decoder of rle-pack: size, size of a word, sizes of lengths, then runs or single words."""
    bits, at = "".join(f"{byte:08b}" for byte in packed), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes, values = [take(4) + 1 for _ in range(4)], []
    while len(values) < total:
        run = take(1)
        length = take(sizes[take(2)]) + 1
        values += [take(word)] * length if run else [take(word) for _ in range(length)]
    assert len(bits) - at < 8
    return np.array(values)


@settings(deadline=None)
@given(MASKS)
def test_brush_run_lengths_are_those_of_rle_pack(mask: np.ndarray) -> None:
    assert np.array_equal(read_bits(brush_run_lengths(mask)).reshape(*mask.shape, 4), mask[..., None].repeat(4, 2) * 255)


def test_a_brush_of_more_than_65536_values_has_several_runs() -> None:
    mask = np.zeros((300, 300), bool)
    mask[20:270] = True
    assert np.array_equal(read_bits(brush_run_lengths(mask)).reshape(300, 300, 4)[..., 3], mask * 255)


def answer(labels: np.ndarray) -> Answer:
    return Answer("a.png", "a", labels.astype(np.uint8), np.zeros((*labels.shape, 3), np.uint8), CLASSES)


@settings(deadline=None)
@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 15), st.integers(1, 15)), elements=st.integers(0, 3)))
def test_masks_of_cvat_cover_each_pixel_once(labels: np.ndarray) -> None:
    again = np.full(labels.shape, 255, np.uint8)
    for mask in cvat_masks(answer(labels)):
        lengths = [int(length) for length in mask["rle"].split(",")]
        inner = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(mask["height"], mask["width"])
        view = again[mask["top"] : mask["top"] + mask["height"], mask["left"] : mask["left"] + mask["width"]]
        assert (view[inner] == 255).all()
        view[inner] = mask["label"]
    assert np.array_equal(again, labels)


@pytest.fixture
def written(bundle: Bundle, scenes: Path, tmp_path: Path) -> Path:
    predict(bundle.path, find_sources([str(scenes)]), tmp_path / "out", formats=FORMATS)
    return tmp_path / "out"


def test_every_form_of_a_run_holds_the_masks(written: Path, scenes: Path) -> None:
    masks = {
        path.relative_to(written / "masks").as_posix(): np.asarray(Image.open(path)) for path in written.rglob("masks/**/*.png")
    }
    assert len(masks) == 12
    dataset = COCO(str(written / "coco-polygons.json"))
    tasks = {task["data"]["image"]: task for task in json.loads((written / "label-studio.json").read_text())}
    images = {image.get("name"): image for image in ElementTree.parse(written / "annotations.xml").iter("image")}
    assert set(tasks) == set(images) == set(masks)
    for image in dataset.loadImgs(dataset.getImgIds()):
        labels = masks[image["file_name"]]
        for annotation in dataset.loadAnns(dataset.getAnnIds(image["id"])):
            assert np.array_equal(dataset.annToMask(annotation) > 0, labels == annotation["category_id"])
        present = np.unique(labels).tolist()
        results = tasks[image["file_name"]]["predictions"][0]["result"]
        assert [result["value"]["brushlabels"] for result in results] == [[CLASSES.names[label]] for label in present]
        assert [mask.get("label") for mask in images[image["file_name"]]] == [CLASSES.names[label] for label in present]
        stem = image["file_name"].removesuffix(".png")
        features = json.loads((written / f"geojson/{stem}.geojson").read_text())["features"]
        for feature in features:
            rings = [ring for polygon in feature["geometry"]["coordinates"] for ring in polygon]
            assert all(ring[0] == ring[-1] for ring in rings)
            assert sum(area([tuple(corner) for corner in ring[:-1]]) for ring in rings) == feature["properties"]["pixels"]
        assert [feature["properties"]["label"] for feature in features] == present
        assert Image.open(written / f"overlays/{stem}.jpg").size == Image.open(scenes / image["file_name"]).size


def test_an_overlay_is_half_image_and_half_colours() -> None:
    pixels, labels = np.full((1, 2, 3), 101, np.uint8), np.array([[1, 3]], np.uint8)
    assert overlaid(pixels, labels, CLASSES).tolist() == [[[150, 55, 60], [75, 80, 150]]]


@pytest.mark.slow
def test_label_studios_converter_reads_the_brushes(written: Path) -> None:
    brush = pytest.importorskip("label_studio_converter.brush", reason="label-studio-converter is not installed")
    for task in json.loads((written / "label-studio.json").read_text()):
        labels = np.asarray(Image.open(written / "masks" / task["data"]["image"]))
        results = [{**result, **result["value"]} for result in task["predictions"][0]["result"]]  # as its exports have them
        layers = brush.decode_from_annotation("label", results)
        assert len(layers) == len(results)
        for name, layer in layers.items():
            label = CLASSES.names.index(name.split("-")[1])
            assert np.array_equal(layer > 0, labels == label)


@pytest.mark.slow
def test_datumaro_reads_the_file_of_cvat(written: Path, scenes: Path) -> None:
    datumaro = pytest.importorskip("datumaro", reason="datumaro is not installed")
    folder = written.parent / "cvat"  # as CVAT exports them: the images beside the file
    shutil.copytree(scenes, folder / "images")
    shutil.copy(written / "annotations.xml", folder)
    dataset = datumaro.Dataset.import_from(str(folder), "cvat")
    items = {item.id: item for item in dataset}
    assert len(items) == 12
    for path in written.rglob("masks/**/*.png"):
        labels = np.asarray(Image.open(path))
        again = np.full(labels.shape, 255)
        for annotation in items[path.relative_to(written / "masks").with_suffix("").as_posix()].annotations:
            again[annotation.image > 0] = annotation.label
        assert np.array_equal(again, labels)


def shapes_of(written: Path) -> Callable[[str], list[dict]]:
    return lambda stem: json.loads((written / f"geojson/{stem}.geojson").read_text())["features"]


@pytest.mark.slow
def test_rasterio_fills_geojson_with_the_mask(written: Path) -> None:
    features = pytest.importorskip("rasterio.features", reason="rasterio is not installed")
    for path in written.rglob("masks/**/*.png"):
        labels = np.asarray(Image.open(path))
        stem = path.relative_to(written / "masks").with_suffix("").as_posix()
        shapes = [(feature["geometry"], feature["properties"]["label"]) for feature in shapes_of(written)(stem)]
        assert np.array_equal(features.rasterize(shapes, out_shape=labels.shape, fill=255, dtype="uint8"), labels)
