"""`ddcat predict`: what it writes, and that a run that is killed goes on to the same bytes."""

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO
from typer.testing import CliRunner

import ddcat
from ddcat.bundle import Bundle, write_bundle
from ddcat.engines.answer_statistics import describe, psi
from ddcat.engines.golden import read_golden
from ddcat.errors import DdcatError
from ddcat.predict.cli import app
from ddcat.predict.images import read_picture
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from tests.bundles import CLASSES, small_graph, small_manifest
from tests.commands import call


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file).convert("RGB"))


def test_masks_run_lengths_and_the_summary_are_those_of_the_engine(
    golden: Bundle, scenes: Path, oracle: Callable, tmp_path: Path
) -> None:
    done = call("ddcat", "predict", golden.path, scenes, "--out", tmp_path / "out", "--batch", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert "12 images" in done.stdout
    files = sorted(path.relative_to(scenes) for path in scenes.rglob("*.png"))
    truth = {file.as_posix(): oracle(read(scenes / file)[None])[0][0] for file in files}
    dataset = COCO(str(tmp_path / "out/coco.json"))
    by_name = {image["file_name"]: image["id"] for image in dataset.loadImgs(dataset.getImgIds())}
    assert sorted(by_name) == sorted(truth)
    for name, labels in truth.items():
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks" / name)), labels)
        again = np.full(labels.shape, 255, np.uint8)
        for annotation in dataset.loadAnns(dataset.getAnnIds(by_name[name])):
            found = dataset.annToMask(annotation) > 0
            again[found] = annotation["category_id"]
            assert annotation["area"] == found.sum()
            assert annotation["bbox"] == coco.toBbox(annotation["segmentation"]).tolist()
        assert np.array_equal(again, labels)
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    counts = sum(np.bincount(labels.ravel(), minlength=4) for labels in truth.values())
    assert [entry["pixels"] for entry in summary["classes"]] == counts.tolist()
    assert sum(entry["share"] for entry in summary["classes"]) == pytest.approx(1, abs=1e-5)
    shares = sum((s := describe(labels, 4).classes) / s.sum() for labels in truth.values())
    expected = sum((s := describe(labels, 4).classes) / s.sum() for labels in _golden_labels(golden))
    assert summary["drift"]["classes"] == pytest.approx(psi(expected, shares), abs=1e-6)
    assert set(summary["drift"]) == {"classes", "boundaries", "confidence"}
    assert summary["failed"] == []
    assert [entry["name"] for entry in summary["classes"]] == list(CLASSES.names)


def _golden_labels(bundle: Bundle) -> list[np.ndarray]:
    return [example.labels for example in read_golden(bundle) if example.name.startswith("clean.")]


@pytest.mark.parametrize(
    ("source", "extra", "library"),
    [
        ("a.tif", "geo", "rasterio"),
        ("a.mp4", "video", "av"),
        ("s3://b/x", "s3", "s3fs"),
        ("gs://b/x", "gs", "gcsfs"),
    ],
)
def test_without_a_library_a_line_names_the_extra(
    source: str, extra: str, library: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.chdir(tmp_path)
    Path("a.tif").write_bytes(b"x")
    Path("a.mp4").write_bytes(b"x")
    done = call("ddcat", "predict", bundle.path, source, "--out", "out")
    assert done.returncode == 2
    assert f'pip install ".[{extra}]"' in done.stderr
    assert done.stderr.count("\n") == 1


def test_images_without_a_mask_are_named_and_the_others_are_done(bundle: Bundle, scenes: Path, tmp_path: Path) -> None:
    (scenes / "damaged.png").write_bytes((scenes / "01.png").read_bytes()[:60])
    Image.new("RGB", (4, 4)).save(scenes / "tiny.png")
    done = call("ddcat", "predict", bundle.path, scenes, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "2 of 14 images have no mask, such as damaged.png: " in done.stderr
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["images"] == 12
    assert [entry["name"] for entry in summary["failed"]] == ["damaged.png", "tiny.png"]
    assert "needs at least 8 x 8" in summary["failed"][1]["reason"]
    Image.new("RGB", (40, 40)).save(scenes / "damaged.png")  # mended
    (scenes / "tiny.png").unlink()
    masks = tmp_path / "out/masks/01.png"
    before = masks.stat().st_mtime_ns
    assert call("ddcat", "predict", bundle.path, scenes, "--out", tmp_path / "out").returncode == 0
    assert masks.stat().st_mtime_ns == before  # what was done stays
    assert json.loads((tmp_path / "out/summary.json").read_text())["images"] == 13


def test_images_that_changed_are_done_again_and_the_others_stay(bundle: Bundle, scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    forms = ["png", "coco", "geojson"]
    predict(bundle.path, find_sources([str(scenes)]), out, formats=forms)
    kept = (out / "masks/02.png").stat().st_mtime_ns
    before = (scenes / "01.png").stat()
    content = bytearray((scenes / "01.png").read_bytes())
    Image.fromarray(255 - read(scenes / "01.png")).save(scenes / "01.png")
    (scenes / "04.png").write_bytes(b"no image")
    summary = predict(bundle.path, find_sources([str(scenes)]), out, formats=forms)
    assert [entry["name"] for entry in summary["failed"]] == ["04.png"]
    assert not list(out.rglob("04.*"))  # nothing is left of what it was
    assert (out / "masks/02.png").stat().st_mtime_ns == kept
    predict(bundle.path, find_sources([str(scenes)]), tmp_path / "fresh", formats=forms)
    assert digests(out) == digests(tmp_path / "fresh")
    (scenes / "01.png").write_bytes(content)
    os.utime(scenes / "01.png", ns=(before.st_atime_ns, before.st_mtime_ns))  # as from a backup
    predict(bundle.path, find_sources([str(scenes)]), out, formats=forms)
    with ddcat.open_bundle(bundle.path) as opened:
        assert np.array_equal(np.asarray(Image.open(out / "masks/01.png")), opened.predict(scenes / "01.png"))


def test_files_of_16_bits_have_the_masks_of_the_python_interface(tmp_path: Path) -> None:
    content = small_graph()
    manifest = small_manifest(content)
    rule = manifest.preprocessing.model_copy(update={"values": (100, 4195)})
    deep = write_bundle(tmp_path / "deep", manifest.model_copy(update={"preprocessing": rule}), {"model.onnx": content})
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in/deep.png"), np.random.default_rng(0).integers(0, 4500, (40, 50, 3)).astype(np.uint16))
    Image.new("RGB", (50, 40)).save(tmp_path / "in/shallow.png")
    summary = predict(deep.path, find_sources([str(tmp_path / "in")]), tmp_path / "out", formats=["png"])
    assert [entry["name"] for entry in summary["failed"]] == ["shallow.png"]
    with ddcat.open_bundle(deep.path) as opened:
        labels = opened.predict(tmp_path / "in/deep.png")
    assert len(np.unique(labels)) == 4
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out/masks/deep.png")), labels)
    with pytest.raises(DdcatError, match="8 bits a channel, but the bundle expects 16"):  # a frame of a video
        read_picture(np.zeros((40, 50, 3), np.uint8), rule)


def test_an_interrupted_run_says_how_to_continue(
    bundle: Bundle, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddcat.predict.run.predict", interrupted)
    done = CliRunner().invoke(app, [str(bundle.path), str(scenes), "--out", str(tmp_path / "out")])
    assert done.exit_code == 130
    assert done.stderr == f"error: interrupted: finished masks are in {tmp_path / 'out'}, and the same command continues\n"


def test_a_folder_of_another_job_is_refused(bundle: Bundle, golden: Bundle, scenes: Path, tmp_path: Path) -> None:
    predict(bundle.path, find_sources([str(scenes)]), tmp_path / "out", formats=["png"])
    before = digests(tmp_path / "out")
    with pytest.raises(DdcatError, match="predictions that differ in bundle: use another --out"):
        predict(golden.path, find_sources([str(scenes)]), tmp_path / "out", formats=["png"])
    with pytest.raises(DdcatError, match="predictions that differ in formats"):
        predict(bundle.path, find_sources([str(scenes)]), tmp_path / "out", formats=["coco"])
    with pytest.raises(DdcatError, match=r"exists already and holds no job\.json"):
        predict(bundle.path, find_sources([str(scenes)]), scenes)
    assert digests(tmp_path / "out") == before
    job = json.loads((tmp_path / "out/job.json").read_text())
    (tmp_path / "out/job.json").write_text(json.dumps({**job, "later": 1}))
    with pytest.raises(DdcatError, match=r"job\.json was written by another version of ddcat: use another --out"):
        predict(bundle.path, find_sources([str(scenes)]), tmp_path / "out", formats=["png"])


def started(bundle: Path, scenes: Path | str, out: Path, *options: str) -> "subprocess.Popen[bytes]":
    line = [sys.executable, "-m", "ddcat", "predict", str(bundle), str(scenes), "--out", str(out), *options]
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_and_resume(bundle: Path, scenes: Path | str, out: Path, times: int, *options: str) -> int:
    """Kill a run `times` times, each after it wrote some more, then let it end; the number of kills that met a run at work."""
    chance, met = random.Random(0), 0
    for _ in range(times):
        have = len(list(out.rglob("records/**/*.json")))
        run = started(bundle, scenes, out, *options)
        while run.poll() is None and len(list(out.rglob("records/**/*.json"))) <= have:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.02))
        met += run.poll() is None
        run.kill()  # nothing where it has ended: its number may be another's by now
        run.wait()
    assert started(bundle, scenes, out, *options).wait() == 0
    return met


def many(scenes: Path, count: int) -> None:
    rng = np.random.default_rng(1)
    for place in range(count):
        Image.fromarray(rng.integers(0, 256, (64, 80, 3), np.uint8)).save(scenes / f"more-{place:03}.png")


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_same_bytes(golden: Bundle, scenes: Path, tmp_path: Path, times: int) -> None:
    many(scenes, 25 * times)
    met = kill_and_resume(golden.path, scenes, tmp_path / "killed", times, "--batch", "2")
    assert met == times
    predict(golden.path, find_sources([str(scenes)]), tmp_path / "whole", batch=2)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")
    assert not [path for path in (tmp_path / "killed").rglob(".*") if path.is_file()]


def test_what_was_removed_or_damaged_of_the_results_is_done_again(bundle: Bundle, scenes: Path, tmp_path: Path) -> None:
    sources, out = find_sources([str(scenes)]), tmp_path / "out"
    predict(bundle.path, sources, out, formats=["png", "coco", "geojson"])
    whole, kept = digests(out), (out / "masks/05.png").stat().st_mtime_ns
    (out / "masks/01.png").unlink()
    (out / "geojson/02.geojson").unlink()
    (out / "records/04.png.json").write_text("{")
    predict(bundle.path, sources, out, formats=["png", "coco", "geojson"])
    assert digests(out) == whole
    assert (out / "masks/05.png").stat().st_mtime_ns == kept
