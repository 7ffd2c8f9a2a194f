"""Small bundles with a real segmenter in them, whose answers are known, and fixtures that make them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ddcat.bundle import Bundle, entries, write_bundle
from ddcat.choices import Precision
from ddcat.classes import Classes
from ddcat.engines.golden import Example, pack
from ddcat.manifest import (
    ClassEntry,
    DataSource,
    DimRange,
    EngineEntry,
    Golden,
    InputShapes,
    MainBranchProof,
    Manifest,
    Preprocessing,
    SourceCheckpoint,
    TensorEntry,
)
from ddcat_export.engines import build_engine
from ddcat_train.data import Dataset

Oracle = Callable[[npt.NDArray[np.uint8]], tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]]

CLASSES = Classes(("night", "red", "green", "blue"), ((0, 0, 0), (200, 10, 20), (30, 200, 40), (50, 60, 200)))
WEIGHTS = np.eye(3)[[0, 0, 1, 2]]  # (K, 3): class 1 looks at red, 2 at green, 3 at blue
WEIGHTS[0] = 0
BIAS = np.array([100.0, 0.0, 0.0, 0.0])  # class 0 wins where all channels are below 100


def small_graph(
    height: int | str = "height",
    width: int | str = "width",
    *,
    logits: bool = True,
    confidence: bool = False,
    int8: bool = False,
    weights: npt.NDArray[np.float64] = WEIGHTS,
    bias: npt.NDArray[np.float64] = BIAS,
) -> bytes:
    """
    A real segmenter of four classes, unless others are given: the strongest channel, or class 0 where none reaches 100.

    As int8 it halves the values: exact where they are even.
    """
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        *([] if int8 else [helper.make_node("Conv", ["planes", "weight", "bias"], ["logits"])]),
        helper.make_node("ArgMax", ["logits"], ["index"], axis=1, keepdims=0),
        helper.make_node("Cast", ["index"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["number"], ["labels"], to=TensorProto.UINT8),
    ]
    outputs = [helper.make_tensor_value_info("labels", TensorProto.UINT8, ["batch", height, width])]
    if int8:
        nodes[2:2] = [
            helper.make_node("QuantizeLinear", ["planes", "two", "zero"], ["halves"]),
            helper.make_node("DequantizeLinear", ["halves", "two", "zero"], ["again"]),
            helper.make_node("DequantizeLinear", ["weight8", "one", "zero"], ["weight"]),
            helper.make_node("Conv", ["again", "weight", "bias"], ["sums"]),
            helper.make_node("QuantizeLinear", ["sums", "two", "zero"], ["half_sums"]),
            helper.make_node("DequantizeLinear", ["half_sums", "two", "zero"], ["logits"]),
        ]
    if logits:
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weights), height, width]))
    if confidence:
        nodes += [
            helper.make_node("Softmax", ["logits"], ["shares"], axis=1),
            helper.make_node("ReduceMax", ["shares", "first"], ["confidence"], keepdims=0),
        ]
        outputs.append(helper.make_tensor_value_info("confidence", TensorProto.FLOAT, ["batch", height, width]))
    weight = weights.reshape(*weights.shape, 1, 1)
    constants = {"bias": bias.astype(np.float32)} | (
        {"weight8": weight.astype(np.int8), "two": np.float32(2), "one": np.float32(1), "zero": np.int8(0)}
        if int8
        else {"weight": weight.astype(np.float32)}
    )
    if confidence:
        constants["first"] = np.array([1])
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", height, width, weights.shape[1]])],
        outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def manifest_on(dataset: Dataset, known: Manifest, **changes: object) -> Manifest:
    """The manifest of a bundle for a data set, with its classes."""
    classes = zip(dataset.classes.names, dataset.classes.palette, strict=True)
    data = DataSource(
        name=dataset.name, root=str(dataset.root), split=dataset.split, list_sha256=dataset.list_sha256(), images=len(dataset)
    )
    return known.model_copy(
        update={"classes": tuple(ClassEntry(name=n, colour=c) for n, c in classes), "data": data, **changes}
    )


def small_manifest(
    content: bytes, name: str = "small", height: int | str = "height", width: int | str = "width", *, logits: bool = True
) -> Manifest:
    sides = [
        DimRange(minimum=s, maximum=s) if isinstance(s, int) else DimRange(minimum=8, maximum=640) for s in (height, width)
    ]
    outputs = [TensorEntry(name="labels", dtype="uint8", shape=("batch", height, width))]
    if logits:
        outputs.append(TensorEntry(name="logits", dtype="float32", shape=("batch", 4, height, width)))
    return Manifest(
        name=name,
        files=entries({"model.onnx": content}),
        source=SourceCheckpoint(
            checkpoint="runs/small/best", sha256="0" * 64, git_commit=None, method="undefended", attack=None,
            architecture="one convolution", step=1,
        ),
        main_branch_only=MainBranchProof(spare_parameters=0, bytes_unchanged=True, multiply_adds=1, size=(64, 64)),
        data=DataSource(name="made up", root="nowhere", split="val", list_sha256="1" * 64, images=1),
        classes=tuple(ClassEntry(name=n, colour=c) for n, c in zip(CLASSES.names, CLASSES.palette, strict=True)),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
        shapes=InputShapes(batch=DimRange(minimum=1, maximum=4), height=sides[0], width=sides[1]),
        inputs=(TensorEntry(name="image", dtype="uint8", shape=("batch", height, width, 3)),),
        outputs=tuple(outputs),
        opset=18,
        engine=EngineEntry(
            name="ort", file="model.onnx", requested_precision="fp32", effective_precision="fp32",
            provider="CPUExecutionProvider",
        ),
        versions={},
    )  # fmt: skip


def small_bundle(path: Path) -> Bundle:
    content = small_graph()
    return write_bundle(path, small_manifest(content), {"model.onnx": content})


def with_golden(path: Path, oracle: Callable, picture: np.ndarray) -> Bundle:
    """A bundle with two golden pairs: the attack of each darkens the picture by up to 20 levels."""
    content = small_graph()
    attacked = picture - np.minimum(picture, 20)
    images = {
        "clean.0": picture,
        "adversarial.0": attacked,
        "clean.1": picture[::-1].copy(),
        "adversarial.1": attacked[::-1].copy(),
    }
    packed = pack(Example(name, image, oracle(image[None])[0][0]) for name, image in images.items())
    files = {"model.onnx": content, "golden.safetensors": packed}
    about = Golden(file="golden.safetensors", images=2, source="made up", attack={"name": "darkness"})
    return write_bundle(path, small_manifest(content).model_copy(update={"files": entries(files), "golden": about}), files)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path) -> Iterator[Path]:
    """Where engines keep what they compiled."""
    with pytest.MonkeyPatch.context() as patch:  # its own: the test's is to be undone before the models are closed
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield tmp_path / "cache"


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Bundle]:
    """Give a bundle whose engine is built as an export builds it."""

    def make(graph: bytes, engine: str, precision: Precision = "fp32", *, name: str = "built", **options: object) -> Bundle:
        manifest = small_manifest(graph)
        built = build_engine(engine, graph, precision=precision, shapes=manifest.shapes, **options)
        files = {"model.onnx": graph, **built.files}
        about = {"engine": built.entry, "inputs": built.inputs, "outputs": built.outputs, "files": entries(files)}
        return write_bundle(tmp_path / name, manifest.model_copy(update=about), files)

    return make


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def make(name: str = "small", height: int | str = "height", width: int | str = "width", *, logits: bool = True) -> Bundle:
        content = small_graph(height, width, logits=logits)
        manifest = small_manifest(content, name, height, width, logits=logits)
        return write_bundle(tmp_path / f"{name}.bundle", manifest, {"model.onnx": content})

    return make


@pytest.fixture
def bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture
def oracle() -> Oracle:
    """The small graph, in numpy: images (N, H, W, 3) to labels (N, H, W) and logits (N, 4, H, W)."""

    def answer(images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        logits = np.einsum("nhwc,kc->nkhw", images.astype(np.float64), WEIGHTS) + BIAS[None, :, None, None]
        return logits.argmax(1).astype(np.uint8), logits.astype(np.float32)

    return answer


@pytest.fixture
def picture() -> npt.NDArray[np.uint8]:
    """An image of 37 x 53 in which every class occurs."""
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(np.uint8) // np.uint8(2) + np.uint8(20)
