"""What the keys and shapes of a file say of the segmenter in it."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ddcat_train.config import ModelConfig

__all__ = ["Found"]


@dataclass(frozen=True)
class Found:
    """
    A segmenter of another program.

    Attributes
    ----------
    model : ModelConfig
        The network of ours that computes the same.
    tensors : mapping of str to Tensor
        Of the file, without what is left out.
    names : mapping of str to str
        Beginnings of their keys, and of ours.
    branches : tuple of str
        As the file names them; one, or three.
    deep : bool
        True where it has a head of deep supervision that ours can have, too.
    like : str or None
        Preset by which it was probably trained; None: the file does not tell.
    left_out : tuple of str
        Parts of the file that ours has not.
    unsaid : tuple of str
        Keys of `model` that neither keys nor shapes tell: the user may set them.
    """

    model: ModelConfig
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]
    classes: int
    branches: tuple[str, ...]
    deep: bool
    like: str | None
    left_out: tuple[str, ...] = ()
    unsaid: tuple[str, ...] = ()
