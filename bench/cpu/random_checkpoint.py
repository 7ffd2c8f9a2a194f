"""
A checkpoint with random weights that answers like a trained one: every class occurs, and values keep their size in every layer.

    python bench/cpu/random_checkpoint.py voc-pspnet50-undefended pspnet50.safetensors
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat import provenance
from ddcat.classes import VOC
from ddcat.cli_support import run
from ddcat_train.checkpoints import Description, build_network, save_checkpoint
from ddcat_train.config import load_config

# What a block adds is a small part of what it is given, as in trained networks. With as much as that, every block would
# multiply what the ones before it have rounded, and fp32 itself would be off by a thousandth of the logits.
_LAST_NORM, _RESIDUAL = ".bn3", 0.2
_BATCHES = [(8, 129, 129), (8, 161, 97)]


def main() -> None:
    """Write a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset", help="whose network it is")
    parser.add_argument("out", type=Path, help="a new file, NAME.safetensors")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_seeded(arguments.preset, arguments.out, arguments.seed)


def write_seeded(preset: str, out: Path, seed: int = 0) -> None:
    """
    Draw weights, then set what a training would: the statistics of the batch norms, and a last bias that favours no class.

    Parameters
    ----------
    preset : str
    out : Path
    seed : int
    """
    torch.manual_seed(seed)
    config = load_config(preset)
    network = build_network(config, len(VOC))
    for key, module in network.named_modules():
        if key.endswith(_LAST_NORM):
            nn.init.constant_(module.weight, _RESIDUAL)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean over all batches
        norm.reset_running_stats()
    images = [_images(*shape) for shape in _BATCHES]
    with torch.no_grad():
        network.train()
        for batch in images:
            network(batch)
        network.eval()
        mean = torch.stack([network(batch).mean((0, 2, 3)) for batch in images]).mean(0)  # (K,)
        last = network.heads["main"][-1]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        last.bias -= mean
    for norm in norms:
        norm.momentum = 0.1
    save_checkpoint(
        out,
        Description(
            config=config, classes=VOC, train=None, val=None, step=0, steps=config.train.epochs, scores={}, best=None,
            git_commit=provenance.git_commit(), versions=provenance.versions(("torch",)),
        ),
        network,
    )  # fmt: skip


def _images(count: int, height: int, width: int) -> Tensor:
    """Noise in the even places, smooth colours in the odd ones: (N, 3, H, W) in [0, 1]."""
    images = torch.rand(count, 3, height, width)
    coarse = torch.rand(count // 2, 3, 6, 6)
    images[1::2] = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
    return images


if __name__ == "__main__":
    run(main)
