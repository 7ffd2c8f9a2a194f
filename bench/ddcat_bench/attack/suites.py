"""The suites of `ddcat attack`: which attacks are made, as data."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ddcat_bench.attack.results import AttackName
from ddcat_bench.cli_options import SuiteName
from ddcat_bench.errors import BenchError
from ddcat_train.choices import Start

__all__ = ["BIM", "CLEAN", "SEA_LOSSES", "SUITES", "AttackSpec", "Case", "SpecName", "Suite", "attack_specs"]

SpecName = Literal["BIM", "PGD", "SegPGD", "CosPGD", "TsallisPGD", "SEA", "Square", "DLA", "noise"]
SEA_LOSSES: tuple[AttackName, ...] = ("SEA-JS", "SEA-MCE", "SEA-MCE-Bal")
_SEA_ITERATIONS = 300


class Case(NamedTuple):
    """One set of adversarial images that a plan gives."""

    name: AttackName
    steps: int


class AttackSpec(NamedTuple):
    """One pass of an attack."""

    name: SpecName  # a key of `ddcat_bench.attack.attacks.ATTACKS`
    epsilon: float  # in [0, 1] units; alpha is 0 where the attack has no step of one size
    alpha: float
    start: Start
    # the numbers of steps (of queries for Square and DLA) after which it is scored, ascending; 0 with ``start="clean"`` are the
    # clean images
    counted: tuple[int, ...]
    surrogate: int | None = None  # index of the surrogate that it is made on; the evaluated checkpoint by default
    eight_bit: bool = False  # True if a query attack changes whole grey levels only, which an engine receives as they are

    @property
    def cases(self) -> tuple[Case, ...]:
        """Its sets of adversarial images, in this order."""
        if self.name == "SEA":
            return tuple(Case(loss, self.counted[-1]) for loss in SEA_LOSSES)
        if self.surrogate is not None:
            return tuple(Case("transfer", n) for n in self.counted)
        return tuple(Case("clean" if self.name == "BIM" and not n else self.name, n) for n in self.counted)

    @property
    def forwards(self) -> int:
        """Approximate number of forwards of an image, for the progress bar."""
        return self.counted[-1] * (len(SEA_LOSSES) if self.name == "SEA" else 1) + 2 * len(self.cases)


class Suite(NamedTuple):
    """The attacks of a suite."""

    always: tuple[AttackSpec, ...]
    each: tuple[Callable[[float], AttackSpec], ...] = ()  # functions from a bound to a spec, called with each of `epsilons`
    epsilons: tuple[float, ...] = ()
    swept: tuple[float, ...] = ()  # further bounds for PGD alone: the curve of mIoU over epsilon


def _projected(name: SpecName) -> Callable[[float], AttackSpec]:
    return lambda epsilon: AttackSpec(name, epsilon, alpha=epsilon / 4, start="random", counted=(20,))


def _queried(name: SpecName, queries: int) -> Callable[[float], AttackSpec]:
    return lambda epsilon: AttackSpec(name, epsilon, alpha=0.0, start="clean", counted=(queries,))


def _sea(epsilon: float) -> AttackSpec:
    return AttackSpec("SEA", epsilon, alpha=0.0, start="random", counted=(_SEA_ITERATIONS,))


CLEAN = AttackSpec("BIM", epsilon=0.03, alpha=0.01, start="clean", counted=(0,))
BIM = AttackSpec("BIM", epsilon=0.03, alpha=0.01, start="clean", counted=(0, 1, 2, 3, 4, 5, 6, 7))  # the paper's Eq. 2, Table 1
_LONG_BIM = BIM._replace(counted=(*BIM.counted, 10, 20))  # of which the paper says that they change little

SUITES: dict[SuiteName, Suite] = {
    "quick": Suite((BIM,)),
    "paper": Suite((_LONG_BIM, _projected("PGD")(8 / 255))),
    # Beside SEA what costs little next to it: on some models one of these leaves less, and the worst of all is what counts.
    "sea": Suite(
        (CLEAN,),
        each=(_sea, _projected("PGD"), _projected("SegPGD"), _projected("CosPGD")),
        epsilons=(4 / 255, 8 / 255),
    ),
    "full": Suite(
        (_LONG_BIM,),
        each=(
            _projected("PGD"),
            _projected("SegPGD"),
            _projected("CosPGD"),
            _projected("TsallisPGD"),
            _sea,
            _queried("Square", 500),
            _queried("DLA", 200),
            _queried("noise", 10),
        ),
        epsilons=(4 / 255, 8 / 255),
        swept=(0.5 / 255, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255),
    ),
}


def attack_specs(
    suite: SuiteName, *, epsilons: Sequence[float] | None = None, iterations: int | None = None, surrogates: int = 0
) -> tuple[AttackSpec, ...]:
    """
    List the passes of a suite.

    Bounds, and the number of steps of SEA, replace those of a suite that has some. BIM, n = 1..7, is made on each of the
    surrogates as well. Raises BenchError if the suite has no such bound, or no SEA: the figures would not be those that were
    asked for.
    """
    chosen = SUITES[suite]
    if not chosen.each and (epsilons or iterations is not None):
        option = "--epsilon" if epsilons else "--iterations"
        others = " or ".join(name for name, other in SUITES.items() if other.each)
        raise BenchError(f"{option} changes nothing in the {suite} suite: use --suite {others}")
    bounds = tuple(epsilons or chosen.epsilons)
    specs = [
        *chosen.always,
        *(spec(epsilon) for epsilon in bounds for spec in chosen.each),
        *(_projected("PGD")(epsilon) for epsilon in chosen.swept),
        *(BIM._replace(counted=BIM.counted[1:], surrogate=place) for place in range(surrogates)),
    ]
    if iterations is not None:
        specs = [spec._replace(counted=(iterations,)) if spec.name == "SEA" else spec for spec in specs]
    return tuple(dict.fromkeys(specs))
