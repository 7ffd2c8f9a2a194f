"""What is known of families of models: where they are cut, and the images that they take."""

from collections.abc import Mapping
from typing import NamedTuple

from ddcat_train import imagenet
from ddcat_train.networks.whole.mask_transformer import PATCH

__all__ = ["FAMILIES", "QUERIES", "Family", "Queries"]

_HALF = (0.5, 0.5, 0.5)


class Family(NamedTuple):
    """
    A family of models.

    Attributes
    ----------
    cut : str, optional
        See `find_cut`; None: it finds it.
    multiple : int, or str, optional
        Pixels of which images must be a multiple; or the setting that is the one size of its images. None: tried.
    mean, std : three floats
        Of its images, where its folder does not say it.
    bgr : bool
        It takes blue, green, red.
    """

    cut: str | None = None
    multiple: int | str | None = None
    mean: tuple[float, float, float] = imagenet.MEAN
    std: tuple[float, float, float] = imagenet.STD
    bgr: bool = False


class Queries(NamedTuple):
    """
    The last layers of a model whose queries each give a class and a mask.

    Attributes
    ----------
    classes, masks : str
        Paths of what makes classes, and embeddings of masks, of the queries.
    pixels : str, optional
        Path of what makes the maps that embeddings are multiplied with; None: the output `pixel_decoder_last_hidden_state`.
    """

    classes: str
    masks: str
    pixels: str | None = None


# By the library and its name for the model. Others are cut where `find_cut` finds it.
FAMILIES: Mapping[tuple[str, str], Family] = {
    ("hf", "beit"): Family("decode_head.fpn_bottleneck+decode_head.classifier", "image_size", _HALF, _HALF),
    ("hf", "data2vec-vision"): Family(None, "image_size", _HALF, _HALF),
    ("hf", "dpt"): Family("head.head", "image_size", _HALF, _HALF),
    ("hf", "eomt"): Family(None, "image_size"),
    ("hf", "mask2former"): Family(None, 32),
    ("hf", "mobilenet_v2"): Family(
        "segmentation_head.conv_projection+segmentation_head.dropout+segmentation_head.classifier", 1, _HALF, _HALF
    ),
    ("hf", "mobilevit"): Family(
        "segmentation_head.aspp.project+segmentation_head.aspp.dropout+segmentation_head.dropout+segmentation_head.classifier",
        32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=True,
    ),
    ("hf", "mobilevitv2"): Family(None, 32, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), bgr=True),
    ("hf", "segformer"): Family(
        "decode_head.linear_fuse+decode_head.batch_norm+decode_head.activation+decode_head.dropout+decode_head.classifier", 1
    ),
    ("hf", "upernet"): Family("decode_head.fpn_bottleneck+decode_head.classifier", 32),
    ("segmenter", ""): Family("decoder", PATCH, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # as the robust ones are trained
    ("smp", "deeplabv3plus"): Family("decoder.block2+segmentation_head"),
    ("smp", "fpn"): Family("decoder+segmentation_head"),  # its decoder ends in a sum
    ("smp", "segformer"): Family("decoder.fuse_stage+segmentation_head"),
    ("torchvision", "deeplabv3_mobilenet_v3_large"): Family("classifier.1+classifier.2+classifier.3+classifier.4", 1),
    ("torchvision", "deeplabv3_resnet101"): Family("classifier.1+classifier.2+classifier.3+classifier.4", 1),
    ("torchvision", "deeplabv3_resnet50"): Family("classifier.1+classifier.2+classifier.3+classifier.4", 1),
    ("torchvision", "fcn_resnet101"): Family("classifier", 1),
    ("torchvision", "fcn_resnet50"): Family("classifier", 1),
    ("torchvision", "lraspp_mobilenet_v3_large"): Family("classifier", 1),
}  # fmt: skip

QUERIES: Mapping[tuple[str, str], Queries] = {
    ("hf", "eomt"): Queries("class_predictor", "mask_head", "upscale_block"),
    ("hf", "eomt_dinov3"): Queries("class_predictor", "mask_head", "upscale_block"),
    ("hf", "mask2former"): Queries("class_predictor", "model.transformer_module.decoder.mask_predictor.mask_embedder"),
    ("hf", "maskformer"): Queries("class_predictor", "mask_embedder"),
}
