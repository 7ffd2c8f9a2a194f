"""Which files of a data set belong together, in the forms in which people have them; none is left out without a word."""

import os
import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ddcat.classes import CITYSCAPES
from ddcat_train.data import Dataset, list_dataset, open_dataset
from ddcat_train.data.check import check
from ddcat_train.data_cli import app
from ddcat_train.errors import DataError

Writer = Callable[..., None]
Maker = Callable[..., Path]

IMAGE = np.full((6, 8, 3), 128, np.uint8)
LABELS = np.tile(np.array([0, 1], np.uint8), (6, 4))


@pytest.fixture
def voc_of(tmp_path: Path, write_image: Writer, write_labels: Writer) -> Maker:
    """A data set in the layout of VOC: two classes, and a list `train`, given as it is written, of some of the names."""

    def make(listed: bytes, *names: str, image: str = ".jpg", labels: str = "SegmentationClass") -> Path:
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (tmp_path / "ImageSets/Segmentation/train.txt").write_bytes(listed)
        (tmp_path / "classes.yaml").write_text("names: [ground, wall]\n")
        for name in names:
            write_image(tmp_path / f"JPEGImages/{name}{image}", IMAGE)
            write_labels(tmp_path / f"{labels}/{name}.png", LABELS)
        return tmp_path

    return make


@pytest.fixture
def camvid_of(tmp_path: Path, write_image: Writer, write_labels: Writer) -> Maker:
    """A data set in the layout of CamVid, and its list `train`, given as it is written."""

    def make(listed: bytes, *names: str) -> Path:
        (tmp_path / "train.txt").write_bytes(listed)
        for name in names:
            write_image(tmp_path / f"train/{name}.png", IMAGE)
            write_labels(tmp_path / f"trainannot/{name}.png", LABELS)
        return tmp_path

    return make


def sound(dataset: Dataset) -> list[str]:
    """The names of the pairs, each of which can be read."""
    return [dataset.read(index).name for index in range(len(dataset))]


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        (b"\xef\xbb\xbfp0\np1\n", ["p0", "p1"]),
        (b"p0\r\np1\r\n\r\n", ["p0", "p1"]),
        (b"p0\rp1", ["p0", "p1"]),
        (b"  p0\t\n", ["p0"]),
        (b"my photo\n", ["my photo"]),
        (b"p0.jpg\nmy photo.PNG\n", ["p0", "my photo"]),
        ("café\n".encode(), ["café"]),
        (unicodedata.normalize("NFD", "café\n").encode(), ["café"]),
        (b"JPEGImages\\p0.jpg SegmentationClass\\p0.png\n", ["p0"]),
        (b"JPEGImages/my photo.jpg SegmentationClass/my photo.png\n", ["my photo"]),
        (b"JPEGImages/my photo.jpg\tSegmentationClass/my photo.png\n", ["my photo"]),
        (b"\\JPEGImages\\my photo.jpg  \\SegmentationClass\\my photo.png\n", ["my photo"]),
    ],
)
@pytest.mark.parametrize("suffix", [".jpg", ".PNG"])
def test_lists_of_voc_in_every_form(voc_of: Maker, listed: bytes, names: list[str], suffix: str) -> None:
    root = voc_of(listed, *names, image=suffix)
    dataset = open_dataset("voc", root, "train")
    assert [unicodedata.normalize("NFC", name) for name in sound(dataset)] == names


@pytest.mark.parametrize(
    "listed",
    [
        b"\xef\xbb\xbftrain/a b.png trainannot/a b.png\n",
        b"train\\a b.png trainannot\\a b.png\r\n",
        b"train/a b.jpg\ttrainannot/a b.png\n",
        b"/SegNet/CamVid/train/a b.png /SegNet/CamVid/trainannot/a b.png\n",
        b"C:\\SegNet\\CamVid\\train\\a b.png C:\\SegNet\\CamVid\\trainannot\\a b.png\n",
        b"train/A B.PNG trainannot/A B.PNG\n",
    ],
)
def test_lists_of_camvid_in_every_form(camvid_of: Maker, listed: bytes) -> None:
    name = "A B" if b"A B" in listed else "a b"
    assert sound(open_dataset("camvid", camvid_of(listed, name), "train")) == [name]


@pytest.mark.parametrize(
    ("listed", "told"),
    [
        ("p0\n".encode("utf-16"), r"train\.txt is not UTF-8 but UTF-16: save it as UTF-8$"),
        ("p0\n".encode("utf-16-be"), r"train\.txt is not a text file: line 1 holds a NUL"),
        ("p0\ncafé\n".encode("latin-1"), r"train\.txt is not UTF-8 \(line 2\): save it as UTF-8$"),
        (b"p0\n\0\n", r"train\.txt is not a text file: line 2 holds a NUL"),
        (b"", r"train\.txt is empty"),
        (b"\xef\xbb\xbf\r\n", r"train\.txt is empty"),
    ],
)
@pytest.mark.parametrize("name", ["voc", "camvid"])
def test_a_list_that_is_no_text_is_told_in_one_line(
    voc_of: Maker, camvid_of: Maker, name: str, listed: bytes, told: str
) -> None:
    root = {"voc": voc_of, "camvid": camvid_of}[name](listed, "p0")
    with pytest.raises(DataError, match=told) as caught:
        list_dataset(name, root, "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["voc", "camvid"])
def test_an_entry_of_a_list_that_is_no_file_is_named(voc_of: Maker, camvid_of: Maker, name: str) -> None:
    for word in ("nowhere", "x" * 5000):
        line = word if name == "voc" else f"train/{word}.png trainannot/{word}.png"
        root = {"voc": voc_of, "camvid": camvid_of}[name](line.encode() + b"\n", "p0")
        result = CliRunner().invoke(app, ["check", name, str(root)])
        assert isinstance(result.exception, DataError)
        assert result.output.count("missing: ") == 2
        assert max(map(len, result.output.splitlines())) < 1500
        with pytest.raises(DataError, match="missing: 'ddcat data check"):
            open_dataset(name, root, "train")


@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a named pipe"), (os.mkdir, "a directory")])
@pytest.mark.parametrize(
    ("name", "file"),
    [("voc", "classes.yaml"), ("voc", "ImageSets/Segmentation/train.txt"), ("camvid", "train.txt")],
)
def test_a_list_that_is_no_regular_file_is_told_and_never_waited_for(
    voc_of: Maker, camvid_of: Maker, name: str, file: str, make: Callable[[Path], None], kind: str
) -> None:
    root = {"voc": voc_of, "camvid": camvid_of}[name](b"p0\n" if name == "voc" else b"train/p0.png trainannot/p0.png\n", "p0")
    (root / file).unlink()
    make(root / file)
    with pytest.raises(DataError, match=f"^{re.escape(str(root / file))} is {kind}, expected a regular file") as caught:
        list_dataset(name, root, "train")
    assert "\n" not in str(caught.value)


def test_only_files_are_named_as_lists_that_are_there(camvid_of: Maker) -> None:
    root = camvid_of(b"train/p0.png trainannot/p0.png\n", "p0")
    os.mkfifo(root / "other.txt")
    with pytest.raises(DataError, match=r"nowhere\.txt is missing; splits that have a list there: train \("):
        list_dataset("camvid", root, "nowhere")


def test_names_alone_take_the_augmented_labels_where_more_of_them_are_there(voc_of: Maker) -> None:
    root = voc_of(b"p0\np1\n", "p0", "p1", labels="SegmentationClassAug")
    (root / "SegmentationClass").mkdir()
    shutil.copy(root / "SegmentationClassAug/p0.png", root / "SegmentationClass/p0.png")
    dataset = open_dataset("voc", root, "train")
    assert {pair.labels.parent.name for pair in dataset.pairs} == {"SegmentationClassAug"}
    assert "the labels are those of SegmentationClassAug" in check(dataset).warnings
    shutil.copy(root / "SegmentationClassAug/p1.png", root / "SegmentationClass/p1.png")
    assert {pair.labels.parent.name for pair in open_dataset("voc", root, "train").pairs} == {"SegmentationClass"}


def test_images_in_sub_folders_belong_to_the_masks_of_the_same_sub_folder(small_folder: Path) -> None:
    for kind in ("images", "labels"):
        (small_folder / kind / "train/seq1/b").mkdir(parents=True)
        (small_folder / kind / "train/seq2").mkdir()
        for index, folder in ((0, "seq1"), (1, "seq1/b"), (2, "seq2")):
            (small_folder / kind / f"train/{index}.png").rename(small_folder / kind / "train" / folder / f"{index}.png")
        shutil.copy(small_folder / kind / "train/seq1/0.png", small_folder / kind / "train/seq2/0.png")
    dataset = open_dataset("folder", small_folder, "train")
    assert sound(dataset) == ["3", "4", "seq1/0", "seq1/b/1", "seq2/0", "seq2/2"]
    (small_folder / "labels/train/seq2/0.png").unlink()
    assert [fault.kind for fault in check(list_dataset("folder", small_folder, "train")).faults] == ["missing"]


def test_linked_sub_folders_are_read_and_a_loop_ends(small_folder: Path, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (small_folder / kind / "train").rename(tmp_path / kind)
        (small_folder / kind / "train").mkdir()
        (small_folder / kind / "train/linked").symlink_to(tmp_path / kind)
        (tmp_path / kind / "again").symlink_to(tmp_path / kind)
    assert sound(open_dataset("folder", small_folder, "train")) == [f"linked/{index}" for index in range(5)]


def test_a_list_is_found_in_either_unicode_form_of_its_name(voc_of: Maker) -> None:
    lists = voc_of(b"p0\n", "p0") / "ImageSets/Segmentation"
    (lists / "train.txt").rename(lists / "cafe\u0301.txt")
    assert len(open_dataset("voc", lists.parents[1], "caf\u00e9")) == 1


def test_a_link_to_itself_is_no_file_and_hides_no_other(small_folder: Path, voc_of: Maker) -> None:
    voc = voc_of(b"p0\n", "p0")
    (voc / "JPEGImages/p0.jpg").rename(voc / "JPEGImages/p0.JPG")
    for folder in (small_folder / "images/train", small_folder / "labels/train", voc / "JPEGImages"):
        (folder / "self").symlink_to("self")
    assert len(open_dataset("folder", small_folder, "train")) == 5
    assert open_dataset("voc", voc, "train").pairs[0].image.name == "p0.JPG"


def test_hidden_files_and_folders_are_no_part_of_a_data_set(small_folder: Path) -> None:
    for kind in ("images", "labels"):
        for file in list((small_folder / kind / "train").iterdir()):
            (file.parent / f"._{file.name}").write_bytes(b"\0\5\26\7")
        for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
            (small_folder / kind / "train" / name).write_bytes(b"\0")
        for folder in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
            shutil.copytree(small_folder / kind / "train", small_folder / kind / "aside")
            (small_folder / kind / "aside").rename(small_folder / kind / "train" / folder)
            (small_folder / kind / folder).mkdir()
    report = check(list_dataset("folder", small_folder, "train"))
    assert (report.pairs, report.faults, report.warnings) == (5, (), ())
    for kind in ("images", "labels"):  # one split, without a folder of its own
        (small_folder / kind / "train").rename(small_folder / "aside")
        shutil.copytree(small_folder / "aside", small_folder / kind, dirs_exist_ok=True)
        shutil.rmtree(small_folder / "aside")
    assert sound(open_dataset("folder", small_folder, "train")) == ["0", "1", "2", "3", "4"]


def test_suffixes_may_be_in_capitals_and_names_in_either_unicode_form(small_folder: Path) -> None:
    for kind, form in (("images", "NFD"), ("labels", "NFC")):
        for index in range(5):
            name = f"{unicodedata.normalize(form, 'é')}{index}.PNG"
            (small_folder / kind / f"train/{index}.png").rename(small_folder / kind / "train" / name)
    assert sound(open_dataset("folder", small_folder, "train")) == [f"é{index}" for index in range(5)]


@pytest.mark.parametrize("name", ["images/train/0.png", "images/train/cafe\u0301.jpg"])
def test_two_images_of_one_name_are_told(small_folder: Path, name: str, write_image: Writer) -> None:
    write_image(small_folder / "images/train/café.png", IMAGE)
    write_image(small_folder / name.replace(".png", ".JPG"), IMAGE)
    with pytest.raises(DataError, match="have one name"):
        list_dataset("folder", small_folder, "train")


@pytest.mark.parametrize("name", [b"images/train/caf\xe9.png", b"labels/train/caf\xe9.png", b"images/train/\xe9/a.png"])
def test_names_that_are_not_utf8_are_refused_before_anything_is_read(small_folder: Path, name: bytes) -> None:
    path = os.fsencode(small_folder) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    shutil.copy(small_folder / "images/train/0.png", path)
    for act in (open_dataset, list_dataset):
        with pytest.raises(DataError, match=r"is not UTF-8, .*rename it") as caught:
            act("folder", small_folder, "train")
    result = CliRunner().invoke(app, ["check", "folder", str(small_folder)])
    assert isinstance(result.exception, DataError)
    assert "\n" not in str(caught.value)
    renamed = Path(os.fsdecode(os.fsencode(small_folder) + b"\xe9"))
    small_folder.rename(renamed)
    with pytest.raises(DataError, match="the path of the data set is not UTF-8"):
        list_dataset("folder", renamed, "val")


def test_files_that_are_not_taken_are_counted(small_folder: Path, voc_of: Maker) -> None:
    for name in ("a.bmp", "sub/b.tif", "c.webp"):
        (small_folder / "images/train" / name).parent.mkdir(exist_ok=True)
        (small_folder / "images/train" / name).write_bytes(b"")
    (small_folder / "images/d.jpg").write_bytes(b"")
    images = small_folder / "images"
    warnings = check(list_dataset("folder", small_folder, "train")).warnings
    assert f"not taken: 3 files in {images / 'train'}, for example a.bmp" in warnings
    assert any(line.startswith(f"1 files in {images}, beside the folders") for line in warnings)
    root = voc_of(b"p0\n", "p0", "p1", "p2", "p3")
    (root / "ImageSets/Segmentation/val.txt").write_text("p1\n")
    warnings = check(list_dataset("voc", root, "train")).warnings
    assert f"not taken: 2 files in {root / 'JPEGImages'}, for example p2.jpg" in warnings
    assert f"not taken: 2 files in {root / 'SegmentationClass'}, for example p2.png" in warnings


def test_cityscapes_reads_coarse_labels_where_there_are_no_fine_ones(
    tmp_path: Path, write_image: Writer, write_labels: Writer
) -> None:
    stem = "train_extra/aachen/aachen_000000_000019"
    write_image(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", IMAGE)
    write_image(tmp_path / "leftImg8bit/train_extra/aachen/._x_leftImg8bit.png", IMAGE)
    write_labels(tmp_path / f"gtCoarse/{stem}_gtCoarse_labelIds.png", np.full((6, 8), 26, np.uint8))
    dataset = open_dataset("cityscapes", tmp_path, "train_extra")
    assert (dataset.read(0).labels == CITYSCAPES.names.index("car")).all()
    assert len(dataset) == 1
    assert "the labels are those of gtCoarse" in check(dataset).warnings
    write_labels(tmp_path / f"gtFine/{stem}_gtFine_labelTrainIds.png", np.full((6, 8), 2, np.uint8))
    assert (open_dataset("cityscapes", tmp_path, "train_extra").read(0).labels == 2).all()


def test_a_tilde_is_the_home_folder(small_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(small_folder.parent))
    assert len(open_dataset("folder", Path("~/small"), "train")) == 5
    with pytest.raises(DataError, match="nobody_of_this_name"):
        open_dataset("folder", Path("~nobody_of_this_name/small"), "train")


def test_names_with_control_characters_do_not_reach_the_terminal(small_folder: Path) -> None:
    for kind in ("images", "labels"):
        (small_folder / kind / "train/0.png").rename(small_folder / kind / "train/a\x1b[2J\n\u202eb.png")
    (small_folder / "labels/train/a\x1b[2J\n\u202eb.png").write_bytes(b"no mask")
    (small_folder / "classes.yaml").write_text("names: ['[bold]ground[/]', '[/]', ':smile:']\n")
    result = CliRunner().invoke(app, ["check", "folder", str(small_folder)])
    assert isinstance(result.exception, DataError)
    assert not set(result.output) & set("\x1b\u202e")
    assert r"a\x1b[2J\x0a\u202eb.png is not a readable label file" in result.output
    for name in ("[bold]ground[/]", "[/]", ":smile:"):
        assert name in result.output


def test_a_classes_file_is_used_in_every_layout(
    voc_of: Maker, camvid_of: Maker, tmp_path: Path, write_image: Writer, write_labels: Writer
) -> None:
    voc_of(b"p0\n", "p0")
    camvid_of(b"train/p0.png trainannot/p0.png\n", "p0")
    write_image(tmp_path / "leftImg8bit/train/x/x_leftImg8bit.png", IMAGE)
    write_labels(tmp_path / "gtFine/train/x/x_gtFine_labelIds.png", LABELS)
    (tmp_path / "classes.yaml").write_text("{names: {1: car, 11: tree}, ignore_label: 0, clips: (.)}")
    for name in ("voc", "camvid", "cityscapes"):
        dataset = open_dataset(name, tmp_path, "train")
        assert dataset.classes.names == ("car", "tree")
        assert dataset.clips == "(.)"
        assert np.array_equal(dataset.read(0).labels, np.where(LABELS == 1, 0, 255))
    (tmp_path / "classes.yaml").unlink()
    assert [len(open_dataset(name, tmp_path, "train").classes) for name in ("voc", "camvid", "cityscapes")] == [21, 11, 19]
    (tmp_path / "classes.yaml").symlink_to("nowhere")
    for name in ("voc", "camvid", "cityscapes"):
        with pytest.raises(DataError, match=r"classes\.yaml is missing"):
            open_dataset(name, tmp_path, "train")
