"""A data set's own files, sent over HTTP, score what the gate finds: on files of many sizes, and on those that EXIF turns."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import httpx
import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from ddcat.bundle import Bundle, write_bundle
from ddcat.engines import open_engine
from ddcat.manifest import TensorEntry
from ddcat.metrics import Counts, confusion_counts
from ddcat.preprocess import FileRule, Resize
from ddcat.tiles import Tiles
from ddcat_bench.attack.scoring import count_victims
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import gate_batches
from ddcat_bench.gate.pool import engine_labels
from ddcat_bench.inputs import check_sizes, open_bundle_data
from ddcat_bench.tiled import as_served
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import load_models
from ddcat_serve.settings import Settings
from ddcat_train.data import Dataset, open_dataset
from ddcat_train.data.classes_file import classes_yaml
from ddcat_train.pixels import to_8_bit
from tests.bundles import manifest_on, small_graph, small_manifest
from tests.files import needed
from tests.serve.conftest import InProcess

SAMPLES = {"camvid": "data/camvid", "voc": "data/voc_sample", "cityscapes": "data/cityscapes_sample"}
IMAGES = 3
RULES = {
    "camvid": FileRule(resize=Resize(to=300)),
    "voc": FileRule(resize=Resize(to=(96, 128), kernel="linear")),
    "cityscapes": FileRule(resize=Resize(to=320, kernel="antialias")),  # enlarged
}


def made(path: Path, dataset: Dataset, rule: FileRule) -> Bundle:
    """A bundle of a network that looks at the colour of each pixel, with all the classes of a data set."""
    classes = len(dataset.classes)
    random = np.random.default_rng(0)
    content = small_graph(weights=random.normal(0, 1, (classes, 3)), bias=random.normal(0, 100, classes), logits=False)
    known = small_manifest(content, logits=False)
    manifest = manifest_on(dataset, known, preprocessing=known.preprocessing.model_copy(update=dict(rule)))
    return write_bundle(path, manifest, {"model.onnx": content})


def cut(path: Path, dataset: Dataset, rule: FileRule, tiles: Tiles) -> Bundle:
    """The same for images in tiles, of a network that looks at the mean colour around each pixel: tiles change labels."""
    classes = len(dataset.classes)
    random = np.random.default_rng(0)
    weights, bias = random.normal(0, 1, (classes, 3)), random.normal(0, 1, classes)
    weights -= weights.mean(1, keepdims=True)  # by the hue, which differs within an image even where it is blurred
    graph = onnx.load_from_string(small_graph(weights=weights, bias=bias))
    place = next(place for place, node in enumerate(graph.graph.node) if node.op_type == "Conv")
    around = onnx.helper.make_node("AveragePool", ["planes"], ["around"], kernel_shape=[65, 65], pads=[32] * 4)
    graph.graph.node[place].input[0] = "around"
    graph.graph.node.insert(place, around)
    content = graph.SerializeToString()
    logits = TensorEntry(name="logits", dtype="float32", shape=("batch", classes, "height", "width"))
    known = small_manifest(content, logits=False)
    known = known.model_copy(update={"outputs": (*known.outputs, logits)})
    preprocessing = known.preprocessing.model_copy(update=dict(rule) | {"tiles": tiles})
    return write_bundle(path, manifest_on(dataset, known, preprocessing=preprocessing), {"model.onnx": content})


def by_the_gate(bundle: Bundle) -> tuple[list[str], Counts]:
    """Names and counts of clean images, as the gate reads, labels and counts them."""
    dataset = open_bundle_data(bundle)
    check_sizes(bundle, dataset, cut=True)
    job = GateJob(bundle, None, dataset, IMAGES)  # type: ignore[arg-type] # no network is attacked
    names: list[str] = []
    counts: list[Counts] = []
    with open_engine(bundle, threads=1) as opened:
        engine = as_served(opened, bundle.manifest)
        for batch, victims in gate_batches(job, job.images):
            labels = torch.from_numpy(engine_labels(engine, to_8_bit(victims.images, victims.images))).long()
            names += batch
            counts += count_victims(victims, labels, len(dataset.classes))
    return names, np.stack(counts)


def over_http(bundle: Bundle, names: list[str]) -> Counts:
    """Counts of the same images: their files are sent as they are, and masks compared with label files as they are."""
    dataset = open_bundle_data(bundle).with_long_side(None)
    places = {pair.name: place for place, pair in enumerate(dataset.pairs)}
    counts = []
    with load_models([bundle.path], settings=Settings(), threads=1) as models:
        client = httpx.Client(transport=InProcess(create_app(models, Settings())), base_url="http://test")
        for name in names:
            place = places[name]
            response = client.post("/v1/segment?timeout=60", content=dataset.pairs[place].image.read_bytes())
            assert response.status_code == 200, response.text
            mask = np.asarray(Image.open(io.BytesIO(response.content)))
            labels = dataset.read(place).labels
            assert mask.shape == labels.shape
            counts.append(confusion_counts(labels, mask, len(dataset.classes)))
    return np.stack(counts)


@pytest.fixture(params=SAMPLES)
def real(request: pytest.FixtureRequest) -> Dataset:
    return open_dataset(request.param, needed(SAMPLES[request.param]), "val")


def test_original_files_score_over_http_what_the_gate_finds(real: Dataset, tmp_path: Path) -> None:
    bundle = made(tmp_path / "bundle", real, RULES[real.name])
    names, counts = by_the_gate(bundle)
    assert len(names) == min(IMAGES, len(real))
    assert np.array_equal(over_http(bundle, names), counts)
    assert counts.sum(1)[:, [0, 2]].sum() == sum(int((real.read(n).labels != 255).sum()) for n in places(real, names))


def places(dataset: Dataset, names: list[str]) -> Iterator[int]:
    yield from (place for place, pair in enumerate(dataset.pairs) if pair.name in names)


@pytest.fixture
def turned(tmp_path: Path) -> Callable[[], Dataset]:
    """Two VOC photographs as a phone would store them: on their side, with an orientation in EXIF."""

    def make() -> Dataset:
        voc = open_dataset("voc", needed(SAMPLES["voc"]), "train")
        for folder in ("images", "labels"):
            (tmp_path / "data" / folder / "val").mkdir(parents=True)
        (tmp_path / "data/classes.yaml").write_text(classes_yaml(voc.classes))
        for place, (orientation, turn) in enumerate(((6, Image.Transpose.ROTATE_90), (3, Image.Transpose.ROTATE_180))):
            sample, exif = voc.read(place), Image.Exif()
            exif[0x0112] = orientation
            stored = Image.fromarray(sample.image).transpose(turn)
            stored.save(tmp_path / f"data/images/val/{place}.jpg", exif=exif, quality=95)
            Image.fromarray(sample.labels).save(tmp_path / f"data/labels/val/{place}.png")
        return open_dataset("folder", tmp_path / "data", "val", rule=FileRule(orientation="exif"))

    return make


def test_turned_files_score_over_http_what_the_gate_finds(turned: Callable[[], Dataset], tmp_path: Path) -> None:
    dataset = turned()
    bundle = made(tmp_path / "bundle", dataset, FileRule(orientation="exif", resize=Resize(to=200)))
    names, counts = by_the_gate(bundle)
    assert names == ["0", "1"]
    assert np.array_equal(over_http(bundle, names), counts)


def test_files_of_16_bits_score_over_http_what_the_gate_finds(tmp_path: Path) -> None:
    voc, values = open_dataset("voc", needed(SAMPLES["voc"]), "train"), (1000, 9000)
    for folder in ("images", "labels"):
        (tmp_path / "data" / folder / "val").mkdir(parents=True)
    (tmp_path / "data/classes.yaml").write_text(classes_yaml(voc.classes))
    random = np.random.default_rng(0)
    for place in range(len(voc)):
        sample = voc.read(place)
        deep = sample.image.astype(np.uint16) * 40 + random.integers(0, 40, sample.image.shape).astype(np.uint16)
        cv2.imwrite(str(tmp_path / f"data/images/val/{place}.png"), deep[..., ::-1])
        Image.fromarray(sample.labels).save(tmp_path / f"data/labels/val/{place}.png")
    rule = FileRule(values=values, resize=Resize(to=200))
    bundle = made(tmp_path / "bundle", open_dataset("folder", tmp_path / "data", "val", rule=rule), rule)
    names, counts = by_the_gate(bundle)
    assert len(names) == len(voc)
    assert np.array_equal(over_http(bundle, names), counts)


def test_scenes_in_tiles_score_over_http_what_the_gate_finds(tmp_path: Path) -> None:
    dataset = open_dataset("voc", needed(SAMPLES["voc"]), "val")
    bundle = cut(tmp_path / "bundle", dataset, FileRule(), Tiles(side=128, overlap=32))
    names, counts = by_the_gate(bundle)
    assert np.array_equal(over_http(bundle, names), counts)
    whole = bundle.manifest.preprocessing.model_copy(update={"tiles": None})
    bundle = write_bundle(tmp_path / "whole", bundle.manifest.model_copy(update={"preprocessing": whole}), bundle.files)
    assert not np.array_equal(by_the_gate(bundle)[1], counts)  # tiles change labels, and both saw it
