import dataclasses
import hashlib
import shutil
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from ddcat.classes import CITYSCAPES, VOC, Classes
from ddcat.preprocess import AS_STORED, FileRule, apply_rule, restore
from ddcat_train.data import DATASETS, list_dataset, open_dataset
from ddcat_train.data.check import check
from ddcat_train.data.cityscapes import train_ids
from ddcat_train.data.classes_file import classes_yaml, read_classes
from ddcat_train.data.pictures import read_image, read_mask
from ddcat_train.errors import DataError

Writer = Callable[..., None]

TURNED = FileRule(orientation="exif")
GREY = np.full((6, 8, 3), 128, np.uint8)
EVERY_VALUE = np.arange(256, dtype=np.uint8).reshape(16, 16)


def test_palette_labels_are_read_as_indices(tmp_path: Path, write_labels: Writer) -> None:
    write_labels(tmp_path / "labels.png", EVERY_VALUE)
    with Image.open(tmp_path / "labels.png") as opened:
        assert opened.mode == "P"
        assert not np.array_equal(np.asarray(opened.convert("L")), EVERY_VALUE)  # the trap: its greys are other numbers
    assert np.array_equal(read_mask(tmp_path / "labels.png").pixels, EVERY_VALUE)


@pytest.mark.parametrize(
    ("pixels", "suffix", "told"),
    [
        (np.zeros((4, 4, 2), np.uint8), "png", "mode LA"),
        (np.zeros((4, 4), np.uint16), "png", "mode I;16"),
        (np.zeros((4, 4), np.uint8), "jpg", "JPEG"),
    ],
)
def test_labels_of_a_wrong_form_are_refused(tmp_path: Path, pixels: np.ndarray, suffix: str, told: str) -> None:
    path = tmp_path / f"labels.{suffix}"
    Image.fromarray(pixels).save(path)
    with pytest.raises(DataError, match=told) as caught:
        read_mask(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def png(path: Path, *, bits: int, palette: bool, row: bytes) -> None:
    """Write one row of eight packed values: Pillow itself writes no grey of 2 or 4 bits."""
    header = struct.pack(">IIBBBBB", 8, 1, bits, 3 if palette else 0, 0, 0, 0)
    colours = [(b"PLTE", bytes(48))] if palette else []
    parts = [(b"IHDR", header), *colours, (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part)) for name, part in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


@pytest.mark.parametrize(
    ("bits", "row", "indices"),
    [(1, b"\x05", [0, 0, 0, 0, 0, 1, 0, 1]), (2, b"\x1b\x00", [0, 1, 2, 3, 0, 0, 0, 0]), (4, b"\x01\x23\x45\x67", range(8))],
)
def test_labels_of_few_bits_are_indices_of_a_palette_or_refused(
    tmp_path: Path, bits: int, row: bytes, indices: Sequence[int]
) -> None:
    png(tmp_path / "palette.png", bits=bits, palette=True, row=row)
    assert read_mask(tmp_path / "palette.png").pixels.tolist() == [list(indices)]
    png(tmp_path / "grey.png", bits=bits, palette=False, row=row)
    told = rf"grey\.png is a grey PNG of {bits} bits?, expected 8 bits or a palette$"
    with pytest.raises(DataError, match=told):  # Pillow would stretch its values to 0..255
        read_mask(tmp_path / "grey.png")


def test_sizes_of_image_and_labels_must_agree(small_folder: Path, write_labels: Writer) -> None:
    write_labels(small_folder / "labels/train/3.png", np.zeros((12, 10), np.uint8))
    with pytest.raises(DataError, match=r"3\.png is 10x12, but its image .*3\.png is 12x10"):
        open_dataset("folder", small_folder, "train").read(3)


def test_label_outside_the_classes_is_refused(small_folder: Path, write_labels: Writer) -> None:
    labels = np.zeros((10, 12), np.uint8)
    labels[2, :7] = 3
    write_labels(small_folder / "labels/train/1.png", labels)
    dataset = open_dataset("folder", small_folder, "train")
    dataset.read(0)
    with pytest.raises(DataError, match=r"1\.png: label 3 \(7 pixels\).*0\.\.2 and 255"):
        dataset.read(1)


def test_long_side_keeps_the_form_and_never_mixes_labels(small_folder: Path) -> None:
    whole = open_dataset("folder", small_folder, "train")
    for long_side, shape in ((6, (5, 6)), (24, (20, 24)), (12, (10, 12))):
        sample = open_dataset("folder", small_folder, "train", rule=AS_STORED.with_long_side(long_side)).read(0)
        assert sample.image.shape == (*shape, 3)
        assert sample.labels.shape == shape
        assert set(np.unique(sample.labels)) <= {0, 1, 2, 255}
    assert np.array_equal(sample.image, whole.read(0).image)


def test_long_side_keeps_image_and_labels_aligned() -> None:
    columns = np.broadcast_to(np.arange(0, 240, 2, dtype=np.uint8), (40, 120))
    for long_side in (30, 60, 90, 180, 240, 360):
        image = apply_rule(np.repeat(columns[..., None], 3, -1), AS_STORED.with_long_side(long_side))
        labels = restore(columns, image.shape[:2])
        inner = slice(long_side // 20, -(long_side // 20))
        off = image[..., 0].astype(int) - labels
        # nearest is at most half a source pixel (1 of these values) off, and to either side
        assert np.abs(off[:, inner]).max() <= 1 + (long_side < 120) * 120 / long_side
        assert abs(off[:, inner].mean()) <= 1


def test_the_void_of_camvid_is_ignored(tmp_path: Path, write_image: Writer) -> None:
    write_image(tmp_path / "train/x.jpg", GREY)
    labels = np.tile(np.array([0, 3, 10, 11], np.uint8), (6, 2))
    write_image(tmp_path / "trainannot/x.png", labels)
    (tmp_path / "train.txt").write_text("/SegNet/CamVid/train/x.png /SegNet/CamVid/trainannot/x.png\n")
    sample = open_dataset("camvid", tmp_path, "train").read(0)
    assert sample.name == "x"
    assert np.array_equal(sample.labels, np.where(labels == 11, 255, labels))


def test_cityscapes_ids_of_every_class_and_of_none() -> None:
    ids = {"road": 7, "sidewalk": 8, "building": 11, "sky": 23, "person": 24, "car": 26, "train": 31, "bicycle": 33}
    for name, value in ids.items():
        assert CITYSCAPES.names[train_ids(np.array([value], np.uint8))[0]] == name
    table = train_ids(np.arange(256, dtype=np.uint8))
    assert sorted(table[:34][table[:34] != 255]) == list(range(19))
    assert (table[34:] == np.arange(34, 256)).all()  # not ids: left for the reader to refuse


def test_acdc_is_read_whole_or_by_condition(tmp_path: Path, write_image: Writer) -> None:
    for condition, name, value in (("fog", "GOPR0475_frame_000041", 0), ("night", "GOPR0351_frame_000159", 13)):
        clip = name.partition("_")[0]
        write_image(tmp_path / f"rgb_anon/{condition}/val/{clip}/{name}_rgb_anon.png", GREY)
        write_image(tmp_path / f"rgb_anon/{condition}/val_ref/{clip}/{name}_rgb_ref_anon.png", GREY)
        write_image(tmp_path / f"gt/{condition}/val/{clip}/{name}_gt_labelTrainIds.png", np.full((6, 8), value, np.uint8))
        write_image(tmp_path / f"gt/{condition}/val/{clip}/{name}_gt_labelIds.png", np.full((6, 8), 7, np.uint8))
    whole = open_dataset("cityscapes", tmp_path, "val")
    assert [pair.name for pair in whole.pairs] == ["GOPR0475_frame_000041", "GOPR0351_frame_000159"]
    assert [int(whole.read(place).labels[0, 0]) for place in range(2)] == [0, 13]
    fog = open_dataset("cityscapes", tmp_path, "val-fog")
    assert [pair.name for pair in fog.pairs] == ["GOPR0475_frame_000041"]
    with pytest.raises(DataError, match=r"has no split 'val-rain': use train, val, or .* \(fog, night\) such as val-fog"):
        open_dataset("cityscapes", tmp_path, "val-rain")
    shutil.rmtree(tmp_path / "gt/night")
    with pytest.raises(DataError, match="the labels of ACDC are a second archive"):
        open_dataset("cityscapes", tmp_path, "val")


def test_classes_file_is_read_back(tmp_path: Path) -> None:
    classes = Classes(("a", "b: c"), ((0, 1, 2), (255, 0, 9)))
    (tmp_path / "classes.yaml").write_text(classes_yaml(classes))
    assert read_classes(tmp_path / "classes.yaml") == classes


def test_what_is_missing_is_told(tmp_path: Path, small_folder: Path) -> None:
    for name in DATASETS:
        with pytest.raises(DataError, match=str(tmp_path / "nowhere")):
            open_dataset(name, tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="ddcat data scenes"):
        open_dataset("scenes", tmp_path / "nowhere", "train")
    with pytest.raises(DataError, match="scenes, voc, cityscapes, camvid, folder"):
        open_dataset("vok", tmp_path, "train")
    with pytest.raises(DataError, match="splits there: train"):
        open_dataset("folder", small_folder, "val")
    (small_folder / "labels/train/2.png").unlink()
    with pytest.raises(DataError, match=r"labels/train/2\.png.*ddcat data check folder"):
        open_dataset("folder", small_folder, "train")


def test_empty_and_odd_lists_are_refused(tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n")
    (lists / "val.txt").write_text("a b c\n")
    with pytest.raises(DataError, match="empty"):
        open_dataset("voc", tmp_path, "train")
    with pytest.raises(DataError, match="3 columns"):
        open_dataset("voc", tmp_path, "val")
    with pytest.raises(DataError, match=r"the list .*trian\.txt is missing; .*train, val"):
        open_dataset("voc", tmp_path, "trian")


def test_list_hash_tells_splits_apart(small_folder: Path) -> None:
    dataset = open_dataset("folder", small_folder, "train")
    assert dataset.list_sha256() == hashlib.sha256(b"0\n1\n2\n3\n4").hexdigest()
    fewer = dataclasses.replace(dataset, pairs=dataset.pairs[:-1])
    assert fewer.list_sha256() != dataset.list_sha256()


def test_real_samples(real_data: Path) -> None:
    voc = open_dataset("voc", real_data / "voc_sample", "train")
    assert {VOC.names[value] for value in np.unique(voc.read(0).labels) if value != 255} == {"background", "bottle", "person"}
    camvid = open_dataset("camvid", real_data / "camvid", "val", rule=AS_STORED.with_long_side(240))
    assert len(camvid) == 101
    assert camvid.read(0).image.shape == (180, 240, 3)


def test_cityscapes_table_on_the_real_sample(real_data: Path) -> None:
    folder = real_data / "cityscapes_sample/gtFine/val/frankfurt"
    ids = read_mask(folder / "frankfurt_000000_000294_gtFine_labelIds.png").pixels
    expected = read_mask(folder / "frankfurt_000000_000294_gtFine_labelTrainIds.png").pixels
    assert round(float((train_ids(ids) == expected).mean()), 4) == 0.9977


def told(root: Path, split: str = "train") -> list[str]:
    return [fault.message for fault in check(list_dataset("folder", root, split)).faults]


def test_a_file_of_another_format_is_pointed_at(small_folder: Path) -> None:
    labels = small_folder / "labels/train/1.png"
    labels.rename(labels.with_suffix(".tif"))
    assert told(small_folder) == [f"{labels} is missing; 1.tif is there: convert it to PNG"]
    (small_folder / "labels/train/1.tif").unlink()
    assert told(small_folder) == [f"{labels} is missing"]


def test_an_image_that_lies_on_its_side_is_told(small_folder: Path, write_labels: Writer) -> None:
    write_labels(small_folder / "labels/train/1.png", np.zeros((12, 10), np.uint8))
    write_labels(small_folder / "labels/train/2.png", np.zeros((12, 9), np.uint8))
    turned, other = told(small_folder)
    assert turned.endswith(", as stored: an orientation that EXIF speaks of is not applied; use data.orientation=exif to do so")
    assert other.endswith("must be of one size")
    applied = [fault.message for fault in check(list_dataset("folder", small_folder, "train", rule=TURNED)).faults]
    assert applied[0].endswith("after the orientation that EXIF speaks of; use data.orientation=stored to leave it out")


@pytest.mark.parametrize("name", ["1.png", "1.jpg"])
def test_an_orientation_is_applied_to_the_image_where_asked_for(small_folder: Path, name: str) -> None:
    files = small_folder / "images/train", small_folder / "labels/train/1.png"
    image, labels = (np.asarray(Image.open(file)) for file in (files[0] / "1.png", files[1]))
    exif = Image.Exif()
    exif[0x0112] = 6  # the stored picture is turned to the right
    (files[0] / "1.png").unlink()
    Image.fromarray(np.rot90(image, 1)).save(files[0] / name, exif=exif)
    stored = open_dataset("folder", small_folder, "train")
    with pytest.raises(DataError, match="must be of one size"):
        stored.read(1)
    for rule in (TURNED, TURNED.with_long_side(6)):
        dataset = open_dataset("folder", small_folder, "train", rule=rule)
        sample = dataset.read(1)
        assert dataset.size(1) == sample.labels.shape == ((10, 12) if rule.resize is None else (5, 6))
        assert np.array_equal(sample.full_labels, labels)
    if name == "1.png":
        assert np.array_equal(open_dataset("folder", small_folder, "train", rule=TURNED).read(1).image, image)


def test_images_and_labels_that_do_not_pair_are_named(small_folder: Path, write_image: Writer, tmp_path: Path) -> None:
    write_image(small_folder / "images/train/3.jpg", GREY)
    with pytest.raises(DataError, match=r"3\.jpg and .*3\.png have one name: labels/3\.png can be that of one only"):
        open_dataset("folder", small_folder, "train")
    for file in (small_folder / "images/train").iterdir():
        file.unlink()
    write_image(small_folder / "images/train/other.png", GREY)
    with pytest.raises(DataError, match=r"no image in .* has labels of its name .* other\.png needs other\.png, not 0\.png"):
        open_dataset("folder", small_folder, "train")
    (tmp_path / "train.txt").write_text("train/x.png\n")
    with pytest.raises(DataError, match=r"train\.txt: 'train/x\.png' stands alone, expected 'image labels'"):
        open_dataset("camvid", tmp_path, "train")
    for file in ("train/x.png", "trainannot/x.png"):
        write_image(tmp_path / file, GREY)
    for more in (" and more", ",1"):
        (tmp_path / "train.txt").write_text(f"train/x.png trainannot/x.png{more}\n")
        with pytest.raises(DataError, match=r"has 4 columns and is not the name of a file|x\.png,1"):
            open_dataset("camvid", tmp_path, "train")
    for folder in ("leftImg8bit", "gtFine"):
        (tmp_path / folder / "val").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no image, expected files like aachen/aachen_000000_000019_leftImg8bit\.png"):
        open_dataset("cityscapes", tmp_path, "val")


def test_what_is_no_picture_of_8_bits_is_refused_with_its_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png is an image of mode I;16, expected RGB or grey of 8 bits"):
        read_image(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("nothing")
    with pytest.raises(DataError, match=r"text\.png is not a readable label file"):
        read_mask(tmp_path / "text.png")


def test_images_of_16_bits_are_read_by_their_values_and_bands_by_their_numbers(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((4, 4, 3), 4095, np.uint16))
    assert (read_image(tmp_path / "deep.png", FileRule(values=(0, 4095))) == 255).all()
    with pytest.raises(DataError, match=r"deep\.png is a PNG of 16 bits a channel, expected 8: data\.values reads it"):
        read_image(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png is a PNG of 16 bits a channel, expected 8"):
        read_mask(tmp_path / "deep.png")
    Image.fromarray(np.dstack([GREY[..., 0] + n for n in range(3)])).save(tmp_path / "plain.png")
    assert read_image(tmp_path / "plain.png", FileRule(bands=(3, 2)))[0, 0].tolist() == [130, 129]
    for name, rule in (("plain.png", FileRule(values=(0, 4095))), ("plain.png", FileRule(bands=(7,)))):
        with pytest.raises(DataError, match=r"plain\.png: "):
            read_image(tmp_path / name, rule)


@pytest.mark.parametrize("long_side", [None, 5, 12, 30, 333])
def test_the_size_is_told_from_the_head_of_the_file_alone(
    small_folder: Path, monkeypatch: pytest.MonkeyPatch, long_side: int | None
) -> None:
    dataset = open_dataset("folder", small_folder, "train", rule=AS_STORED.with_long_side(long_side))
    expected = [dataset.read(index).labels.shape for index in range(len(dataset))]
    monkeypatch.setattr(Image.Image, "load", None)  # no pixel is decoded
    assert [dataset.size(index) for index in range(len(dataset))] == expected


def test_a_split_without_any_image_is_refused(small_folder: Path) -> None:
    for folder in ("images", "labels"):
        for file in (small_folder / folder / "train").iterdir():
            file.unlink()
    with pytest.raises(DataError, match=r"train holds no image, expected files that end in .*\.jpg"):
        list_dataset("folder", small_folder, "train")
