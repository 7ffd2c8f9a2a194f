import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ddcat.cli import main
from ddcat.preprocess import AS_STORED, FileRule
from ddcat_train.data import list_dataset
from ddcat_train.data.check import check, lines_of
from ddcat_train.data.dataset import Fault
from ddcat_train.data.pictures import read_mask
from ddcat_train.data_cli import app
from tests.banded import bands_of, encoded, write_banded

Writer = Callable[..., None]


def plant_faults(root: Path, write_labels: Writer) -> None:
    (root / "images/train/0.png").write_bytes(b"no image")
    write_labels(root / "labels/train/1.png", np.zeros((12, 10), np.uint8))
    labels = np.zeros((10, 12), np.uint8)
    labels[0, :3], labels[1, :4] = 7, 254
    write_labels(root / "labels/train/2.png", labels)
    (root / "labels/train/3.png").unlink()
    write_labels(root / "labels/train/5.png", np.ones((10, 12), np.uint8))


def test_figures_are_those_of_the_files(small_folder: Path) -> None:
    report = check(list_dataset("folder", small_folder, "train"))
    labels = np.stack([read_mask(small_folder / f"labels/train/{index}.png").pixels for index in range(5)])
    assert report.faults == ()
    assert report.pairs == 5
    assert report.sizes == {(12, 10): 5}
    assert report.ignored == 10
    assert report.pixels.tolist() == [(labels == value).sum() for value in range(3)]
    assert report.class_shares().sum() == pytest.approx(1)
    assert report.ignored_share() == pytest.approx(10 / labels.size)
    assert check(list_dataset("folder", small_folder, "train", rule=AS_STORED.with_long_side(6))).sizes == {(6, 5): 5}


def test_every_planted_fault_is_found(small_folder: Path, write_labels: Writer) -> None:
    plant_faults(small_folder, write_labels)
    report = check(list_dataset("folder", small_folder, "train"))
    assert [(f.kind, str(f.file.relative_to(small_folder)), f.value, f.pixels) for f in report.faults] == [
        ("unreadable", "images/train/0.png", None, None),
        ("size", "labels/train/1.png", None, None),
        ("value", "labels/train/2.png", 7, 3),
        ("value", "labels/train/2.png", 254, 4),
        ("missing", "labels/train/3.png", None, None),
        ("missing", "images/train/5.jpg", None, None),
    ]
    assert all(str(fault.file) in fault.message and "\n" not in fault.message for fault in report.faults)
    assert report.pairs == 6
    assert report.sizes == {(12, 10): 1}


def test_command_tells_a_sound_data_set(small_folder: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", "folder", str(small_folder), "--json", str(tmp_path / "report.json")])
    assert result.exit_code == 0
    assert "5, of which 5 are sound" in result.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["sound"] is True
    assert report["sizes"] == [{"width": 12, "height": 10, "images": 5}]
    assert sum(report["class_shares"].values()) == pytest.approx(1)


def test_command_lists_all_faults_and_exits_2(
    small_folder: Path, write_labels: Writer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result_file = small_folder / "report.json"
    plant_faults(small_folder, write_labels)
    arguments = ["ddcat", "data", "check", "folder", str(small_folder), "--json", str(result_file)]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    told = capsys.readouterr()
    assert told.err == f"error: 6 faults in folder train at {small_folder}, listed above\n"
    faults = json.loads(result_file.read_text())["faults"]
    assert len(faults) == 6
    lines = told.out.splitlines()
    assert all(f"{fault['kind']}: {fault['message']}" in lines for fault in faults)


def test_of_many_lines_of_one_kind_the_first_are_listed(small_folder: Path) -> None:
    report = check(list_dataset("folder", small_folder, "train"))
    many = tuple(Fault("value", small_folder / f"{n}.png", f"{n}.png holds 7") for n in range(175))
    other = Fault("missing", small_folder / "5.jpg", "5.jpg is not there")
    lines = lines_of(dataclasses.replace(report, faults=(*many, other)))
    assert lines == [
        *(f"value: {n}.png holds 7" for n in range(10)),
        "value: 165 more; --json FILE names all",
        "missing: 5.jpg is not there",
    ]


def test_command_generates_scenes(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["scenes", str(tmp_path / "out"), "--train", "2", "--val", "1", "--size", "32x48"])
    assert result.exit_code == 0, result.output
    assert check(list_dataset("scenes", tmp_path / "out", "train")).sizes == {(48, 32): 2}
    assert check(list_dataset("scenes", tmp_path / "out", "val")).faults == ()


def test_real_samples_are_sound(real_data: Path) -> None:
    for name, root, split in (
        ("voc", "voc_sample", "train"),
        ("voc", "voc_sample", "val"),
        ("cityscapes", "cityscapes_sample", "val"),
        ("camvid", "camvid", "val"),
    ):
        assert check(list_dataset(name, real_data / root, split, rule=AS_STORED.with_long_side(120))).faults == ()


def test_camvid_shares_are_those_of_its_description(real_data: Path) -> None:
    report = check(list_dataset("camvid", real_data / "camvid", "train"))
    told = np.array([16.8, 23.3, 1.0, 31.7, 4.5, 9.7, 1.2, 1.1, 5.9, 0.64, 0.29])
    of_all = report.class_shares() * (1 - report.ignored_share()) * 100
    assert np.abs(of_all - told).max() < 0.06
    assert report.pairs == 367


@pytest.mark.parametrize(("count", "suffix"), [(4, "png"), (5, "tif")])
def test_bands_of_16_bits_are_checked_as_training_reads_them(count: int, suffix: str, tmp_path: Path) -> None:
    if suffix == "tif":
        pytest.importorskip("rasterio", reason="rasterio is not installed")
    root = write_banded(tmp_path / "data", count)
    arguments = [
        "check",
        "folder",
        str(root),
        "--bands",
        str(count),
        "--values",
        "100,4195",
        "--json",
        str(tmp_path / "a.json"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "a.json").read_text())
    assert (report["sound"], report["pairs"], report["warnings"]) == (True, 6, [])
    (root / f"images/train/2.{suffix}").unlink()
    encoded(root / f"images/train/2.{suffix}", bands_of(3)[0])
    assert CliRunner().invoke(app, arguments).exit_code == 1
    faults = json.loads((tmp_path / "a.json").read_text())["faults"]
    assert [fault["message"].partition(": ")[2] for fault in faults] == [f"it has 3 bands, expected {count}"]


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("folder", ["--bands", "17"], "--bands 17: expected a number from 1 to 16, or bands counted from 1, such as 4,3,2"),
        ("folder", ["--bands", "4,x"], "--bands 4,x: expected"),
        ("folder", ["--values", "9,3"], "--values 9,3: expected two ascending numbers from 0 to 65535, such as 0,10000"),
        ("voc", ["--bands", "5"], "--bands 5: the layout voc has images in RGB; use the layout folder"),
    ],
)  # fmt: skip
def test_bands_that_cannot_be_read_are_refused(layout: str, options: list[str], message: str, small_folder: Path) -> None:
    result = CliRunner().invoke(app, ["check", layout, str(small_folder), *options])
    assert message in str(result.exception)


@pytest.mark.parametrize(
    ("values", "warning"),
    [
        ("0,101", "of the values of the images are 101 or more, and become 255; check the range"),
        ("4000,65535", "of the values of the images are 4000 or less, and become 0; check the range"),
        ("0,65535", "no value of the images becomes more than 16 of 255; use a smaller range"),
        ("100,4195", None),
    ],
)
def test_a_range_that_leaves_little_of_the_images_is_a_warning(values: str, warning: str | None, tmp_path: Path) -> None:
    root = write_banded(tmp_path / "data", 4)
    low, high = map(int, values.split(","))
    report = check(list_dataset("folder", root, "train", rule=FileRule(bands=4, values=(low, high))))
    lines = [line for line in lines_of(report) if "data.values" in line]
    assert report.faults == ()
    assert len(lines) == (warning is not None)
    assert all(line.startswith(f"warning: data.values {values}: ") and line.endswith(str(warning)) for line in lines)


def test_a_missing_library_is_one_error_and_no_fault_of_each_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    root = write_banded(tmp_path / "data", 5)
    monkeypatch.setitem(sys.modules, "rasterio", None)
    result = CliRunner().invoke(app, ["check", "folder", str(root), "--bands", "5", "--values", "100,4195"])
    assert "unreadable" not in result.output
    assert str(result.exception).endswith('pip install ".[geo]" in a clone of ddcat')


def test_a_tiff_without_bands_is_told_how_to_be_read(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    report = check(list_dataset("folder", write_banded(tmp_path / "data", 5), "train"))
    assert report.faults[0].message.endswith(
        "0.tif is there: convert it to JPEG or PNG, or read TIFF by the layout folder and data.bands"
    )
