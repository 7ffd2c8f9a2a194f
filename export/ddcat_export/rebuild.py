"""Build another engine from the graph inside a bundle, without torch and without the checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ddcat.atomic_files import check_can_create
from ddcat.bundle import NO_TRUST_POLICY, Bundle, TrustPolicy, open_bundle
from ddcat.choices import Precision
from ddcat.engines.golden import read_golden
from ddcat.manifest import SCHEMA_VERSION, DimRange, InputShapes, Manifest, Sizes
from ddcat.signing import check_key
from ddcat_export.bundle_builder import (
    CPU_GRAPH,
    GRAPH,
    BuildResult,
    ExportedModel,
    GoldenImages,
    assemble,
    graph_precision,
    shapes_of_engine,
)
from ddcat_export.crop import center_crop
from ddcat_export.engines import check_possible
from ddcat_export.engines.tensorrt.flags import TIMINGS
from ddcat_export.errors import ExportError
from ddcat_export.opsets import check_opset, lowered, opset_of
from ddcat_export.precision_cast import cast_graph
from ddcat_export.progress import Progress

__all__ = ["rebuild"]


def rebuild(
    source: Path,
    out: Path,
    *,
    engine: str,
    precision: Precision | None = None,
    sizes: Sizes | None = None,
    max_size: tuple[int, int] | None = None,
    max_batch: int | None = None,
    opset: int | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
    from_timing_cache: bool = False,
    key: Path | None = None,
    trust: TrustPolicy = NO_TRUST_POLICY,
    progress: Progress = lambda stage: None,
) -> BuildResult:
    """
    Build another engine from the graph of a bundle, into a new bundle.

    The temperature is in the graph, and stays. The threshold to abstain by stays only where runtime, precision and graph do.

    Parameters
    ----------
    source, out : Path
        Bundles; `out` must not exist, or be an empty directory.
    engine : str
    precision : str, optional
        Default: the precision of the other bundle. Only fp32 can be converted.
    sizes : tuple of (height, width), optional
        The only sizes that the engine must take, of those that the other bundle takes. Default: all of them.
    max_size, max_batch
        See `shapes_of_engine`.
    opset : int, optional
        Opset of the graph, where that of the other bundle is newer.
    options : mapping of str to Any
        Keyword arguments of the runtime's `build`.
    from_timing_cache : bool
        Choose the same kernels again, from the timing cache in the other bundle alone; for "trt".
    key : Path, optional
        Private key to sign the new bundle with.
    trust : TrustPolicy
        Proof that the other bundle must bring of its author.
    progress : callable
        Called with the current stage.

    Raises
    ------
    ExportError
        Where the graph cannot be converted, or the new engine gives other labels.
    DdcatError
    """
    check_can_create(out)
    if key is not None:
        check_key(key)
    progress("verifying the bundle")
    bundle = open_bundle(source, trust)
    manifest = bundle.manifest
    asked = precision or manifest.engine.effective_precision
    check_possible(engine, asked)
    if opset is not None:
        check_opset(opset, graph_precision(engine, asked, mixed=manifest.mixed is not None))
    shapes = _shapes(bundle, engine, sizes, max_size, max_batch)
    graphs = _graphs(bundle, engine, asked, progress)
    if opset is not None:
        graphs = {name: lowered(graph, opset) for name, graph in graphs.items()}
    # the threshold was chosen by the engine's own answers: another runtime, precision or graph has others
    same = (engine, asked) == (manifest.engine.name, manifest.engine.effective_precision)
    same = same and all(bundle.files[name] == graph for name, graph in graphs.items())
    changed = {
        "schema_version": SCHEMA_VERSION,
        "rebuilt_from": bundle.digest,
        "data": manifest.data.model_copy(update={"long_side": None}),
        # a bundle of schema 2 was evaluated by another rule than it was served by
        "preprocessing": manifest.preprocessing.model_copy(update=dict(manifest.evaluation_rule)),
        "opset": opset_of(graphs[GRAPH]),
        "abstention": manifest.abstention if same else None,
    }
    model = ExportedModel(graphs, _reports(bundle), _golden(bundle, shapes), shapes, {**dict(manifest), **changed})
    given = {**options, "timings": _timings(bundle)} if from_timing_cache else options
    return assemble(out, model, engine=engine, precision=asked, options=given, key=key, progress=progress)


def _timings(bundle: Bundle) -> bytes:
    if TIMINGS not in bundle.files:
        raise ExportError(f"{bundle.path} has no timing cache to repeat a build with: use a bundle of engine trt")
    return bundle.files[TIMINGS]


def _held(manifest: Manifest) -> Precision:
    """Precision of the graph, which is not always that of its engine."""
    if manifest.quantisation is not None:
        return "int8"
    return graph_precision(manifest.engine.name, manifest.engine.effective_precision, mixed=manifest.mixed is not None)


def _graphs(bundle: Bundle, engine: str, precision: Precision, progress: Progress) -> dict[str, bytes]:
    mixed = bundle.manifest.mixed is not None
    held, needed = _held(bundle.manifest), graph_precision(engine, precision, mixed=mixed)
    if held == needed:
        return {name: bundle.files[name] for name in (GRAPH, CPU_GRAPH) if name in bundle.files}
    if held != "fp32" or needed == "int8":
        raise ExportError(
            f"{bundle.path} has a graph in {held}, and a graph in {needed} needs the checkpoint: "
            f"ddcat export {bundle.manifest.source.checkpoint} --engine {engine} --precision {precision}"
        )
    progress(f"casting the graph to {needed}")
    return {GRAPH: cast_graph(bundle.files[GRAPH], needed)}


def _reports(bundle: Bundle) -> dict[str, bytes]:
    described = bundle.manifest.quantisation or bundle.manifest.mixed
    report = None if described is None else described.report
    return {} if report is None else {report: bundle.files[report]}


def _shapes(
    bundle: Bundle, engine: str, sizes: Sizes | None, max_size: tuple[int, int] | None, max_batch: int | None
) -> InputShapes:
    there = bundle.manifest.shapes
    batch = max_batch or there.batch.maximum
    if sizes is None:
        ends = (there.height.minimum, there.width.minimum)
        only = there.sizes or ((ends,) if (there.height.maximum, there.width.maximum) == ends else None)
        if only is None and there.height.maximum is not None and there.width.maximum is not None:
            most = (there.height.maximum, there.width.maximum)
            max_size = most if max_size is None else (min(max_size[0], most[0]), min(max_size[1], most[1]))
        return shapes_of_engine(engine, only, minimum=min(ends), max_size=max_size, max_batch=batch)
    for height, width in sizes:
        if height not in there.height or width not in there.width or (there.sizes and (height, width) not in there.sizes):
            raise ExportError(f"{bundle.path} does not accept {height}x{width}: use one of its sizes")
    return shapes_of_engine(engine, sizes, minimum=1, max_size=max_size, max_batch=batch)


def _golden(bundle: Bundle, shapes: InputShapes) -> GoldenImages:
    known = bundle.manifest.golden
    images, expected = {}, {}
    for name, image, labels in read_golden(bundle):
        size = _nearest(labels.shape, shapes)
        images[name] = center_crop(image, size)
        if size == labels.shape:  # what was cut has other surroundings, and other labels
            expected[name] = labels
    if known is None:
        raise ExportError(f"{bundle.path} has no golden images: export again from the checkpoint")
    return GoldenImages(images, expected, bundle.manifest.engine.effective_precision, known.source, known.attack)


def _nearest(size: tuple[int, ...], shapes: InputShapes) -> tuple[int, int]:
    height, width = size
    if shapes.sizes is not None:
        return min(shapes.sizes, key=lambda other: abs(other[0] - height) + abs(other[1] - width))
    return _within(height, shapes.height), _within(width, shapes.width)


def _within(side: int, allowed: DimRange) -> int:
    return max(allowed.minimum, side if allowed.maximum is None else min(side, allowed.maximum))
