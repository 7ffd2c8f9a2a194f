"""The reference pages are what `python docs/make_reference.py` writes."""

from pathlib import Path

import pytest

from docs.make_reference import pages

FOLDER = Path(__file__).parents[2] / "docs/reference"
PAGES = pages()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name].rstrip() + "\n", "run: python docs/make_reference.py"


def test_no_page_is_left_over() -> None:
    assert {path.name for path in FOLDER.iterdir()} == set(PAGES)
