"""Backbones of Hugging Face transformers: whatever its AutoBackbone knows that works in stages, as ConvNeXt V2 and Swin do."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoBackbone
from transformers.utils import logging as bars

from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks.backbone import Backbone, Stages
from ddcat_train.whole_settings import hf_configuration

__all__ = ["HuggingFace", "quiet"]

_NEW = "hidden_states_norms."  # layer norms behind the stages, which a classifier has not: they begin as the identity


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bar and the report of transformers: what does not fit is a note or an error of ours."""
    before, bar = logging.root.manager.disable, bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.disable(before)
        if bar:
            bars.enable_progress_bar()  # type: ignore[no-untyped-call]


class HuggingFace(Backbone):
    """
    The maps of all stages from a stride on, brought to the size of the finest and concatenated.

    Images are padded at the right and at the bottom to a multiple of the last stage's stride, so that every stage divides its
    input exactly, and the maps cut to what shows the image.

    Parameters
    ----------
    settings : mapping
        From `ddcat_train.huggingface_settings.hf_settings`.
    output_stride : int
        Of the finest stage that is concatenated.
    all_stages : bool
        Give the maps of all stages, for contexts of several.

    Attributes
    ----------
    earlier_channels, intermediate_channels, channels, stride
        See `Backbone`; the intermediate maps are those of the last stage but one.

    Raises
    ------
    ConfigError
        Where the settings make no backbone, or none whose stages have the output stride and coarser ones.
    """

    def __init__(self, settings: Mapping[str, Any], output_stride: int, *, all_stages: bool = False) -> None:
        super().__init__()
        stages = _stages(settings)
        strides = [stride for _, stride in stages.values()]
        joined = [stride for stride in strides if stride >= output_stride]
        used = list(stages.items())[0 if all_stages else -len(joined) :]
        self._strides = tuple(stride for _, (_, stride) in used)
        if len(used) < 2 or joined[:1] != [output_stride] or any(b % a or a == b for a, b in pairwise(self._strides)):
            existing = ", ".join(map(str, strides))
            raise ConfigError(
                f"the stages of this {settings['model_type']} have the strides {existing}, expected {output_stride} "
                "(model.output_stride) and multiples of it"
            )
        self._joined = len(joined)
        channels = [channels for _, (channels, _) in used]
        self.stride, self.channels = output_stride, sum(channels[-self._joined :])
        *earlier, self.intermediate_channels = channels[:-1]
        self.earlier_channels = tuple(earlier) if all_stages else ()  # else they are in the joined ones
        self.body = _build(settings, [name for name, _ in used])

    def forward(self, images: Tensor) -> Stages:
        """Map normalised images (N, 3, H, W) to maps at ceil(H / stride) x ceil(W / stride)."""
        height, width = images.shape[-2:]
        last = self._strides[-1]
        right, bottom = _ceil(width, last) * last - width, _ceil(height, last) * last - height
        maps = self.body(
            F.pad(images, (0, right, 0, bottom))
        ).feature_maps  # (N, C_i, H_padded / stride_i, W_padded / stride_i)
        finest = [
            stage if stride == self.stride else F.interpolate(stage, scale_factor=stride // self.stride, mode="bilinear")
            for stage, stride in list(zip(maps, self._strides, strict=True))[-self._joined :]
        ]
        *earlier, intermediate, joined = (
            stage[..., : _ceil(height, stride), : _ceil(width, stride)]
            for stage, stride in (
                *zip(maps[:-1], self._strides[:-1], strict=True),
                (torch.cat(finest, 1), self.stride),
            )
        )
        return Stages(intermediate, joined, tuple(earlier) if self.earlier_channels else ())

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weights of a file of transformers, which translates the keys of classifiers and of old versions."""
        with quiet():
            loaded, report = type(self.body).from_pretrained(
                None, config=self.body.config, state_dict=dict(tensors), output_loading_info=True, ignore_mismatched_sizes=True
            )
        if report["error_msgs"]:
            raise CheckpointError(f"transformers does not take these weights: {'; '.join(report['error_msgs'])}")
        other = {key: torch.empty(shape) for key, shape, _ in report["mismatched_keys"]}
        absent = {key for key in report["missing_keys"] if not key.startswith(_NEW)}
        body = {key: value for key, value in loaded.state_dict().items() if key not in absent} | other
        prefix = f"{self.body.base_model_prefix}."
        surplus = [
            key
            for key in report["unexpected_keys"]
            if not key.startswith("classifier.") and not key.removeprefix(prefix).startswith(("layernorm.", "pooler."))
        ]
        return {f"body.{key}": value for key, value in body.items()} | {key: tensors[key] for key in surplus}


def _build(settings: Mapping[str, Any], stages: Sequence[str]) -> Any:
    configuration = hf_configuration(settings)
    configuration.out_features = list(stages)
    return AutoBackbone.from_config(configuration)  # type: ignore[no-untyped-call]


def _stages(settings: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the channels and the stride of every stage, from a network on the meta device."""
    names = hf_configuration(settings).stage_names[1:]  # all but the stem
    side = 224
    try:
        with torch.device("meta"), torch.no_grad():
            maps = _build(settings, names).eval()(torch.zeros(1, 3, side, side)).feature_maps
    except Exception as cause:  # its exceptions share no base
        raise ConfigError(
            f"transformers cannot build a {settings['model_type']} of these settings: {' '.join(str(cause).split())}"
        ) from cause
    return {name: (stage.shape[1], side // stage.shape[-1]) for name, stage in zip(names, maps, strict=True)}


def _ceil(size: int, stride: int) -> int:
    # not -(-size // stride): exported for any size, that is rounded towards zero
    return (size + stride - 1) // stride
