from pathlib import Path

import pytest

from ddcat.bundle import Bundle
from ddcat.manifest import MainBranchProof
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import Measurements
from ddcat_bench.timing.results import SpeedResult
from ddcat_export import exporting, sources
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from tests.bench.gate_measurements import attacked_by
from tests.bench.gates import speed_of
from tests.bench.suite import quiet_probe


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, run_directory: Path, scenes: Dataset) -> Bundle:
    height, width = scenes.read(0).labels.shape
    proof = MainBranchProof(spare_parameters=1, bytes_unchanged=True, multiply_adds=1, size=(height, width))
    with pytest.MonkeyPatch.context() as patch:  # it would be exported twice
        patch.setattr(sources, "prove_main_branch", lambda *given, **options: proof)
        folder = tmp_path_factory.mktemp("gate") / "bundle"
        return exporting.export(
            run_directory, folder, logits=True, confidence=True, temperature=2.0, sizes=((height, width),)
        ).bundle


@pytest.fixture(scope="session")
def speed() -> SpeedResult:
    return speed_of("bundle", 0.5)


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate without the probe for masked gradients."""
    monkeypatch.setattr("ddcat_bench.gate.measurements.run_probe", quiet_probe)


@pytest.fixture(scope="session")
def good(
    bundle: Bundle, checkpoint: Checkpoint, scenes: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[GateJob, Measurements]:
    """What a gate measures of an engine that is its model; no test changes it."""
    return attacked_by(bundle, checkpoint, scenes, tmp_path_factory.mktemp("good") / "work")
