"""
What int8 costs trained models: mIoU on clean and attacked images, calibrated on clean ones and on a mix with attacked ones.

    python bench/cpu/int8.py --runs runs/ddcat runs/pgd-at-4 --data-root /data/camvid

Bundles are made by commands, each of which is printed before it runs; those that are there are not made again. Attacks (PGD
with the bound and step of the model's own training, n = 3 and 7, a random start) are made on the PyTorch model, rounded to 8
bits, and shown to every engine. Of each run a file with counts of pixels is left in OUT, and the rows of its table are printed.
"""

import argparse
import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddcat.atomic_files import write_text
from ddcat.bundle import Bundle, open_bundle
from ddcat.cli_support import run
from ddcat.engines import open_engine
from ddcat.errors import DdcatError
from ddcat.metrics import confusion_counts, miou
from ddcat.progress import progress
from ddcat_train.attacks import pgd
from ddcat_train.checkpoints import Checkpoint, load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_8_bit

_STEPS = (3, 7)
_CASES = ("clean", *(f"n={steps}" for steps in _STEPS))
_PAPER = {"epsilon": 0.03, "alpha": 0.01}


def main() -> None:
    """Make bundles, evaluate them, and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="trained runs")
    parser.add_argument("--data-root", type=Path, required=True, help="where their data set lies")
    parser.add_argument("--out", type=Path, default=Path("docs/results/int8-camvid"), help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("int8-work"), help="folder of bundles")
    parser.add_argument("--max-images", type=int, help="images, spread over the split (default: all)")
    arguments = parser.parse_args()
    for trained in arguments.runs:
        bundles = _bundles(trained, arguments.work / trained.name, arguments.data_root)
        result = evaluate(load_checkpoint(trained), bundles, arguments.data_root, arguments.max_images)
        arguments.out.mkdir(parents=True, exist_ok=True)
        file = arguments.out / f"{trained.name}.json"
        write_text(file, json.dumps(result, indent=1) + "\n")
        print("\n".join([str(file), *rows(result)]), flush=True)


def evaluate(checkpoint: Checkpoint, bundles: list[Bundle], data_root: Path, limit: int | None) -> dict[str, Any]:
    """
    Count the pixels that each engine gets right.

    Parameters
    ----------
    checkpoint : Checkpoint
        On whose network attacks are made.
    bundles : list of Bundle
        The fp32 one of each engine before its int8 ones.
    data_root : Path
    limit : int, optional

    Returns
    -------
    dict
        Ready for JSON: counts as in `ddcat.metrics`, summed over the images.
    """
    segmenter = checkpoint.segmenter().requires_grad_(requires_grad=False)
    description = checkpoint.description
    data, classes = description.config.data, len(description.classes)
    epsilon, alpha = (float((description.attack or _PAPER)[key]) for key in ("epsilon", "alpha"))
    dataset = open_dataset(data.name, data_root, data.val_split, rule=data.rule(evaluation=True))
    engines = [open_engine(bundle) for bundle in bundles]
    counts = np.zeros((len(engines), len(_CASES), classes, 3), np.int64)
    images = 0
    with progress(f"evaluating {checkpoint.path.parent.name}", min(limit or len(dataset), len(dataset))) as advance:
        for _, pixels, labels in evaluation_batches(dataset, batch_size=1, limit=limit):
            shown = [(pixels * 255).round().byte()] + [
                _attacked(segmenter, pixels, labels, epsilon=epsilon, alpha=alpha, steps=steps, seed=images) for steps in _STEPS
            ]
            for case, planes in enumerate(shown):
                image = np.ascontiguousarray(planes.permute(0, 2, 3, 1).numpy())  # (1, H, W, 3) uint8
                for place, engine in enumerate(engines):
                    counts[place, case] += confusion_counts(labels.numpy(), engine.infer(image).labels, classes)
            images += 1
            advance(1)
    found = []
    for bundle, engine, counted in zip(bundles, engines, counts, strict=True):
        manifest, int8 = bundle.manifest, bundle.manifest.quantisation
        found.append(
            {
                "engine": manifest.engine.name,
                "precision": manifest.engine.effective_precision,
                "file": manifest.engine.file,
                "bytes": manifest.files[manifest.engine.file].bytes,
                "quantisation": None if int8 is None else int8.model_dump(mode="json"),
                "counts": dict(zip(_CASES, counted.tolist(), strict=True)),
            }
        )
        engine.close()
    return {
        "run": checkpoint.path.parent.name,
        "checkpoint": checkpoint.sha256(),
        "classes": list(description.classes.names),
        "split": data.val_split,
        "images": images,
        "attack": {
            "name": "PGD",
            "epsilon": epsilon,
            "alpha": alpha,
            "start": "random",
            "steps": list(_STEPS),
            "made_on": "PyTorch",
            "bits": 8,
        },
        "versions": bundles[-1].manifest.versions,
        "engines": found,
    }


def _attacked(
    segmenter: Segmenter, pixels: Tensor, labels: Tensor, *, epsilon: float, alpha: float, steps: int, seed: int
) -> Tensor:
    found = pgd(
        segmenter, pixels, labels, epsilon=epsilon, alpha=alpha, steps=steps, start="random", seeds=torch.tensor([seed])
    )
    return to_8_bit(found, pixels)


def rows(result: dict[str, Any]) -> list[str]:
    """Write the table of a result: mIoU of fp32, and how many points int8 loses (+) or gains (-)."""
    written, fp32 = [], {}
    for found in result["engines"]:
        points = [100 * miou(np.asarray(found["counts"][case])) for case in _CASES]
        int8 = found["quantisation"]
        if int8 is None:
            fp32[found["engine"]] = points
            figures, how = [f"{value:.2f}" for value in points], "fp32"
        else:
            figures = [f"{before - value:+.2f}" for before, value in zip(fp32[found["engine"]], points, strict=True)]
            how = f"int8, {int8['calibration']['kind']}"
        written.append(f"| {result['run']} | {found['engine']} | {how} | {' | '.join(figures)} |")
    return written


def _bundles(trained: Path, work: Path, data_root: Path) -> list[Bundle]:
    """For each engine fp32, int8 calibrated on clean images, int8 calibrated on a mix; one export for both engines."""
    int8 = ["--precision", "int8", "--max-drop", "1", "--calibration"]
    first = [
        _bundle(work / f"openvino-{name}", trained, "--engine", "openvino", *options, "--data-root", data_root)
        for name, options in (("fp32", []), ("clean", [*int8, "clean"]), ("mixed", [*int8, "mixed"]))
    ]
    again = [_bundle(work / f"{bundle.path.name}-ort", bundle.path, "--engine", "ort") for bundle in first]
    return first + again


def _bundle(out: Path, *arguments: str | Path) -> Bundle:
    if not out.is_dir():
        command = ["ddcat", "export", *map(str, arguments), "--out", str(out)]
        print("$", shlex.join(command), flush=True)
        if subprocess.run([shutil.which(command[0]) or command[0], *command[1:]], check=False).returncode:
            raise DdcatError(f"{shlex.join(command)} failed: see above")
    return open_bundle(out)


if __name__ == "__main__":
    run(main)
