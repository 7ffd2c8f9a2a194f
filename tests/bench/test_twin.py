"""The differentiable executor: what the engine computes, with gradients that are true."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ddcat_bench.errors import BenchError
from ddcat_bench.twin import Twin
from ddcat_export.calibration import measure_ranges
from ddcat_export.casts import cast_graph
from ddcat_export.graph import Sizes, build_graph
from ddcat_export.quantise import quantise
from ddcat_export.sweep import sample_images
from ddcat_serve.engines.onnxruntime import run_once
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.config import ModelConfig
from ddcat_train.networks import Segmenter, build_segmenter

SHAPE = (2, 49, 66)
MODELS: dict[str, dict[str, Any]] = {
    "pyramid": {"backbone": "resnet10", "width": 4},
    "aspp": {"backbone": "mobilenet_v2", "output_stride": 16, "context": "aspp"},
}
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "fp32": lambda graph: graph,
    "fp16": lambda graph: cast_graph(graph, "fp16"),
    "int8": lambda graph: quantise(graph, ranges(graph)),
    "int8 of a CPU": lambda graph: quantise(graph, ranges(graph), unsigned=True),
}
AGREE = {"fp32": 1.0, "fp16": 0.999, "int8": 0.99, "int8 of a CPU": 0.99}  # on noise and waves, where labels hang by a hair


def ranges(graph: bytes) -> dict[str, float]:
    return measure_ranges(graph, [sample_images(SHAPE, seed) for seed in range(3)])


def network_of(name: str) -> Segmenter:
    torch.manual_seed(3)
    network = build_segmenter(ModelConfig(**MODELS[name]), classes=4)
    network.train()
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(4, 3, 48, 48))
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[("pyramid", None), ("aspp", (SHAPE[1:],))], ids=["pyramid, free", "aspp, fixed"])
def exported(request: pytest.FixtureRequest) -> tuple[Segmenter, bytes]:
    name, sizes = request.param
    network = network_of(name)
    return network, build_graph(network, sizes=sizes, logits=True, confidence=True)


def pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("form", FORMS)
def test_it_labels_as_onnx_runtime_does(exported: tuple[Segmenter, bytes], form: str) -> None:
    _, graph = exported
    content = FORMS[form](graph)
    twin = Twin(content)
    for seed in range(2):
        images = sample_images(SHAPE, seed)
        wanted = run_once(content, images)
        with torch.no_grad():
            found = twin(pixels(images))
        assert found.shape == (2, 4, *SHAPE[1:])
        assert (found.argmax(1).numpy() == wanted["labels"]).mean() >= AGREE[form]
        full = torch.nn.functional.interpolate(
            torch.from_numpy(wanted["logits"]), size=SHAPE[1:], mode="bilinear", align_corners=True
        )
        error = float((found - full).abs().mean() / full.std())
        assert error < {"fp32": 1e-5, "fp16": 2e-3}.get(form, 2e-2)


def test_its_gradients_are_those_of_the_network(exported: tuple[Segmenter, bytes]) -> None:
    network, graph = exported
    weights = torch.randn(4, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    gradients = []
    for model in (network, Twin(graph)):
        images = pixels(sample_images(SHAPE, 0)).requires_grad_()
        (model(images) * weights).sum().backward()
        assert images.grad is not None
        gradients.append(images.grad.flatten())
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-3
    assert float(gradients[0].norm()) > 0


def test_its_gradients_are_finite_differences(exported: tuple[Segmenter, bytes]) -> None:
    _, graph = exported
    model = onnx.load_model_from_string(graph)
    double(model)
    twin = Twin(model.SerializeToString()).double()
    images = pixels(sample_images((1, *SHAPE[1:]), 1)).double().requires_grad_()
    weights = torch.randn(4, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(values: Tensor) -> Tensor:
        found: Tensor = (twin(values)[0] * weights).sum()
        return found

    (gradient,) = torch.autograd.grad(loss(images), images)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        direction = direction / direction.norm() + gradient / gradient.norm()  # not at a right angle, where all is rounding
        step = 1e-6
        with torch.no_grad():
            slope = float(loss(images + step * direction) - loss(images - step * direction)) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=2e-2, abs=1e-4 * float(gradient.norm()))


def double(model: onnx.ModelProto) -> None:
    """Compute it all in float64."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE


def small(operator: str, *others: np.ndarray, **options: object) -> Twin:
    """One operator between the image and an argmax over three classes."""
    names = [f"other{place}" for place in range(len(others))]
    nodes = [
        helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]),
        helper.make_node(operator, ["x", *names], ["y"], name="the node", **options),
        helper.make_node("ArgMax", ["y"], ["labels"], axis=1, keepdims=0),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", "h", "w", 3])
    labels = helper.make_tensor_value_info("labels", TensorProto.INT64, ["n", "h", "w"])
    constants = [numpy_helper.from_array(values, name) for name, values in zip(names, others, strict=True)]
    return Twin(helper.make_model(helper.make_graph(nodes, "g", [image], [labels], constants)).SerializeToString())


@pytest.mark.parametrize(("zero", "low", "high"), [(np.int8(0), -128, 127), (np.uint8(128), 0, 255)])
def test_rounding_is_exact_and_lets_gradients_through(zero: np.generic, low: int, high: int) -> None:
    scale = np.float32(0.5)
    twin = small("QuantizeLinear", np.asarray(scale), np.asarray(zero))
    values = torch.linspace(-0.4, 0.4, 3 * 4 * 5).reshape(1, 3, 4, 5)
    values[0, 0, 0, 0] = 0.25 / 255  # half way between two whole numbers: to the even one
    values.requires_grad_()
    found = twin(values)
    exact = (values.detach() * 255 / float(scale)).double()
    np.testing.assert_array_equal(found.detach().numpy(), np.clip(np.rint(exact.numpy()) + int(zero), low, high))
    found.sum().backward()
    assert values.grad is not None
    inside = (found > low) & (found < high)
    torch.testing.assert_close(values.grad[inside], torch.full_like(values.grad[inside], 255 / float(scale)))
    cut_off = (exact.round() + int(zero) > high) | (exact.round() + int(zero) < low)
    assert cut_off.any()
    assert (values.grad[cut_off] == 0).all()


def test_what_it_does_not_know_is_named() -> None:
    with pytest.raises(BenchError, match="does not know Hardmax at the node"):
        small("Hardmax")
    with pytest.raises(BenchError, match="does not know resizing by"):
        small("Resize", np.zeros(0, np.float32), np.ones(4, np.float32), mode="nearest")(torch.rand(1, 3, 4, 4))


def test_a_graph_without_labels_is_refused(checkpoint: Checkpoint) -> None:
    model = onnx.load_model_from_string(build_graph(checkpoint.segmenter(), sizes=((48, 48),), logits=True, confidence=False))
    last = model.graph.node[-1]
    assert "labels" in last.output
    last.output[0] = "others"
    with pytest.raises(BenchError, match="chooses no labels by argmax"):
        Twin(model.SerializeToString())


def test_sizes_that_are_free_stay_free(checkpoint: Checkpoint) -> None:
    sizes: Sizes = None
    twin = Twin(build_graph(checkpoint.segmenter(), sizes=sizes, logits=False, confidence=False))
    network = checkpoint.segmenter()
    for height, width in ((33, 33), (50, 71)):
        images = torch.rand(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(twin(images), network(images), rtol=1e-3, atol=1e-4)
