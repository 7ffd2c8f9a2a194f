"""The differentiable executor: what the engine computes, with gradients that are true."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from ddcat.bundle import Bundle
from ddcat.engines.onnxruntime import run_once
from ddcat_export.calibration import measure_ranges
from ddcat_export.errors import ExportError
from ddcat_export.onnx_export import build_graph
from ddcat_export.parity import sample_images
from ddcat_export.precision_cast import cast_graph
from ddcat_export.quantise import quantise
from ddcat_export.twin.twin import Twin
from ddcat_train.attacks import bim
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.config import ModelConfig
from ddcat_train.networks import Segmenter, build_segmenter
from ddcat_train.pixels import to_8_bit
from tests.export.onnx_files import node_by_node, spread

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
# Least share of equal labels, largest error of the logits in standard deviations. Of an untrained network many labels hang by a
# hair, and its deepest layers amplify what rounding did to the first.
EXACT = {"fp32": (0.9999, 1e-4), "fp16": (0.97, 5e-2)}


def ranges(graph: bytes) -> dict[str, float]:
    return measure_ranges(graph, [sample_images(SHAPE, seed) for seed in range(3)])


def network_of(name: str) -> Segmenter:
    """Random weights, but statistics of images, and a last layer under which every class is somewhere."""
    torch.manual_seed(3)
    network = build_segmenter(ModelConfig(**MODELS[name]), classes=4)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean of all passes
    network.train()
    images = torch.cat([pixels(sample_images(SHAPE, seed)) for seed in range(10, 14)])
    with torch.no_grad():
        for _ in range(2):
            network(images)
        network.eval()
        spread(network, network.heads["main"][-1], images)
        shares = network(images).argmax(1).flatten().bincount(minlength=4) / images[:, 0].numel()
    assert shares.min() > 0.05
    return network.requires_grad_(False)


@pytest.fixture(
    scope="module",
    params=[None, *(pytest.param(one, marks=pytest.mark.slow) for one in (("pyramid", None), ("aspp", (SHAPE[1:],))))],
    ids=["the bundle's", "pyramid, free", "aspp, fixed"],
)
def exported(request: pytest.FixtureRequest, run: Path, bundle: Bundle) -> tuple[Segmenter, bytes]:
    if request.param is None:  # aspp, of any size
        return load_checkpoint(run).segmenter().requires_grad_(False), bundle.files["model.onnx"]
    name, sizes = request.param
    network = network_of(name)
    return network, build_graph(network, sizes=sizes, logits=True, confidence=True)


def pixels(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("form", FORMS)
def test_it_labels_as_onnx_runtime_does(exported: tuple[Segmenter, bytes], form: str) -> None:
    network, graph = exported
    content = FORMS[form](graph)
    twin = Twin(content)
    for seed in range(2):
        images = sample_images(SHAPE, seed)
        wanted = run_once(content, images)
        with torch.no_grad():
            found = twin(pixels(images))
        assert found.shape == (2, network.classes, *SHAPE[1:])
        alike, error = differences(found.argmax(1).numpy(), found, wanted)
        if form in EXACT:
            assert alike >= EXACT[form][0]
            assert error < EXACT[form][1]
        else:
            same, noise = differences(*unoptimised(content, images), wanted)
            assert alike >= same - 0.02
            assert error <= 1.5 * noise


def differences(labels: np.ndarray, logits: Tensor, wanted: dict[str, np.ndarray]) -> tuple[float, float]:
    """The share of equal labels, and the mean error of the logits in standard deviations."""
    full = enlarged(wanted["logits"])
    return float((labels == wanted["labels"]).mean()), float((logits - full).abs().mean() / full.std())


def enlarged(logits: np.ndarray) -> Tensor:
    return torch.nn.functional.interpolate(torch.from_numpy(logits), size=SHAPE[1:], mode="bilinear", align_corners=True)


def unoptimised(content: bytes, images: np.ndarray) -> tuple[np.ndarray, Tensor]:
    """
    The runtime beside itself: the same file, run node by node.

    In int8 a sum that is rounded in another order falls to the other side of a step here and there, and what follows departs
    from it: a runtime does not agree with itself much better than with another one.
    """
    labels, logits = node_by_node(content, images)
    return labels, enlarged(logits)


def test_its_gradients_are_those_of_the_network(exported: tuple[Segmenter, bytes]) -> None:
    network, graph = exported
    weights = torch.randn(network.classes, *SHAPE[1:], generator=torch.Generator().manual_seed(0))
    gradients = []
    for model in (network, Twin(graph)):
        images = pixels(sample_images(SHAPE, 0)).requires_grad_()
        (model(images) * weights).sum().backward()
        assert images.grad is not None
        gradients.append(images.grad.flatten())
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-3
    assert float(gradients[0].norm()) > 0


def test_its_gradients_are_finite_differences(exported: tuple[Segmenter, bytes]) -> None:
    network, graph = exported
    model = onnx.load_model_from_string(graph)
    double(model)
    twin = Twin(model.SerializeToString()).double()
    images = pixels(sample_images((1, *SHAPE[1:]), 1)).double().requires_grad_()
    weights = torch.randn(network.classes, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))

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
    with pytest.raises(ExportError, match="does not support Hardmax at the node"):
        small("Hardmax")
    with pytest.raises(ExportError, match=r"does not support Resize at the node with the attribute antialias"):
        small("Resize", np.zeros(0, np.float32), np.ones(4, np.float32), mode="linear", antialias=1)
    options = {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"}
    twin = small("Resize", np.zeros(0, np.float32), np.ones(4, np.float32), **options)
    with pytest.raises(ExportError, match=r"does not support Resize at the node with .*_mode tf_crop_and_resize"):
        twin(torch.rand(1, 3, 4, 4))


def test_where_it_fails_is_named() -> None:
    with pytest.raises(ExportError, match=r"does not support MatMul at the node: .*shapes cannot be multiplied"):
        small("MatMul", np.ones((7, 2), np.float32))(torch.rand(1, 3, 4, 4))


def test_a_graph_without_labels_is_refused(exported: tuple[Segmenter, bytes]) -> None:
    model = onnx.load_model_from_string(exported[1])
    (last,) = (node for node in model.graph.node if "labels" in node.output)
    last.output[0] = "others"
    with pytest.raises(ExportError, match="has no ArgMax over the classes"):
        Twin(model.SerializeToString())


def test_sizes_that_are_free_stay_free(exported: tuple[Segmenter, bytes]) -> None:
    network, graph = exported
    twin = Twin(graph)
    for height, width in ((33, 33), (50, 71)) if is_free(graph) else (SHAPE[1:],):
        images = torch.rand(1, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(twin(images), network(images), rtol=1e-3, atol=1e-4)


def is_free(graph: bytes) -> bool:
    height = onnx.load_model_from_string(graph).graph.input[0].type.tensor_type.shape.dim[1]
    return not height.dim_value


@pytest.mark.parametrize("form", ["fp32", "int8 of a CPU"])
def test_it_labels_attacked_images_as_onnx_runtime_does(exported: tuple[Segmenter, bytes], form: str) -> None:
    """Attacked by its own gradients, which push many pixels to where labels hang by a hair."""
    content = FORMS[form](exported[1])
    twin, images = Twin(content), sample_images(SHAPE, 5)
    with torch.no_grad():
        labels = twin(pixels(images)).argmax(1)
    attacked = bim(twin, pixels(images), labels, epsilon=0.03, alpha=0.01, steps=3)
    received = to_8_bit(attacked, pixels(images))
    with torch.no_grad():
        found = twin(received.float() / 255).argmax(1)
    assert (found != labels).float().mean() > 0.02  # the gradients lead somewhere
    sent = received.permute(0, 2, 3, 1).contiguous().numpy()
    wanted = run_once(content, sent)["labels"]
    same = 1.0 if form == "fp32" else float((unoptimised(content, sent)[0] == wanted).mean())
    assert (found.numpy() == wanted).mean() >= same - (0.001 if form == "fp32" else 0.05)


def test_bfloat16_is_near_float32(exported: tuple[Segmenter, bytes]) -> None:
    """No runtime of a CPU computes it from a file."""
    network, graph = exported
    if not is_free(graph):
        pytest.skip("random MobileNets amplify what rounding to 8 bits does")
    images = pixels(sample_images(SHAPE, 0))
    with torch.no_grad():
        found, wanted = Twin(cast_graph(graph, "bf16"))(images).float(), network(images)
    error = float((found - wanted).abs().mean() / wanted.std())
    assert 1e-5 < error < 6e-2
