"""Real samples of the real layouts: soundly read, and two steps of training from them."""

from pathlib import Path

import pytest

from ddcat_train.config import load_config
from ddcat_train.data import list_dataset
from ddcat_train.data.check import check
from ddcat_train.run.loop import train
from tests.files import needed

SAMPLES = {
    "voc": ("voc_sample", "train", "val"),
    "cityscapes": ("cityscapes_sample", "val", "val"),
    "camvid": ("camvid", "train", "val"),
}


@pytest.mark.parametrize("name", ["voc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cityscapes", "camvid"))])
def test_a_real_data_set_is_sound_and_trains(name: str, tmp_path: Path) -> None:
    folder, train_split, val_split = SAMPLES[name]
    root = needed(f"data/{folder}")
    report = check(list_dataset(name, root, train_split))
    assert report.faults == ()
    images = report.pairs
    config = load_config(
        "scenes-ddcat",
        [
            f"data.name={name}", f"data.root={root}", f"data.train_split={train_split}", f"data.val_split={val_split}",
            "data.long_side=128", "model.width=4", "augment.policy=paper", "augment.crop=65", "train.evaluate_images=1",
            f"train.batch_size={max(2, -(-images // 2))}", f"train.epochs={2 if images <= 2 else 1}",
        ],
    )  # fmt: skip
    outcome = train(config, tmp_path / "run")
    assert outcome.step == 2
    assert 0 <= outcome.scores["clean"] <= 1
