import numpy as np
import pytest

from ddcat.classes import IGNORE_INDEX, IGNORED_COLOUR, Classes, colourise, repeated_name


def test_labels_get_the_colours_of_their_classes_and_ignored_pixels_a_neutral_one() -> None:
    classes = Classes(("a", "b"), ((1, 2, 3), (200, 100, 50)))
    labels = np.array([[0, 1], [IGNORE_INDEX, 0]], np.uint8)
    expected = [[(1, 2, 3), (200, 100, 50)], [IGNORED_COLOUR, (1, 2, 3)]]
    assert colourise(labels, classes).tolist() == [[list(colour) for colour in row] for row in expected]
    assert len(set(IGNORED_COLOUR)) == 1


def test_a_table_without_a_colour_for_each_name_or_with_too_few_or_many_is_refused() -> None:
    with pytest.raises(ValueError, match="2 class names, but 1 colours"):
        Classes(("a", "b"), ((1, 2, 3),))
    for count in (1, IGNORE_INDEX):
        with pytest.raises(ValueError, match=f"expected 2 to {IGNORE_INDEX - 1} classes, got {count}"):
            Classes(("a",) * count, ((1, 2, 3),) * count)
    assert len(Classes(("a",) * (IGNORE_INDEX - 1), ((1, 2, 3),) * (IGNORE_INDEX - 1))) == IGNORE_INDEX - 1


@pytest.mark.parametrize(
    ("names", "colour", "said"),
    [
        (("a", "b"), (999, -1, 0), r"class b has the colour \[999, -1, 0\], expected levels of 0 to 255"),
        (("a", "b"), (-1, 0, 0), "expected levels of 0 to 255"),
        (("a", "b" * 101), (1, 2, 3), "a class has a name of 101 characters, expected 1 to 100"),
        (("a", ""), (1, 2, 3), "a class has a name of 0 characters"),
    ],
)
def test_a_name_or_a_colour_that_nothing_can_show_is_refused(names: tuple[str, str], colour: tuple, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Classes(names, ((1, 2, 3), colour))


def test_the_first_name_that_comes_again_is_found() -> None:
    assert repeated_name(["a", "b", "A", "c"]) is None
    assert repeated_name(["a", "b", "c", "c", "b"]) == "c"
