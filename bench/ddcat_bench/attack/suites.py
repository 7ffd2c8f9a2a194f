"""The suites of `ddcat attack`: which attacks are made, as data."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from ddcat_bench.attack.results import AttackName, SuiteName
from ddcat_bench.errors import BenchError
from ddcat_train.names import Start

__all__ = ["BIM", "CLEAN", "SEA_LOSSES", "SUITES", "Case", "Plan", "PlanName", "Suite", "plans_of"]

PlanName = Literal["BIM", "PGD", "SegPGD", "CosPGD", "TsallisPGD", "SEA", "Square", "DLA", "noise"]
SEA_LOSSES: tuple[AttackName, ...] = ("SEA-JS", "SEA-MCE", "SEA-MCE-Bal")
_SEA_ITERATIONS = 300


class Case(NamedTuple):
    """One set of adversarial images that a plan gives."""

    name: AttackName
    steps: int


class Plan(NamedTuple):
    """
    One pass of an attack.

    Attributes
    ----------
    name : str
        A key of `ddcat_bench.attack.passes.PASSES`.
    epsilon, alpha : float
        In [0, 1] units; alpha is 0 where the attack has no step of one size.
    start : Start
    counted : tuple of int
        The numbers of steps (of queries for Square and DLA) after which it is scored, ascending; 0 with ``start="clean"``
        are the clean images.
    substitute : int, optional
        Place of the other checkpoint that it is made on; on what is judged by default.
    eight_bit : bool
        Whether an attack that asks for answers changes whole grey levels only, which an engine receives as they are.
    """

    name: PlanName
    epsilon: float
    alpha: float
    start: Start
    counted: tuple[int, ...]
    substitute: int | None = None
    eight_bit: bool = False

    @property
    def cases(self) -> tuple[Case, ...]:
        """What it gives, in this order."""
        if self.name == "SEA":
            return tuple(Case(loss, self.counted[-1]) for loss in SEA_LOSSES)
        if self.substitute is not None:
            return tuple(Case("transfer", n) for n in self.counted)
        return tuple(Case("clean" if self.name == "BIM" and not n else self.name, n) for n in self.counted)

    @property
    def forwards(self) -> int:
        """How often about the network sees an image in it: for the progress."""
        return self.counted[-1] * (len(SEA_LOSSES) if self.name == "SEA" else 1) + 2 * len(self.cases)


class Suite(NamedTuple):
    """
    What a suite consists of.

    Attributes
    ----------
    always : tuple of Plan
    each : tuple of callable
        Give the plan for a bound; made at every one of `epsilons`.
    epsilons : tuple of float
    swept : tuple of float
        Further bounds for PGD alone: the curve of mIoU over epsilon.
    """

    always: tuple[Plan, ...]
    each: tuple[Callable[[float], Plan], ...] = ()
    epsilons: tuple[float, ...] = ()
    swept: tuple[float, ...] = ()


def _projected(name: PlanName) -> Callable[[float], Plan]:
    return lambda epsilon: Plan(name, epsilon, alpha=epsilon / 4, start="random", counted=(20,))


def _queried(name: PlanName, queries: int) -> Callable[[float], Plan]:
    return lambda epsilon: Plan(name, epsilon, alpha=0.0, start="clean", counted=(queries,))


def _sea(epsilon: float) -> Plan:
    return Plan("SEA", epsilon, alpha=0.0, start="random", counted=(_SEA_ITERATIONS,))


CLEAN = Plan("BIM", epsilon=0.03, alpha=0.01, start="clean", counted=(0,))
BIM = Plan("BIM", epsilon=0.03, alpha=0.01, start="clean", counted=(0, 1, 2, 3, 4, 5, 6, 7))  # the paper's Eq. 2, Table 1
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


def plans_of(
    suite: SuiteName, *, epsilons: Sequence[float] | None = None, iterations: int | None = None, substitutes: int = 0
) -> tuple[Plan, ...]:
    """
    List the passes of a suite.

    Parameters
    ----------
    suite : str
    epsilons : sequence of float, optional
        Bounds in place of the suite's own, where it has some.
    iterations : int, optional
        Of SEA, in place of 300.
    substitutes : int
        How many other checkpoints BIM, n = 1..7, is made on as well.

    Raises
    ------
    BenchError
        Where the suite has no such bound, or no SEA: the figures would not be those that were asked for.
    """
    chosen = SUITES[suite]
    if not chosen.each and (epsilons or iterations is not None):
        option = "--epsilon" if epsilons else "--iterations"
        others = " or ".join(name for name, other in SUITES.items() if other.each)
        raise BenchError(f"{option} changes nothing in the {suite} suite: use --suite {others}")
    bounds = tuple(epsilons or chosen.epsilons)
    plans = [
        *chosen.always,
        *(plan(epsilon) for epsilon in bounds for plan in chosen.each),
        *(_projected("PGD")(epsilon) for epsilon in chosen.swept),
        *(BIM._replace(counted=BIM.counted[1:], substitute=place) for place in range(substitutes)),
    ]
    if iterations is not None:
        plans = [plan._replace(counted=(iterations,)) if plan.name == "SEA" else plan for plan in plans]
    return tuple(dict.fromkeys(plans))
