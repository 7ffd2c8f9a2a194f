"""A gate's measurements as they are made, by a small budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.engines import open_engine
from ddcat_bench.gate.budget import Budget
from ddcat_bench.gate.disagreement import Disagreement
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import Measurements, attack_pool
from ddcat_bench.gate.pool import PoolResult
from ddcat_bench.gate.thresholds import DEFAULT, read_thresholds
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset

SMALL = Budget(steps=2, queries=20, query_stride=2)
LIMITS = read_thresholds(DEFAULT, "fp32")


def attacked_by(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, work: Path, budget: Budget = SMALL
) -> tuple[GateJob, Measurements]:
    with open_engine(bundle, threads=1) as engine:
        case = GateJob(bundle, checkpoint, scenes, budget=budget)
        told: list[int] = []
        attacked = attack_pool(case, engine, work, told.append)
        assert sum(told) == pytest.approx(case.forwards, rel=0.1)
    return case, attacked


def many(attacked: Measurements, times: int) -> Measurements:
    """As if there had been more images: the few of these tests decide nothing."""

    def repeated(judged: PoolResult) -> PoolResult:
        wide: dict[str, Any] = {name: np.tile(getattr(judged, name), (times, 1, 1)) for name in ("reference", "engine")}
        flips = Disagreement.from_array(np.tile(judged.disagreement.to_array(), (times, 1)))
        return judged._replace(**wide, disagreement=flips, attacked=np.tile(judged.attacked, times))

    names = [f"{name}-{copy}" for copy in range(times) for name in attacked.names]
    return attacked._replace(names=names, pool=tuple(map(repeated, attacked.pool)), probe=None)
