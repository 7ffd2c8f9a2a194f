"""
Score a served bundle from its HTTP answers alone, and compare with its engine called directly.

    python examples/score_over_http.py BUNDLE [--max-images N] [--out FILE.json]

Starts `ddcat serve BUNDLE` on a free port of this machine. Every image of the bundle's validation split is sent as a PNG,
as it is and attacked (BIM on the checkpoint that the bundle names, rounded to 8 bits, n = 3 and 7); the palette PNG that comes
back is read as labels and scored. The same arrays go to the engine. Exits with 1 if any pixel or figure differs.
"""

import io
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from server_process import ask, served

from ddcat.atomic_files import write_json
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.engines import open_engine
from ddcat.metrics import confusion_counts, miou
from ddcat_bench.inputs import main_branch, open_bundle_data, reference_of
from ddcat_train.attacks import trajectory
from ddcat_train.data.loader import evaluation_batches
from ddcat_train.pixels import to_8_bit, to_pixels

STEPS = (0, 3, 7)


app = typer.Typer(add_completion=False)


@app.command()
def score(
    bundle: Annotated[Path, typer.Argument()],
    max_images: Annotated[int | None, typer.Option(help="Use at most this many images, spread evenly over the split.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies now.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures there as JSON.")] = None,
) -> None:
    """Score a served bundle from its HTTP answers alone, and compare with its engine called directly."""
    opened = open_bundle(bundle)
    dataset = open_bundle_data(opened, data_root=data_root)
    network = main_branch(reference_of(opened), torch.device("cpu"))
    classes = len(dataset.classes)
    over_http = {n: np.zeros((classes, 3), np.int64) for n in STEPS}
    directly = {n: np.zeros((classes, 3), np.int64) for n in STEPS}
    differing, images_sent = 0, 0
    with served(bundle) as address, open_engine(opened) as engine:
        for _, images, labels in evaluation_batches(dataset, batch_size=8, limit=max_images):
            truth = labels.numpy()
            for point in trajectory(network, images, labels, steps=max(STEPS)):
                if point.steps not in STEPS:
                    continue
                pixels = to_pixels(to_8_bit(point.images, images))
                for image, expected in zip(pixels, truth, strict=True):
                    answer = np.asarray(Image.open(io.BytesIO(ask(address, image))))
                    called = engine.infer(image[None]).labels[0]
                    differing += int((answer != called).sum())
                    images_sent += 1
                    over_http[point.steps] += confusion_counts(expected, answer, classes)
                    directly[point.steps] += confusion_counts(expected, called, classes)
    figures = {f"n = {n}": {"http": miou(over_http[n]), "engine": miou(directly[n])} for n in STEPS}
    for name, pair in figures.items():
        print(f"{name}: mIoU over HTTP {pair['http']:.6f}, of the engine {pair['engine']:.6f}")
    print(f"{images_sent} images sent, {differing} pixels differ")
    if out is not None:
        write_json(out, {"bundle": opened.digest, "images": images_sent, "differing_pixels": differing, "miou": figures})
    if differing or any(pair["http"] != pair["engine"] for pair in figures.values()):
        sys.exit(1)


if __name__ == "__main__":
    run(app)
