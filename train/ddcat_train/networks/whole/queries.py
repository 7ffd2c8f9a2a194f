"""Models whose queries each give a class and a mask, such as Mask2Former and EoMT, as segmenters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.networks.whole.base import Blueprint, WholeSegmenter, replace
from ddcat_train.networks.whole.families import Queries
from ddcat_train.networks.whole.segmenter import Tap

__all__ = ["QueryFeatures", "QuerySegmenter"]

_LEAST = 1e-6  # score of a class, of which the logarithm is taken
_LARGEST = 80.0  # beyond, exp is infinite in float32, and its gradient not a number


class QueryFeatures(NamedTuple):
    """What all branches share."""

    of_classes: Tensor  # (N, Q, C): the queries, as the classifier is given them
    of_masks: Tensor  # (N, Q, C): as the embedding of masks is given them
    pixels: Tensor  # (N, C, h, w)
    size: tuple[int, int]  # of the image

    def first(self, count: int) -> "QueryFeatures":
        """Keep the first images of the batch."""
        return QueryFeatures(self.of_classes[:count], self.of_masks[:count], self.pixels[:count], self.size)


class _Branch(nn.Module):
    """What makes classes and masks of the queries, and logits of pixels of both."""

    def __init__(self, model: nn.Module, paths: Queries) -> None:
        super().__init__()
        self.classes = model.get_submodule(paths.classes)
        self.masks = model.get_submodule(paths.masks)
        self.pixels = nn.Identity() if paths.pixels is None else model.get_submodule(paths.pixels)

    def forward(self, features: QueryFeatures) -> Tensor:
        """
        Return logits (N, K, h, w).

        Their softmax is what transformers' own semantic map is of: for each class the sum, over the queries, of its
        probability and that of the query's mask, normalised over the classes.
        """
        probabilities = self.classes(features.of_classes).softmax(-1)[..., :-1]  # (N, Q, K): the last is no class
        pixels = self.pixels(features.pixels)
        masks = _sigmoid(_products(self.masks(features.of_masks), pixels))  # (N, Q, h, w)
        return _products(probabilities.transpose(1, 2), masks).clamp(min=_LEAST).log()


def _sigmoid(logits: Tensor) -> Tensor:
    """
    Return probabilities of a small relative error, also where they are tiny.

    The logarithm of them is taken. The sigmoid of ONNX Runtime has a small absolute error alone.
    """
    return (1 + (-logits).clamp(max=_LARGEST).exp()).reciprocal()


def _products(rows: Tensor, maps: Tensor) -> Tensor:
    """Multiply (N, R, C) by (N, C, h, w): (N, R, h, w)."""
    count, size = rows.shape[1], maps.shape[2:]
    return (rows @ maps.flatten(2)).reshape(-1, count, *size)


class QuerySegmenter(WholeSegmenter):
    """
    A model of queries; a branch has the layers that make classes and masks of them.

    The model uses the main branch's layers inside, too, where it masks its attention.
    """

    def __init__(self, blueprint: Blueprint, paths: Queries, *, classes: int, heads: Sequence[Head]) -> None:
        super().__init__(blueprint, classes)
        model = _annealed(blueprint.build(classes))
        main = _Branch(model, paths)
        branches = self._branches(blueprint, main, heads, lambda other: _Branch(other, paths))
        self._taps = {"classes": paths.classes, "masks": paths.masks}
        if paths.pixels is not None:
            self._taps["pixels"] = paths.pixels
        for part, path in self._taps.items():
            replace(model, path, Tap(getattr(main, part)))
        self.backbone, self.heads = model, branches

    def features(self, images: Tensor) -> QueryFeatures:
        """Run the model; images (N, 3, H, W) in [0, 1], RGB."""
        main, taps = self.heads["main"], {name: self._tap(path) for name, path in self._taps.items()}
        for name, tap in taps.items():
            tap.arm(getattr(main, name))
        output = self.backbone(self.prepared(images))
        given = {name: tap.taken()[0][0] for name, tap in taps.items()}
        if "pixels" not in given:
            given["pixels"] = output.pixel_decoder_last_hidden_state
        size = (images.shape[-2], images.shape[-1])
        return QueryFeatures(_last(given["classes"]), _last(given["masks"]), given["pixels"], size)

    def _tap(self, path: str) -> Tap:
        tap = self.backbone.get_submodule(path)
        assert isinstance(tap, Tap)  # as the constructor made it
        return tap

    def low_resolution_logits(self, head: Head, features: QueryFeatures) -> Tensor:
        """Apply one branch; (N, K, h, w)."""
        logits: Tensor = self.heads[head](features)
        return logits


def _last(queries: Tensor) -> Tensor:
    """Of queries that several layers of a decoder give together, (L, N, Q, C), keep those of the last."""
    return queries[-1] if queries.ndim == 4 else queries


def _annealed(model: nn.Module) -> nn.Module:
    """Let EoMT attend without masks, as at the end of its training: its probabilities are numbers then, and export."""
    probabilities: Any = getattr(model, "attn_mask_probs", None)
    if isinstance(probabilities, Tensor):
        del model.attn_mask_probs
        model.attn_mask_probs = [0.0] * len(probabilities)  # type: ignore[assignment]
    return model
