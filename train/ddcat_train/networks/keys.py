"""Names of tensors in the files of others."""

import re
from collections.abc import Mapping, Sequence

from torch import Tensor

__all__ = ["renamed", "substituted"]


def renamed(tensors: Mapping[str, Tensor], beginnings: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the prefixes of keys; other keys stay as they are."""
    return {_renamed(key, beginnings): value for key, value in tensors.items()}


def _renamed(key: str, beginnings: Mapping[str, str]) -> str:
    old = next((old for old in beginnings if key.startswith(old)), "")
    return beginnings.get(old, "") + key.removeprefix(old)


def substituted(tensors: Mapping[str, Tensor], patterns: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Substitute each regular expression in every key, in turn; other keys stay as they are."""
    return {_substituted(key, patterns): value for key, value in tensors.items()}


def _substituted(key: str, patterns: Sequence[tuple[str, str]]) -> str:
    for pattern, ours in patterns:
        key = re.sub(pattern, ours, key)
    return key
