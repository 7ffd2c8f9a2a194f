"""What is made, as data: the perturbations of `ddcat attack --suite full` and of the gate, each with its controls."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ddcat_bench.errors import BenchError
from ddcat_bench.perturbation.results import MakerName, Threat

__all__ = ["Case", "Plan", "check_l2", "check_share", "gate_plans", "suite_plans"]

L2_BOUNDS = (1.0, 3.0)  # 3 is the usual one for images of 224 x 224: a root mean square of 2/255 there
UNIVERSAL_BOUNDS = (4 / 255, 8 / 255)
PATCH_SHARES = (0.01, 0.05)
GATE_L2, GATE_UNIVERSAL, GATE_SHARE = 1.0, 8 / 255, 0.05

_CONTROLS = {
    "clean": ("clean",),
    "L2": ("random signs",),
    "universal": ("random signs",),
    "patch": ("no patch", "random patch", "grey patch"),
}


class Case(NamedTuple):
    """One set of images that a plan gives."""

    attack: str
    control: bool


class Plan(NamedTuple):
    """One way to change images."""

    threat: Threat
    made_on: MakerName | None = None  # what an attack is made on; None: its controls, which need no model
    # L2 norm, L-infinity bound of the universal ones, or share of the image that a patch covers; 0: there is none
    bound: float = 0.0
    steps: tuple[tuple[str, int], ...] = ()  # attacks and their numbers of steps, for L2 and for the minimal norm
    epochs: int = 0  # passes over the images that a universal perturbation or a patch is learnt on; 0: each image has its own
    learners: int | None = None  # most images of either half that it is learnt on; None: all
    stride: int = 1  # every Nth image is changed

    @property
    def cases(self) -> tuple[Case, ...]:
        """Its sets of images, in this order."""
        if self.made_on is None:
            return tuple(Case(name, control=True) for name in _CONTROLS[self.threat])
        if self.epochs:
            return (Case("learnt", control=False),)
        made = tuple(Case(f"{name}-{steps}", control=False) for name, steps in self.steps)
        # how large its random signs are follows from what the attack needed
        return (*made, Case("random signs", control=True)) if self.threat == "minimal norm" else made

    def chosen(self, images: int) -> list[int]:
        """Return the places of the images that it changes."""
        return list(range(0, images, self.stride))

    def learnt_on(self, images: int, half: int) -> list[int]:
        """Return the places of the images of a half, 0 or 1, that it is learnt on; frames of a film stay together."""
        middle = images // 2
        first, last = ((0, middle), (middle, images))[half]
        count = last - first if self.learners is None else min(self.learners, last - first)
        return [first + (2 * place + 1) * (last - first) // (2 * count) for place in range(count)]

    @property
    def forwards(self) -> int:
        """Approximate number of forwards of an image that it changes, for the progress bar."""
        return sum(steps for _, steps in self.steps) + len(self.cases)

    def forwards_of_all(self, images: int) -> int:
        """Approximate number of forwards of all images, with those of learning."""
        learnt = self.epochs * sum(len(self.learnt_on(images, half)) for half in (0, 1)) if self.epochs else 0
        return learnt + self.forwards * len(self.chosen(images))


def suite_plans(*, l2: Sequence[float] | None = None, shares: Sequence[float] | None = None) -> tuple[Plan, ...]:
    """List the plans of the suite full, for L2 norms and for shares of a patch; by default those of this module."""
    return tuple(
        _plans(
            ("model",),
            l2=tuple(l2 or L2_BOUNDS),
            universal=UNIVERSAL_BOUNDS,
            shares=tuple(shares or PATCH_SHARES),
            steps=(("PGD", 20), ("APGD", 100)),
            universal_epochs=20,
            patch_epochs=40,
            dag_steps=200,
            stride=1,
        )
    )


def gate_plans(*, steps: int, stride: int) -> tuple[Plan, ...]:
    """List the plans of the gate, made on the PyTorch model and on the engine's twin."""
    return tuple(
        _plans(
            ("model", "twin"),
            l2=(GATE_L2,),
            universal=(GATE_UNIVERSAL,),
            shares=(GATE_SHARE,),
            steps=(("APGD", steps),),
            universal_epochs=max(1, steps // 2),
            patch_epochs=steps,
            dag_steps=5 * steps,
            stride=stride,
        )
    )


def _plans(
    makers: Sequence[MakerName],
    *,
    l2: Sequence[float],
    universal: Sequence[float],
    shares: Sequence[float],
    steps: tuple[tuple[str, int], ...],
    universal_epochs: int,
    patch_epochs: int,
    dag_steps: int,
    stride: int,
) -> Iterator[Plan]:
    yield Plan("clean")
    for bound in l2:
        yield from (Plan("L2", maker, bound, steps=steps) for maker in makers)
        yield Plan("L2", None, bound)
    for bound in universal:
        yield from (Plan("universal", maker, bound, epochs=universal_epochs) for maker in makers)
        yield Plan("universal", None, bound)
    for share in shares:
        yield from (Plan("patch", maker, share, epochs=patch_epochs, learners=16) for maker in makers)
        yield Plan("patch", None, share)
    yield from (Plan("minimal norm", maker, steps=(("DAG", dag_steps),), stride=stride) for maker in makers)


def check_l2(text: str) -> float:
    """Parse an L2 bound. Raises BenchError."""
    try:
        bound = float(text)
    except ValueError:
        bound = 0.0
    if not 0 < bound < float("inf"):
        raise BenchError(f"--l2 {text}: expected a norm above 0, over all values of an image in [0, 1] units, such as 3")
    return bound


def check_share(text: str) -> float:
    """Parse the share of an image that a patch covers. Raises BenchError."""
    percent = text.removesuffix("%")
    try:
        share = float(percent) / (100 if percent != text else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise BenchError(f"--patch {text}: expected a share of the image above 0 and below 1, such as 0.02 or 2%")
    return share
