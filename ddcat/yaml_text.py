"""Read YAML strictly: a key that occurs twice is refused, and whatever a text holds, it takes neither long nor much memory."""

from collections.abc import Hashable
from typing import Any

import yaml

from ddcat.text import printable

__all__ = ["parse_yaml"]

_MOST_VALUES = 10_000  # of a text, each alias counted as all that it stands for


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()  # as Python has them: 1, 0x1 and true are one key of a dict
        for node_of_key, _ in node.value:
            merge = node_of_key.tag == "tag:yaml.org,2002:merge"
            key = "<<" if merge else self.construct_object(node_of_key, deep=True)
            if not isinstance(key, Hashable):
                continue  # which is refused below
            if key in keys:
                problem = f"{printable(str(node_of_key.value), 100)} occurs twice"
                more = ": '<<: [*a, *b]' merges two" if merge else ""
                raise yaml.MarkedYAMLError(problem=problem + more, problem_mark=node_of_key.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep=deep)


def parse_yaml(text: str) -> Any:
    """
    Read YAML.

    Raises
    ------
    ValueError
        With one line that says what is wrong.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _count(node, {})
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError as cause:
        raise ValueError("it is nested too deeply") from cause
    except yaml.MarkedYAMLError as cause:
        line = f" (line {cause.problem_mark.line + 1})" if cause.problem_mark else ""
        raise ValueError(f"{' '.join(str(cause.problem or cause).split())[:200]}{line}") from cause
    except yaml.YAMLError as cause:
        raise ValueError(" ".join(str(cause).split())[:200]) from cause
    except ValueError as cause:  # such as an integer of thousands of digits, or the 30th of February
        raise ValueError(f"a value cannot be read: {' '.join(str(cause).split())[:200]}") from cause


def _count(node: yaml.Node, sizes: dict[int, int | None]) -> int:
    """Count the values of a node without making them: aliases of aliases would multiply."""
    known = sizes.get(id(node), 0)
    if known is None:
        raise yaml.MarkedYAMLError(problem="an alias stands for what it is a part of", problem_mark=node.start_mark)
    if known:
        return known
    sizes[id(node)] = None
    children = node.value if isinstance(node, yaml.SequenceNode) else ()
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    size = 1 + sum(_count(child, sizes) for child in children)
    if size > _MOST_VALUES:
        raise yaml.MarkedYAMLError(problem=f"more than {_MOST_VALUES} values", problem_mark=node.start_mark)
    sizes[id(node)] = size
    return size
