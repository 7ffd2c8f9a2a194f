"""The graph: the main branch, all of it and nothing else, typed as promised, the same to the byte."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from ddcat.bundle import Bundle, open_bundle
from ddcat.engines.onnxruntime import OrtGraph
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import OPSET
from ddcat_export.onnx_export import MainBranchModule, build_graph, with_logits
from ddcat_export.parity import check_parity, shapes_of
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.networks import build_segmenter

SIZE = (64, 80)


def parts(content: bytes) -> onnx.GraphProto:
    return onnx.load_model_from_string(content).graph


@pytest.mark.slow
def test_it_is_the_graph_of_a_network_that_never_had_other_heads(run: Path, bundle: Bundle, tmp_path: Path) -> None:
    """To the byte, though another process with another hash seed wrote the one with all heads, too."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ddcat-export"), run, "--engine", "ort", "--logits", "--out", tmp_path / "another"],
        capture_output=True, text=True, timeout=900, check=False,
        env={**os.environ, "PYTHONHASHSEED": "11", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert open_bundle(tmp_path / "another").files["model.onnx"] == bundle.files["model.onnx"]
    checkpoint = load_checkpoint(run)
    whole = checkpoint.segmenter()
    assert set(whole.heads) == {"main", "auxiliary", "mask", "deep"}
    alone = build_segmenter(checkpoint.description.config.model, classes=6)
    alone.load_state_dict({key: value for key, value in whole.state_dict().items() if key in alone.state_dict()})
    content = build_graph(alone.eval(), sizes=None, logits=True, confidence=False)
    assert content == bundle.files["model.onnx"]

    graph = parts(content)
    convolutions = [module for module in alone.modules() if isinstance(module, nn.Conv2d)]
    nodes = sum(node.op_type == "Conv" for node in graph.node)
    assert nodes == len(convolutions) + 1  # ASPP's projection is in two: of the maps, and of their mean
    weights = sum(module.weight.numel() for module in convolutions)
    constants = [tensor.dims for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1]
    assert sum(map(np.prod, constants)) == weights + 6  # mean and std; the head's weight is in parts, some of them matrices


def test_nothing_of_the_machine_is_in_the_file(bundle: Bundle) -> None:
    content = bundle.files["model.onnx"]
    for trace in (b".py", b"site-packages", b"stack_trace", b"pytorch", b"namespace", torch.__version__.encode()):
        assert trace not in content
    assert b"segmenter.heads.main" in content  # names of weights are no secret
    assert b"segmenter.heads.auxiliary" not in content


def test_sizes_are_free_or_fixed(bundle: Bundle, graph_of: Callable[..., bytes]) -> None:
    with OrtGraph(bundle.files["model.onnx"]) as graph:
        assert [(t.name, t.dtype, t.shape) for t in (*graph.inputs, *graph.outputs)] == [
            ("image", "uint8", ("batch", "height", "width", 3)),
            ("labels", "uint8", ("batch", "height", "width")),
            ("logits", "float32", ("batch", 6, "logits_height", "logits_width")),
        ]
    with OrtGraph(graph_of()) as graph:
        assert [t.shape for t in (*graph.inputs, *graph.outputs)] == [
            ("batch", *SIZE, 3), ("batch", *SIZE), ("batch", 4, 32, 40)
        ]  # fmt: skip


def test_labels_leave_as_tensorrt_wants_them(bundle: Bundle) -> None:
    graph = parts(bundle.files["model.onnx"])
    by_output = {node.output[0]: node for node in graph.node}
    last = by_output["labels"]
    before = by_output[last.input[0]]
    assert [(node.op_type, node.attribute[0].i) for node in (before, last)] == [
        ("Cast", onnx.TensorProto.FLOAT), ("Cast", onnx.TensorProto.UINT8)
    ]  # fmt: skip
    shaped = by_output[before.input[0]]
    assert (shaped.op_type, by_output[shaped.input[0]].op_type) == ("Reshape", "ArgMax")
    assert {node.op_type for node in graph.node if "image" in node.input} == {"Cast", "Shape"}  # nothing computes on uint8


def test_logits_can_be_looked_at_in_a_graph_that_does_not_give_them(graph_of: Callable[..., bytes]) -> None:
    quiet, full = graph_of(logits=False), graph_of()
    images = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3), np.uint8)
    with OrtGraph(quiet) as served, OrtGraph(with_logits(quiet)) as looked_into:
        without, inside = served.run(images), looked_into.run(images)
    assert without.logits is None
    assert inside.logits is not None
    assert inside.logits.shape == (2, 4, 32, 40)
    np.testing.assert_array_equal(without.labels, inside.labels)
    assert with_logits(full) == full


@pytest.mark.parametrize("written", [pytest.param(9, marks=pytest.mark.slow), 21])
def test_another_opset_than_was_asked_for_is_refused(smallest: Any, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    real = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *args, **options: real(*args, **{**options, "opset_version": written}))
    with pytest.raises(ExportError, match=rf"has opset (18|{written}) .*, expected opset {OPSET} of ONNX alone"):
        build_graph(smallest, sizes=(SIZE,), logits=False, confidence=False)


def test_a_type_that_was_not_asked_for_is_refused(smallest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MainBranchModule.forward

    def wide(self: MainBranchModule, image: Tensor) -> tuple[Tensor, Tensor]:
        labels, logits = honest(self, image)
        return labels.to(torch.int64), logits

    monkeypatch.setattr(MainBranchModule, "forward", wide)
    with pytest.raises(ExportError, match="the graph has inputs and outputs"):
        build_graph(smallest, sizes=(SIZE,), logits=False, confidence=False)


def test_a_size_that_the_network_fixes_by_itself_is_refused(smallest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = MainBranchModule.forward

    def fixed(self: MainBranchModule, image: Tensor) -> tuple[Tensor, Tensor]:
        return honest(self, image[:, :71] + torch.zeros(71, 1, 1, dtype=torch.uint8))  # 71 rows and no others

    monkeypatch.setattr(MainBranchModule, "forward", fixed)
    with pytest.raises(ExportError) as caught:
        build_graph(smallest, sizes=None, logits=False, confidence=False)
    assert "\n" not in str(caught.value)


def test_the_exporter_is_quiet_and_leaves_the_loggers_as_they_were(
    smallest: Any, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    filters = list(warnings.filters)
    build_graph(smallest, sizes=None, logits=False, confidence=False)
    assert capfd.readouterr() == ("", "")
    assert not recwarn
    assert list(warnings.filters) == filters
    assert logging.getLogger("torch.onnx").isEnabledFor(logging.WARNING)


def test_a_norm_that_no_convolution_precedes_is_spelt_out(smallest: Any) -> None:
    norm = nn.BatchNorm2d(3, eps=0.05)
    with torch.no_grad():
        for values, low, high in (
            (norm.weight, -2, 2),
            (norm.bias, -1, 1),
            (norm.running_mean, 0, 1),
            (norm.running_var, 0.1, 2),
        ):
            assert values is not None
            values.uniform_(low, high, generator=torch.Generator().manual_seed(3))
    smallest.context = norm.eval()
    content = build_graph(smallest, sizes=(SIZE,), logits=True, confidence=False)
    assert {"Mul", "Add"} <= {node.op_type for node in parts(content).node}
    assert not any("norm" in node.op_type.lower() for node in parts(content).node)
    assert check_parity(content, smallest, shapes_of((SIZE,))).logit_error < 1e-5


def test_why_a_network_does_not_export_is_told_in_a_line(smallest: Any) -> None:
    class Raising(nn.Module):
        def forward(self, maps: Tensor) -> Tensor:
            raise ValueError("a layer without a way\nand pages of others")

    smallest.context = Raising()
    with pytest.raises(ExportError, match=r"^torch \S+ cannot export this network: a layer without a way$"):
        build_graph(smallest, sizes=(SIZE,), logits=False, confidence=False)
