"""What we export is what TensorRT's parser takes, by its own list; whether it is fast there, only a GPU shows."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from ddcat.engines.errors import EngineError
from ddcat_export.engines.tensorrt.graph import adapt
from ddcat_export.exporting import export
from ddcat_export.parity import sample_images

SIZE = (65, 97)


@pytest.fixture(scope="module", params=["pyramid", "aspp"])
def graph(request: pytest.FixtureRequest, make_run: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = make_run(f"fits-{request.param}", method="undefended", context=request.param)
    done = export(run, tmp_path_factory.mktemp("fits") / "bundle", sizes=(SIZE,), logits=True)
    content: bytes = done.bundle.files["model.onnx"]
    return content


@pytest.mark.parametrize("version", ["8.6.1", "10.13.2.6", "11.4.0.106"])
def test_it_fits_and_computes_the_same(graph: bytes, version: str) -> None:
    fitted = adapt(graph, version, "fp32")
    images = sample_images((2, *SIZE), 0)
    answers = [
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, {"image": images})
        for content in (fitted, graph)
    ]
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_node_of_ours_that_it_does_not_take_is_named(graph: bytes) -> None:
    model = onnx.load_model_from_string(graph)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    next(a for a in resize.attribute if a.name == "mode").s = b"cubic"
    with pytest.raises(EngineError, match=rf"{resize.name} \(Resize\): it resizes by cubic"):
        adapt(model.SerializeToString(), "10.13.2.6", "fp32")
