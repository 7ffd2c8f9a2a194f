"""ONNX files of other programs: read or refused, wrapped into the contract of a bundle, and computed with gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from ddcat.choices import Precision
from ddcat.engines.onnxruntime import run_once
from ddcat.hashing import sha256_of_file
from ddcat.manifest import Sizes
from ddcat_export.contract import contract_graph
from ddcat_export.errors import ExportError
from ddcat_export.onnx_file import OnnxFile
from ddcat_export.onnx_options import OnnxOptions
from ddcat_export.parity import sample_images
from ddcat_export.precision_cast import cast_graph
from ddcat_export.sources import OnnxSource, open_onnx, open_source
from ddcat_export.twin.twin import Twin
from ddcat_train.pixels import to_planes
from tests.export.onnx_files import CLASSES, MEAN, SIZE, STD, Network, changed, channels_last, ending, network, right, written

FORMS: dict[str, dict[str, Any]] = {
    "torchscript, opset 11": {"opset": 11},
    "torchscript, opset 17": {},
    "torchscript, one size": {"free": False},
    "torchscript, one image of one size": {"free": False, "batch": 1},
    "dynamo, opset 18": {"opset": 18, "dynamo": True},
    "dynamo, opset 22": {"opset": 22, "dynamo": True},
    "dynamo, one size": {"opset": 20, "dynamo": True, "free": False},
}


def read(path: Path, **options: Any) -> OnnxFile:
    return OnnxFile.read(path, **({"classes": CLASSES, "mean": MEAN, "std": STD} | options))


@pytest.fixture(scope="module")
def model() -> Network:
    return network()


@pytest.fixture(scope="module")
def usual(model: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("onnx") / "usual.onnx", model)


def check(file: OnnxFile, model: nn.Module, sizes: Sizes | None = None) -> bytes:
    """The bundle's graph, and the twin of it and of the file, give what PyTorch gives."""
    sizes = (file.size,) if file.size else sizes
    content = contract_graph(file, sizes=sizes, logits=True, confidence=True)
    for shape in ((2 if file.any_batch else 1, *size) for size in sizes or ((33, 41), (64, 50))):
        images = sample_images(shape, 0)
        logits, labels = right(model, images)
        outputs = run_once(content, images)
        scale = float(logits.std())
        assert np.abs(outputs["logits"] - logits.numpy()).max() < 1e-5 * scale
        np.testing.assert_array_equal(outputs["labels"], labels.numpy())
        assert 1 / len(CLASSES) < outputs["confidence"].min() <= outputs["confidence"].max() <= 1
        for computed in (Twin(content), file.segmenter()):
            with torch.no_grad():
                assert (computed(to_planes(images)).argmax(1) == labels).float().mean() > 0.9999
    return content


@pytest.mark.parametrize(
    ("form", "full"),
    [
        # of torch.export's forms, which take seconds, each and both networks
        pytest.param(form, full, marks=pytest.mark.slow if "dynamo" in form and full != ("22" in form) else ())
        for form in FORMS
        for full in (False, True)
    ],
    ids=lambda value: value if isinstance(value, str) else "full" if value else "low",
)
def test_the_graph_of_a_bundle_computes_what_pytorch_computes(tmp_path: Path, form: str, full: bool) -> None:
    model = network(full=full)
    file = read(written(tmp_path / "model.onnx", model, **FORMS[form]))
    assert (file.size is None) == FORMS[form].get("free", True)
    content = check(file, model)
    graph = onnx.load_model_from_string(content)
    assert [entry.version for entry in graph.opset_import] == [22]
    assert not any(node.op_type == "BatchNormalization" for node in graph.graph.node)


@pytest.mark.parametrize("form", ["torchscript, opset 11", "dynamo, opset 22"])
def test_it_is_cast_as_any_other_graph(model: Network, tmp_path: Path, form: str) -> None:
    file = read(written(tmp_path / "model.onnx", model, **FORMS[form]))
    graph = contract_graph(file, sizes=None, logits=True, confidence=False)
    images = sample_images((1, *SIZE), 2)
    precisions: dict[Precision, float] = {"fp16": 0.99, "bf16": 0.95}
    for precision, least in precisions.items():
        with torch.no_grad():
            labels = Twin(cast_graph(graph, precision))(to_planes(images)).argmax(1)
        assert float((labels == right(model, images)[1]).float().mean()) > least


def test_the_same_file_gives_the_same_bytes(usual: Path) -> None:
    made = {contract_graph(read(usual), sizes=None, logits=False, confidence=False) for _ in range(2)}
    assert len(made) == 1
    assert read(usual).sha256() == sha256_of_file(usual)


def test_channels_that_come_last_are_moved(usual: Path, model: Network, tmp_path: Path) -> None:
    file = read(changed(tmp_path / "last.onnx", usual, channels_last))
    assert file.images.last
    assert file.logits.last
    check(file, model)


def test_a_softmax_at_the_end_is_left_out(usual: Path, model: Network, tmp_path: Path) -> None:
    check(read(changed(tmp_path / "softmax.onnx", usual, ending("Softmax", axis=1))), model)


def test_means_of_levels_up_to_255(usual: Path, model: Network) -> None:
    scaled = read(usual, mean=[255 * value for value in MEAN], std=[255 * value for value in STD], scale=1)
    assert scaled.mean == pytest.approx(MEAN)
    check(scaled, model)


def test_one_of_several_outputs(usual: Path, model: Network, tmp_path: Path) -> None:
    def more(file: onnx.ModelProto) -> None:
        file.graph.node.append(helper.make_node("Neg", ["logits"], ["aux"]))
        file.graph.output.append(helper.make_tensor_value_info("aux", TensorProto.FLOAT, None))

    path = changed(tmp_path / "two.onnx", usual, more)
    with pytest.raises(ExportError, match=r"has the outputs logits, aux: use --output NAME for the one that holds the logits"):
        read(path)
    with pytest.raises(ExportError, match=r"--output other: .* has logits, aux"):
        read(path, output="other")
    check(read(path, output="logits"), model)


def test_weights_in_a_file_beside_it(usual: Path, model: Network, tmp_path: Path) -> None:
    onnx.save(onnx.load(usual), tmp_path / "model.onnx", save_as_external_data=True, location="model.data", size_threshold=0)
    file = read(tmp_path / "model.onnx")
    check(file, model)
    data = bytearray((tmp_path / "model.data").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.data").write_bytes(data)
    assert read(tmp_path / "model.onnx").sha256() != file.sha256()


def test_gradients_are_those_of_pytorch(usual: Path, model: Network) -> None:
    images = to_planes(sample_images((1, *SIZE), 1))
    weights = torch.randn(len(CLASSES), *SIZE, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def logits(given: torch.Tensor) -> torch.Tensor:
        low = model((given - mean) / std)
        return nn.functional.interpolate(low, SIZE, mode="bilinear", align_corners=False)

    gradients = []
    for computed in (logits, read(usual).segmenter()):
        given = images.clone().requires_grad_()
        (computed(given) * weights).sum().backward()
        assert given.grad is not None
        gradients.append(given.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


def test_its_runtime_is_the_file_itself(usual: Path, model: Network) -> None:
    images = sample_images((2, *SIZE), 3)
    segmenter = read(usual).runtime_segmenter()
    torch.testing.assert_close(segmenter.features(to_planes(images)).logits, right(model, images)[0], rtol=1e-4, atol=1e-5)


def input_of(kind: int, shape: list[Any]) -> Callable[[onnx.ModelProto], None]:
    return lambda model: model.graph.input[0].CopyFrom(helper.make_tensor_value_info("images", kind, shape))


def second_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("sizes", TensorProto.FLOAT, [2]))


def opset_9(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 9


def foreign(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


REFUSED: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "two inputs": (second_input, r"has the inputs images, sizes: expected one, for images"),
    "int64": (input_of(TensorProto.INT64, ["n", 3, "h", "w"]), r"takes images, int64 \(n, 3, h, w\): expected float32 images"),
    "float16": (input_of(TensorProto.FLOAT16, ["n", 3, 8, 8]), r"takes images, float16 \(n, 3, 8, 8\): expected float32"),
    "uint8": (input_of(TensorProto.UINT8, ["n", "h", "w", 3]), r"takes images, uint8 .*: expected float32 images"),
    "grey": (input_of(TensorProto.FLOAT, ["n", 1, "h", "w"]), r"expected images of 3 channels, RGB"),
    "no images": (input_of(TensorProto.FLOAT, ["n", 3]), r"takes images, float32 \(n, 3\): expected float32 images"),
    "half free": (input_of(TensorProto.FLOAT, ["n", 3, "h", 96]), r"has one free side only"),
    "batch of 4": (input_of(TensorProto.FLOAT, [4, 3, "h", "w"]), r"takes 4 images at a time: expected one, or a free batch"),
    "argmax": (
        ending("ArgMax", TensorProto.INT64, axis=1, keepdims=0), r"returns last, int64 .*: expected logits .*without the arg",
    ),
    "sigmoid": (ending("Sigmoid"), r"ends in a Sigmoid, whose masks may overlap: expected logits"),
    "opset 9": (opset_9, r"has opset 9: expected 11 to 22; export it again with opset_version=17"),
    "of a runtime": (foreign, r"holds com.microsoft.\w+: expected only operators of ONNX itself"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_what_is_no_such_model_is_refused_in_one_line(usual: Path, tmp_path: Path, fault: str) -> None:
    change, message = REFUSED[fault]
    path = changed(tmp_path / "bad.onnx", usual, change)
    with pytest.raises(ExportError, match=message) as told:
        read(path)
    assert str(told.value).startswith(str(path))
    assert "\n" not in str(told.value)


def test_other_classes_are_refused(usual: Path) -> None:
    fewer = type(CLASSES).with_voc_palette(CLASSES.names[:4])
    with pytest.raises(ExportError, match=r"returns logits of shape \(1, 6, 32, 32\): expected logits of 4 channels, one for"):
        read(usual, classes=fewer)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "empty.onnx").write_text("")
    for name in ("text.onnx", "nowhere.onnx", "empty.onnx"):
        with pytest.raises(ExportError, match=rf"{name} cannot be read as an ONNX file: "):
            read(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": None}, r"use --mean R,G,B and --std R,G,B"),
        ({"classes": None}, r"use --classes FILE with the names of its classes"),
        ({"std": (1, 0, 1)}, r"expected three numbers each, std above 0"),
        ({"mean": (0.5,)}, r"expected three numbers each"),
        ({"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}, r"is in levels of 0 to 255, .*: use --scale 1, or divide"),
        ({"mean": (-123.7, 0, 0)}, r"is in levels of 0 to 255"),
        ({"scale": 1}, r"is in \[0, 1\], and scale 1 leaves images in levels of 0 to 255: leave scale out"),
    ],
)
def test_what_the_file_does_not_say_is_asked_for(usual: Path, options: dict[str, Any], message: str) -> None:
    given = OnnxOptions(classes=CLASSES, mean=MEAN, std=STD)._replace(**options)
    with pytest.raises(ExportError, match=message):
        open_onnx(usual, given)


def test_options_of_files_are_refused_for_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--mean is for ONNX files, and .* is not one: leave it out"):
        open_source(tmp_path, OnnxOptions(mean=MEAN))


def test_sizes_that_it_fails_on_are_said(tmp_path: Path, usual: Path) -> None:
    """A skip connection from half the size, which fits images of even sides alone."""

    def skip(model: onnx.ModelProto) -> None:
        graph = model.graph
        first = next(node for node in graph.node if node.op_type == "Conv").output[0]
        double = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "double")
        weight = numpy_helper.from_array(np.ones((len(CLASSES), 12, 1, 1), np.float32), "weight")
        graph.initializer.extend([double, weight])
        graph.node.extend(
            [
                helper.make_node("Resize", ["logits", "", "double"], ["larger"], mode="nearest"),
                helper.make_node("Conv", [first, "weight"], ["early"]),
                helper.make_node("Add", ["larger", "early"], ["sums"]),
            ]
        )
        graph.output[0].CopyFrom(helper.make_tensor_value_info("sums", TensorProto.FLOAT, None))

    source = OnnxSource(read(changed(tmp_path / "skip.onnx", usual, skip)))
    with pytest.raises(ExportError, match=r"fails on images of 33x33: .*use --size HxW, one or several, for the sizes that it"):
        source.shapes(None)
    assert source.shapes(((64, 96), (32, 64))) == ((1, 64, 96), (2, 32, 64))


class Images(CalibrationDataReader):
    """Noise, as the quantiser of ONNX Runtime reads it."""

    def __init__(self) -> None:
        self._left = [np.random.default_rng(seed).normal(size=(1, 3, *SIZE)).astype(np.float32) for seed in range(3)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return {"images": self._left.pop()} if self._left else None


QUANTISED: dict[str, dict[str, Any]] = {
    "unsigned": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8},
    "signed, by channel": {"activation_type": QuantType.QInt8, "weight_type": QuantType.QInt8, "per_channel": True},
    "unsigned weights": {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8},
}


@pytest.mark.parametrize("form", QUANTISED)
def test_files_of_other_quantisers_run_as_they_are(usual: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / "int8.onnx"
    quantize_static(str(usual), str(path), Images(), quant_format=QuantFormat.QDQ, **QUANTISED[form])
    file = read(path)
    assert file.is_quantised
    images = sample_images((2, *SIZE), 0)
    content = contract_graph(file, sizes=None, logits=True, confidence=False, precision="int8")
    theirs = file.runtime_segmenter()(to_planes(images)).argmax(1)
    assert float((torch.from_numpy(run_once(content, images)["labels"]) == theirs).float().mean()) > 0.99
    given = to_planes(images).requires_grad_()
    scores = Twin(content)(given)
    assert float((scores.argmax(1) == theirs).float().mean()) > 0.98
    scores.sum().backward()
    assert given.grad is not None
    assert float(given.grad.abs().sum()) > 0


def test_a_quantised_file_needs_the_float_one(usual: Path, tmp_path: Path) -> None:
    path = tmp_path / "int8.onnx"
    quantize_static(str(usual), str(path), Images(), quant_format=QuantFormat.QDQ)
    with pytest.raises(ExportError, match=r"int8.onnx is quantised: use --reference FILE with the float model"):
        OnnxSource(read(path))
    with pytest.raises(ExportError, match=r"usual.onnx is not quantised: leave --reference out"):
        OnnxSource(read(usual), read(usual))
    source = OnnxSource(read(usual), read(path))
    assert source.given is not None
    assert source.given.quantised_layers == 5
    assert source.entry().sha256 == sha256_of_file(usual)
    assert source.entry().kind == "onnx"
