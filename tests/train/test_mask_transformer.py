"""The Segmenter: files of its authors and of Croce, Singh and Hein compute the same, written down here once more; it trains."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.config import ModelConfig, load_config
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks import build_segmenter
from ddcat_train.networks.whole.mask_transformer import MaskTransformerSegmenter
from ddcat_train.run.trainer import Trainer
from ddcat_train.weight_import import import_checkpoint
from tests.train import released
from tests.train.foreign import layer_norm as norm
from tests.train.released import saved

CLASSES = 6  # of the scenes
SMALL = {"width": 64, "depth": 2, "side": 4, "decoder_depth": 2}


def linear(key: str, inputs: int, outputs: int) -> released.Shapes:
    return {f"{key}.weight": (outputs, inputs), f"{key}.bias": (outputs,)}


def block(key: str, width: int) -> released.Shapes:
    return {
        **norm(f"{key}.norm1", width), **norm(f"{key}.norm2", width),
        **linear(f"{key}.attn.qkv", width, 3 * width), **linear(f"{key}.attn.proj", width, width),
        **linear(f"{key}.mlp.fc1", width, 4 * width), **linear(f"{key}.mlp.fc2", 4 * width, width),
    }  # fmt: skip


def encoder(width: int, depth: int, side: int) -> released.Shapes:
    """A ViT over patches of 16 x 16 with the classifier of ImageNet that it was trained with."""
    shapes: released.Shapes = {
        "encoder.cls_token": (1, 1, width), "encoder.pos_embed": (1, side * side + 1, width),
        "encoder.patch_embed.proj.weight": (width, 3, 16, 16), "encoder.patch_embed.proj.bias": (width,),
    }  # fmt: skip
    for place in range(depth):
        shapes |= block(f"encoder.blocks.{place}", width)
    return shapes | norm("encoder.norm", width) | linear("encoder.head", width, 1000)


def file_of(width: int, depth: int, side: int, decoder_depth: int, classes: int = CLASSES) -> released.Shapes:
    shapes = encoder(width, depth, side)
    for place in range(decoder_depth):
        shapes |= block(f"decoder.blocks.{place}", width)
    return shapes | {
        "decoder.cls_emb": (1, classes, width), "decoder.proj_patch": (width, width), "decoder.proj_classes": (width, width),
        **linear("decoder.proj_dec", width, width), **norm("decoder.decoder_norm", width), **norm("decoder.mask_norm", classes),
    }  # fmt: skip


class Literal:
    """What such a file computes of images that 16 divides."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._weights = weights

    def _linear(self, key: str, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self._weights[f"{key}.weight"], self._weights[f"{key}.bias"])

    def _norm(self, key: str, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, tokens.shape[-1:], self._weights[f"{key}.weight"], self._weights[f"{key}.bias"])

    def _blocks(self, part: str, tokens: Tensor) -> Tensor:
        place, width = 0, tokens.shape[2]
        while f"{part}.blocks.{place}.norm1.weight" in self._weights:
            key = f"{part}.blocks.{place}"
            attention = nn.MultiheadAttention(width, width // 64, batch_first=True).eval()
            names = {"in_proj_": "qkv.", "out_proj.": "proj."}
            attention.load_state_dict({
                f"{torchs}{value}": self._weights[f"{key}.attn.{theirs}{value}"]
                for torchs, theirs in names.items()
                for value in ("weight", "bias")
            })  # fmt: skip
            inside = self._norm(f"{key}.norm1", tokens)
            tokens = tokens + attention(inside, inside, inside)[0]
            hidden = F.gelu(self._linear(f"{key}.mlp.fc1", self._norm(f"{key}.norm2", tokens)))
            tokens = tokens + self._linear(f"{key}.mlp.fc2", hidden)
            place += 1
        return tokens

    def encoded(self, images: Tensor) -> Tensor:
        """The tokens of the patches, row by row."""
        maps = F.conv2d(
            images, self._weights["encoder.patch_embed.proj.weight"], self._weights["encoder.patch_embed.proj.bias"], 16
        )
        positions = self._weights["encoder.pos_embed"]
        side = math.isqrt(positions.shape[1] - 1)
        if tuple(maps.shape[2:]) != (side, side):
            grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
            grid = F.interpolate(grid, size=tuple(maps.shape[2:]), mode="bilinear").permute(0, 2, 3, 1).flatten(1, 2)
            positions = torch.cat([positions[:, :1], grid], dim=1)
        whole = self._weights["encoder.cls_token"].expand(len(images), -1, -1)
        tokens = torch.cat([whole, maps.flatten(2).transpose(1, 2)], dim=1) + positions
        return self._norm("encoder.norm", self._blocks("encoder", tokens))[:, 1:]

    def segment(self, images: Tensor) -> Tensor:
        """Logits of the images' size; images in [0, 1], padded with zeros."""
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % 16, 0, -height % 16))
        classes = self._weights["decoder.cls_emb"]
        tokens = self._linear("decoder.proj_dec", self.encoded(padded))
        tokens = self._blocks("decoder", torch.cat([tokens, classes.expand(len(images), -1, -1)], dim=1))
        tokens = self._norm("decoder.decoder_norm", tokens)
        count = classes.shape[1]
        places = F.normalize(tokens[:, :-count] @ self._weights["decoder.proj_patch"], dim=-1)
        names = F.normalize(tokens[:, -count:] @ self._weights["decoder.proj_classes"], dim=-1)
        masks = self._norm("decoder.mask_norm", places @ names.transpose(1, 2))
        maps = masks.transpose(1, 2).reshape(len(images), count, padded.shape[2] // 16, padded.shape[3] // 16)
        return F.interpolate(maps, size=padded.shape[2:], mode="bilinear")[..., :height, :width]


def imported(weights: dict[str, Tensor], scenes: Path, folder: Path, *overrides: str) -> Path:
    out = folder / "segmenter.safetensors"
    file = saved(folder / "segmenter.pth", weights)
    import_checkpoint(file, out, like="scenes-undefended", data_root=scenes, overrides=overrides)
    return out


def test_the_layout_written_here_has_the_published_size() -> None:
    assert released.parameters(encoder(384, 12, 14)) == 22_050_664  # ViT-S/16 for images of 224 x 224


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (50, 71), (33, 40)])
def test_a_segmenters_file_computes_the_same(size: tuple[int, int], tiny_scenes: Path, tmp_path: Path) -> None:
    weights = released.filled(file_of(**SMALL))
    network = load_checkpoint(imported(weights, tiny_scenes, tmp_path)).segmenter()
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = Literal(weights).segment(images)
        torch.testing.assert_close(network(images), wanted, rtol=1e-4, atol=1e-4 * float(wanted.std()))


def test_the_vit_and_the_decoders_blocks_are_timms() -> None:
    try:
        from timm.models.vision_transformer import Block, VisionTransformer  # noqa: PLC0415
    except Exception as cause:  # its torchvision may be built for another torch
        pytest.skip(f"needs timm and a torchvision of this torch: {cause}")
    norms = partial(nn.LayerNorm, eps=1e-5)  # as the Segmenter's authors have it; timm's own is 1e-6
    torch.manual_seed(0)
    peer = VisionTransformer(
        img_size=64, patch_size=16, embed_dim=128, depth=3, num_heads=2, num_classes=0, norm_layer=norms
    ).eval()  # fmt: skip
    block = Block(128, 2, qkv_bias=True, norm_layer=norms).eval()
    for parameter in (*peer.parameters(), *block.parameters()):
        parameter.data += 0.3 * torch.randn_like(parameter)
    network = MaskTransformerSegmenter(CLASSES, image_size=64, width=128, depth=3, decoder_depth=1).eval()
    network.encoder.load_state_dict(peer.state_dict())  # all keys and shapes are the same
    network.decoder.blocks[0].load_state_dict(block.state_dict())
    images, tokens = torch.randn(2, 3, 64, 64), torch.randn(2, 9, 128)
    with torch.no_grad():
        wanted = peer.forward_features(images)[:, 1:].transpose(1, 2).reshape(2, 128, 4, 4)
        torch.testing.assert_close(network.encoder(images), wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(network.decoder.blocks[0](tokens), block(tokens), rtol=1e-4, atol=1e-5)


def test_what_the_import_says(tiny_scenes: Path, tmp_path: Path) -> None:
    file = saved(tmp_path / "s.pth", {"model": released.filled(file_of(**SMALL))})
    out = tmp_path / "s.safetensors"
    said = import_checkpoint(
        file, out, like="scenes-undefended", data_root=tiny_scenes, overrides=["model.std=[0.5, 0.5, 0.5]"]
    )
    assert said.startswith(f"{out}: segmenter, 6 classes, branches main, 0.")
    assert "left out: encoder.head\nmodel.mean is taken to be (0.0, 0.0, 0.0): the file does not say it; --set sets" in said
    assert f"--set model.weights={file}" in said
    model = load_checkpoint(out).description.config.model
    assert model.settings == {"image_size": 64, "width": 64, "depth": 2, "decoder_depth": 2}
    assert (model.mean, model.std) == ((0, 0, 0), (0.5, 0.5, 0.5))
    assert load_checkpoint(out).segmenter().normalise.std.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.slow
def test_the_public_file_fits_at_full_size(tiny_scenes: Path, tmp_path: Path) -> None:
    """An error that names one key alone says that all others fit, and writes nothing."""
    weights = released.empty(file_of(384, 12, 32, 2))
    del weights["decoder.proj_patch"]
    with pytest.raises(CheckpointError, match=r"does not fit a segmenter .*: decoder\.proj_patch is missing$"):
        imported(weights, tiny_scenes, tmp_path)
    assert not (tmp_path / "segmenter.safetensors").exists()


def test_the_classes_are_asked_for(tmp_path: Path) -> None:
    file = saved(tmp_path / "x.pth", released.empty(file_of(**SMALL, classes=151)))
    with pytest.raises(ConfigError, match="does not say which 151 classes it has: name a preset or configuration"):
        import_checkpoint(file, tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decoder.cls_emb": None}, r"no decoder\.cls_emb: of Segmenters, those with a mask transformer are supported"),
        ({"encoder.pos_embed": None}, r"no encoder\.pos_embed \(1, places, channels\)"),
        ({"encoder.patch_embed.proj.weight": (64, 3, 32, 32)}, "64 channels, patches of 32 x 32 and 16 places, expected"),
        ({"encoder.pos_embed": (1, 18, 64)}, "patches of 16 x 16 and 17 places, expected .* a square of places"),
        ({"decoder.cls_emb": (1, 2, 64)}, "has 2 classes: of two, a Segmenter's last layer keeps no more than which is larger"),
        ({"encoder.dist_token": (1, 1, 64)}, r"does not fit a segmenter .*: encoder\.dist_token is not a key"),
    ],
    ids=str,
)
def test_other_segmenters_are_one_line(
    change: dict[str, tuple[int, ...] | None], message: str, tiny_scenes: Path, tmp_path: Path
) -> None:
    shapes = {key: shape for key, shape in (file_of(**SMALL) | change).items() if shape is not None}
    with pytest.raises(CheckpointError, match=message) as caught:
        imported(released.empty(shapes), tiny_scenes, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mask_branch_keeps_more_than_which_class_is_larger() -> None:
    """Of two values a layer norm makes -1 and 1 whatever they are, and nothing behind it could say how sure it is."""
    model = ModelConfig.model_validate({"whole": "segmenter", "settings": {"image_size": 64, "width": 64, "depth": 1}})
    decoder: Any = build_segmenter(model, classes=CLASSES, heads=("main", "mask")).heads["mask"]
    cosines = torch.tensor([[0.3, -0.3], [0.3, 0.2]])
    near, far = nn.LayerNorm(2)(cosines).diff().flatten().abs().tolist()
    assert near == pytest.approx(far, rel=1e-2)
    ratio = decoder.mask_norm(cosines).detach().diff().flatten()
    assert float(ratio[0] / ratio[1]) == pytest.approx(6, rel=1e-3)


def test_settings_that_do_not_fit() -> None:
    for settings, message in (
        ({"image_size": 500}, "expected image_size to be a multiple of 16, got 500"),
        ({"width": 100}, "expected width to be a multiple of 64, got 100"),
        ({"depht": 1}, "segmenter cannot be built of these settings: .*depht"),
    ):
        model = ModelConfig.model_validate({"whole": "segmenter", "settings": settings})
        with pytest.raises(ConfigError, match=message):
            build_segmenter(model, classes=CLASSES)


@pytest.mark.parametrize("method", ["undefended", "ddcat"])
def test_it_trains_from_such_a_file(method: str, tiny_scenes: Path, tmp_path: Path) -> None:
    weights = released.filled(file_of(**SMALL))
    file = saved(tmp_path / "segmenter.pth", weights)
    config = load_config(
        f"scenes-{method}",
        [
            f"data.root={tiny_scenes}", "augment.crop=33", "train.batch_size=2", "train.workers=0", "model.whole=segmenter",
            "model.settings={image_size: 64, width: 64, depth: 2}", f"model.weights={file}",
        ],
    )  # fmt: skip
    trainer = Trainer(config, device="cpu")
    heads: Any = trainer.eval_network.heads
    for name in heads:  # each begins with the file's decoder
        assert torch.equal(heads[name].proj_dec.weight, weights["decoder.proj_dec.weight"])
    assert torch.equal(heads["main"].cls_emb, weights["decoder.cls_emb"])
    assert math.isfinite(trainer.train_step(next(iter(trainer.batches())))["loss"])
