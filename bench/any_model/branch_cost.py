"""
What the auxiliary and the mask branch cost, for models at their usual size: parameters, and multiply-adds of a forward.

    python bench/any_model/branch_cost.py [MODEL ...]

Nothing is trained or timed: the network is counted on torch's meta device, for one image of 512 x 512.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddcat.cli_support import run
from ddcat_bench.markdown import table
from ddcat_train.choices import Head
from ddcat_train.config import ModelConfig
from ddcat_train.networks.whole import CutSegmenter, build_whole

_CONVNEXT = {"model_type": "convnext", "out_features": ["stage1", "stage2", "stage3", "stage4"]}
MODELS = {
    "SegFormer-B0": ("hf", {"model_type": "segformer"}),
    "UPerNet, ConvNeXt-T": ("hf", {"model_type": "upernet", "backbone_config": _CONVNEXT, "auxiliary_in_channels": 384}),
    "torchvision deeplabv3_resnet50": ("torchvision", {"name": "deeplabv3_resnet50"}),
    "torchvision lraspp": ("torchvision", {"name": "lraspp_mobilenet_v3_large"}),
    "smp Unet, resnet34": ("smp", {"arch": "Unet", "encoder_name": "resnet34"}),
    "smp DeepLabV3Plus, resnet50": ("smp", {"arch": "DeepLabV3Plus", "encoder_name": "resnet50"}),
}
BRANCHES: tuple[Head, ...] = ("main", "auxiliary", "mask")
CLASSES, SIDE = 19, 512


def main() -> None:
    """Count, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all by default")
    rows = []
    for name in parser.parse_args().models or MODELS:
        whole, settings = MODELS[name]
        model = ModelConfig.model_validate({"whole": whole, "settings": settings})
        network = build_whole(model, classes=CLASSES, heads=BRANCHES).eval().to("meta")
        assert isinstance(network, CutSegmenter)
        spare = sum(p.numel() for head in BRANCHES[1:] for p in network.heads[head].parameters())
        total = sum(p.numel() for p in network.parameters())
        one, three = (_multiply_adds(network, heads) for heads in (BRANCHES[:1], BRANCHES))
        rows.append([name, f"{(total - spare) / 1e6:.2f}", f"{spare / 1e6:.2f}", f"{one / 1e9:.1f}", f"{three / one:.2f}"])
        print(rows[-1], network.cut, flush=True)
    head = ["model", "parameters, M", "of the two branches, M", "multiply-adds, G", "with three branches, times"]
    print(table(head, rows))


def _multiply_adds(network: CutSegmenter, heads: tuple[Head, ...]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, SIDE, SIDE, device="meta"), heads)
    return counter.get_total_flops() // 2


if __name__ == "__main__":
    run(main)
