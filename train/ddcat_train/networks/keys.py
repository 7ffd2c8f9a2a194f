"""Names of tensors in the files of others."""

from collections.abc import Mapping

from torch import Tensor

__all__ = ["renamed"]


def renamed(tensors: Mapping[str, Tensor], beginnings: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace the prefixes of keys; other keys stay as they are."""
    return {_renamed(key, beginnings): value for key, value in tensors.items()}


def _renamed(key: str, beginnings: Mapping[str, str]) -> str:
    for old, new in beginnings.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key
