"""What holds for every engine that runs here, whatever its runtime and precision."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddcat.bundle import Bundle, write_bundle
from ddcat.choices import Precision
from ddcat.engines import ENGINES, Outputs, open_engine
from ddcat.engines.base import check_images
from ddcat.engines.checks import check_names, check_size
from ddcat.engines.cores import physical_cores
from ddcat.engines.errors import EngineError, InputError
from ddcat.manifest import DimRange, InputShapes, TensorEntry
from ddcat_export.engines import build_engine, check_possible
from tests.bundles import small_graph

COMBINATIONS: list[tuple[str, Precision]] = [
    ("ort", "fp32"), ("ort", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8"),
]  # fmt: skip
ON_A_CPU = sorted({engine for engine, _ in COMBINATIONS})  # TensorRT's tests have a machine of their own
# Of integers below 256: int8 is exact for even ones, and for what bf16 makes of them.
GRAIN: dict[str, int] = {"fp32": 1, "bf16": 1, "int8": 2}


def skip_what_cannot_run(engine: str, precision: Precision) -> None:
    if precision == "bf16":
        try:
            check_possible(engine, precision)
        except EngineError as reason:
            pytest.skip(str(reason))


@pytest.fixture(params=COMBINATIONS, ids="-".join)
def combination(request: pytest.FixtureRequest) -> tuple[str, Precision]:
    skip_what_cannot_run(*request.param)
    return request.param


@pytest.fixture
def bundle(build: Callable[..., Bundle], combination: tuple[str, Precision]) -> Bundle:
    return build(small_graph(confidence=True, int8=combination[1] == "int8"), *combination)


@pytest.fixture
def grain(combination: tuple[str, Precision]) -> int:
    return GRAIN[combination[1]]


def test_all_outputs_are_those_of_the_oracle(bundle: Bundle, grain: int, oracle: Callable, picture: np.ndarray) -> None:
    images = np.stack([picture, picture[::-1], 255 - picture]) // grain * grain
    labels, logits = oracle(images)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    with open_engine(bundle, threads=1) as engine:
        outputs = engine.infer(images)
    assert outputs.labels.dtype == np.uint8
    np.testing.assert_array_equal(outputs.labels, labels)
    assert outputs.logits is not None
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-6)
    shares = np.exp(logits - logits.max(1, keepdims=True))
    assert outputs.confidence is not None
    np.testing.assert_allclose(outputs.confidence, (shares / shares.sum(1, keepdims=True)).max(1), rtol=0.02)


def test_every_size_within_the_shapes_is_taken(bundle: Bundle, grain: int, oracle: Callable) -> None:
    with open_engine(bundle, threads=1) as engine:
        shapes = st.tuples(st.integers(1, 4), st.integers(8, 40), st.integers(8, 40), st.just(3))

        @settings(max_examples=25, deadline=None)
        @given(arrays(np.uint8, shapes))
        def agrees(images: np.ndarray) -> None:
            images = images // grain * grain
            np.testing.assert_array_equal(engine.infer(images).labels, oracle(images)[0])

        agrees()


def test_a_view_with_strides_gives_the_same(bundle: Bundle, grain: int, oracle: Callable, picture: np.ndarray) -> None:
    view = (picture // grain * grain)[None, ::2, ::-1, ::-1]
    assert not view.flags.c_contiguous
    with open_engine(bundle, threads=1) as engine:
        np.testing.assert_array_equal(engine.infer(view).labels, oracle(view)[0])


def test_an_answer_stays_what_it_was(bundle: Bundle, grain: int, picture: np.ndarray) -> None:
    images = picture[None] // grain * grain
    with open_engine(bundle, threads=1) as engine:
        first = engine.infer(images)
        before = first.labels.copy()
        engine.infer(255 - images)
        np.testing.assert_array_equal(first.labels, before)
    np.testing.assert_array_equal(first.labels, before)


def test_states_what_it_is(bundle: Bundle, combination: tuple[str, Precision]) -> None:
    engine_name, precision = combination
    entry = bundle.manifest.engine
    assert (entry.name, entry.requested_precision, entry.effective_precision) == (engine_name, precision, precision)
    assert entry.file == entry.graph == "model.onnx"
    with open_engine(bundle, threads=1) as engine:
        assert engine.inputs == bundle.manifest.inputs
        assert engine.outputs == bundle.manifest.outputs
        assert engine.description["provider"] == entry.provider
        assert engine.description["precision"] == precision
        assert engine.description["threads"] == 1
    with open_engine(bundle) as engine:
        assert engine.description["threads"] == physical_cores() >= 1


@pytest.mark.parametrize("engine", ON_A_CPU)
def test_a_graph_may_give_labels_alone(engine: str, build: Callable, oracle: Callable, picture: np.ndarray) -> None:
    with open_engine(build(small_graph(logits=False), engine), threads=1) as opened:
        outputs = opened.infer(picture[None])
    assert outputs.logits is None
    assert outputs.confidence is None
    np.testing.assert_array_equal(outputs.labels, oracle(picture[None])[0])


@pytest.mark.parametrize("engine", ON_A_CPU)
def test_outputs_are_told_by_name(engine: str, build: Callable) -> None:
    graph = small_graph(logits=False, confidence=True)
    with open_engine(build(graph, engine), threads=1) as opened:
        outputs = opened.infer(np.zeros((1, 8, 9, 3), np.uint8))
    assert outputs.logits is None
    assert outputs.confidence is not None
    assert outputs.confidence.shape == (1, 8, 9)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "float32"),
        (np.zeros((16, 16, 3), np.uint8), "shape"),
        (np.zeros((1, 16, 16, 4), np.uint8), "shape"),
        (np.zeros((1, 3, 16, 16), np.uint8), "shape"),
        (np.zeros((1, 7, 16, 3), np.uint8), "Image is 16 x 7; this model needs at least 8 x 8"),
        (np.zeros((1, 8, 641, 3), np.uint8), "Image is 641 x 8; this model takes at most 640 x 640"),
        (np.zeros((0, 16, 16, 3), np.uint8), "Batch of 0"),
        (np.zeros((5, 16, 16, 3), np.uint8), "Batch of 5; this model takes batches of 1 to 4"),
    ],
)
@pytest.mark.parametrize("engine", ON_A_CPU)
def test_refuses_what_it_was_not_checked_with(engine: str, build: Callable, images: np.ndarray, message: str) -> None:
    bundle = build(small_graph(), engine)
    with open_engine(bundle, threads=1) as opened, pytest.raises(InputError, match=message):
        opened.infer(images)


def test_a_size_that_is_refused_says_which_are_taken() -> None:
    free, few = DimRange(minimum=33, maximum=None), DimRange(minimum=33, maximum=640)
    for height, width, size, message in (
        (free, free, (20, 20), "Image is 20 x 20; this model needs at least 33 x 33 (width x height)"),
        (free, free, (20, 40), "Image is 40 x 20; this model needs at least 33 x 33 (width x height)"),
        (few, few, (641, 40), "Image is 40 x 641; this model takes at most 640 x 640 (width x height)"),
        (few, free, (641, 4000), "Image is 4000 x 641; this model takes a height of at most 640 (width x height)"),
        (free, few, (64, 641), "Image is 641 x 64; this model takes a width of at most 640 (width x height)"),
    ):
        with pytest.raises(InputError) as caught:
            check_size(1, *size, InputShapes(batch=DimRange(minimum=1, maximum=4), height=height, width=width))
        assert str(caught.value) == message


def test_a_ladder_takes_its_sizes_alone() -> None:
    shapes = InputShapes(
        batch=DimRange(minimum=1, maximum=None),
        height=DimRange(minimum=48, maximum=96),
        width=DimRange(minimum=64, maximum=128),
        sizes=((48, 64), (96, 128)),
    )
    for height, width in ((48, 64), (96, 128)):
        check_images(np.zeros((2, height, width, 3), np.uint8), shapes)
    with pytest.raises(InputError, match="Image is 128 x 48; this model takes only 64 x 48, 128 x 96"):
        check_images(np.zeros((2, 48, 128, 3), np.uint8), shapes)


def test_a_closed_engine_says_so(bundle: Bundle, picture: np.ndarray) -> None:
    with open_engine(bundle, threads=1) as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine.infer(picture[None])


@pytest.mark.parametrize("engine", ON_A_CPU)
def test_refuses_a_graph_that_is_not_the_manifest_s(engine: str, build: Callable, tmp_path: Path) -> None:
    bundle = build(small_graph(), engine)
    lying = bundle.manifest.model_copy(
        update={"inputs": (TensorEntry(name="image", dtype="uint8", shape=("batch", 16, 16, 3)),)}
    )
    with pytest.raises(EngineError, match=r"inputs of model.onnx are image uint8 \((any|batch), "):
        open_engine(write_bundle(tmp_path / "lying", lying, bundle.files), threads=1)


@pytest.mark.parametrize(("asked", "int8"), [("fp32", True), ("int8", False)])
@pytest.mark.parametrize("engine", ON_A_CPU)
def test_refuses_a_precision_that_is_not_in_effect(
    engine: str, asked: Precision, int8: bool, build: Callable, tmp_path: Path
) -> None:
    graph, found = small_graph(int8=int8), "int8" if int8 else "fp32"
    with pytest.raises(EngineError, match=f"computes in {found} where {asked} was asked for"):
        build(graph, engine, asked)
    honest = build(graph, engine, found)
    entry = honest.manifest.engine.model_copy(update={"effective_precision": asked})
    lying = write_bundle(tmp_path / "lying", honest.manifest.model_copy(update={"engine": entry}), honest.files)
    with pytest.raises(EngineError, match=f"computes in {found} where {asked} was asked for"):
        open_engine(lying, threads=1)


@pytest.mark.parametrize("engine", ON_A_CPU)
def test_refuses_bytes_that_are_no_graph(engine: str) -> None:
    shapes = InputShapes(
        batch=DimRange(minimum=1, maximum=None), **dict.fromkeys(("height", "width"), DimRange(minimum=8, maximum=9))
    )
    with pytest.raises(EngineError, match=r"does not load the graph: \S"):
        build_engine(engine, b"no model", precision="fp32", shapes=shapes)


@pytest.mark.parametrize("engine", ON_A_CPU)
def test_a_missing_runtime_names_the_extra(engine: str, build: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = build(small_graph(), engine)
    runtime = ENGINES[engine]
    name = runtime.module.rpartition(".")[2]
    for module in (runtime.module, f"ddcat_export.engines.{name}"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    for call in (lambda: open_engine(bundle), lambda: check_possible(engine, "fp32")):
        with pytest.raises(EngineError, match=rf'pip install "\.\[{runtime.extra}\]"'):
            call()


def test_an_engine_of_another_version_is_refused(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle()
    entry = bundle.manifest.engine.model_copy(update={"name": "tpu"})
    with pytest.raises(EngineError, match=r"bundle: this version has no engine 'tpu': it runs ort, openvino"):
        open_engine(Bundle(bundle.path, bundle.manifest.model_copy(update={"engine": entry}), bundle.digest, bundle.files))


@pytest.mark.parametrize("engine", ON_A_CPU)
def test_the_registry_names_what_exists(engine: str) -> None:
    assert callable(importlib.import_module(ENGINES[engine].module).load)


@pytest.mark.parametrize("engine", ON_A_CPU)
def test_a_graph_of_other_types_is_no_segmenter(engine: str, build: Callable) -> None:
    model = onnx.load_model_from_string(small_graph())
    model.graph.node[-1].attribute[0].i = onnx.TensorProto.INT64
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    with pytest.raises(EngineError, match=r"labels is .*int64.*; a segmenter's inputs and outputs are .*uint8"):
        build(model.SerializeToString(), engine)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["picture"], ["labels"]),
        (["image", "more"], ["labels"]),
        (["image"], ["logits", "labels"]),
        (["image"], ["labels", "x"]),
        (["image"], ["logits"]),
    ],
)
def test_a_graph_with_other_names_is_no_segmenter(inputs: list[str], outputs: list[str]) -> None:
    check_names(["image"], ["labels", "confidence"])
    with pytest.raises(EngineError, match="a segmenter has input image and outputs labels and then, if any, logits"):
        check_names(inputs, outputs)


@pytest.mark.parametrize("labels", [np.zeros((1, 9, 8), np.uint8), np.zeros((1, 8, 9), np.int64), np.zeros((8, 9), np.uint8)])
def test_labels_of_another_form_than_the_images_do_not_pass(
    bundle: Bundle, labels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine(bundle, threads=1) as engine:
        monkeypatch.setattr(engine._graph, "run", lambda images: Outputs(labels, None, None))
        with pytest.raises(EngineError, match=r"came back for images \(1, 8, 9, 3\)"):
            engine.infer(np.zeros((1, 8, 9, 3), np.uint8))
