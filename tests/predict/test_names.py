"""`ddcat predict` and names: of inputs that share a mask, lie among the results, or fit no file of them."""

import json
import os
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddcat
from ddcat.bundle import Bundle
from ddcat.errors import DdcatError
from ddcat.predict.cvat import cvat_masks, write_annotations
from ddcat.predict.records import Answer, Job
from ddcat.predict.results import Results
from ddcat.predict.run import predict
from ddcat.predict.sources import Source, find_sources
from tests.bundles import CLASSES
from tests.commands import call
from tests.predict.test_predict import digests


def draw(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 56, 3), np.uint8)).save(path)
    return path


def test_results_within_the_inputs_are_not_segmented(bundle: Bundle, scenes: Path) -> None:
    for inputs, name in ((scenes, "masks"), (scenes, "masks"), (scenes / "**/*.png", "masks"), (scenes, "others")):
        summary = predict(bundle.path, find_sources([str(inputs)]), scenes / name, formats=["png", "overlay"])
        assert summary["images"] == 12
    with pytest.raises(DdcatError, match=r"all inputs are in .*masks, the folder of the results: use another --out"):
        predict(bundle.path, find_sources([str(scenes / "masks/masks")]), scenes / "masks", formats=["png", "overlay"])


def test_an_image_whose_mask_another_took_is_done_again(bundle: Bundle, tmp_path: Path) -> None:
    inputs = [draw(tmp_path / f"in/a.{kind}", seed) for seed, kind in enumerate(["png", "jpg"])]
    for image in (inputs[0], inputs[1], inputs[0], inputs[0]):
        predict(bundle.path, find_sources([str(image)]), tmp_path / "out")
        with ddcat.open_bundle(bundle.path) as opened:
            assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/a.png")), opened.predict(image))
    predict(bundle.path, find_sources([str(inputs[0])]), tmp_path / "fresh")
    assert digests(tmp_path / "out") == digests(tmp_path / "fresh")


def test_a_frame_and_an_image_called_like_it_forget_each_other(tmp_path: Path) -> None:
    job = Job(bundle="0" * 64, formats=(), batch=1, engine={})
    images = [Source("clip/000001.png", "a", "1"), Source("clip.png", "b", "2")]
    videos = [Source(f"clip.{kind}", "c", "3") for kind in ("mp4", "avi")]

    def left(source: Source) -> list[str]:
        for name in ("clip/000001.png", "clip.png", "clip.mp4/000000", "clip.mp4/000001", "clip.mp4/frames"):
            path = tmp_path / f"records/{name}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"stamp": {"clip/000001.png": "1", "clip.png": "2"}.get(name, "3")}))
        Results(tmp_path, job).forget_changed(source)
        return sorted(path.relative_to(tmp_path / "records").as_posix() for path in tmp_path.rglob("records/**/*.json"))

    whole = ["clip.mp4/000000.json", "clip.mp4/000001.json", "clip.mp4/frames.json"]
    Results(tmp_path, job)
    assert left(images[0]) == ["clip.mp4/000000.json", "clip.png.json", "clip/000001.png.json"]
    assert left(images[1]) == [*whole, "clip.png.json", "clip/000001.png.json"]
    assert left(videos[0]) == whole
    assert left(videos[1]) == []


def test_an_image_called_like_a_frame_is_refused_beside_its_video(tmp_path: Path) -> None:
    for name in ("clip.mp4", "clip/000000.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DdcatError, match=r"clip/000000.png and a frame of .*clip.mp4 would both have the mask clip/000000.png"):
        find_sources([str(tmp_path)])
    (tmp_path / "clip/000000.png").rename(tmp_path / "clip/a.png")
    assert len(find_sources([str(tmp_path)])) == 2


def test_images_with_names_that_no_result_can_have_do_not_stop_the_others(bundle: Bundle, tmp_path: Path) -> None:
    draw(tmp_path / "in/a.png", 0)
    draw(tmp_path / f"in/{'b' * 250}.png", 0)
    try:
        os.link(tmp_path / "in/a.png", os.fsencode(tmp_path / "in") + b"/\xff.png")
    except OSError:
        pytest.skip("the file system takes UTF-8 alone")
    done = call("ddcat", "predict", bundle.path, tmp_path / "in", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["images"] == 1
    assert summary["failed"] == [
        {"name": f"{'b' * 250}.png", "reason": "its name has 254 bytes: rename it to at most 230"},
        {"name": r"\udcff.png", "reason": "its name is not UTF-8: rename it"},
    ]


def test_cvats_file_is_xml_whatever_the_names() -> None:
    name = "a\x01\n\uffff<&>.png"
    answer = Answer(name, name, np.zeros((2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8), CLASSES)

    class Known:
        def __init__(self) -> None:
            self.name, self.height, self.width, self.parts = name, 2, 2, {"cvat": cvat_masks(answer)}

    content = b"".join(write_annotations("cvat")(CLASSES, lambda: [Known()]))  # type: ignore[list-item]
    image = ET.fromstring(content).find("image")
    assert image is not None
    assert image.attrib["name"] == "a\ufffd\n\ufffd<&>.png"


def test_an_engine_with_other_threads_is_told_apart(bundle: Bundle, scenes: Path, tmp_path: Path) -> None:
    sources = find_sources([str(scenes / "01.png")])
    predict(bundle.path, sources, tmp_path / "out", threads=1)
    with pytest.raises(DdcatError, match=r"differ in engine \(threads 1, now 2\): use another --out, or the same engine"):
        predict(bundle.path, sources, tmp_path / "out", threads=2)
