"""Options of an export, checked before the long work begins."""

from collections.abc import Sequence

from ddcat.choices import Precision
from ddcat.manifest import Sizes
from ddcat.tiles import LARGEST, SMALLEST
from ddcat_export.engines import check_possible
from ddcat_export.errors import ExportError

__all__ = ["check_options"]


def check_options(
    engine: str,
    precision: Precision,
    max_drop: float | None,
    sizes: Sizes | None,
    max_batch: int | None,
    tiles: int | None,
) -> None:
    """
    Refuse what no engine does, and numbers that the command line would not take.

    Raises
    ------
    ExportError, EngineError
    """
    check_possible(engine, precision)
    if (engine, precision) == ("openvino", "fp16") and max_drop is not None:
        raise ExportError("--max-drop: OpenVINO cannot keep nodes of an fp16 graph in fp32; use --precision bf16 or int8")
    pairs = sizes is None or (
        isinstance(sizes, Sequence) and sizes and all(isinstance(size, Sequence) and len(size) == 2 for size in sizes)
    )
    if not pairs:
        raise ExportError(f"sizes {sizes!r}: expected one pair or several, such as ((360, 480),)")
    if not all(isinstance(side, int) and side > 0 for size in sizes or () for side in size):
        raise ExportError(f"sizes {sizes!r}: expected whole numbers of pixels")
    if max_batch is not None and max_batch < 1:
        raise ExportError(f"max_batch {max_batch}: expected 1 or more")
    if tiles is not None and not SMALLEST <= tiles <= LARGEST:
        raise ExportError(f"tiles {tiles}: expected a side of {SMALLEST} to {LARGEST} pixels")
