"""A whole suite of attacks in one call."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ddcat_bench.attack.evaluation import Evaluation
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.attack.share import attack_share, probe_once
from ddcat_bench.attack.summing import sum_up
from ddcat_bench.units import open_units


def run_suite(
    evaluation: Evaluation,
    *,
    work: Path | None = None,
    advance: Callable[[int], None] = lambda forwards: None,
) -> AttackResult:
    """Attack in this process alone; what is kept in `work` is not done again."""
    with tempfile.TemporaryDirectory() as folder:
        units = open_units(work or Path(folder), evaluation.identity())
        batches = attack_share(evaluation, units, advance=advance)
        return sum_up(evaluation, units, batches, probe_once(evaluation, units))
