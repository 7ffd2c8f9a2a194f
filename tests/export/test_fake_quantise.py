"""Weights behind the rounding of int8: what is trained is what is exported, and gradients are those of the closed form."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ddcat.bundle import Bundle
from ddcat.engines.onnxruntime import run_once
from ddcat_export.calibration import measure_ranges
from ddcat_export.errors import ExportError
from ddcat_export.fake_quantise import FakeQuantised, round_weight, trained_tensors
from ddcat_export.graph_checks import OPSET
from ddcat_export.parity import sample_images
from ddcat_export.quantise import layers_of, normalise_matmuls, quantise
from ddcat_export.twin.twin import Twin
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.pixels import to_planes
from tests.export.onnx_files import node_by_node

SHAPE = (2, 49, 66)


@pytest.fixture(scope="module")
def fp32(bundle: Bundle) -> bytes:
    return bundle.files["model.onnx"]


@pytest.fixture(scope="module")
def ranges(fp32: bytes) -> dict[str, float]:
    return measure_ranges(fp32, [sample_images(SHAPE, seed) for seed in range(2)])


@pytest.fixture(scope="module")
def trained(fp32: bytes, run: Path) -> frozenset[str]:
    return trained_tensors(fp32, load_checkpoint(run).segmenter())


@pytest.fixture(params=[False, True], ids=["signed", "unsigned"])
def unsigned(request: pytest.FixtureRequest) -> bool:
    chosen: bool = request.param
    return chosen


def constants(graph: bytes) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_model_from_string(graph).graph.initializer}


def moved(network: FakeQuantised) -> FakeQuantised:
    """With weights that an optimiser might have left: some of them are other steps."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for change in network.changes:
            change.copy_(torch.randn(change.shape, generator=generator))
    return network


def test_what_is_trained_is_what_is_exported(
    fp32: bytes, ranges: dict[str, float], trained: frozenset[str], unsigned: bool
) -> None:
    images = sample_images(SHAPE, 5)
    network = FakeQuantised(fp32, ranges, trained=trained, unsigned=unsigned)
    before = quantise(fp32, ranges, unsigned=unsigned)
    with torch.no_grad():
        assert torch.equal(network(to_planes(images)), Twin(before)(to_planes(images)))
        moved(network)
        content = quantise(network.graph(), ranges, unsigned=unsigned)
        logits = network(to_planes(images))
        assert torch.equal(logits, Twin(content)(to_planes(images)))
    assert content != before
    wanted = run_once(content, images)["labels"]
    alone, _ = node_by_node(content, images)  # sums in another order fall to other steps, in the runtime itself too
    assert (logits.argmax(1).numpy() == wanted).mean() >= (alone == wanted).mean() - 0.02


def test_only_weights_change(fp32: bytes, ranges: dict[str, float], trained: frozenset[str]) -> None:
    before = normalise_matmuls(fp32)
    network = FakeQuantised(fp32, ranges, trained=trained, unsigned=True)
    assert network.graph() == before
    after = moved(network).graph()
    first, second = (onnx.load_model_from_string(graph) for graph in (before, after))
    assert list(first.graph.node) == list(second.graph.node)
    old, new, written = constants(before), constants(after), network.weights()
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed == set(written)
    assert all(np.array_equal(new[name], values.numpy()) for name, values in written.items())
    layers = set(layers_of(fp32))
    assert changed >= {node.input[1] for node in first.graph.node if node.name in layers}
    convolutions = [node for node in first.graph.node if node.op_type == "Conv"]
    assert changed >= {convolutions[0].input[1], convolutions[0].input[2], convolutions[-1].input[1]}  # in float, but trained
    assert not any("normalise" in name for name in changed)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_weight_is_rounded_as_numpy_rounds_it(data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(3, 2, 1, 2), (4, 3)]))
    values = data.draw(
        st.lists(st.floats(-8, 8, width=32), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
            lambda drawn: np.asarray(drawn, np.float32).reshape(shape)
        )
    )
    axes = (1, 2, 3) if len(shape) == 4 else (0,)
    scales = np.abs(values).max(axes, keepdims=True) / np.float32(127)
    scales[scales == 0] = 1
    weight = torch.from_numpy(values).requires_grad_()
    rounded = round_weight(weight)
    np.testing.assert_array_equal(rounded.detach().numpy(), np.rint(values / scales).astype(np.int8) * scales)
    towards = torch.arange(float(weight.numel())).reshape(shape)
    (rounded * towards).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, towards)  # straight through


@pytest.fixture
def three_products() -> tuple[bytes, dict[str, np.ndarray]]:
    """A graph of three 1x1 convolutions with a ReLU behind the first; the one in the middle computes in int8."""
    random = np.random.default_rng(4)
    weights = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in {"w1": (4, 3, 1, 1), "b1": (4,), "w2": (5, 4, 1, 1), "b2": (5,), "w3": (3, 5, 1, 1)}.items()
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "levels"], ["scaled"], "div"),
        helper.make_node("Transpose", ["scaled"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["planes", "w1", "b1"], ["first"], "conv1"),
        helper.make_node("Relu", ["first"], ["maps"], "relu"),
        helper.make_node("Conv", ["maps", "w2", "b2"], ["second"], "conv2"),
        helper.make_node("Conv", ["second", "w3"], ["logits"], "conv3"),
        helper.make_node("ArgMax", ["logits"], ["long"], "argmax", axis=1, keepdims=0),
        helper.make_node("Cast", ["long"], ["labels_float"], "cast2", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["labels_float"], ["labels"], "cast3", to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "three",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, ["batch", "height", "width"])],
        [numpy_helper.from_array(v, n) for n, v in {**weights, "levels": np.asarray(255, np.float32)}.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)]).SerializeToString(), weights


def test_gradients_are_those_of_the_straight_through_estimator(
    three_products: tuple[bytes, dict[str, np.ndarray]],
) -> None:
    graph, weights = three_products
    w1, b1, w2, b2, w3 = (torch.from_numpy(value).double().squeeze() for value in weights.values())
    scale = 1.2 / 127  # narrow: some values are beyond it
    network = FakeQuantised(graph, {"maps": 1.2}, trained=weights.keys(), unsigned=False)
    images = torch.rand(2, 3, 3, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    towards = torch.randn(2, 3, 3, 5, generator=torch.Generator().manual_seed(3))
    logits = network(images)
    (logits * towards).sum().backward()

    x, c = (values.detach().double().transpose(0, 1).flatten(1) for values in (images, towards))  # (channels, places)
    first = w1 @ x + b1[:, None]
    exact = first.clamp(min=0) / scale
    inside = (first > 0) & (exact <= 127)
    assert 0.1 < inside.double().mean() < 0.9
    assert (exact > 127).any()
    q = exact.round().clamp(max=127) * scale
    steps = w2.abs().amax(1, keepdim=True) / 127
    w2_rounded = (w2 / steps).round() * steps
    expected = w3 @ (w2_rounded @ q + b2[:, None])
    assert torch.allclose(logits.double().transpose(0, 1).flatten(1), expected, atol=1e-5)

    at_second = w3.T @ c
    at_first = (w2_rounded.T @ at_second) * inside
    closed = {
        "w1": at_first @ x.T,
        "b1": at_first.sum(1),
        "w2": at_second @ q.T,
        "b2": at_second.sum(1),
        "w3": c @ (w2_rounded @ q + b2[:, None]).T,
    }
    assert images.grad is not None
    assert torch.allclose(images.grad.double().transpose(0, 1).flatten(1), w1.T @ at_first, atol=1e-4)
    assert [*network.weights()] == [*closed]
    for (name, gradient), change in zip(closed.items(), network.changes, strict=True):
        step = weights[name].squeeze()
        step = np.abs(step).max(1, keepdims=True) if step.ndim == 2 else np.abs(step).max()
        found: Tensor | None = change.grad
        assert found is not None
        # a parameter is counted in steps
        assert torch.allclose(found.double().squeeze(), gradient * torch.as_tensor(step).double() / 127, rtol=1e-3, atol=1e-5)


def test_a_graph_without_a_weight_to_train_is_refused(fp32: bytes, ranges: dict[str, float]) -> None:
    with pytest.raises(ExportError, match="the graph has no weight that could be trained for int8"):
        FakeQuantised(fp32, ranges, trained=(), unsigned=True)
