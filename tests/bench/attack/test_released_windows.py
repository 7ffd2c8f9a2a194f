"""The protocol of windows beside the released evaluation itself; see `tests.released_code`."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddcat.metrics import confusion_counts, miou
from ddcat_bench.attack.attacks import AttackBatch
from ddcat_bench.attack.sliding_window import score_windows
from ddcat_bench.attack.suites import BIM
from ddcat_train import imagenet
from tests.released_code import needs_released_code, released

pytestmark = needs_released_code
CLASSES, SIZES = 3, [(75, 53), (53, 75), (40, 40), (64, 128)]
PLAN = BIM._replace(counted=(0, 2))
MEAN, STD = (torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (imagenet.MEAN, imagenet.STD))


class Network(nn.Module):
    """A small one, in float64, for normalised images."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 5, padding=2), nn.Tanh(), nn.Conv2d(8, CLASSES, 3, padding=1)).double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = 4 * self.layers(images.double())
        return logits


def drawn(folder: Path) -> list[tuple[np.ndarray, np.ndarray, tuple[str, str]]]:
    """Images, labels and the paths of both, of which only the labels' is read again."""
    generator = np.random.default_rng(1)
    found = []
    for index, size in enumerate(SIZES):
        coarse = generator.integers(0, 256, (size[0] // 5, size[1] // 5, 3), dtype=np.uint8)
        image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        labels = generator.choice([0, 1, 2, 255], size, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        paths = f"{index}.jpg", str(folder / f"{index}.png")
        cv2.imwrite(paths[1], labels)
        found.append((image, labels, paths))
    return found


@pytest.mark.parametrize(("steps", "place"), [(0, 0), (2, 1)], ids=["clean", "attacked"])
@pytest.mark.parametrize(
    ("script", "base", "crop"),
    [
        ("voc2012/test_voc_psp.py", 61, (33, 33)),
        ("voc2012/test_voc_psp.py", 90, (41, 65)),
        ("cityscapes/test_city_psp.py", 1024, (449, 449)),
    ],
    ids=["voc-smaller", "voc-larger", "cityscapes"],
)
def test_windows_are_judged_as_released(
    script: str, base: int, crop: tuple[int, int], steps: int, place: int, tmp_path: Path
) -> None:
    at_base = "city" in script
    images = drawn(tmp_path)[-1:] if at_base else drawn(tmp_path)[:-1]
    network = Network()

    def model(batch: Tensor) -> Tensor:
        return network((batch.double() - MEAN) / STD)  # type: ignore[no-any-return]

    predictions = tmp_path / "grey"
    with released(f"tool_test/{script}") as module:
        logged = theirs(module, network, images, predictions, base=base, crop=crop, attacked=steps > 0)

    total = np.zeros((CLASSES, 3), np.int64)
    for image, labels, (name, _) in images:
        planes = torch.from_numpy(np.float32(image) / 255).permute(2, 0, 1)[None]
        victims = AttackBatch(planes, torch.from_numpy(labels).long()[None], torch.tensor([0]))
        found = score_windows(model, model, PLAN, victims, CLASSES, crop=crop, base=base, at_base=at_base)[0, place, 0]
        truth = cv2.resize(labels, (1024, 512), interpolation=cv2.INTER_NEAREST) if at_base else labels
        grey = cv2.imread(str(predictions / name.replace("jpg", "png")), cv2.IMREAD_GRAYSCALE)
        expected = confusion_counts(truth, np.asarray(grey), CLASSES)
        assert np.abs(found - expected).sum() <= 4  # a tie in floats
        total += found
    assert miou(total) == pytest.approx(logged, abs=1e-4)


def theirs(
    module: Any, network: nn.Module, images: Any, folder: Path, *, base: int, crop: tuple[int, int], attacked: bool
) -> float:
    """Their whole test(), which writes predictions into the folder, and the mIoU that their cal_acc() logs."""
    module.args, module.attack_flag = SimpleNamespace(zoom_factor=8), attacked
    module.colorize = MagicMock()  # Pillow of today takes no array for a palette
    loader = [
        (torch.from_numpy(np.float32(image).transpose(2, 0, 1).copy())[None], torch.from_numpy(labels).long()[None])
        for image, labels, _ in images
    ]
    paths, names = [paths for _, _, paths in images], [str(index) for index in range(CLASSES)]
    mean, std = ([255 * value for value in values] for values in (imagenet.MEAN, imagenet.STD))
    module.test(loader, paths, network, CLASSES, mean, std, base, *crop, [1.0], str(folder), str(folder), None)
    module.cal_acc(paths, str(folder), CLASSES, names)
    (line,) = [call.args[0] for call in module.logger.info.call_args_list if str(call.args[0]).startswith("Eval result")]
    return float(line.partition("allAcc ")[2].split("/")[0])
