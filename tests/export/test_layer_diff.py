"""A fault in a graph is traced to its layer."""

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ddcat.bundle import Bundle
from ddcat_export import cli, exporting
from ddcat_export.errors import ExportError
from ddcat_export.layer_diff import Layer, compare_layers, first_different
from ddcat_export.parity import FP16_TOLERANCE, LOGIT_TOLERANCE, check_parity, sample_images
from ddcat_export.precision_cast import cast_graph
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.networks import Segmenter
from ddcat_train.networks.convolution import Conv2d

SHAPE = (1, 50, 61)


@pytest.fixture(scope="module")
def network(run: Path) -> Segmenter:
    return load_checkpoint(run).segmenter()


def changed(content: bytes, layer: str) -> bytes:
    """The graph with the weights of a layer made larger."""
    model = onnx.load_model_from_string(content)
    node = next(node for node in model.graph.node if node.name.startswith(f"segmenter.{layer}/conv"))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.2), tensor.name))
    faulty: bytes = model.SerializeToString()
    return faulty


def test_every_layer_of_the_main_branch_is_compared(bundle: Bundle, network: Segmenter) -> None:
    layers = compare_layers(bundle.files["model.onnx"], network, sample_images(SHAPE, 0))
    convolutions = {name for name, module in network.named_modules() if isinstance(module, Conv2d)}
    spare = {name for name in convolutions if name.startswith("heads.") and "main" not in name}
    assert convolutions - spare <= {layer.name for layer in layers} | {"heads.main.4"}  # whose output is the logits themselves
    assert layers[0].name == "normalise"
    assert layers[-1].name == "logits"
    assert max(layer.error for layer in layers) < LOGIT_TOLERANCE
    assert min(layer.error for layer in layers[1:]) > 0
    assert first_different(layers, LOGIT_TOLERANCE) is None


@pytest.mark.parametrize("layer", ["backbone.layer0.0", "backbone.layer3.0.conv2", "context.convs.2.0", "heads.main.0"])
def test_the_first_that_differs_is_named(bundle: Bundle, network: Segmenter, layer: str) -> None:
    content = changed(bundle.files["model.onnx"], layer)
    found = first_different(compare_layers(content, network, sample_images(SHAPE, 0)), LOGIT_TOLERANCE)
    assert found is not None
    assert found.name == layer
    with pytest.raises(ExportError, match=f"differs from the network: .*; the first layer that differs is {layer}, by up to"):
        check_parity(content, network, (SHAPE,))


def test_in_fp16_too(bundle: Bundle, network: Segmenter) -> None:
    content = cast_graph(changed(bundle.files["model.onnx"], "backbone.layer4.0.conv1"), "fp16")
    layers = compare_layers(content, network, sample_images(SHAPE, 0))
    found = first_different(layers, FP16_TOLERANCE)
    assert found is not None
    assert found.name == "backbone.layer4.0.conv1"


def test_what_is_not_a_number_or_has_another_shape_differs() -> None:
    good, bad, wrong = Layer("a", (1,), 1e-6), Layer("b", (1,), math.nan), Layer("c", (1,), math.inf)
    assert first_different((good, bad), 1.0) == bad
    assert first_different((good, wrong), 1.0) == wrong


def test_the_command_shows_every_layer_and_names_the_first(
    run: Path, network: Segmenter, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(exporting, "build_graph", lambda *a, **k: bundle.files["model.onnx"])
    cli.export(run, engine="ort", compare_layers=True)
    lines = capsys.readouterr().out.splitlines()
    assert "standard deviations" in lines[0]
    assert lines[1].endswith("  normalise  1x3x180x240")
    assert lines[-1].endswith("  logits  1x6x23x30")
    monkeypatch.setattr(exporting, "build_graph", lambda *a, **k: changed(bundle.files["model.onnx"], "context.convs.2.0"))
    with pytest.raises(ExportError, match=r"the first layer that differs by more than 0\.0001 is context\.convs\.2\.0"):
        cli.export(run, engine="ort", compare_layers=True)
    with pytest.raises(ExportError, match="use --precision fp32 or fp16"):
        cli.export(run, engine="openvino", precision="bf16", compare_layers=True)
