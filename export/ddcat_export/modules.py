"""A network of the user's in Python, without a configuration: it becomes an ONNX file, of which a bundle is made."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ddcat.atomic_files import check_can_create, write_bytes
from ddcat.classes import Classes
from ddcat.error_text import first_line
from ddcat.manifest import Sizes
from ddcat_export.errors import ExportError
from ddcat_export.export_forms import ExportForms
from ddcat_export.graph_checks import LOGITS, OPSET
from ddcat_export.graph_segmenter import GraphSegmenter
from ddcat_export.onnx_export import MINIMUM_SIZE, quiet
from ddcat_export.onnx_file import OnnxFile
from ddcat_export.onnx_options import OnnxOptions, classes_named
from ddcat_export.sources import OnnxSource, Source, open_onnx, open_source
from ddcat_train.networks import Segmenter
from ddcat_train.networks.eval_mode import eval_mode
from ddcat_train.networks.normalise import Normalise
from ddcat_train.networks.whole.calls import are_probabilities, logits_of
from ddcat_train.networks.whole.cut import same_values

__all__ = ["ModuleSource", "open_module", "opened_model"]

# Sizes of the example that is traced: without a preference, then a multiple of all that networks ask for.
_TRIED = ((71, 103), (128, 160), (256, 384))


class _Logits(nn.Module):
    """A network that gives its logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits = logits_of(self.network(images))
        assert logits is not None  # as it was tried
        return logits


class _Compared(nn.Module):
    """A network in PyTorch, fed images in [0, 1]; what it raises becomes a line."""

    def __init__(self, network: nn.Module, file: OnnxFile) -> None:
        super().__init__()
        self.network = nn.Sequential(Normalise(file.mean, file.std), _Logits(network))

    def forward(self, images: Tensor) -> Tensor:
        try:
            logits: Tensor = self.network(images)
        except Exception as cause:  # whatever its code raises
            size = " x ".join(map(str, images.shape[2:]))
            raise ExportError(
                f"the network fails on images of {size}: {first_line(cause)}; use sizes=((height, width),), one or several, "
                "for sizes that it accepts"
            ) from cause
        return logits


class ModuleSource(OnnxSource):
    """
    A network in Python, and the file that it was written to.

    Parameters
    ----------
    network : nn.Module
        In eval() mode, on the CPU.
    file : OnnxFile
        What was exported of it.
    """

    author = "PyTorch"

    def __init__(self, network: nn.Module, file: OnnxFile) -> None:
        super().__init__(file)
        self._network = _Compared(network, file)

    def compared(self, segmenter: Segmenter) -> Segmenter:
        """Return the network itself, in PyTorch."""
        return GraphSegmenter(self._network, classes=segmenter.classes)


@contextmanager
def opened_model(
    source: str | Path | nn.Module, options: OnnxOptions, *, beside: Path, sizes: Sizes | None, data_root: Path | None
) -> Iterator[Source]:
    """
    Read a checkpoint or an ONNX file, or write a network in Python to a file beside a bundle: see `open_source`, `open_module`.

    The file that was written is removed where no bundle is made.

    Raises
    ------
    DdcatError
    """
    if not isinstance(source, nn.Module):
        yield open_source(Path(source), options, data_root=data_root)
        return
    path = beside.with_name(f"{beside.name}.onnx")
    model = open_module(source, path, options, sizes=sizes, data_root=data_root)
    try:
        yield model
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def open_module(
    network: nn.Module, path: Path, options: OnnxOptions, *, sizes: Sizes | None, data_root: Path | None
) -> ModuleSource:
    """
    Write a network to an ONNX file, in fp32, and read it as one.

    Parameters
    ----------
    network : nn.Module
        Maps images (N, 3, H, W) to logits (N, K, h, w), or to what holds them under `logits` or `out`.
    path : Path
        The file to write; it must not exist.
    options : OnnxOptions
        `mean` and `std` of the images that it is fed; None: it is fed images in [0, 1]. `classes`; None: those of
        `network.config.id2label`, or of the data set.
    sizes : tuple of (height, width), or None
        One: the file takes it alone. Several, or None: height and width are free.
    data_root : Path, optional

    Raises
    ------
    ExportError
        Where the network gives no logits, or those of other classes, or does not export.
    """
    for name in ("reference", "output"):
        if getattr(options, name) is not None:
            raise ExportError(f"{name} is for ONNX files, and {type(network).__name__} is a network in Python: leave it out")
    mean, std = options.mean or (0.0, 0.0, 0.0), options.std or (1.0, 1.0, 1.0)
    options = options._replace(mean=mean, std=std, classes=_classes(network, options.classes))
    check_can_create(path)
    _check_kind(network)
    example, classes = _tried(network, sizes)
    if isinstance(options.classes, Classes) and len(options.classes) != classes:
        raise ExportError(
            f"{type(network).__name__} returns logits of {classes} classes, but {len(options.classes)} are named: name as many"
        )
    write_bytes(path, _graph(network, example, free=sizes is None or len(sizes) > 1))
    try:
        return ModuleSource(network.eval(), open_onnx(path, options, data_root=data_root))
    except BaseException:
        path.unlink()
        raise


def _classes(network: nn.Module, given: str | Path | Classes | Sequence[str] | None) -> str | Path | Classes | None:
    if given is None:
        named = getattr(getattr(network, "config", None), "id2label", None)
        given = [named[index] for index in sorted(named)] if isinstance(named, dict) and named else None
    return given if given is None or isinstance(given, str | Path | Classes) else classes_named(given)


def _check_kind(network: nn.Module) -> None:
    name = type(network).__name__
    if isinstance(network, torch.jit.ScriptModule):
        raise ExportError(f"{name} is compiled by TorchScript, which cannot be exported: use the original module")
    kinds = sorted({str(value.dtype) for value in network.parameters() if value.is_floating_point()} - {"torch.float32"})
    if kinds:
        raise ExportError(f"{name} has weights in {', '.join(kinds)}, expected torch.float32: call .float() on it")


def _tried(network: nn.Module, sizes: Sizes | None) -> tuple[Tensor, int]:
    """Return images that it takes, and the number of its classes."""
    name, faults = type(network).__name__, list[str]()
    for size in sizes[:1] if sizes is not None and len(sizes) == 1 else _TRIED:
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.no_grad(), eval_mode(network):
                output, again = (network(images.clone()) for _ in range(2))
        except Exception as cause:  # whatever its code raises
            faults.append(f"{size[0]} x {size[1]}: {first_line(cause)}")
            continue
        logits = logits_of(output)
        if logits is None or len(logits) != 2:
            raise ExportError(
                f"{name} returns a {type(output).__name__}, expected logits (N, K, h, w): wrap it in a module that returns them"
            )
        if logits.shape[1:3] == size:
            raise ExportError(
                f"{name} returns (N, H, W, K), expected logits (N, K, h, w): let it return logits.permute(0, 3, 1, 2)"
            )
        if are_probabilities(logits):
            raise ExportError(f"{name} returns probabilities, expected logits: remove its softmax")
        if not same_values(logits, logits_of(again)):
            raise ExportError(
                f"{name} returns other logits each time: remove what is random in eval(), such as F.dropout without "
                "training=self.training"
            )
        return images, logits.shape[1]
    raise ExportError(
        f"{name} fails on images (N, 3, H, W) of {'; '.join(faults)}; use sizes=((height, width),), or if it expects "
        "(N, H, W, 3), wrap it in a module that permutes"
    )


def _graph(network: nn.Module, images: Tensor, *, free: bool) -> bytes:
    axes = {0: torch.export.Dim("batch", min=1)}
    if free:
        axes |= {axis: torch.export.Dim(name, min=MINIMUM_SIZE) for axis, name in ((2, "height"), (3, "width"))}
    try:
        with quiet(), torch.no_grad(), eval_mode(network), ExportForms():
            program = torch.onnx.export(
                _Logits(network).eval(), (images,), dynamo=True, opset_version=OPSET, input_names=["image"],
                output_names=[LOGITS], dynamic_shapes={"images": axes}, external_data=False, verbose=False,
            )  # fmt: skip
    except Exception as cause:  # the exporter's exceptions share no base, and hold pages; what went wrong is in their cause
        line = first_line(cause.__cause__ or cause)
        advice = "; use sizes=((height, width),) if its code depends on the size" if free else ""
        raise ExportError(f"torch {torch.__version__} cannot export this {type(network).__name__}: {line}{advice}") from cause
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    content: bytes = model.SerializeToString(deterministic=True)
    return content
