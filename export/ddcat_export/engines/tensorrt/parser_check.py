"""Ask NVIDIA's ONNX parser which nodes it takes; it needs no GPU."""

from typing import NamedTuple

import onnx

from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.api import Log
from ddcat.engines.tensorrt.trt_rtx import api
from ddcat_export.engines.tensorrt.graph import silent_changes

__all__ = ["Verdict", "check_nodes"]


class Verdict(NamedTuple):
    """
    What the parser says of a graph.

    Attributes
    ----------
    title : str
        The TensorRT that it belongs to.
    nodes : int
    refused : list of str
        A line for each node that is not taken, or would be computed in other types than the graph says. At some faults the
        parser ends, so that there may be more behind the last line.
    """

    title: str
    nodes: int
    refused: list[str]


def check_nodes(content: bytes) -> Verdict:
    """
    Check all nodes of an ONNX file.

    Raises
    ------
    EngineError
        Where it is no ONNX file that can be read.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception as cause:  # protobuf's and onnx's share no base
        raise EngineError(f"it is not an ONNX file ({type(cause).__name__})") from cause
    log = Log(api.trt)
    builder = api.trt.Builder(log.logger)
    network = api.create_network(builder)
    parser = api.trt.OnnxParser(network, log.logger)
    refused: list[str] = []
    if not parser.parse(content):
        refused = [" ".join(api.complaint(parser.get_error(index)).split()) for index in range(parser.num_errors)]
        refused = refused or [log.reason()]
    nodes = {line.partition(": ")[0] for line in refused}
    refused += [line for line in silent_changes(model) if line.partition(": ")[0] not in nodes]  # a line for each node
    return Verdict(api.title, len(model.graph.node), refused)
