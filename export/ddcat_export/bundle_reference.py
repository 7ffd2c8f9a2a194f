"""A bundle as a model of its own: its graph, run by torch, without what it was made from."""

from dataclasses import dataclass
from pathlib import Path

from ddcat.bundle import Bundle
from ddcat.classes import Classes
from ddcat_export.graph_segmenter import GraphSegmenter
from ddcat_export.twin.twin import twin_of
from ddcat_train.networks import Segmenter
from ddcat_train.reference import Reference, ReferenceData

__all__ = ["BundleReference"]


@dataclass(frozen=True)
class BundleReference(Reference):
    """
    The engine's own graph of a bundle.

    Attributes
    ----------
    bundle : Bundle
    """

    bundle: Bundle

    @property
    def path(self) -> Path:  # type: ignore[override]
        """The bundle."""
        return self.bundle.path

    @property
    def classes(self) -> Classes:
        """Names and colours of its classes."""
        return self.bundle.manifest.class_table()

    @property
    def data(self) -> ReferenceData:
        """The data set that its manifest names."""
        return ReferenceData.of_manifest(self.bundle.manifest)

    @property
    def method(self) -> str:
        """The method of its training."""
        return self.bundle.manifest.source.method

    @property
    def architecture(self) -> str:
        """What it is made of, and the precision that it computes in."""
        manifest = self.bundle.manifest
        return f"{manifest.source.architecture}, {manifest.engine.effective_precision}"

    @property
    def attack(self) -> dict[str, object] | None:
        """The attack of its training, as keyword arguments; None where there was none, or none is known."""
        return self.bundle.manifest.source.attack

    @property
    def step(self) -> int | None:
        """Updates that it was trained for; None: not known."""
        return self.bundle.manifest.source.step

    def sha256(self) -> str:
        """Return the hash of its manifest, in hexadecimal."""
        return self.bundle.digest

    def segmenter(self) -> Segmenter:
        """
        Make the network that torch computes, with gradients.

        Raises
        ------
        ExportError
            Naming what of its graph the executor does not support.
        """
        return GraphSegmenter(twin_of(self.bundle), classes=len(self.classes))
