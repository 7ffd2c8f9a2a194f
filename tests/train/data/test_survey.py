"""What `ddcat data check` and the first lines of a training say of mistakes that would not stop it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from ddcat_train.config import load_config
from ddcat_train.data import list_dataset, open_dataset
from ddcat_train.data.check import check
from ddcat_train.data.first_look import first_look
from ddcat_train.data.synthetic.generate import write_scenes
from ddcat_train.data_cli import app
from ddcat_train.errors import DataError
from ddcat_train.run.loop import train

Writer = Callable[..., None]


@pytest.fixture
def both(small_folder: Path, write_image: Writer) -> Path:
    """A sound data set of two splits, of 5 and 2 images, and three classes."""
    for kind in ("images", "labels"):
        shutil.copytree(small_folder / kind / "train", small_folder / kind / "val")
        for index in (2, 3, 4):
            (small_folder / kind / f"val/{index}.png").unlink()
    for index in (0, 1):
        write_image(small_folder / f"images/val/{index}.png", np.full((10, 12, 3), index, np.uint8))
    return small_folder


def relabel(root: Path, change: Callable[[np.ndarray], np.ndarray], split: str = "*") -> None:
    for file in (root / "labels").glob(f"{split}/*.png"):
        Image.fromarray(change(np.array(Image.open(file))).astype(np.uint8)).save(file)


def look(root: Path) -> list[str]:
    return first_look(open_dataset("folder", root, "train"), open_dataset("folder", root, "val"))


def test_a_sound_data_set_has_no_warning(both: Path) -> None:
    assert look(both) == []
    for split in ("train", "val"):
        assert check(list_dataset("folder", both, split)).warnings == ()


@pytest.mark.parametrize(
    ("change", "names", "told"),
    [
        (lambda x: np.where(x == 1, 255, 0), "[a, b]", "no pixel of b in train; .*% of its pixels are ignored: masks of 0 and"),
        (lambda x: np.where(x == 1, 255, 0), "[a, b, c]", "no pixel of b, c in train; .*: masks of 0 and 255 must be 0 and 1"),
        (lambda x: np.where(x == 1, 1, 0), "[a, b, c, d, e]", "no pixel of c, d, e in train$"),
        (lambda x: np.where(x == 255, 255, 1 + (x == 1)), "[a, b, c]", "no pixel of a in train; .*: labels that begin at 1 "),
        (lambda x: 0 * x, "[a, b]", "no pixel of b in train$"),
        (lambda x: 0 * x, str([f"c{n}" for n in range(30)]), "no pixel of c1, c2, .*, c8 and 21 others in train$"),
        (lambda x: np.where(np.arange(120).reshape(10, 12) < 15, x, 255), "[a, b, c]", "train: 89% of its pixels are ignored$"),
    ],
)
def test_classes_without_a_pixel_are_told(
    both: Path, change: Callable[[np.ndarray], np.ndarray], names: str, told: str
) -> None:
    relabel(both, change)
    (both / "classes.yaml").write_text(f"names: {names}\n")
    report = check(list_dataset("folder", both, "train"))
    assert report.faults == ()
    assert [line for line in report.warnings if re.search(told, line)]
    lines = look(both)
    assert [line for line in lines if re.search(told, line) and line.startswith("warning: ")]
    assert [line for line in lines if "val" in line]


def test_a_class_that_the_other_split_never_shows_is_told(both: Path) -> None:
    for split, other in (("val", "train"), ("train", "val")):
        root = shutil.copytree(both, both.parent / split)
        relabel(root, lambda labels: np.where(labels == 2, 1, labels), split)
        (line,) = look(root)
        assert line.startswith(f"warning: no pixel of roof in {split}; ")
        assert check(list_dataset("folder", root, other)).warnings == ()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_label_is_refused_before_the_first_step(both: Path, tmp_path: Path, split: str) -> None:
    relabel(both, lambda labels: np.full_like(labels, 255), split)
    told = rf"the {split} split at {both} has no labelled pixel: every pixel of its [52] masks is ignored"
    with pytest.raises(DataError, match=told):
        look(both)
    result = CliRunner().invoke(app, ["check", "folder", str(both), "--split", split])
    assert isinstance(result.exception, DataError)
    assert "has no labelled pixel" in str(result.exception)
    config = load_config("scenes-undefended", ["data.name=folder", f"data.root={both}", "augment.crop=33", "model.width=4"])
    with pytest.raises(DataError, match=told):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run/config.yaml").exists()


def test_a_split_whose_only_labels_cannot_be_read_is_refused(both: Path) -> None:
    relabel(both, lambda labels: np.full_like(labels, 255), "train")
    (both / "labels/train/0.png").write_bytes(b"no image")
    Image.fromarray(np.full((10, 12), 7, np.uint8)).save(both / "labels/train/1.png")  # no class
    with pytest.raises(DataError, match=r"no labelled pixel: every pixel of its 3 masks that can be read \(of 5\) is ignored"):
        look(both)
    faults = check(list_dataset("folder", both, "train")).faults  # all are named
    assert [fault.kind for fault in faults] == ["unreadable", "value"]


def test_values_that_are_numbered_on_purpose_bring_no_advice_to_number_them(both: Path) -> None:
    relabel(both, lambda labels: labels * 0 + (np.arange(12) > 5))
    (both / "classes.yaml").write_text("names: {1: a, 2: b}\nignore_label: 0\n")
    assert [line for line in look(both) if "no pixel of b in train" in line]
    assert not [line for line in look(both) if "must be" in line or "must begin" in line]


@pytest.mark.parametrize("colour", [(10, 0, 0), (20, 0, 0)])
def test_masks_in_colours_bring_no_advice_on_numbers(both: Path, colour: tuple[int, int, int]) -> None:
    mask = np.zeros((10, 12, 3), np.uint8)
    mask[:5] = colour
    for file in (both / "labels").glob("*/*.png"):
        Image.fromarray(mask).save(file)
    (both / "classes.yaml").write_text("names: [a, b]\ncolours: [[10, 0, 0], [20, 0, 0]]\nignore_colour: [0, 0, 0]\n")
    absent = "b" if colour == (10, 0, 0) else "a"
    told = [f"no pixel of {absent} in {split}; 50% of its pixels are ignored" for split in ("train", "val")]
    assert look(both) == [f"warning: {line}" for line in told]


def test_labels_of_255_are_a_class_where_they_have_a_name(both: Path) -> None:
    relabel(both, lambda labels: np.where(labels == 1, 255, 0))
    (both / "classes.yaml").write_text("names: {0: a, 255: b}\n")
    assert look(both) == []


def test_orientations_that_are_not_applied_are_counted(both: Path) -> None:
    for index, value in enumerate((1, 2, 3, 8, 9)):
        exif = Image.Exif()
        exif[0x0112] = value
        with Image.open(both / f"images/train/{index}.png") as opened:
            opened.save(both / f"images/train/{index}.png", exif=exif)
    told = f"EXIF orientation, not applied: 3 images of train, for example {both}/images/train/1.png; masks must be drawn on"
    (line,) = check(list_dataset("folder", both, "train")).warnings
    assert line.startswith(told)
    assert look(both) == [f"warning: {line}"]


def test_images_that_two_splits_share_are_told(both: Path) -> None:
    image = both / "images/val/0.png"
    for source, told in (
        ("3.png", f"1 of the 2 images of val are in train, too, for example {image}: "),
        (None, "1 names are in train and in val, for files that differ, for example scene: "),
    ):
        if source:
            shutil.copy(both / "images/train" / source, image)
        else:
            for split, index in (("train", 2), ("val", 0)):
                for kind in ("images", "labels"):
                    (both / kind / split / f"{index}.png").rename(both / kind / split / "scene.png")
            Image.fromarray(np.full((10, 12, 3), 7, np.uint8)).save(both / "images/val/scene.png")
        (line,) = look(both)
        assert line.startswith(f"warning: {told}")
        for split in ("train", "val"):
            assert check(list_dataset("folder", both, split)).warnings == (line.removeprefix("warning: "),)


def test_an_image_that_two_lists_name_is_told(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=4, val=2, size=(48, 48))
    lists = tmp_path / "scenes/ImageSets/Segmentation"
    train_names = (lists / "train.txt").read_text().split()
    (lists / "val.txt").write_text("\n".join(train_names[:2]) + "\n")
    lines = first_look(open_dataset("scenes", tmp_path / "scenes", "train"), open_dataset("scenes", tmp_path / "scenes", "val"))
    assert [line for line in lines if line.startswith("warning: 2 of the 2 images of val are in train, too")]


def test_an_image_that_is_listed_twice_is_told(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=4, val=2, size=(48, 48))
    names = tmp_path / "scenes/ImageSets/Segmentation/train.txt"
    names.write_text(names.read_text() + names.read_text().splitlines()[0] + "\n")
    warnings = check(list_dataset("scenes", tmp_path / "scenes", "train")).warnings
    assert "train lists 1 of its 5 images again: each counts as often as it is listed" in warnings


def test_skipping_is_for_images_to_train_on(both: Path, tmp_path: Path) -> None:
    image = both / "images/val/1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 12, 3)).astype(np.uint8)).save(image)
    content = image.read_bytes()
    image.write_bytes(content[: len(content) // 2])
    overrides = ["data.name=folder", f"data.root={both}", "augment.crop=33", "model.width=4", "train.epochs=1"]
    told = (
        r"1\.png is not a readable image .*; data.skip_corrupt is for training images only, "
        r".*check folder .* --split val' lists every"
    )
    with pytest.raises(DataError, match=told):
        train(load_config("scenes-undefended", [*overrides, "train.workers=0", "data.skip_corrupt=true"]), tmp_path / "run")
    with pytest.raises(DataError, match=r"replace it$"):
        train(load_config("scenes-undefended", [*overrides, "train.workers=0"]), tmp_path / "other")


def test_the_first_lines_of_a_training_are_the_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str], both: Path) -> None:
    relabel(both, lambda labels: np.where(labels == 1, 255, 0))
    (both / "images/train/4.png").write_bytes(b"no image")
    (both / "images/train/more\x1b[2J.webp").write_bytes(b"")
    overrides = [
        "data.name=folder", f"data.root={both}", "augment.crop=33", "model.width=4", "train.epochs=1", "train.batch_size=4",
        "train.workers=0", "data.skip_corrupt=true",
    ]  # fmt: skip
    train(load_config("scenes-undefended", overrides), tmp_path / "run")
    told = capsys.readouterr().err.splitlines()
    first = [line for line in told if line.startswith("warning: ")]
    assert told[1 : 1 + len(first)] == first
    for wanted in (
        "1 of the 5 pairs of train cannot be read",
        "not taken: 1 file",
        "no pixel of wall, roof in train",
        "in val",
    ):
        assert [line for line in first if wanted in line], wanted
    assert "\x1b" not in "".join(told)
    train(load_config("scenes-undefended", overrides), tmp_path / "run", resume=True)
    assert "warning" not in capsys.readouterr().err


def test_warnings_are_in_the_result_for_programs(both: Path, tmp_path: Path) -> None:
    relabel(both, lambda labels: np.where(labels == 2, 1, labels), "train")
    result = CliRunner().invoke(app, ["check", "folder", str(both), "--json", str(tmp_path / "report.json")])
    assert result.exit_code == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sound"] is True
    (line,) = report["warnings"]
    assert line.startswith("no pixel of roof in train")
    assert f"warning: {line}" in result.output.splitlines()
