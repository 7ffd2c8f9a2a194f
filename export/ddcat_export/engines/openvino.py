"""Engines of OpenVINO."""

from ddcat.choices import Precision
from ddcat.engines.openvino import DEVICE, HINT, OpenVinoGraph, check_possible
from ddcat.manifest import EngineEntry, InputShapes
from ddcat_export.engines.base import Built

__all__ = ["build", "check_possible"]


def build(graph: bytes, *, file: str, precision: Precision, shapes: InputShapes) -> Built:
    """Compile a graph and describe it: see `ddcat_export.engines.build_engine`. There are no options."""
    with OpenVinoGraph(graph, precision=precision) as opened:
        entry = EngineEntry(
            name="openvino",
            file=file,
            graph=file,
            requested_precision=precision,
            effective_precision=precision,
            provider=DEVICE,
            options={"hint": HINT},
        )
        return Built({}, entry, opened.inputs, opened.outputs)
