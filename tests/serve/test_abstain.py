"""An engine that abstains, if asked: the server, `ddcat predict` and Python give the same masks, and the shares are counted."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

import ddcat
from ddcat.bundle import Bundle, write_bundle
from ddcat.confidence import Abstention
from ddcat.engines import open_engine
from ddcat.errors import DdcatError
from ddcat.predict.formats import FORMATS
from ddcat.predict.run import predict
from ddcat.predict.sources import find_sources
from ddcat.preprocess import FileRule, Resize, preprocess, restore
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import load_models
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings
from tests.bundles import BIAS, WEIGHTS, small_graph
from tests.commands import call
from tests.serve.payloads import as_labels, as_png, refused

RULE = Abstention(threshold=0.75, risk=0.05, kind="images", units=30, images=30, found=0.01, error=0.02, abstained=0.4)
RESIZE = FileRule(resize=Resize(to=40))
SHADES = 6  # of grey in a unit of the logits, so that some pixels are sure and others are not


class Served(NamedTuple):
    bundle: Bundle
    client: httpx.Client
    expected: np.ndarray  # by the engine's own outputs


@pytest.fixture
def abstaining(build: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    plain = build(small_graph(confidence=True, weights=WEIGHTS / SHADES, bias=BIAS / SHADES), "ort")
    rule = plain.manifest.preprocessing.model_copy(update=dict(RESIZE))
    manifest = plain.manifest.model_copy(update={"abstention": RULE, "preprocessing": rule})
    return write_bundle(tmp_path / "abstaining", manifest, plain.files)


@pytest.fixture
def served(abstaining: Bundle, picture: np.ndarray, client_of: Callable) -> Iterator[Served]:
    fed = preprocess(picture, RESIZE)
    with open_engine(abstaining, threads=1) as engine:
        outputs = engine.infer(fed.pixels[None])
    assert outputs.confidence is not None
    expected = restore(np.where(outputs.confidence[0] > np.float32(0.75), outputs.labels[0], np.uint8(255)), fed.size)
    assert 0.1 < (expected == 255).mean() < 0.9
    metrics = Metrics()
    with load_models([abstaining.path], settings=Settings(), threads=1, observe=metrics.count_batch) as models:
        yield Served(abstaining, client_of(create_app(models, Settings(), metrics)), expected)


def test_the_server_the_command_and_python_give_the_same_mask(served: Served, picture: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in/a.png")
    sent = {"content": as_png(picture), "params": {"abstain": "true"}}
    mask = served.client.post("/v1/segment", **sent)
    np.testing.assert_array_equal(as_labels(mask.content), served.expected)
    raw = served.client.post("/v1/segment", headers={"Accept": "application/octet-stream"}, **sent).content
    done = call("ddcat", "predict", served.bundle.path, tmp_path / "in", "--out", tmp_path / "out", "--abstain")
    assert (done.returncode, done.stderr) == (0, "")
    written = Image.open(tmp_path / "out/masks/a.png")
    assert raw == np.asarray(written).tobytes() == served.expected.tobytes()
    assert written.getpalette() == Image.open(io.BytesIO(mask.content)).getpalette()
    with ddcat.open_bundle(served.bundle.path, threads=1) as engine:
        assert engine.predict(tmp_path / "in/a.png", abstain=True).tobytes() == raw
        assert (engine.predict(tmp_path / "in/a.png") != 255).all()
    rle = served.client.post("/v1/segment", headers={"Accept": "application/json"}, **sent).json()["classes"]
    assert {entry["id"]: entry["area"] for entry in rle} == areas(served.expected)
    overlay = served.client.post("/v1/segment", headers={"Accept": "image/png;view=overlay"}, **sent)
    assert overlay.status_code == 200
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    left = int((served.expected == 255).sum())
    share = round(left / served.expected.size, 6)
    assert summary["abstained"] == {"threshold": 0.75, "pixels": left, "share": share}
    assert summary["pixels"] == served.expected.size
    assert sum(entry["share"] for entry in summary["classes"]) == pytest.approx(1 - share, abs=1e-5)


def areas(labels: np.ndarray) -> dict[int, int]:
    return {label: int((labels == label).sum()) for label in np.unique(labels).tolist() if label != 255}


def test_only_who_asks_gets_it_and_the_metrics_count_it(served: Served, picture: np.ndarray) -> None:
    whole = as_labels(served.client.post("/v1/segment", content=as_png(picture)).content)
    assert (whole != 255).all()
    assert "ddcat_abstaining_pixels_total{" in served.client.get("/metrics").text  # 0 from the first answer on
    served.client.post("/v1/segment", content=as_png(picture), params={"abstain": "true"})
    text = served.client.get("/metrics").text
    found = {
        line.split("{")[0]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("ddcat_abstain") and "_total{" in line
    }
    fed = preprocess(picture, RESIZE).pixels
    assert found["ddcat_abstaining_pixels_total"] == fed.shape[0] * fed.shape[1]
    assert found["ddcat_abstained_pixels_total"] / found["ddcat_abstaining_pixels_total"] == pytest.approx(
        (served.expected == 255).mean(), abs=0.03
    )
    metadata = served.client.get("/v2/models/small").json()["parameters"]["abstention"]
    assert metadata == RULE.model_dump(mode="json")


def test_every_form_of_results_leaves_out_what_is_not_answered(abstaining: Bundle, picture: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(picture).save(tmp_path / "in/a.png")
    sources = find_sources([str(tmp_path / "in")])
    predict(abstaining.path, sources, tmp_path / "out", formats=list(FORMATS), abstain=True)
    expected = areas(np.asarray(Image.open(tmp_path / "out/masks/a.png")))
    for file in ("coco.json", "coco-polygons.json"):
        dataset = COCO(str(tmp_path / "out" / file))
        assert {a["category_id"]: int(dataset.annToMask(a).sum()) for a in dataset.loadAnns(dataset.getAnnIds())} == expected
    features = json.loads((tmp_path / "out/geojson/a.geojson").read_text())["features"]
    assert {one["properties"]["label"]: one["properties"]["pixels"] for one in features} == expected
    (task,) = json.loads((tmp_path / "out/label-studio.json").read_text())
    assert len(json.dumps(task).split('"brushlabels": [')) == len(expected) + 1
    assert (tmp_path / "out/annotations.xml").read_text().count("<mask ") == len(expected)
    assert (tmp_path / "out/overlays/a.jpg").exists()
    with pytest.raises(DdcatError, match="predictions that differ in abstain: use another --out"):
        predict(abstaining.path, sources, tmp_path / "out", formats=list(FORMATS))


def test_a_bundle_without_a_threshold_is_not_asked_to_abstain(
    client: httpx.Client, bundle: Bundle, picture: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(picture).save(tmp_path / "a.png")
    told = "there is no threshold to abstain by: export it with --confidence and --risk"
    answer = client.post("/v1/segment", content=as_png(picture), params={"abstain": "true"})
    assert refused(answer) == (400, f"small: {told}")
    done = call("ddcat", "predict", bundle.path, tmp_path / "a.png", "--out", tmp_path / "out", "--abstain")
    assert (done.returncode, done.stderr) == (2, f"error: {bundle.path}: {told}\n")
    assert not (tmp_path / "out").exists()


def test_inspect_tells_what_is_promised(abstaining: Bundle) -> None:
    shown = " ".join(call("ddcat", "inspect", abstaining.path).stdout.replace("│", " ").split())
    assert "abstains, if asked, where it is not above 0.75: then at most 0.05 of the labelled pixels" in shown
    assert "chosen on 30 images: 40.0% of the pixels are left out, and 2.00% of the others are wrong" in shown
