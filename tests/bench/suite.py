"""A whole suite of attacks in one call."""

import tempfile
from collections.abc import Callable
from pathlib import Path

from ddcat_bench.attack.aggregate import aggregate
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.rank_work import attack_rank_work, probe_once
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.work_units import open_units


def run_suite(
    evaluation: AttackJob,
    *,
    work: Path | None = None,
    advance: Callable[[int], None] = lambda forwards: None,
) -> AttackResult:
    """Attack in this process alone; what is kept in `work` is not done again."""
    with tempfile.TemporaryDirectory() as folder:
        units = open_units(work or Path(folder), evaluation.identity())
        batches = attack_rank_work(evaluation, units, advance=advance)
        return aggregate(evaluation, units, batches, probe_once(evaluation, units))
