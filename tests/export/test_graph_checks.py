"""What no graph may be, one edit from what every graph is."""

from collections.abc import Callable

import onnx
import pytest
from onnx import TensorProto, helper

from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import check_form, check_graph

SIZE = (64, 80)


@pytest.fixture(scope="module")
def content(graph_of: Callable[..., bytes]) -> bytes:
    return graph_of()


def unsorted(model: onnx.ModelProto) -> None:
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def with_batch_norm(model: onnx.ModelProto) -> None:
    for name in ("scale", "bias", "mean", "variance"):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.FLOAT, [4], [1.0] * 4))
    node = helper.make_node("BatchNormalization", ["logits", "scale", "bias", "mean", "variance"], ["normed"], "left")
    model.graph.node.append(node)


def as_fp32_labels(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if "labels" in node.output)
    last.attribute[0].i = TensorProto.FLOAT
    next(output for output in model.graph.output if output.name == "labels").type.tensor_type.elem_type = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (unsorted, "the graph is not valid ONNX: "),
        (with_batch_norm, "a batch norm is left at left in the graph"),
        (as_fp32_labels, "labels is float in the graph, expected uint8"),
    ],
)
def test_a_graph_that_is_not_as_every_graph_is_refused_in_one_line(
    content: bytes, edit: Callable[[onnx.ModelProto], None], message: str
) -> None:
    model = onnx.load_model_from_string(content)
    check_graph(model, "fp32")
    edit(model)
    with pytest.raises(ExportError, match=message) as caught:
        check_graph(model, "fp32")
    assert "\n" not in str(caught.value)


def test_a_graph_for_one_size_is_none_for_all(content: bytes) -> None:
    model = onnx.load_model_from_string(content)
    check_form(model, 4, SIZE, logits=True, confidence=False)
    with pytest.raises(ExportError, match="one image size only, because its code depends on the size: use --size HxW"):
        check_form(model, 4, None, logits=True, confidence=False)
