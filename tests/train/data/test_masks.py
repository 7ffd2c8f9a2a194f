"""What the values and the colours of masks mean: classes.yaml says it, and what it does not say is a fault with its place."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddcat_train.data import open_dataset
from ddcat_train.data.check import check
from ddcat_train.data.classes_file import read_classes, read_legend
from ddcat_train.errors import DataError

Writer = Callable[..., None]

COLOURS = "names: [ground, wall, roof]\ncolours: [[0, 0, 0], [128, 0, 0], [0, 128, 0]]\n"
DRAWN = np.array([[[0, 0, 0], [128, 0, 0], [0, 128, 0]]] * 10, np.uint8).repeat(4, axis=1)  # (10, 12, 3)
MEANT = np.array([[0, 1, 2]] * 10, np.uint8).repeat(4, axis=1)


def labels_of(root: Path, mask: np.ndarray, classes: str) -> np.ndarray:
    """What is read for a mask of these pixels."""
    (root / "classes.yaml").write_text(classes)
    Image.fromarray(mask).save(root / "labels/train/0.png")
    return open_dataset("folder", root, "train").read(0).labels


def test_masks_in_the_colours_of_the_classes_are_read(small_folder: Path) -> None:
    assert np.array_equal(labels_of(small_folder, DRAWN, COLOURS), MEANT)
    opaque = np.dstack([DRAWN, np.full((10, 12), 255, np.uint8)])
    assert np.array_equal(labels_of(small_folder, opaque, COLOURS), MEANT)
    assert np.array_equal(labels_of(small_folder, MEANT, COLOURS), MEANT)  # indices are indices all the same
    assert len(pickle.loads(pickle.dumps(open_dataset("folder", small_folder, "train")))) == 5


def test_a_colour_of_no_class_is_a_fault_with_its_place(small_folder: Path) -> None:
    drawn = DRAWN.copy()
    drawn[3, 5] = drawn[7, 1] = 127, 0, 0
    drawn[8] = 255
    with pytest.raises(DataError, match=r"0\.png: the colour \[127, 0, 0\] at x 5, y 3 is that of no class \(14 pixels "):
        labels_of(small_folder, drawn, COLOURS)
    (fault,) = check(open_dataset("folder", small_folder, "train")).faults
    assert (fault.kind, fault.pixels) == ("colour", 14)
    found = labels_of(small_folder, drawn, f"{COLOURS}ignore_colour: [[255, 255, 255], [127, 0, 0]]\n")
    assert np.array_equal(found, np.where((drawn == DRAWN).all(2), MEANT, 255))
    drawn[8] = DRAWN[8]
    assert labels_of(small_folder, drawn, f"{COLOURS}ignore_colour: [127, 0, 0]\n")[3, 5] == 255


def test_colours_that_mean_nothing_are_refused(small_folder: Path) -> None:
    transparent = np.dstack([DRAWN, np.full((10, 12), 254, np.uint8)])
    for mask, classes, told in (
        (
            DRAWN,
            "names: [ground, wall, roof]",
            "PNG in colour .* or give the colour of each class as 'colours' in classes.yaml",
        ),
        (DRAWN, COLOURS.replace("[128, 0, 0]", "[0, 0, 0]"), "two classes have the same one"),
        (transparent, COLOURS, "has transparent pixels"),
        (np.dstack([MEANT, MEANT, MEANT]), COLOURS, r"the colour \[1, 1, 1\] at x 4, y 0"),
    ):
        with pytest.raises(DataError, match=told):
            labels_of(small_folder, mask, classes)


def test_names_may_be_numbered_and_other_values_ignored(small_folder: Path) -> None:
    assert np.array_equal(labels_of(small_folder, MEANT + 1, "names: {1: a, 2: b, 3: c}"), MEANT)
    assert np.array_equal(labels_of(small_folder, MEANT * 127, "names: {127: b, 0: a, 254: c}"), MEANT)
    assert np.array_equal(labels_of(small_folder, MEANT * 3, "names: {0: a, 3: b, 6: c}"), MEANT)
    two = labels_of(small_folder, MEANT, "{names: {1: a, 2: b}, ignore_label: 0}")
    assert np.array_equal(two, np.array([255, 0, 1], np.uint8)[MEANT])
    two = labels_of(small_folder, MEANT, "{names: [a, b], ignore_label: [2, 11]}")
    assert np.array_equal(two, np.array([0, 1, 255], np.uint8)[MEANT])
    assert np.array_equal(labels_of(small_folder, (MEANT > 0) * np.uint8(255), "names: {0: a, 255: b}"), MEANT > 0)
    palette = read_classes(small_folder / "classes.yaml").palette
    (small_folder / "classes.yaml").write_text("{names: {255: b, 0: a}, colours: [[1, 1, 1], [2, 2, 2]]}")
    assert read_classes(small_folder / "classes.yaml").palette == ((2, 2, 2), (1, 1, 1)) != palette


@pytest.mark.parametrize(("value", "known"), [(0, "1..3 and 255"), (4, "1..3 and 255"), (254, "1..3 and 255")])
def test_a_value_without_a_name_is_told_as_it_is_in_the_file(small_folder: Path, value: int, known: str) -> None:
    mask = MEANT + 1
    mask[0, 0] = value
    with pytest.raises(DataError, match=rf"label {value} \(1 pixels\) is not a class of folder, expected {known} \(ignored\)"):
        labels_of(small_folder, mask, "names: {1: a, 2: b, 3: c}")


def test_a_palette_in_another_order_is_told(small_folder: Path) -> None:
    (small_folder / "classes.yaml").write_text(COLOURS)
    for order, told in (((0, 1, 2), 0), ((0, 2, 1), 1)):
        picture = Image.fromarray(MEANT)
        colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
        picture.putpalette([value for index in order for value in colours[index]])
        picture.save(small_folder / "labels/train/0.png")
        warnings = [line for line in check(open_dataset("folder", small_folder, "train")).warnings if "palette" in line]
        assert len(warnings) == told
    assert "index 1 in the colour of roof, and the index is that of wall" in warnings[0]
    assert str(small_folder / "labels/train/0.png") in warnings[0]
    (small_folder / "classes.yaml").write_text("names: [ground, wall, roof]")  # colours that ddcat made up say nothing
    assert not [line for line in check(open_dataset("folder", small_folder, "train")).warnings if "palette" in line]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("names: [yes, no]", r"YAML reads the name yes as true: write 'yes' in quotes"),
        ("names: [a, off]", r"YAML reads the name off as false: write 'off' in quotes"),
        ("names: [0, 1]", r"YAML reads the name 0 as a number: write '0' in quotes"),
        ("names: [a, 1_0.5]", r"YAML reads the name 1_0\.5 as a number"),
        ("names: [a, null]", r"YAML reads the name null as nothing: write 'null' in quotes"),
        ("names: {0: a, 1: ~}", r"YAML reads the name ~ as nothing"),
        ("names: [a, 2020-01-01]", r"YAML reads the name 2020-01-01 as a date"),
        ('names: ["a\\e[2J", b]', r"a\\x1b\[2J holds a control character"),
        ('names: ["a\\nb", b]', r"a\\x0ab holds a control character"),
        (f"names: [{'x' * 101}, b]", "the name of value 0 has 101 characters, expected 1 to 100"),
        ("{names: [a, b], ignore_label: 0}", r"ignore_label 0 is the value of 'a': leave that name out"),
        ("{names: [a, b], ignore_colour: [1, 2, 3]}", "give the classes colours, too"),
        ("{names: [a, b], colours: [[1, 2, 3], [4, 5, 6]], ignore_colour: [1, 2, 3]}", "is the colour of a class"),
        ("{names: {0: a, 256: b}}", "256 is not a value of a mask, expected 0 to 255: use 'names: {1: road, 2: car}'"),
        ("[" * 3000, r"is not readable YAML \(it is nested too deeply\)"),
        ("names: [a, b]\nnames: [b, a]", r"is not readable YAML \(names occurs twice \(line 2\)\)"),
        ("names: {0: a, 0: b, 1: c}", r"0 occurs twice"),
        ("names: {0: a, 1: b, 0x0: c}", r"0x0 occurs twice"),
        ("x: &a [1, 1, 1, 1]\ny: &b [*a, *a, *a, *a]\nnames: &c [*b, *b]\ncolours: *c", "the name of value 0 is a list"),
        (f"names: [a, {'1' * 5000}]", "is not readable YAML"),
        ("<<: {names: [a, b]}\nx: 1", "unknown key x: the keys are names, colours, ignore_label, ignore_colour, clips"),
        ("names: [a, b]\ncolors: [[0, 0, 0], [1, 1, 1]]", "unknown key colors: did you mean colours?"),
        (
            "names: {a: 0, b: 1}",
            r"names maps names to values, .*: use 'names: \{1: road, 2: car\}'$",
        ),
        ("names: [{a: 0}, {b: 1}]", r"names is a list of tables, .*: use 'names: \{1: road, 2: car\}'$"),
        ("names: {a: 0, 1: b}", "a is not a value of a mask, expected 0 to 255"),
        ("names: {yes: a, no: b}", "yes is not a value of a mask, expected 0 to 255"),
        ("names: {'0': a, '1': b}", "YAML reads the value '0' as text: write it without quotes$"),
        ("names: {0: [a], 1: b}", "the name of value 0 is a list, expected one line of text"),
        ("names:\n- a\n-\n- b", "the value 1 has no name: leave it out, and number the others"),
        ("names: {0: a, 1: }", "the value 1 has no name: leave it out, and number the others"),
        ("names: [a, a]", "the name a occurs twice: give every class a name of its own$"),
        ("names: {0: a}", "names has 1 class, expected 2 to 254"),
        ("names: a, b", "names is a text, expected a list: use 'names: "),
        ("a: 0\nb: 1", "holds no table with the key names: use 'names: "),
        ("{names: [a, b], colours: {a: [0, 0, 0]}}", r"valid list; use 'colours: \[\[128, 64, 128\], \[64, 0, 128\]\]'$"),
        ("{names: [a, b], ignore_label: void}", r"valid list; use 'ignore_label: \[11, 12\]'$"),
    ],
)
def test_what_a_classes_file_must_not_say(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "classes.yaml").write_text(text)
    with pytest.raises(DataError, match=told) as caught:
        read_legend(tmp_path / "classes.yaml")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
