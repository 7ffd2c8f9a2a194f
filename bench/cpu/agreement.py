"""
How near an engine is to PyTorch on images of many shapes: the errors of its logits, and its labels.

    python bench/cpu/agreement.py BUNDLE --shapes 1x33x33 2x97x129 --out agreement.json

The bundle must give its logits (`ddcat export --logits`). On each shape there are two draws, noise and smooth colours.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from ddcat.atomic_files import write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.engines import Engine, open_engine
from ddcat.errors import DdcatError
from ddcat_bench.inputs import main_branch, reference_of
from ddcat_bench.timing.pytorch_models import torch_labels
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_planes


def main() -> None:
    """Compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--shapes", nargs="+", required=True, help="batch x height x width")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    network = main_branch(reference_of(bundle), torch.device("cpu"))
    with open_engine(bundle) as engine:
        shapes = {text: compare(engine, network, *map(int, text.split("x"))) for text in arguments.shapes}
        result = {"bundle": bundle.digest, "engine": dict(engine.description), "shapes": shapes}
    write_text(arguments.out, json.dumps(result, indent=2) + "\n")


def compare(engine: Engine, network: Segmenter, count: int, height: int, width: int) -> dict[str, Any]:
    """Compare on one shape: errors in standard deviations of PyTorch's logits of the draw, the worse of two draws."""
    errors, equal = [], 0
    for smooth in (False, True):
        images = draw(count, height, width, smooth=smooth)
        outputs = engine.infer(images)
        if outputs.logits is None:
            raise DdcatError("the engine gives no logits: export it with --logits")
        planes = to_planes(images)
        with torch.inference_mode():
            wanted = network.low_resolution_logits("main", network.features(planes)).numpy()
        error = np.abs(outputs.logits - wanted) / wanted.std()
        errors.append((float(np.quantile(error, 0.999)), float(error.max())))
        equal += int((outputs.labels == torch_labels(network, images)).sum())
    return {
        "logit_error_p999": max(error[0] for error in errors),
        "logit_error_max": max(error[1] for error in errors),
        "pixels": 2 * count * height * width,
        "equal_labels": equal,
    }


def draw(count: int, height: int, width: int, *, smooth: bool) -> npt.NDArray[np.uint8]:
    """Draw (N, H, W, 3) images, the same for the same arguments."""
    random = np.random.default_rng([count, height, width, smooth])
    if not smooth:
        return random.integers(0, 256, (count, height, width, 3), np.uint8)
    coarse = torch.from_numpy(random.uniform(0, 255, (count, 3, 6, 6)))
    planes = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True)
    return np.ascontiguousarray(planes.permute(0, 2, 3, 1).round().to(torch.uint8).numpy())


if __name__ == "__main__":
    run(main)
