"""The `names` of a `classes.yaml`, checked by hand: the advice depends on the text of the user."""

from typing import Any

from ddcat.classes import IGNORE_INDEX, LONGEST_NAME, repeated_name
from ddcat.text import printable

__all__ = ["class_names"]

_MOST = IGNORE_INDEX - 1  # classes
_LIST = "use 'names: [background, road, ...]' in the order of the label values"
_TABLE = "use 'names: {1: road, 2: car}'"


def class_names(names: Any, written: Any) -> dict[int, str]:
    """
    Return the name of the class of each value of a mask.

    Parameters
    ----------
    names : list of names, or table from value to name
        As parsed from YAML.
    written : the same
        As it is written: YAML reads yes, no, on, off, numbers and dates as other things than text.

    Raises
    ------
    ValueError
        With one line of advice.
    """
    if not isinstance(names, list | dict):
        raise ValueError(f"names is {_kind(names)}, expected a list: {_LIST}")
    listed = isinstance(names, list)
    pairs = list(names.items()) if isinstance(names, dict) else list(enumerate(names))
    if pairs and listed and all(isinstance(name, dict) for _, name in pairs):
        raise ValueError(f"names is a list of tables, expected values mapped to names: {_TABLE}")
    if pairs and all(isinstance(value, str) and type(name) is int for value, name in pairs):
        raise ValueError(f"names maps names to values, expected values mapped to names: {_TABLE}")
    texts = written if isinstance(written, list) else list(written.items()) if isinstance(written, dict) else []
    result = {}
    for place, (value, name) in enumerate(pairs):
        text = texts[place] if place < len(texts) else ""
        _check_value(value, text[0] if not listed and text else value)
        result[value] = _checked(value, name, text if listed else text[1] if text else "")
    if not 2 <= len(result) <= _MOST:
        raise ValueError(
            f"names has {len(result)} {'class' if len(result) == 1 else 'classes'}, expected 2 to {_MOST}: {_LIST}"
        )
    if (twice := repeated_name(list(result.values()))) is not None:
        raise ValueError(f"the name {printable(twice, 40)} occurs twice: give every class a name of its own")
    return result


def _check_value(value: Any, text: Any) -> None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        raise ValueError(f"YAML reads the value {printable(value, 40)!r} as text: write it without quotes")
    if type(value) is not int or not 0 <= value <= IGNORE_INDEX:
        raise ValueError(f"{printable(text, 40)} is not a value of a mask, expected 0 to {IGNORE_INDEX}: {_TABLE}")


def _checked(value: int, name: Any, text: Any) -> str:
    """Return a name if it is one line of text."""
    if name is None and text == "":
        raise ValueError(f"the value {value} has no name: leave it out, and number the others: {_TABLE}")
    if isinstance(name, list | dict):
        raise ValueError(f"the name of value {value} is {_kind(name)}, expected one line of text: {_LIST}")
    if not isinstance(name, str):
        quoted = f"'{printable(text, 40)}'"
        raise ValueError(f"YAML reads the name {printable(text, 40)} as {_kind(name)}: write {quoted} in quotes")
    if printable(name, None) != name:
        raise ValueError(f"the name {printable(name, 40)} holds a control character, expected one line of text")
    if not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(f"the name of value {value} has {len(name)} characters, expected 1 to {LONGEST_NAME}")
    return name


def _kind(thing: Any) -> str:
    if isinstance(thing, bool):
        return str(thing).lower()
    kinds = {type(None): "nothing", int: "a number", float: "a number", str: "a text", list: "a list", dict: "a table"}
    return kinds.get(type(thing), "a date")
