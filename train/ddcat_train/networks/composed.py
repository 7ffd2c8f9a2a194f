"""The networks of the house: normalise -> backbone -> context -> heads."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from ddcat_train.choices import Head
from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.networks.contexts import Context, ContextConv2d, ContextModule
from ddcat_train.networks.convolution import Conv2d, Layers
from ddcat_train.networks.layers import upsample
from ddcat_train.networks.normalise import Normalise
from ddcat_train.networks.segmenter import Segmenter

__all__ = ["ComposedFeatures", "ComposedSegmenter"]


class ComposedFeatures(NamedTuple):
    """Features that all heads share."""

    intermediate: Tensor  # (N, C3, h, w): for deep supervision
    context: Context  # of (N, C, h, w): for the three branches
    size: tuple[int, int]  # of the image

    def first(self, count: int) -> "ComposedFeatures":
        """Keep the first images of the batch."""
        return ComposedFeatures(self.intermediate[:count], self.context.first(count), self.size)


class ComposedSegmenter(Segmenter):
    """
    A backbone, a context of the whole image, and a head of one hidden layer for each branch.

    Any image of at least 33 x 33 pixels is taken.

    Parameters
    ----------
    classes : int
        K, without the ignored label.
    heads : sequence of Head
        The heads to build; "main" among them.
    dropout : float
        Of the heads' channels, in train().
    align_corners : bool
        Of the logits' upsampling.
    normalisation : Normalise, optional
        The first layer; by the backbone's mean and deviation by default.
    """

    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        context: ContextModule,
        *,
        classes: int,
        heads: Sequence[Head],
        dropout: float = 0.1,
        align_corners: bool = True,
        normalisation: Normalise | None = None,
    ) -> None:
        super().__init__()
        self.classes, self.align_corners = classes, align_corners
        self.normalise = normalisation or Normalise(backbone.mean, backbone.std)
        self.bands = self.normalise.mean.numel()
        self.backbone = backbone
        self.context = context
        self.heads = nn.ModuleDict({name: _head(name, backbone, context, classes, dropout) for name in heads})

    def features(self, images: Tensor) -> ComposedFeatures:
        """Compute the maps of the backbone and the context of images, (N, C, H, W) in [0, 1]."""
        height, width = images.shape[-2:]
        stages: Stages = self.backbone(self.normalise(images))
        return ComposedFeatures(stages.intermediate, self.context(stages), (height, width))

    def low_resolution_logits(self, head: Head, features: ComposedFeatures) -> Tensor:
        """Apply one head; (N, K, h, w) at the size of the maps that it sees."""
        logits: Tensor = self.heads[head](features.intermediate if head == "deep" else features.context)
        return logits

    def enlarge(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize logits to the image, bilinear."""
        return upsample(logits, size, align_corners=self.align_corners)

    def shared(self) -> tuple[nn.Parameter, ...]:
        """Return the parameters of backbone and context."""
        return (*self.backbone.parameters(), *self.context.parameters())


def _head(name: Head, backbone: Backbone, context: ContextModule, classes: int, dropout: float) -> Layers:
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
