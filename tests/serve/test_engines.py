import importlib
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ddcat.bundle import Bundle, write_bundle
from ddcat.manifest import Precision, Range, Shapes, TensorEntry
from ddcat_serve.engines import ENGINES, build_engine, check_possible, open_engine
from ddcat_serve.engines.base import check_images, physical_cores
from ddcat_serve.engines.onnxruntime import open_graph
from ddcat_serve.errors import EngineError, InputError


def test_labels_and_logits_are_those_of_the_oracle(bundle: Bundle, oracle: Callable, picture: np.ndarray) -> None:
    images = np.stack([picture, picture[::-1], 255 - picture])
    labels, logits = oracle(images)
    assert set(np.unique(labels)) == {0, 1, 2, 3}
    with open_engine(bundle, threads=1) as engine:
        outputs = engine.infer(images)
    assert outputs.labels.dtype == np.uint8
    np.testing.assert_array_equal(outputs.labels, labels)
    assert outputs.logits is not None
    np.testing.assert_allclose(outputs.logits, logits, rtol=1e-6)


def test_every_size_within_the_shapes(bundle: Bundle, oracle: Callable) -> None:
    with open_engine(bundle, threads=1) as engine:
        shapes = st.tuples(st.integers(1, 4), st.integers(8, 40), st.integers(8, 40), st.just(3))

        @settings(max_examples=25, deadline=None)
        @given(arrays(np.uint8, shapes))
        def agrees(images: np.ndarray) -> None:
            np.testing.assert_array_equal(engine.infer(images).labels, oracle(images)[0])

        agrees()


def test_a_ladder_takes_its_sizes_alone() -> None:
    shapes = Shapes(
        batch=Range(minimum=1, maximum=None),
        height=Range(minimum=48, maximum=96),
        width=Range(minimum=64, maximum=128),
        sizes=((48, 64), (96, 128)),
    )
    for height, width in ((48, 64), (96, 128)):
        check_images(np.zeros((2, height, width, 3), np.uint8), shapes)
    with pytest.raises(InputError, match=r"48x128 .* takes 48x64, 96x128 in batches of 1 or more"):
        check_images(np.zeros((2, 48, 128, 3), np.uint8), shapes)


def test_a_view_with_strides_gives_the_same(bundle: Bundle, oracle: Callable, picture: np.ndarray) -> None:
    view = picture[None, ::2, ::-1, ::-1]
    assert not view.flags.c_contiguous
    with open_engine(bundle, threads=1) as engine:
        np.testing.assert_array_equal(engine.infer(view).labels, oracle(view)[0])


def test_states_what_it_is(bundle: Bundle) -> None:
    with open_engine(bundle, threads=1) as engine:
        assert engine.inputs == bundle.manifest.inputs
        assert engine.outputs == bundle.manifest.outputs
        assert engine.description["provider"] == "CPUExecutionProvider"
        assert engine.description["precision"] == "fp32"
        assert engine.description["threads"] == 1
    with open_engine(bundle) as engine:
        assert engine.description["threads"] == physical_cores() >= 1


def test_without_logits(make_bundle: Callable[..., Bundle], oracle: Callable, picture: np.ndarray) -> None:
    with open_engine(make_bundle(logits=False), threads=1) as engine:
        outputs = engine.infer(picture[None])
    assert outputs.logits is None
    np.testing.assert_array_equal(outputs.labels, oracle(picture[None])[0])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 16, 16, 3), np.float32), "float32"),
        (np.zeros((16, 16, 3), np.uint8), "shape"),
        (np.zeros((1, 16, 16, 4), np.uint8), "shape"),
        (np.zeros((1, 3, 16, 16), np.uint8), "shape"),
        (np.zeros((1, 7, 16, 3), np.uint8), "height 7 .* height 8 to 640"),
        (np.zeros((1, 8, 641, 3), np.uint8), "width 641"),
        (np.zeros((0, 16, 16, 3), np.uint8), "batch 0"),
        (np.zeros((5, 16, 16, 3), np.uint8), "batch 5 .* batches of 1 to 4"),
    ],
)
def test_refuses_what_it_was_not_checked_with(bundle: Bundle, images: np.ndarray, message: str) -> None:
    with open_engine(bundle, threads=1) as engine, pytest.raises(InputError, match=message):
        engine.infer(images)


def test_a_closed_engine_says_so(bundle: Bundle, picture: np.ndarray) -> None:
    with open_engine(bundle, threads=1) as engine:
        pass
    with pytest.raises(EngineError, match="closed"):
        engine.infer(picture[None])


def test_refuses_a_graph_that_is_not_the_manifest_s(bundle: Bundle) -> None:
    lying = bundle.manifest.model_copy(
        update={"inputs": (TensorEntry(name="image", dtype="uint8", shape=("batch", 16, 16, 3)),)}
    )
    with pytest.raises(EngineError, match=r"inputs of model.onnx are image uint8 \['batch', 'height'"):
        open_engine(write_bundle(bundle.path.with_name("lying"), lying, bundle.files), threads=1)


def test_refuses_another_provider_than_the_one_it_was_checked_with(bundle: Bundle) -> None:
    entry = bundle.manifest.engine.model_copy(update={"provider": "CUDAExecutionProvider"})
    other = bundle.manifest.model_copy(update={"engine": entry})
    with pytest.raises(EngineError, match="CUDAExecutionProvider"):
        open_engine(write_bundle(bundle.path.with_name("other"), other, bundle.files), threads=1)


def test_a_graph_before_its_bundle(bundle: Bundle, oracle: Callable) -> None:
    images = np.random.default_rng(1).integers(0, 256, (6, 3, 700, 3)).astype(np.uint8)  # no shapes bind it yet
    with open_graph(bundle.files["model.onnx"], threads=1) as graph:
        np.testing.assert_array_equal(graph.run(images).labels, oracle(images)[0])
        with pytest.raises(EngineError, match="ONNX Runtime failed on images of shape"):
            graph.run(images.astype(np.float32))


def test_refuses_bytes_that_are_no_graph() -> None:
    with pytest.raises(EngineError, match="does not load"):
        open_graph(b"no model")


def test_a_missing_runtime_names_the_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ddcat_serve.engines.onnxruntime", raising=False)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r'pip install "ddcat\[cpu\]"'):
        open_engine(bundle)


def test_an_engine_of_another_version(bundle: Bundle) -> None:
    entry = bundle.manifest.engine.model_copy(update={"name": "trt"})
    other = bundle.manifest.model_copy(update={"engine": entry})
    with pytest.raises(EngineError, match=r"no engine 'trt': it runs ort"):
        open_engine(write_bundle(bundle.path.with_name("other"), other, bundle.files))


def test_the_registry_names_what_exists() -> None:
    for runtime in ENGINES.values():
        module = importlib.import_module(runtime.module)
        assert all(callable(getattr(module, name)) for name in ("check_possible", "build", "load"))


def test_what_a_build_says_of_itself(bundle: Bundle) -> None:
    manifest = bundle.manifest
    built = build_engine("ort", bundle.files["model.onnx"], precision="fp32", shapes=manifest.shapes)
    assert built.files == {}
    assert (built.inputs, built.outputs) == (manifest.inputs, manifest.outputs)
    assert built.entry == manifest.engine


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_cannot_run_is_refused_at_once(bundle: Bundle, precision: Precision) -> None:
    with pytest.raises(EngineError, match=f"does not compute in {precision} on a CPU, only in fp32 and int8"):
        check_possible("ort", precision)
    with pytest.raises(EngineError, match=precision):
        build_engine("ort", b"never looked at", precision=precision, shapes=bundle.manifest.shapes)
