"""The pictures show the images on which most labels differ, and where."""

import base64
import io

import numpy as np
import torch
from PIL import Image

from ddcat.engines import Outputs
from ddcat_bench.gate.disagreement import MARGINS, Disagreement
from ddcat_bench.gate.overlays import _FLIP, overlays
from ddcat_bench.inputs import main_branch
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset


def pixels(address: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("RGB"))


def test_the_worst_images_with_their_flips(checkpoint: Checkpoint, scenes: Dataset) -> None:
    network = main_branch(checkpoint, torch.device("cpu"))

    class Wrong:
        """The model but for a corner."""

        def infer(self, images: np.ndarray) -> Outputs:
            with torch.no_grad():
                labels = network(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy().astype(np.uint8)
            labels[:, :5, :7] = (labels[:, :5, :7] + 1) % len(scenes.classes)
            return Outputs(labels=labels)

    numbers = np.ones((len(scenes), 5 + 2 * len(MARGINS)), np.int64)
    numbers[:, 1] = [3, 9, 1, 7, 2]  # flips
    names = [pair.name for pair in scenes.pairs]
    found = overlays(network, Wrong(), scenes, names, Disagreement.from_array(numbers), images=2)  # type: ignore[arg-type]
    captions = [overlay.caption.partition(":")[0] for overlay in found]
    assert captions == [f"{names[place]}, {label}" for place in (1, 3) for label in ("clean", "BIM, n = 3")]
    for overlay in found:
        pictures = dict(overlay.pictures)
        flips = (pixels(pictures["where they differ"]) == _FLIP).all(2)
        assert flips[:5, :7].all()
        assert flips.sum() == 35
        assert f"{35 / flips.size:.3%} of the labels differ" in overlay.caption
        same = (pixels(pictures["PyTorch model"]) == pixels(pictures["engine"])).all(2)
        np.testing.assert_array_equal(same, ~flips)
