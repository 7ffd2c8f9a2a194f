"""What a user says of an ONNX file, in commands and in Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from ddcat.classes import Classes, repeated_name
from ddcat_export.errors import ExportError

__all__ = [
    "ClassesFile",
    "FloatFile",
    "Layout",
    "Mean",
    "OnnxOptions",
    "Output",
    "Scale",
    "Std",
    "classes_named",
    "onnx_options",
]


class OnnxOptions(NamedTuple):
    """
    What the file itself does not say.

    Attributes
    ----------
    classes : path, Classes, sequence of str, or None
        `classes.yaml`, the classes, or their names; None: those of the data set.
    mean, std : three floats, or None
        The file is fed (image * scale - mean) / std, of RGB images with levels of 0 to 255.
    scale : float
    output : str or None
        The output that holds the logits, where there are several.
    layout : str
        Layout of the data set, a key of `ddcat_train.data.DATASETS`.
    reference : path or None
        The float file that a quantised one was made from.
    """

    classes: str | Path | Classes | Sequence[str] | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    scale: float = 1 / 255
    output: str | None = None
    layout: str = "folder"
    reference: str | Path | None = None

    def given(self) -> tuple[str, ...]:
        """Name what is not as usual."""
        usual = OnnxOptions()
        return tuple(name for name, value, other in zip(self._fields, self, usual, strict=True) if value != other)


def _option(**given: Any) -> Any:
    return typer.Option(rich_help_panel="Options of ONNX files", **given)


ClassesFile = Annotated[
    Path | None,
    _option(metavar="FILE", help="classes.yaml with the names of the classes.", show_default="those of the data set"),
]
Mean = Annotated[
    str | None,
    _option(
        metavar="R,G,B",
        help="Mean of the input, (image / 255 - mean) / std. Use 0,0,0 if the file normalises images itself.",
        show_default=False,
    ),
]
Std = Annotated[
    str | None, _option(metavar="R,G,B", help="Standard deviation: see --mean. Use 1,1,1 in the same case.", show_default=False)
]
Scale = Annotated[
    float | None,
    _option(
        help="Factor of the grey levels, before mean and std. Use 1 for means in grey levels, such as 123.7.",
        show_default="1/255",
    ),
]
Output = Annotated[
    str | None,
    _option(metavar="NAME", help="Output that holds the logits, if there are several.", show_default="its one output"),
]
Layout = Annotated[
    str | None,
    _option(
        help="Layout of the data set in --data-root, as in a configuration: folder, camvid, cityscapes or voc.",
        show_default="folder",
    ),
]
FloatFile = Annotated[
    Path | None,
    _option(
        metavar="FILE",
        help="Float file that a quantised file was made from. The gate compares the two.",
        show_default=False,
    ),
]


def classes_named(names: Sequence[str]) -> Classes:
    """
    Return classes of these names, with the colours of Pascal VOC.

    Raises
    ------
    ExportError
    """
    if not (isinstance(names, Sequence) and all(isinstance(name, str) for name in names)):
        raise ExportError(f"classes {names!r}: expected names, such as ['road', 'car']")
    if (twice := repeated_name(names)) is not None:
        raise ExportError(f"classes: two are named {twice!r}; give each a name of its own")
    try:
        return Classes.with_voc_palette(names)
    except ValueError as cause:
        raise ExportError(f"classes: {cause}") from cause


def onnx_options(
    *,
    classes: Path | None,
    mean: str | None,
    std: str | None,
    scale: float | None,
    output: str | None,
    layout: str | None,
    reference: Path | None = None,
) -> OnnxOptions:
    """
    Take the options of a command.

    Raises
    ------
    ExportError
    """
    given: dict[str, Any] = {"classes": classes, "scale": scale, "output": output, "layout": layout, "reference": reference}
    numbers: dict[str, Any] = {
        name: None if text is None else _triple(name, text) for name, text in (("mean", mean), ("std", std))
    }
    return OnnxOptions(**numbers)._replace(**{name: value for name, value in given.items() if value is not None})


def _triple(name: str, text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3:
        raise ExportError(f"--{name} {text}: expected three numbers, of red, green and blue, such as 0.485,0.456,0.406")
    return values
