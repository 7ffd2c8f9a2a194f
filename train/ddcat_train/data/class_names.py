"""The `names` of a `classes.yaml`, checked by hand: the advice depends on the text of the user."""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

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
    tables = [{value: name} for value, name in names.items()] if isinstance(names, dict) else names
    if names and all(isinstance(table, dict) for table in tables) and (listed or all(map(_is_turned, tables))):
        kind = "is a list of tables" if listed else "maps names to values"
        raise ValueError(f"names {kind}, expected values mapped to names: {_numbered(tables)}")
    pairs = list(names.items()) if isinstance(names, dict) else list(enumerate(names))
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


def _is_turned(table: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and type(value) is int for key, value in table.items())


def _numbered(tables: Iterable[Mapping[Any, Any]]) -> str:
    """Write names and values as they are to be written, where each table has one of both: {a: 0}, {0: a}, {name: a, id: 0}."""
    numbered = {}
    for table in tables:
        things = [thing for pair in table.items() for thing in pair] if len(table) == 1 else [*table.values()]
        values, names = ([thing for thing in things if type(thing) is kind] for kind in (int, str))
        if len(values) != 1 or len(names) != 1 or values[0] in numbered:
            return _TABLE
        numbered[values[0]] = printable(names[0], 40)
    text = yaml.safe_dump(
        dict(list(numbered.items())[:2]), default_flow_style=True, sort_keys=False, allow_unicode=True, width=1000
    )
    return f"use 'names: {text.strip()[:-1]}{', ...' * (len(numbered) > 2)}}}'"
