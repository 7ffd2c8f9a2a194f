"""How much the gate attacks."""

from typing import Literal, NamedTuple

__all__ = ["Budget", "BudgetName"]

BudgetName = Literal["default", "quick"]


class Budget(NamedTuple):
    """How much the gate attacks: see `ddcat_bench.gate.pool.parts_of`."""

    name: BudgetName = "default"
    steps: int = 20
    queries: int = 500
    every: int = 10
    seed: int = 0
