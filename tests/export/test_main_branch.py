"""What is said of a graph that holds more than the main branch, or something of the images that were traced."""

from collections.abc import Callable
from typing import Any

import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from ddcat.manifest import Sizes
from ddcat_export import main_branch
from ddcat_export.errors import ExportError
from ddcat_export.main_branch import prove_main_branch
from ddcat_export.onnx_export import MainBranchModule, build_graph

SIZE = (64, 80)


def planted(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let `change(segmenter, image)` be added to the logits before labels are chosen."""
    honest = MainBranchModule.forward

    def forward(self: MainBranchModule, image: Tensor) -> tuple[Tensor, ...]:
        labels, logits = honest(self, image)
        return labels, logits + change(self.segmenter, image)

    monkeypatch.setattr(MainBranchModule, "forward", forward)


@pytest.mark.parametrize(
    "sizes", [(SIZE,), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((SIZE, (96, 128)), None))]
)
def test_it_states_what_it_found(graph_of: Callable[..., bytes], smallest: Any, sizes: Sizes | None) -> None:
    content = graph_of(sizes=sizes, confidence=True)
    proof = prove_main_branch(smallest, content, sizes=sizes, logits=True, confidence=True)
    assert proof.spare_parameters == 4 * 3 + 4
    assert proof.size == (SIZE if sizes == (SIZE,) else smallest.traced[0])
    height, width = proof.size
    assert proof.multiply_adds == 3 * 4 * -(-height // 2) * -(-width // 2)  # one 1x1 convolution, on every second place
    assert not any(value.isnan().any() for value in smallest.state_dict().values())


def test_another_head_is_found(smallest: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def auxiliary(segmenter: Any, image: Tensor) -> Tensor:
        features = segmenter.features(image.float().permute(0, 3, 1, 2))
        return 1e-20 * segmenter.low_resolution_logits("auxiliary", features)

    planted(monkeypatch, auxiliary)
    content = build_graph(smallest, sizes=(SIZE,), logits=True, confidence=False)
    with pytest.raises(ExportError, match=r"head .* does not need \(auxiliary\), so .*: without them torch .*auxiliary"):
        prove_main_branch(smallest, content, sizes=(SIZE,), logits=True, confidence=False)


@pytest.mark.slow
def test_what_shares_the_weights_of_another_head_is_found_by_its_values(smallest: Any) -> None:
    smallest.heads["main"].weight = smallest.heads["auxiliary"].weight
    content = build_graph(smallest, sizes=(SIZE,), logits=True, confidence=False)
    with pytest.raises(ExportError, match=r"not need \(auxiliary\): segmenter.heads.main.* changes when .* are NaN"):
        prove_main_branch(smallest, content, sizes=(SIZE,), logits=True, confidence=False)


def test_needless_work_is_found_by_its_multiply_adds(
    graph_of: Callable[..., bytes], smallest: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(graph_of())
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    again = onnx.NodeProto()
    again.CopyFrom(first)
    again.name, again.input[1], first.output[0], again.output[0] = "again", "weight", "one", "other"
    weight = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == first.input[1]))
    model.graph.initializer.append(numpy_helper.from_array(weight - 1, "weight"))
    place = list(model.graph.node).index(first)
    rest = [again, helper.make_node("Max", ["one", "other"], ["logits"]), *list(model.graph.node)[place + 1 :]]
    del model.graph.node[place + 1 :]
    model.graph.node.extend(rest)
    content = model.SerializeToString(deterministic=True)
    honest = 3 * 4 * 32 * 40
    monkeypatch.setattr(main_branch, "as_graph", lambda *arguments, **options: content)
    with pytest.raises(ExportError, match=f"has {2 * honest} multiply-adds .* 64x80, but the main branch needs {honest}"):
        prove_main_branch(smallest, content, sizes=(SIZE,), logits=True, confidence=False)


@pytest.mark.parametrize("sizes", [None, pytest.param((SIZE,), marks=pytest.mark.slow)])
def test_a_constant_of_the_traced_images_is_named(smallest: Any, monkeypatch: pytest.MonkeyPatch, sizes: Sizes | None) -> None:
    """Exporters leave them silently: here, a number of the example's rows, or of its images, that should have stayed free."""

    def baked(segmenter: Any, image: Tensor) -> Tensor:
        axis = 1 if sizes is None else 0
        hint = image.shape[axis]
        known = hint if isinstance(hint, int) else hint.node.hint
        return torch.full((4, 1, 1), 1e-3 * known)

    planted(monkeypatch, baked)
    content = build_graph(smallest, sizes=sizes, logits=True, confidence=False)
    with pytest.raises(ExportError, match=r"a constant of the graph depends on the images that were traced.* and 2x71x103"):
        prove_main_branch(smallest, content, sizes=sizes, logits=True, confidence=False)


class Attention(torch.nn.Module):
    """Every pixel attends to all others: computed by kernels that PyTorch's own counter leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.learnt = torch.nn.Parameter(torch.randn(12))

    def forward(self, maps: Tensor) -> Tensor:
        tokens = maps.repeat(1, 4, 1, 1).flatten(2).transpose(1, 2)  # (N, h * w, 12)
        heads = tokens.unflatten(2, (2, 6)).transpose(1, 2).contiguous()  # (N, 2, h * w, 6): what the CPU has a kernel for
        attended = torch.nn.functional.scaled_dot_product_attention(heads, heads, heads)
        weights = torch.mv(tokens.reshape(-1, 12), self.learnt).reshape(tokens.shape[:2])
        return (attended[:, 0, :, :3] * weights[..., None]).transpose(1, 2).reshape(maps.shape)


def test_attention_is_counted_as_the_graph_has_it(smallest: Any) -> None:
    smallest.context = Attention()
    content = build_graph(smallest, sizes=((34, 36),), logits=False, confidence=False)
    proof = prove_main_branch(smallest, content, sizes=((34, 36),), logits=False, confidence=False)
    tokens = 17 * 18
    assert proof.multiply_adds == 2 * 2 * 6 * tokens**2 + 12 * tokens + 3 * 4 * tokens


class Large(torch.nn.Module):
    """Exports from small images alone."""

    def forward(self, maps: Tensor) -> Tensor:
        torch._check(maps.shape[-2] < 60)
        return maps


def test_a_size_that_does_not_export_is_no_fault_of_the_heads(smallest: Any) -> None:
    smallest.context = Large()
    content = build_graph(smallest, sizes=((34, 36), (50, 50)), logits=False, confidence=False)
    with pytest.raises(ExportError, match="the network exports from images of 2x71x103, but not from 3x150x133"):
        prove_main_branch(smallest, content, sizes=((34, 36), (50, 50)), logits=False, confidence=False)
