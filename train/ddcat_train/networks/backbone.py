"""The interface of backbones: modules that map normalised images to maps at a fraction of their size."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from ddcat_train import imagenet
from ddcat_train.errors import ConfigError

__all__ = ["Backbone", "Stages", "in_order", "initialise", "take_bands"]


class Stages(NamedTuple):
    """
    Output of a backbone: the maps for deep supervision, the last ones, and those of stages before both, from the finest on.

    Only contexts of several stages use the earlier ones.
    """

    intermediate: Tensor
    last: Tensor
    earlier: tuple[Tensor, ...] = ()


class Backbone(nn.Module, ABC):
    """
    A module with the attributes that the rest of a network needs.

    Attributes
    ----------
    intermediate_channels, channels : int
        Channels of `Stages.intermediate` and of `Stages.last`.
    earlier_channels : tuple of int
        Channels of `Stages.earlier`.
    stride : int
        Of `Stages.last`: images (N, 3, H, W) become maps of ceil(H / stride) x ceil(W / stride), for every size from
        33 x 33 on. Those of `Stages.intermediate` may be of any size.
    unused : tuple of str
        Beginnings of keys that files of pretrained weights hold beside the backbone's own, such as those of a classifier.
    mean, std : three floats
        Of the images that it was pretrained on, in [0, 1]; ImageNet's unless it says otherwise.
    """

    intermediate_channels: int
    channels: int
    stride: int
    earlier_channels: tuple[int, ...] = ()
    unused: tuple[str, ...] = ()
    mean: tuple[float, float, float] = imagenet.MEAN
    std: tuple[float, float, float] = imagenet.STD

    @abstractmethod
    def forward(self, images: Tensor) -> Stages:
        """
        Compute maps.

        Parameters
        ----------
        images : (N, 3, H, W) float
            About zero mean and unit variance, by `mean` and `std`.
        """

    def layers(self) -> list[nn.Module]:
        """Return the parts that stand one after the other, from the image on: each has a rate of its own."""
        return in_order(self)

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the backbone's part of a file of pretrained weights, under the backbone's keys; unknown keys unchanged."""
        return {key: value for key, value in tensors.items() if not key.startswith(self.unused)}


def initialise(backbone: Backbone) -> None:
    """Draw the weights of all convolutions as semseg's ResNets do: normal, keeping the variance of gradients (fan-out)."""
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def take_bands(backbone: Backbone, bands: int) -> None:
    """
    Let a backbone with random weights take images of other bands than three: its first convolution is replaced.

    Raises
    ------
    ConfigError
        Where it does not begin with a convolution of three channels.
    """
    found = [(path, module) for path, module in backbone.named_modules() if isinstance(module, nn.Conv2d)]
    path, first = found[0] if found else ("", None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise ConfigError(f"a {type(backbone).__name__} takes 3 bands, and data.bands has {bands}: use another model.backbone")
    parent, _, name = path.rpartition(".")
    form: dict[str, Any] = {
        key: getattr(first, key) for key in ("out_channels", "kernel_size", "stride", "padding", "dilation")
    }
    other = type(first)(bands, bias=first.bias is not None, **form)
    setattr(backbone.get_submodule(parent), name, other)


def in_order(module: nn.Module) -> list[nn.Module]:
    """Return the parts of a module that stand one after the other: the elements of its lists, and what is between these."""
    return [part for child in module.children() for part in _taken_apart(child)]


def _taken_apart(module: nn.Module) -> list[nn.Module]:
    if type(module) is nn.Sequential or any(isinstance(part, nn.ModuleList) for part in module.modules()):
        return in_order(module)
    return [module]
