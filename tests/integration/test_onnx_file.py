"""An ONNX file of another program: to a bundle, a gate, an attack, without a checkpoint anywhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from onnxruntime.quantization import QuantFormat, quantize_static

import ddcat
from ddcat.bundle import open_bundle
from ddcat.hashing import sha256_of_file
from ddcat_bench.errors import BenchError
from ddcat_train.data import open_dataset
from ddcat_train.data.synthetic.generate import write_scenes
from tests.commands import call, refusal
from tests.export.onnx_files import MEAN, STD, changed, network, written
from tests.export.test_onnx_file import Images

ENGINES = [("ort", "int8"), ("openvino", "bf16"), ("openvino", "int8")]
FED = ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--layout", "scenes"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, train=6, val=10, size=(48, 64))
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("onnx") / "street.onnx", network())


@pytest.fixture(scope="module")
def bundle(file: Path, scenes: Path) -> Path:
    assert call("ddcat", "export", file, *FED, "--data-root", scenes, "--logits").returncode == 0
    return file.parent / "street-ort-fp32"


def test_a_file_becomes_a_bundle_that_names_it(bundle: Path, file: Path, scenes: Path) -> None:
    manifest = open_bundle(bundle).manifest
    source = manifest.source
    assert (source.kind, source.checkpoint, source.sha256) == ("onnx", str(file.resolve()), sha256_of_file(file))
    assert (source.method, source.architecture, source.output) == ("ONNX file", "street.onnx", "logits")
    assert manifest.main_branch_only is None
    assert manifest.preprocessing.mean == MEAN
    assert (manifest.data.name, manifest.data.root, manifest.data.images) == ("scenes", str(scenes), 10)
    assert manifest.golden is not None
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    model = ddcat.load_onnx(file, mean=MEAN, std=STD, layout="scenes", data_root=scenes, device="cpu")
    with ddcat.open_bundle(bundle) as engine:
        np.testing.assert_array_equal(engine.predict(image), model.predict(image))
    assert model.evaluate(limit=2, steps=(0,)).images == 2


def test_attacks_on_it_need_nothing_else(file: Path, scenes: Path) -> None:
    dataset = open_dataset("scenes", scenes, "val")
    model = ddcat.load_onnx(file, classes=dataset.classes, mean=MEAN, std=STD, device="cpu")
    images = torch.from_numpy(dataset.read(0).image).permute(2, 0, 1)[None].float() / 255
    labels = model(images).argmax(1)
    adversarial = ddcat.attack(model, images, labels, "pgd", steps=3)
    assert float((model(adversarial).argmax(1) == labels).float().mean()) < 0.5


def test_its_robustness_is_that_of_its_bundle(bundle: Path, file: Path, scenes: Path, tmp_path: Path) -> None:
    shared = ["--max-images", 2, "--device", "cpu"]
    assert call("ddcat", "attack", file, *FED, "--data-root", scenes, *shared, "--out", tmp_path / "file").returncode == 0
    assert call("ddcat", "attack", bundle, *shared, "--out", tmp_path / "bundle").returncode == 0
    rows = [json.loads((tmp_path / name / "attack.json").read_text())["rows"] for name in ("file", "bundle")]
    assert [row["name"] for row in rows[0]] == [row["name"] for row in rows[1]]
    for one, other in zip(*rows, strict=True):
        assert one["scores"]["miou"] == pytest.approx(other["scores"]["miou"], abs=2e-3)
    assert rows[0][0]["scores"]["miou"] > rows[0][-1]["scores"]["miou"]
    text = (tmp_path / "file" / "attack.md").read_text()
    assert "# ONNX file (street.onnx) under attack" in text


def test_a_gate_without_a_checkpoint(bundle: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_bench.gate.pipeline.serving_peak", lambda serving: 2**20)  # in processes of their own
    monkeypatch.setattr("ddcat_bench.gate.pipeline.needs_quiet", lambda *_: False)
    result = ddcat.gate(bundle, quick=True, repeats=10, pictures=False, out=tmp_path / "gate")
    assert result is not None
    assert result.checkpoint.sha256 == sha256_of_file(file)
    assert {finding.name: finding.verdict for finding in result.findings}["equal labels"] == "pass"
    assert all(row.twin_agreement == 1 for row in result.members)
    moved = changed(tmp_path / "other.onnx", file, lambda model: setattr(model, "doc_string", "another"))
    with pytest.raises(BenchError, match="is not the ONNX file that"):
        ddcat.gate(bundle, checkpoint=moved, quick=True, out=tmp_path / "refused")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_other_engines_and_precisions(file: Path, scenes: Path, tmp_path: Path, engine: str, precision: Any) -> None:
    done = ddcat.export(
        file, tmp_path / "bundle", engine=engine, precision=precision, mean=MEAN, std=STD, layout="scenes", data_root=scenes
    )
    assert done.bundle.manifest.engine.effective_precision == precision
    result = ddcat.gate(tmp_path / "bundle", quick=True, repeats=10, pictures=False, out=tmp_path / "gate")
    assert result is not None
    assert result.precision == precision


@pytest.mark.slow
def test_a_file_of_another_quantiser_is_gated_beside_the_float_one(file: Path, scenes: Path, tmp_path: Path) -> None:
    quantised = tmp_path / "street-int8.onnx"
    quantize_static(str(file), str(quantised), Images(), quant_format=QuantFormat.QDQ)
    words = ["export", quantised, *FED, "--data-root", scenes, "--out", tmp_path / "bundle"]
    refusal("ddcat", *words)
    assert call("ddcat", *words, "--reference", file, "--precision", "int8").returncode == 0
    manifest = open_bundle(tmp_path / "bundle").manifest
    assert manifest.source.sha256 == sha256_of_file(file)
    assert manifest.quantisation is not None
    assert manifest.quantisation.calibration is None
    result = ddcat.gate(tmp_path / "bundle", quick=True, repeats=10, pictures=False, out=tmp_path / "gate")
    assert result is not None
    assert all(row.twin_agreement > 0.97 for row in result.members)


def test_classes_of_a_file_without_data(file: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.yaml"
    classes.write_text(yaml.safe_dump({"names": ["road", "car"]}))
    said = refusal("ddcat", "export", file, *FED[:4], "--classes", classes, "--out", tmp_path / "bundle")
    assert "returns logits of shape (1, 6, 32, 32): expected logits of 2 channels" in said


@pytest.mark.slow
def test_int8_is_calibrated_on_images_without_labels(file: Path, scenes: Path, tmp_path: Path) -> None:
    words = ["ddcat", "export", file, *FED, "--precision", "int8", "--out", tmp_path / "bundle", "--data-root", scenes]
    folder = ["--calibration-folder", scenes / "JPEGImages", "--calibration-images", 4]
    assert "--max-drop is measured on labelled images" in refusal(*words, *folder, "--max-drop", 1)
    assert "expected a folder with images" in refusal(*words, "--calibration-folder", tmp_path)
    assert call(*words, *folder).returncode == 0
    quantisation = open_bundle(tmp_path / "bundle").manifest.quantisation
    assert quantisation is not None
    assert quantisation.calibration is not None
    assert (quantisation.calibration.images, quantisation.calibration.split) == (4, "images without labels")
