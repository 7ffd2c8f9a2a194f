"""Models of queries: logits are the logarithm of transformers' semantic map, and branches have layers of their own."""

import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ddcat_train.errors import ConfigError
from ddcat_train.networks.whole import Blueprint, QuerySegmenter, queries
from ddcat_train.networks.whole.families import Queries

CLASSES = 5


class Asking(nn.Module):
    """Six queries about maps at a quarter of the size."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 4, stride=4)
        self.queries = nn.Parameter(torch.randn(6, 8))
        self.classes = nn.Linear(8, classes + 1)
        self.masks = nn.Linear(8, 8)
        self.upscale = nn.Conv2d(8, 8, 1)
        self.attn_mask_probs = nn.Parameter(torch.ones(2))

    def forward(self, images: Tensor) -> Any:
        maps = self.body(images)
        queries = self.queries.expand(len(maps), -1, -1) * (1 + maps.mean())
        masks = torch.einsum("nqc,nchw->nqhw", self.masks(queries), self.upscale(maps))
        return SimpleNamespace(classes=self.classes(queries), masks=masks, pixel_decoder_last_hidden_state=self.upscale(maps))


def made(pixels: str | None, *heads: Any) -> QuerySegmenter:
    torch.manual_seed(0)
    blueprint = Blueprint(Asking, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), multiple=4)
    return QuerySegmenter(blueprint, Queries("classes", "masks", pixels), classes=CLASSES, heads=heads).eval()


@pytest.mark.parametrize("pixels", ["upscale", None])
def test_logits_are_those_of_the_semantic_map(pixels: str | None) -> None:
    network = made(pixels, "main", "auxiliary", "mask")
    torch.manual_seed(0)
    whole, images = Asking(CLASSES).eval(), torch.rand(2, 3, 33, 38)
    with torch.no_grad():
        output = whole(network.prepared(images))
        features = network.features(images)
        found = network.low_resolution_logits("main", features).softmax(1)
        outputs = network(images, ("main", "auxiliary", "mask"))
        first = network.logits("main", features.first(1))
    semantic = torch.einsum("nqk,nqhw->nkhw", output.classes.softmax(-1)[..., :-1], output.masks.sigmoid())
    torch.testing.assert_close(found, semantic / semantic.sum(1, keepdim=True))
    assert [tuple(logits.shape) for logits in outputs.values()] == [(2, CLASSES, 33, 38)] * 2 + [(2, 2, 33, 38)]
    torch.testing.assert_close(first, outputs["main"][:1])
    assert network.backbone.attn_mask_probs == [0.0, 0.0]  # as at the end of EoMT's training
    shared, own = ({id(value) for value in part} for part in (network.shared(), network.heads["main"].parameters()))
    assert not shared & own
    assert network.traced == ((71, 103), (150, 133))


class _Probabilities(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return queries._sigmoid(logits).log()


def test_probabilities_have_a_small_relative_error_in_the_runtime_too() -> None:
    """Of confident masks: the runtime's own sigmoid is 1e-3 off in the logarithm of one that is as small as these."""
    logits = torch.linspace(-20, 4, 1001)
    content = io.BytesIO()
    torch.onnx.export(_Probabilities(), (logits,), content, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(content.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: logits.numpy()})
    np.testing.assert_allclose(found, torch.nn.functional.logsigmoid(logits.double()).numpy(), atol=5e-6)


@pytest.mark.parametrize("logit", [-1e4, -100.0, -85.0, 0.0, 1e4])
def test_gradients_of_confident_masks_are_finite(logit: float) -> None:
    given = torch.tensor([logit], requires_grad=True)
    queries._sigmoid(given).sum().backward()
    assert given.grad is not None
    torch.testing.assert_close(queries._sigmoid(given.detach()), torch.sigmoid(given.detach()), rtol=1e-6, atol=1e-34)
    torch.testing.assert_close(
        given.grad, torch.tensor([logit]).sigmoid() * torch.tensor([-logit]).sigmoid(), rtol=1e-5, atol=1e-34
    )


def test_deep_supervision_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no head of deep supervision: use method\.deep_weight 0"):
        made(None, "main", "deep")
