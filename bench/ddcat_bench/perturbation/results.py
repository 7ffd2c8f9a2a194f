"""What is kept of such perturbations, in the results of `ddcat attack` and `ddcat gate`."""

from statistics import median
from typing import Literal

from pydantic import Field

from ddcat.schema import StrictModel
from ddcat_bench.result_schema import Scores

__all__ = ["BANDS", "BandRow", "MakerName", "Norms", "PerturbationRow", "Threat"]

Threat = Literal["clean", "L2", "universal", "patch", "minimal norm"]
MakerName = Literal["model", "twin"]

BANDS = (0.0, 0.5, 1.0, 2.0)  # distances from a patch, in its sides; the last band has no end


class BandRow(StrictModel):
    """Pixels at some distance from a patch."""

    nearest: float = Field(description="Distance from the patch where the band begins, in sides of the patch.")
    pixels: tuple[int, ...] = Field(description="Labelled pixels of each image.")
    right: tuple[int, ...] = Field(description="Those that the model labels right.")
    engine_right: tuple[int, ...] | None = Field(None, description="Those that the engine labels right; null: there is none.")

    @property
    def accuracy(self) -> float | None:
        """Share of the pixels that are right: the engine's, if there is one; None without pixels."""
        right = self.right if self.engine_right is None else self.engine_right
        return sum(right) / sum(self.pixels) if sum(self.pixels) else None


class Norms(StrictModel):
    """Norms of the smallest perturbations found, of each image, before they were rounded to 8 bits."""

    l2: tuple[float | None, ...] = Field(description="In [0, 1] units, over all values; null: none was found.")
    linf: tuple[float | None, ...] = Field(description="In [0, 1] units.")

    @property
    def found(self) -> int:
        """Number of images for which there is one."""
        return sum(norm is not None for norm in self.l2)

    def medians(self) -> tuple[float, float] | None:
        """Return the medians over all images, L2 and L-infinity; None where most images have none."""
        middles = [median(float("inf") if norm is None else norm for norm in norms) for norms in (self.l2, self.linf)]
        return None if float("inf") in middles else (middles[0], middles[1])


class PerturbationRow(StrictModel):
    """Scores of 8-bit images that were changed in one way."""

    threat: Threat
    attack: str = Field(description="Its name and steps; learnt; or a control, such as random signs.")
    control: bool = Field(description="True for what any attack must beat.")
    made_on: MakerName | None = Field(description="The PyTorch model, or the twin of an engine; null: it needs neither.")
    bound: float = Field(
        description="L2 norm over all values, L-infinity bound of a universal one, share of the image under a patch; 0: none."
    )
    learnt_on: int = Field(description="Images of either half that it was learnt on, to be judged on the other; 0: on none.")
    places: tuple[int, ...] = Field(description="Places of the images in the list of the result, in the order of all counts.")
    scores: Scores = Field(description="Of the PyTorch model; under a patch, of the pixels outside of it.")
    engine: Scores | None = Field(None, description="Of the engine on the same images; null: there is none.")
    bands: tuple[BandRow, ...] = Field((), description="Outside of a patch, by the distance from it.")
    norms: Norms | None = Field(None, description="Of the minimal norm alone.")

    @property
    def limit(self) -> str:
        """The bound in words: L2 3, 8/255, 2 % of the image."""
        if self.threat == "universal":
            return f"{255 * self.bound:.4g}/255"
        return {"L2": f"L2 {self.bound:g}", "patch": f"{100 * self.bound:g} % of the image"}.get(self.threat, "-")
