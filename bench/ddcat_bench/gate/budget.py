"""The gate's attack budget."""

from typing import Literal, NamedTuple

__all__ = ["Budget", "BudgetName"]

BudgetName = Literal["default", "quick"]


class Budget(NamedTuple):
    """Attack budget: see `ddcat_bench.gate.pool.attack_runs`."""

    name: BudgetName = "default"
    steps: int = 20
    queries: int = 500
    query_stride: int = 10
    seed: int = 0
