"""What an export is made from: a checkpoint, or an ONNX file of another program. It asks both the same few things."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from ddcat import provenance
from ddcat.choices import Precision
from ddcat.classes import Classes
from ddcat.engines.errors import EngineError
from ddcat.manifest import MainBranchProof, Preprocessing, Sizes, SourceCheckpoint
from ddcat.manifest_precision import Quantisation
from ddcat.preprocess import FileRule, Resize
from ddcat_export.contract import contract_graph
from ddcat_export.errors import ExportError
from ddcat_export.graph_checks import PRODUCTS
from ddcat_export.main_branch import prove_main_branch
from ddcat_export.onnx_export import build_graph
from ddcat_export.onnx_file import OnnxFile
from ddcat_export.onnx_options import OnnxOptions, classes_named
from ddcat_export.parity import Shape, shapes_of
from ddcat_train.checkpoints import BEST, LAST, Checkpoint, load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.data.classes_file import read_classes
from ddcat_train.model import Model, chosen_device
from ddcat_train.networks import Segmenter
from ddcat_train.reference import Reference, ReferenceData

__all__ = ["CheckpointSource", "OnnxSource", "Source", "load_onnx", "open_onnx", "open_source"]


class Source(ABC):
    """
    A model, and how a graph is made of it and proven.

    Attributes
    ----------
    reference : Reference
    author : str
        Who says what is right: the program that the graph is compared with.
    given : Quantisation or None
        Describes the graph, where it is quantised already.
    """

    reference: Reference
    author: str
    given: Quantisation | None = None

    @property
    @abstractmethod
    def stem(self) -> str:
        """What the bundle's model is named after."""

    def sizes(self, asked: Sizes | None) -> Sizes | None:
        """Return the sizes of the images: those that were asked for, unless the model takes a single one."""
        return asked

    def max_batch(self, asked: int | None) -> int | None:
        """Return the largest batch: the one that was asked for, unless the model takes a single image."""
        return asked

    @abstractmethod
    def graph(self, segmenter: Segmenter, *, sizes: Sizes | None, logits: bool, confidence: bool) -> bytes:
        """Make the graph, in fp32 unless it is quantised already: see `ddcat_export.onnx_export.build_graph`."""

    def prove(
        self, segmenter: Segmenter, content: bytes, *, sizes: Sizes | None, logits: bool, confidence: bool
    ) -> MainBranchProof | None:
        """Prove that the graph is the main branch alone; None where no other heads are known."""
        return None

    @abstractmethod
    def compared(self, segmenter: Segmenter) -> Segmenter:
        """Return the network, as its author runs it, that the graph is compared with."""

    def shapes(self, sizes: Sizes | None) -> tuple[Shape, ...]:
        """Return the shapes of images that it is compared on."""
        return shapes_of(sizes)

    @abstractmethod
    def preprocessing(self, segmenter: Segmenter) -> Preprocessing:
        """Describe what becomes of an image file, and what the graph does with it first."""

    def entry(self) -> SourceCheckpoint:
        """Describe the model for a manifest."""
        reference = self.reference
        return SourceCheckpoint(
            checkpoint=str(reference.path.resolve()),
            sha256=reference.sha256(),
            git_commit=provenance.git_commit(),
            method=reference.method,
            attack=reference.attack,
            architecture=reference.architecture,
            step=reference.step,
        )


class CheckpointSource(Source):
    """The main branch of a checkpoint."""

    author = "PyTorch"

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.reference = self._checkpoint = checkpoint

    @property
    def stem(self) -> str:
        """The run that a checkpoint is in, or the name of the file."""
        path = self._checkpoint.path.resolve()
        return path.parent.name if path.name in (BEST, LAST) else path.stem

    def graph(self, segmenter: Segmenter, *, sizes: Sizes | None, logits: bool, confidence: bool) -> bytes:
        """Export it."""
        return build_graph(segmenter, sizes=sizes, logits=logits, confidence=confidence)

    def prove(
        self, segmenter: Segmenter, content: bytes, *, sizes: Sizes | None, logits: bool, confidence: bool
    ) -> MainBranchProof:
        """Export it once more, from other sizes and without the other heads."""
        return prove_main_branch(segmenter, content, sizes=sizes, logits=logits, confidence=confidence)

    def compared(self, segmenter: Segmenter) -> Segmenter:
        """Return the network itself."""
        return segmenter

    def preprocessing(self, segmenter: Segmenter) -> Preprocessing:
        """Describe how its images are read, and the network's first layer."""
        mean, std = _decimals(segmenter.normalise.mean), _decimals(segmenter.normalise.std)
        rule = self.reference.data.rule
        return Preprocessing(**dict(rule), colour="RGB" if rule.bands is None else "bands", mean=mean, std=std)


class OnnxSource(Source):
    """
    An ONNX file of another program.

    Parameters
    ----------
    file : OnnxFile
        The float model.
    quantised : OnnxFile, optional
        What another program quantised it to: the graph of the bundle.

    Raises
    ------
    ExportError
        Where the float model is quantised.
    """

    author = "the file"

    def __init__(self, file: OnnxFile, quantised: OnnxFile | None = None) -> None:
        if file.is_quantised:
            raise ExportError(
                f"{file.path} is quantised: use --reference FILE with the float model that it was made from; the gate "
                "compares the two"
            )
        if quantised is not None and not quantised.is_quantised:
            raise ExportError(f"--reference {file.path}: {quantised.path} is not quantised: leave --reference out")
        self.reference = self._file = file
        self._graph = quantised or file
        if quantised is not None:
            nodes = quantised.model.graph.node
            restored = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
            layers = [node for node in nodes if node.op_type in PRODUCTS and restored.issuperset(node.input[:2])]
            if not layers:
                raise ExportError(f"{quantised.path} is quantised, but no convolution or product of it is: it is not int8")
            self.given = Quantisation(calibration=None, float_layers=(), quantised_layers=len(layers), max_drop=None, drop=None)

    @property
    def stem(self) -> str:
        """The name of the file."""
        return self._graph.path.stem

    def sizes(self, asked: Sizes | None) -> Sizes | None:
        """Return the file's only size, or what was asked for."""
        only = self._graph.size
        if only is None or asked in (None, (only,)):
            return asked if only is None else (only,)
        raise ExportError(f"{self._graph.path} accepts only {only[0]}x{only[1]}: leave --size out, or export the file again")

    def max_batch(self, asked: int | None) -> int | None:
        """Return 1 where the file takes one image at a time, or what was asked for."""
        if self._graph.any_batch or asked == 1:
            return asked
        if asked is None:
            return 1
        raise ExportError(f"{self._graph.path} takes one image at a time: leave --max-batch out, or export the file again")

    def graph(self, segmenter: Segmenter, *, sizes: Sizes | None, logits: bool, confidence: bool) -> bytes:
        """Put the contract of a bundle around the file's graph."""
        precision: Precision = "fp32" if self.given is None else "int8"
        return contract_graph(self._graph, sizes=sizes, logits=logits, confidence=confidence, precision=precision)

    def compared(self, segmenter: Segmenter) -> Segmenter:
        """Return the file in ONNX Runtime."""
        return self._file.runtime_segmenter()

    def shapes(self, sizes: Sizes | None) -> tuple[Shape, ...]:
        """Return the shapes of images that the file takes; refuse those that it was asked for and fails on."""
        wanted = shapes_of(sizes)
        if sizes is not None:  # a ladder: the smallest of all is not among them
            wanted = tuple(shape for shape in wanted if shape[1:] in sizes)
        if not self._graph.any_batch:
            wanted = tuple(dict.fromkeys((1, *shape[1:]) for shape in wanted))
        for shape in wanted:
            try:
                self._graph.run(shape)
            except (ExportError, EngineError) as cause:
                raise ExportError(f"{cause}; use --size HxW, one or several, for the sizes that it accepts") from cause
        return wanted

    def preprocessing(self, segmenter: Segmenter) -> Preprocessing:
        """Describe how images are read, and what the file is fed."""
        return Preprocessing(**dict(self._file.data.rule), mean=self._file.mean, std=self._file.std)

    def entry(self) -> SourceCheckpoint:
        """Describe the float file for a manifest."""
        return super().entry().model_copy(update={"kind": "onnx", "output": self._file.output})


def open_onnx(path: Path, options: OnnxOptions, *, data_root: Path | None = None) -> OnnxFile:
    """
    Read an ONNX file.

    Parameters
    ----------
    path : Path
    options : OnnxOptions
    data_root : Path, optional
        Folder of the data set that it is evaluated on.

    Raises
    ------
    ExportError
        Where something is missing, or the file is no such model.
    DataError
    """
    if options.mean is None or options.std is None:
        raise ExportError(
            f"{path}: use --mean R,G,B and --std R,G,B: its input is (image / 255 - mean) / std; 0,0,0 and 1,1,1 if it "
            "normalises images itself"
        )
    classes, data = options.classes, ReferenceData(options.layout, None)
    if data_root is not None:
        dataset = open_dataset(options.layout, data_root, data.val_split)
        data = data._replace(root=data_root, images=len(dataset), list_sha256=dataset.list_sha256())
        classes = dataset.classes if classes is None else classes
    if classes is None:
        raise ExportError(
            f"{path}: use --classes FILE with the names of its classes, as in classes.yaml of a data set; in Python, "
            "classes=[...]"
        )
    if isinstance(classes, str | Path):
        known = read_classes(Path(classes))
    else:
        known = classes if isinstance(classes, Classes) else classes_named(classes)
    file = OnnxFile.read(
        path, classes=known, mean=options.mean, std=options.std, scale=options.scale, output=options.output, data=data
    )
    if file.size is None:
        return file
    return dataclasses.replace(file, trained_on=data._replace(rule=FileRule(resize=Resize(to=file.size))))


def load_onnx(
    path: str | Path,
    *,
    classes: str | Path | Classes | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    scale: float = 1 / 255,
    output: str | None = None,
    layout: str = "folder",
    data_root: str | Path | None = None,
    device: str = "auto",
) -> Model:
    """
    Load an ONNX file of another program as a model with gradients: PyTorch runs its graph node by node.

    Parameters
    ----------
    path : path
    classes, mean, std, scale, output, layout
        See `ddcat_export.onnx_options.OnnxOptions`.
    data_root : path, optional
        Folder of the data set that it is evaluated on.
    device : "auto", "cpu" or "cuda"
        "auto" takes a GPU if there is one.

    Raises
    ------
    ExportError
        Where something is missing, the file is no such model, or its graph holds what is not supported.
    ConfigError, DataError
    """
    place = chosen_device(device)
    options = OnnxOptions(classes, mean, std, scale, output, layout)
    return Model(open_onnx(Path(path), options, data_root=None if data_root is None else Path(data_root)), place)


def open_source(path: Path, options: OnnxOptions, *, data_root: Path | None = None) -> Source:
    """
    Read a checkpoint, the best one of a run, or an ONNX file.

    Parameters
    ----------
    path : Path
    options : OnnxOptions
        Of an ONNX file alone.
    data_root : Path, optional
        Folder of the data set that an ONNX file is evaluated on.

    Raises
    ------
    DdcatError
    """
    if path.suffix.lower() != ".onnx":
        if given := options.given():
            raise ExportError(f"--{given[0]} is for ONNX files, and {path} is not one: leave it out")
        return CheckpointSource(load_checkpoint(path))
    if options.reference is None:
        return OnnxSource(open_onnx(path, options, data_root=data_root))
    float_file = open_onnx(Path(options.reference), options, data_root=data_root)
    return OnnxSource(float_file, open_onnx(path, options, data_root=data_root))


def _decimals(values: Tensor) -> tuple[float, ...]:
    # by way of float32's own shortest decimals: 0.485, not 0.48500001430511475
    return tuple(float(str(value)) for value in values.flatten().numpy().astype(np.float32))
