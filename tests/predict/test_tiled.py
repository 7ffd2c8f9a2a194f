"""Bundles with a rule for tiles: an image that is cut has the labels of the whole one where the network allows it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from scipy.special import softmax

import ddcat
from ddcat.bundle import Bundle, write_bundle
from ddcat.confidence import Abstention, Temperature
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat.tiles import Tiles
from tests.bundles import small_graph, small_manifest

TILES = Tiles(side=64, overlap=16)
SHADES = 12


@pytest.fixture
def tiled(tmp_path: Path) -> Bundle:
    content = small_graph()
    manifest = small_manifest(content)
    rule = manifest.preprocessing.model_copy(update={"tiles": TILES})
    return write_bundle(tmp_path / "tiled", manifest.model_copy(update={"preprocessing": rule}), {"model.onnx": content})


def test_an_image_that_is_cut_has_the_labels_of_the_whole_one(tiled: Bundle, oracle: Callable, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, (*size, 3), np.uint8)
        for name, size in (("a", (150, 211)), ("b", (64, 64)), ("c", (40, 300)))
    }
    (tmp_path / "in").mkdir()
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / f"in/{name}.png")
    predict(tiled.path, find_sources([str(tmp_path / "in")]), tmp_path / "out", batch=3)
    with ddcat.open_bundle(tiled.path) as opened:
        assert [opened.cuts(*image.shape[:2]) for image in images.values()] == [True, False, True]
        for name, image in images.items():
            labels = oracle(image[None])[0][0]
            assert np.array_equal(np.asarray(Image.open(tmp_path / f"out/masks/{name}.png")), labels)
            assert np.array_equal(opened.predict(image), labels)


RULE = Abstention(threshold=0.75, risk=0.05, kind="images", units=30, images=30, found=0.01, error=0.02, abstained=0.4)
HEAT = Temperature(value=SHADES, images=None)  # its confidence is that of logits whose unit has that many shades of grey


@pytest.fixture
def abstaining(build: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """It cuts images, and abstains. The temperature of the manifest is not in its graph: it is for what is cut."""
    plain = build(small_graph(confidence=True), "ort")
    rule = plain.manifest.preprocessing.model_copy(update={"tiles": TILES})
    about = {"preprocessing": rule, "temperature": HEAT, "abstention": RULE}
    return write_bundle(tmp_path / "abstaining", plain.manifest.model_copy(update=about), plain.files)


def test_images_that_are_cut_abstain_by_the_confidence_of_the_whole_one(
    abstaining: Bundle, oracle: Callable, tmp_path: Path
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 211, 3), np.uint8)
    labels, logits = (found[0] for found in oracle(image[None]))
    confidence = softmax(logits / SHADES, 0).max(0)
    near = np.abs(confidence - 0.75) < 1e-4
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/a.png")
    summary = predict(abstaining.path, find_sources([str(tmp_path / "in")]), tmp_path / "out", abstain=True)
    mask = np.asarray(Image.open(tmp_path / "out/masks/a.png"))
    expected = np.where(confidence > 0.75, labels, 255)
    assert 0.1 < (expected == 255).mean() < 0.9
    assert np.array_equal(mask[~near], expected[~near])
    assert summary["abstained"]["pixels"] == (mask == 255).sum()
    assert summary["confidence"]["mean"] == pytest.approx(confidence.mean(), abs=1e-5)
    with ddcat.open_bundle(abstaining.path) as opened:
        assert np.array_equal(opened.predict(image, abstain=True), mask)


def test_the_engine_sees_no_more_than_tiles(tiled: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    with ddcat.open_bundle(tiled.path) as opened:
        infer = opened._engine.infer
        monkeypatch.setattr(opened._engine, "infer", lambda images: seen.append(images.shape[:3]) or infer(images))
        opened.predict(np.zeros((200, 300, 3), np.uint8))
    assert {shape[1:] for shape in seen} == {(64, 64)}


def test_a_rule_for_tiles_needs_logits() -> None:
    content = small_graph(logits=False)
    manifest = small_manifest(content, logits=False)
    rule = manifest.preprocessing.model_copy(update={"tiles": TILES})
    with pytest.raises(ValidationError, match=r"preprocessing\.tiles needs the output logits"):
        type(manifest).model_validate(manifest.model_copy(update={"preprocessing": rule}).model_dump())
    with pytest.raises(ValidationError, match="overlap 33 is more than half of the side 64"):
        Tiles(side=64, overlap=33)
