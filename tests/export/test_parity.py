"""The sweep: it passes what is the network, for every size, and nothing else."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from ddcat.bundle import Bundle
from ddcat.engines.onnxruntime import OrtGraph
from ddcat_export import onnx_export
from ddcat_export.errors import ExportError
from ddcat_export.onnx_export import build_graph, with_logits
from ddcat_export.parity import LOGIT_TOLERANCE, check_parity, sample_images, shapes_of
from ddcat_export.twin.twin import Twin
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.choices import ContextName
from ddcat_train.config import ModelConfig
from ddcat_train.networks import ComposedSegmenter, Segmenter, build_segmenter, contexts
from ddcat_train.networks.contexts import PyramidPooling
from ddcat_train.networks.efficientnet_lite import EfficientNetLite
from ddcat_train.pixels import to_planes

SIZE = (64, 80)


@pytest.fixture(scope="module")
def pair(run: Path, bundle: Bundle) -> tuple[Segmenter, OrtGraph]:
    return load_checkpoint(run).segmenter(), OrtGraph(bundle.files["model.onnx"], threads=1)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.integers(1, 3), height=st.integers(33, 150), width=st.integers(33, 150), seed=st.integers(0, 99))
def test_any_size_gives_the_labels_of_pytorch(
    pair: tuple[Segmenter, OrtGraph], batch: int, height: int, width: int, seed: int
) -> None:
    segmenter, graph = pair
    images = sample_images((batch, height, width), seed)
    with torch.inference_mode():
        logits = segmenter(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)  # (N, K, H, W)
    found = graph.run(images).labels
    best = logits.amax(1)
    chosen = logits.gather(1, torch.from_numpy(found).long().unsqueeze(1)).squeeze(1)
    assert (best - chosen).max() <= 1e-4 * logits.std()  # the highest logit of every pixel, but for rounding
    assert (found == logits.argmax(1).numpy()).mean() > 0.999


def test_the_networks_of_these_tests_have_something_to_say(pair: tuple[Segmenter, OrtGraph]) -> None:
    labels = pair[1].run(np.concatenate([sample_images((1, 120, 120), seed) for seed in (0, 1)])).labels
    shares = np.bincount(labels.ravel(), minlength=5) / labels.size
    assert (shares > 0.02).sum() >= 3


@pytest.mark.slow
def test_the_other_family_and_context_at_every_shape(make_run: Callable[..., Path]) -> None:
    run = make_run("mobile", method="undefended", backbone="mobilenet_v2", context="aspp", stride=16)
    segmenter = load_checkpoint(run).segmenter()
    found = check_parity(build_graph(segmenter, sizes=None, logits=False, confidence=False), segmenter, shapes_of(None))
    assert found.shapes == shapes_of(None)
    assert found.pixels == 2 * sum(n * h * w for n, h, w in found.shapes)
    assert 0 < found.logit_error <= LOGIT_TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize(
    ("context", "backbone"),
    [
        ("upernet", {"backbone": "resnet10", "width": 8, "output_stride": 32}),
        ("upernet", {"backbone": "convnext_tiny", "output_stride": 32, "align_corners": False}),
        ("deeplabv3plus", {"backbone": "resnet18", "width": 8, "stem": "v1d", "output_stride": 16, "align_corners": False}),
        ("segformer", {"backbone": "mit_b0", "output_stride": 32, "align_corners": False}),
    ],
)
def test_contexts_of_several_stages_at_every_shape(context: ContextName, backbone: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_segmenter(ModelConfig(context=context, context_width=16, **backbone), classes=5).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    content = build_graph(network, sizes=None, logits=False, confidence=False)
    assert check_parity(content, network, shapes_of(None)).logit_error <= LOGIT_TOLERANCE
    images = sample_images((2, 45, 70), 0)
    with torch.no_grad(), OrtGraph(content, threads=1) as graph:
        labels = Twin(content)(to_planes(images)).argmax(1).numpy()
        assert (labels == graph.run(images).labels).mean() > 0.999


@pytest.mark.slow
def test_turned_images_are_exported_for_every_shape() -> None:
    torch.manual_seed(0)
    body = EfficientNetLite(width=0.25, depth=1.0, output_stride=16)
    network = ComposedSegmenter(body, PyramidPooling(body.channels), classes=5, heads=("main",)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            nn.init.constant_(module.running_var, 0.5)
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    content = build_graph(network, sizes=None, logits=False, confidence=False)
    assert check_parity(content, network, shapes_of(None)).logit_error <= LOGIT_TOLERANCE
    images = sample_images((2, 45, 70), 0)
    with torch.no_grad():
        labels = Twin(content)(to_planes(images)).argmax(1).numpy()
    with OrtGraph(content, threads=1) as graph:
        assert (labels == graph.run(images).labels).mean() > 0.999


def test_the_shapes_of_a_sweep() -> None:
    free = shapes_of(None)
    assert (1, 33, 33) in free
    assert {batch for batch, _, _ in free} >= {1, 2}
    assert any(height % 8 and width % 8 and height > width for _, height, width in free)
    assert any(height < width for _, height, width in free)
    assert shapes_of((SIZE,)) == ((1, *SIZE), (2, *SIZE), (3, *SIZE))


def test_images_are_seeded_and_both_rough_and_smooth() -> None:
    images = sample_images((2, 40, 50), 3)
    np.testing.assert_array_equal(images, sample_images((2, 40, 50), 3))
    assert (images != sample_images((2, 40, 50), 5)).any()
    steps = [np.abs(np.diff(image.astype(int), axis=1)).mean() for image in images]
    assert max(steps) > 60
    assert min(steps) < 20
    single = [np.abs(np.diff(sample_images((1, 40, 50), seed)[0].astype(int), axis=1)).mean() for seed in (0, 1)]
    assert min(single) < 20
    assert max(single) > 60


def test_a_pyramid_is_exported_for_any_size(smallest_with_pyramid: Any, pyramid_graph: bytes) -> None:
    assert check_parity(pyramid_graph, smallest_with_pyramid, shapes_of(None)).logit_error < LOGIT_TOLERANCE


@pytest.mark.parametrize("size_free", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_adaptive_pooling_exports_right_or_is_found(
    smallest_with_pyramid: Any, monkeypatch: pytest.MonkeyPatch, size_free: bool
) -> None:
    monkeypatch.setattr(contexts, "pool_to_bins", F.adaptive_avg_pool2d)  # right in PyTorch, so the reference is right
    if not size_free:  # as torch exports it: silently wrong
        monkeypatch.setattr(onnx_export, "ExportForms", contextlib.nullcontext)
    content = build_graph(smallest_with_pyramid, sizes=None, logits=False, confidence=False)
    if size_free:
        assert check_parity(content, smallest_with_pyramid, shapes_of(None)).logit_error < LOGIT_TOLERANCE
    else:
        with pytest.raises(ExportError, match=r"exported graph (differs from the network|does not run).* shape"):
            check_parity(content, smallest_with_pyramid, shapes_of(None))


@pytest.mark.slow
def test_a_wrong_divisor_of_the_pooling_is_found(smallest_with_pyramid: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = contexts.pool_to_bins
    content = build_graph(smallest_with_pyramid, sizes=(SIZE,), logits=False, confidence=False)
    assert check_parity(content, smallest_with_pyramid, shapes_of((SIZE,))).logit_error < 1e-5
    with monkeypatch.context() as patched:
        patched.setattr(contexts, "pool_to_bins", lambda maps, bins: right(maps, bins) * 1.01)
        content = build_graph(smallest_with_pyramid, sizes=(SIZE,), logits=False, confidence=False)
    with pytest.raises(ExportError, match="the exported graph differs from the network: on images of shape 1x64x80"):
        check_parity(content, smallest_with_pyramid, shapes_of((SIZE,)))


@pytest.fixture(scope="module")
def content(graph_of: Callable[..., bytes]) -> bytes:
    """The graph of `smallest`, without logits."""
    return graph_of(logits=False)


class Other(nn.Module):
    """A network that answers a little differently than the one that was exported."""

    bands = 3

    def __init__(self, network: Any, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.change = network, change

    def features(self, images: Tensor) -> Any:
        return self.network.features(images)

    def low_resolution_logits(self, head: str, features: Any) -> Tensor:
        return self.change(self.network.low_resolution_logits(head, features))

    def logits(self, head: str, features: Any) -> Tensor:
        return F.interpolate(self.low_resolution_logits(head, features), features.size, mode="bilinear", align_corners=True)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "a wrong divisor": lambda logits: logits * 1.001,
    "a shift by one": lambda logits: logits.roll(1, 3),
    "a wrong corner": lambda logits: logits + F.pad(torch.ones(1, 1, 1, 1), (logits.shape[3] - 1, 0, logits.shape[2] - 1, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("logits", [False, True])
def test_a_graph_that_is_not_quite_the_network_is_refused(content: bytes, smallest: Any, change: str, logits: bool) -> None:
    graph = with_logits(content) if logits else content
    with pytest.raises(ExportError, match=r"shape 1x64x80 .* % of the labels .* standard deviation") as caught:
        check_parity(graph, Other(smallest, CHANGES[change]), shapes_of((SIZE,)))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert check_parity(graph, Other(smallest, lambda x: x), shapes_of((SIZE,))).logit_error < 1e-5  # type: ignore[arg-type]


def edited(content: bytes, edit: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]) -> bytes:
    """The graph with the weights of its main head changed."""
    model = onnx.load_model_from_string(content)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "segmenter.heads.main.weight")
    tensor.CopyFrom(numpy_helper.from_array(edit(numpy_helper.to_array(tensor)), tensor.name))
    return model.SerializeToString()


EDITS: dict[str, Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]] = {
    "rounded to half precision": lambda weight: weight.astype(np.float16).astype(np.float32),
    "not a number": lambda weight: weight * np.float32(np.nan),
    "infinite": lambda weight: np.full_like(weight, np.inf),
}


@pytest.mark.parametrize("edit", EDITS)
def test_weights_that_are_not_the_networks_are_refused(content: bytes, smallest: Any, edit: str) -> None:
    with pytest.raises(ExportError, match="the exported graph differs from the network"):
        check_parity(edited(content, EDITS[edit]), smallest, shapes_of((SIZE,)))


def renamed(content: bytes, operator: str) -> bytes:
    """The graph with another operator in the place of its argmax."""
    model = onnx.load_model_from_string(content)
    next(node for node in model.graph.node if node.op_type == "ArgMax").op_type = operator
    return model.SerializeToString()


def test_labels_alone_can_betray_a_graph(content: bytes, smallest: Any) -> None:
    with pytest.raises(ExportError, match=r"[1-9][0-9.]* % of the labels"):
        check_parity(renamed(content, "ArgMin"), smallest, shapes_of((SIZE,)))


def test_a_graph_that_the_runtime_does_not_take_is_one_line(content: bytes, smallest: Any) -> None:
    with pytest.raises(ExportError, match="does not run: ONNX Runtime does not load") as caught:
        check_parity(renamed(content, "ArgMost"), smallest, shapes_of((SIZE,)))
    assert "\n" not in str(caught.value)


def test_a_network_that_is_broken_itself_is_not_called_a_wrong_graph(content: bytes, smallest: Any) -> None:
    with torch.no_grad():
        smallest.heads["main"].bias.fill_(torch.nan)
    with pytest.raises(ExportError, match="the network itself computes logits that are not finite"):
        check_parity(content, smallest, shapes_of((SIZE,)))


def test_the_shapes_of_a_ladder_are_its_sizes_and_an_odd_one() -> None:
    sizes = ((64, 80), (48, 40), (40, 40))
    found = shapes_of(sizes)
    assert {shape[1:] for shape in found} == {*sizes, (33, 33)}
    assert {batch for batch, _, _ in found} == {1, 2}


@pytest.mark.parametrize("factor", [1.0, 0.99, np.nan])
def test_a_confidence_that_is_not_the_softmax_is_refused(graph_of: Callable[..., bytes], smallest: Any, factor: float) -> None:
    model = onnx.load_model_from_string(graph_of(confidence=True))
    last = next(node for node in model.graph.node if "confidence" in node.output)
    last.output[:] = ["probability"]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["probability", "factor"], ["confidence"]))
    if factor == 1:
        assert check_parity(model.SerializeToString(), smallest, shapes_of((SIZE,))).logit_error < 1e-5
        return
    with pytest.raises(ExportError, match="on images of shape 1x64x80 its confidence is not that of its label"):
        check_parity(model.SerializeToString(), smallest, shapes_of((SIZE,)))


def test_logits_of_another_form_are_refused(content: bytes, smallest: Any) -> None:
    class Finer(Other):
        def low_resolution_logits(self, head: str, features: Any) -> Tensor:
            return F.interpolate(self.network.low_resolution_logits(head, features), scale_factor=2.0)

    finer = Finer(smallest, lambda logits: logits)
    with pytest.raises(ExportError, match=r"returns labels and logits .*\(1, 4, 32, 40\).*, expected .*\(1, 4, 64, 80\)"):
        check_parity(content, finer, shapes_of((SIZE,)))  # type: ignore[arg-type]
