import numpy as np
import pytest

from ddcat.classes import IGNORE, IGNORED_COLOUR, Classes, coloured


def test_labels_get_the_colours_of_their_classes_and_ignored_pixels_a_neutral_one() -> None:
    classes = Classes(("a", "b"), ((1, 2, 3), (200, 100, 50)))
    labels = np.array([[0, 1], [IGNORE, 0]], np.uint8)
    expected = [[(1, 2, 3), (200, 100, 50)], [IGNORED_COLOUR, (1, 2, 3)]]
    assert coloured(labels, classes).tolist() == [[list(colour) for colour in row] for row in expected]
    assert len(set(IGNORED_COLOUR)) == 1


def test_a_table_without_a_colour_for_each_name_or_with_too_few_or_many_is_refused() -> None:
    with pytest.raises(ValueError, match="2 class names, but 1 colours"):
        Classes(("a", "b"), ((1, 2, 3),))
    for count in (1, IGNORE):
        with pytest.raises(ValueError, match=f"between 2 and {IGNORE - 1} classes are possible, not {count}"):
            Classes(("a",) * count, ((1, 2, 3),) * count)
    assert len(Classes(("a",) * (IGNORE - 1), ((1, 2, 3),) * (IGNORE - 1))) == IGNORE - 1
