"""Files of others: the weights that users already have become checkpoints and backbone files of ours."""

from collections.abc import Sequence
from pathlib import Path

from ddcat_train.errors import CheckpointError
from ddcat_train.weight_import.backbones import import_backbone
from ddcat_train.weight_import.segmenters import import_segmenter, is_segmenter
from ddcat_train.weight_import.torch_file import read_torch_file

__all__ = ["import_checkpoint"]


def import_checkpoint(
    file: Path, out: Path, *, like: str | None = None, data_root: Path | None = None, overrides: Sequence[str] = ()
) -> str:
    """
    Import a `.pth` file, of a whole segmenter or of a backbone, whichever it is.

    Parameters
    ----------
    out : Path
        A new file of the ending .safetensors.
    like : str, optional
        For a segmenter: the preset or configuration that it was trained by. By default the paper's, where the file tells which.
    data_root : Path, optional
        For a segmenter: where its data set lies.
    overrides : sequence of str
        For a segmenter: of the configuration, as `ddcat_train.config.load_config` takes them.

    Returns
    -------
    str
        What was found in the file, and what can be done with the new one; lines for the user.

    Raises
    ------
    CheckpointError
        Where the file holds anything but tensors, not all of a known network, or more.
    ConfigError, DataError
    """
    content = read_torch_file(file)
    if is_segmenter(content.tensors):
        return import_segmenter(content, out, like=like, data_root=data_root, overrides=overrides)
    if like is not None or data_root is not None or overrides:
        raise CheckpointError(f"{file} holds a backbone alone: --config, --data-root and --set are for segmenters")
    return import_backbone(content, out)
