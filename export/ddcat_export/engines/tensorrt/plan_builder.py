"""Build a plan of TensorRT or of TensorRT for RTX from a typed graph."""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from ddcat.engines.checks import check_names
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.api import Api, Log
from ddcat.engines.tensorrt.plan import Profile
from ddcat.engines.tensorrt.run import tensor_entry
from ddcat.manifest import TensorEntry

if TYPE_CHECKING:
    import tensorrt as trt

__all__ = ["PLAN", "Plan", "build_plan", "takes_few_shapes"]

PLAN = "model.plan"  # its name in a bundle


class Plan(NamedTuple):
    """
    A plan that was just built.

    Attributes
    ----------
    content : bytes
    layers : int
        That the parser made of the graph.
    inputs, outputs : tuple of TensorEntry
        Of the network that the parser made.
    """

    content: bytes
    layers: int
    inputs: tuple[TensorEntry, ...]
    outputs: tuple[TensorEntry, ...]


def build_plan(
    api: Api, graph: bytes, profiles: tuple[Profile, ...], configure: "Callable[[trt.IBuilderConfig], None]"
) -> Plan:
    """
    Build a plan.

    Parameters
    ----------
    api : Api
    graph : bytes
        An ONNX file, from `ddcat_export.engines.tensorrt.graph.adapt`.
    profiles : tuple of Profile
    configure : callable
        Sets the options of the build, before it begins.

    Raises
    ------
    EngineError
        With TensorRT's first reason, where it does not take the graph or the build fails.
    """
    log = Log(api.trt)
    builder = api.trt.Builder(log.logger)
    network = api.create_network(builder)
    parser = api.trt.OnnxParser(network, log.logger)
    if not parser.parse(graph):
        reason = api.complaint(parser.get_error(0)) if parser.num_errors else log.reason()
        raise EngineError(f"{api.title} does not accept the graph: {' '.join(reason.split())}")
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    check_names([tensor.name for tensor in inputs], [tensor.name for tensor in outputs])

    config = builder.create_builder_config()
    config.clear_flag(api.trt.BuilderFlag.TF32)  # on by default, but fp32 means fp32
    config.profiling_verbosity = api.trt.ProfilingVerbosity.DETAILED  # the inspector can then tell the types of all layers
    configure(config)
    for profile in profiles:
        built = builder.create_optimization_profile()
        built.set_shape("image", min=profile.least, opt=profile.best, max=profile.most)
        if config.add_optimization_profile(built) < 0:
            raise EngineError(f"{api.title} does not accept the profile {profile}: {log.reason()}")
    layers = network.num_layers
    content = builder.build_serialized_network(network, config)
    if content is None:
        raise EngineError(f"{api.title} built no plan: {log.reason()}")
    entries = ([tensor_entry(api.trt, one.name, one.dtype, one.shape) for one in tensors] for tensors in (inputs, outputs))
    return Plan(bytes(content), layers, *map(tuple, entries))


def takes_few_shapes(profiles: tuple[Profile, ...]) -> bool:
    """Return True where all profiles are for one size each: the work of each shape can then be recorded as a CUDA graph."""
    return all(profile.least[1:] == profile.most[1:] for profile in profiles)
