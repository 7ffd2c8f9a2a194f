import numpy as np

from ddcat.classes import IGNORE, IGNORED_COLOUR, Classes, coloured


def test_labels_get_the_colours_of_their_classes_and_ignored_pixels_a_neutral_one() -> None:
    classes = Classes(("a", "b"), ((1, 2, 3), (200, 100, 50)))
    labels = np.array([[0, 1], [IGNORE, 0]], np.uint8)
    expected = [[(1, 2, 3), (200, 100, 50)], [IGNORED_COLOUR, (1, 2, 3)]]
    assert coloured(labels, classes).tolist() == [[list(colour) for colour in row] for row in expected]
    assert len(set(IGNORED_COLOUR)) == 1
