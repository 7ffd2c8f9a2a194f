"""The whole network: normalise -> backbone -> context -> heads."""

from collections.abc import Sequence
from typing import NamedTuple, overload

from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.contexts import ASPP, Context, ContextConv2d, PyramidPooling
from ddcat_train.networks.convolution import Conv2d, Layers
from ddcat_train.networks.layers import upsample
from ddcat_train.networks.normalise import Normalise

__all__ = ["Features", "Segmenter"]


class Features(NamedTuple):
    """Features that all heads share."""

    intermediate: Tensor  # (N, C3, h, w): for deep supervision
    context: Context  # of (N, C, h, w): for the three branches
    size: tuple[int, int]  # of the image

    def first(self, count: int) -> "Features":
        """Keep the first images of the batch."""
        return Features(self.intermediate[:count], self.context.first(count), self.size)


class Segmenter(nn.Module):
    """
    A segmentation network with one main branch and the further heads of its training.

    Any image of at least 33 x 33 pixels is taken.

    Parameters
    ----------
    backbone : Backbone
    context : nn.Module
    classes : int
        K, without the ignored label.
    heads : sequence of Head
        The heads to build; "main" among them.
    dropout : float
        Of the heads' channels, in train().
    """

    def __init__(
        self,
        backbone: Backbone,
        context: PyramidPooling | ASPP,
        *,
        classes: int,
        heads: Sequence[Head],
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.normalise = Normalise()
        self.backbone = backbone
        self.context = context
        self.heads = nn.ModuleDict({name: _head(name, backbone, context, classes, dropout) for name in heads})

    def features(self, images: Tensor) -> Features:
        """
        Compute the features that the heads share.

        Parameters
        ----------
        images : (N, 3, H, W) float
            In [0, 1], RGB.
        """
        height, width = images.shape[-2:]
        stages: Stages = self.backbone(self.normalise(images))
        return Features(stages.intermediate, self.context(stages.last), (height, width))

    def low_resolution_logits(self, head: Head, features: Features) -> Tensor:
        """Apply one head; (N, K, h, w) at the backbone's output stride."""
        logits: Tensor = self.heads[head](features.intermediate if head == "deep" else features.context)
        return logits

    def logits(self, head: Head, features: Features) -> Tensor:
        """Apply one head and resize to the image; (N, K, H, W), or (N, 2, H, W) for the mask branch."""
        return upsample(self.low_resolution_logits(head, features), features.size)

    @overload
    def forward(self, images: Tensor, heads: None = None) -> Tensor: ...

    @overload
    def forward(self, images: Tensor, heads: Sequence[Head]) -> dict[Head, Tensor]: ...

    def forward(self, images: Tensor, heads: Sequence[Head] | None = None) -> Tensor | dict[Head, Tensor]:
        """
        Compute logits, of the main branch alone or of the heads that are asked for; others cost nothing.

        Parameters
        ----------
        images : (N, 3, H, W) float
            In [0, 1], RGB.
        heads : sequence of Head, optional

        Returns
        -------
        (N, K, H, W) float, or one such tensor for each head asked for.
        """
        features = self.features(images)
        if heads is None:
            return self.logits("main", features)
        return {head: self.logits(head, features) for head in heads}


def _head(name: Head, backbone: Backbone, context: PyramidPooling | ASPP, classes: int, dropout: float) -> Layers:
    kernel, first = context.head_kernel, Conv2d if name == "deep" else ContextConv2d
    inputs, hidden = context.channels, context.head_channels
    if name == "deep":
        inputs, hidden = backbone.intermediate_channels, backbone.intermediate_channels // 4
    return Layers(
        first(inputs, hidden, kernel, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout2d(dropout),
        Conv2d(hidden, 2 if name == "mask" else classes, 1),
    )
