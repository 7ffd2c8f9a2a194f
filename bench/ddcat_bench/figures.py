"""Figures of matplotlib as PNG files, and PNG files in a page."""

import base64
import io

from matplotlib.figure import Figure

__all__ = ["data_uri", "figure_png"]


def figure_png(figure: Figure) -> bytes:
    """Draw a figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)  # a figure without pyplot draws with Agg
    return buffer.getvalue()


def data_uri(png: bytes) -> str:
    """Encode a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
