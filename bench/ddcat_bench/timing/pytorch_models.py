"""PyTorch beside an engine: the models that it is timed with, how they label images, and PyTorch's settings meanwhile."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_bench.inputs import main_branch
from ddcat_train.attacks import Model
from ddcat_train.networks import Stages
from ddcat_train.networks.contexts import ASPP, Context, ContextConv2d, PyramidPooling
from ddcat_train.networks.convolution import Conv2d
from ddcat_train.networks.layers import upsample
from ddcat_train.pixels import to_planes
from ddcat_train.reference import Reference

__all__ = ["EAGER", "Images", "original_network", "torch_labels", "torch_settings"]

Images = npt.NDArray[np.uint8]

_CPU = torch.device("cpu")


class _OriginalPyramid(PyramidPooling):
    """Pyramid pooling by torch's own layers, concatenated."""

    def forward(self, stages: Stages) -> Context:
        maps = stages.last
        pooled = (feature(F.adaptive_avg_pool2d(maps, bins)) for feature, bins in zip(self.features, self.bins, strict=True))
        return Context(Context(maps, tuple(pooled), self.align_corners).concatenated())


class _OriginalASPP(ASPP):
    """ASPP by torch's own layers, concatenated."""

    def forward(self, stages: Stages) -> Context:
        *local, pooling = self.convs
        maps = stages.last
        pooled = upsample(pooling(F.adaptive_avg_pool2d(maps, 1)), (maps.shape[-2], maps.shape[-1]))
        return Context(torch.cat([*(convolution(maps) for convolution in local), pooled], dim=1))


class _OriginalHeadConv2d(Conv2d):
    """A head's first layer over concatenated maps."""

    def forward(self, context: Context) -> Tensor:  # type: ignore[override]
        return super().forward(context.maps)


_ORIGINALS: Mapping[type[nn.Module], type[nn.Module]] = {
    PyramidPooling: _OriginalPyramid, ASPP: _OriginalASPP, ContextConv2d: _OriginalHeadConv2d,
}  # fmt: skip


def original_network(reference: Reference, device: torch.device) -> nn.Module:
    """
    Build the main branch as the paper's code computes it: batch norms of their own, adaptive pooling, one concatenation.

    Returns nn.Module: in eval(), in contiguous memory. A backbone that is not ours computes as its package wrote it.
    """
    network = reference.segmenter().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, Conv2d):
            module.folds = False
        if type(module) in _ORIGINALS:
            module.__class__ = _ORIGINALS[type(module)]  # the class differs in behaviour, not in state
    return network.to(device)


def _original(reference: Reference, device: torch.device) -> Model:
    network = original_network(reference, device)
    return lambda images: network(images.contiguous())


def _compiled(reference: Reference, device: torch.device) -> Model:
    model: Model = torch.compile(main_branch(reference, device))
    return model


EAGER: Mapping[str, Callable[[Reference, torch.device], Model]] = {
    "original": _original,
    "main branch": main_branch,
    "compiled": _compiled,
}


def torch_labels(model: Model, images: Images, device: torch.device = _CPU) -> Images:
    """Label images with PyTorch on a device at the boundary of an engine: (N, H, W, 3) uint8 -> (N, H, W) uint8."""
    with torch.inference_mode():
        labels: Images = model(to_planes(images, device)).argmax(1).to(torch.uint8).cpu().numpy()
        return labels


@contextlib.contextmanager
def torch_settings(threads: int, *, tf32: bool = False) -> Iterator[None]:
    """
    Set how PyTorch computes, and put back what was set before.

    `threads` are those of the CPU. With `tf32`, matrix products and convolutions in float32 may round to TF32 on a GPU.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, torch.get_num_threads()
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
        torch.set_num_threads(before[2])
