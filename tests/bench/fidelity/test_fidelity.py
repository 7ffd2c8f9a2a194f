from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddcat.bundle import Bundle
from ddcat.engines import open_engine
from ddcat.metrics import miou
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.errors import BenchError
from ddcat_bench.fidelity.compare import FidelityResult, compare, fidelity_markdown
from ddcat_bench.inputs import open_bundle_data, reference_of
from ddcat_bench.result_io import read_result, to_json
from ddcat_export.exporting import export
from ddcat_train.checkpoints import Checkpoint
from ddcat_train.data import Dataset
from tests.bench.suite import row_of, run_suite
from tests.commands import call

SWAP = np.arange(256, dtype=np.uint8)
SWAP[[0, 1]] = 1, 0


@pytest.fixture
def compared(make_bundle: Callable, make_engine: Callable, checkpoint: Checkpoint, scenes: Dataset) -> Callable:
    """Compare an engine that changes the model's labels, on scenes."""

    def run(change: Callable = lambda labels: labels, *, sizes: dict | None = None, **options: Any) -> FidelityResult:
        bundle = options.pop("bundle", None) or make_bundle(**sizes or {})
        return compare(bundle, make_engine(bundle, change), checkpoint, options.pop("data", scenes), **options)

    return run


def test_a_perfect_engine_agrees_everywhere(compared: Callable, checkpoint: Checkpoint, scenes: Dataset) -> None:
    done: list[int] = []
    result = compared(advance=done.append)
    assert sum(done) == len(scenes)
    assert [row.label for row in result.rows] == ["clean", "n = 3", "n = 7"]
    for row in result.rows:
        assert (row.agreement, row.counted_agreement, row.differing, row.counted_differing) == (1, 1, 0, 0)
        assert row.engine == row.pytorch
        assert row.pixels == 5 * 40 * 48 > row.counted_pixels
    attacked = run_suite(AttackJob(checkpoint, scenes, batch_size=8))
    for row in result.rows:
        assert row.pytorch == row_of(attacked, row.label, eight_bit=True).scores
    assert [row.grey_levels for row in result.rows] == [0, 7, 7]


def test_a_wrong_engine_is_found_out(compared: Callable) -> None:
    result = compared(lambda labels: SWAP[labels])
    for row in result.rows:
        # with two classes exchanged, exactly the pixels differ to which PyTorch gives one of the two
        counted = row.pytorch.array()[:, :2, :2].sum()  # true and false positives of both
        assert row.counted_differing == counted > 0
        assert row.counted_agreement == 1 - counted / row.counted_pixels < 1
        assert row.differing == sum(row.image_differing) >= row.counted_differing
        assert row.agreement == 1 - row.differing / row.pixels
        assert row.engine.miou == miou(row.engine.array().sum(0))
    clean = result.rows[0]
    assert clean.engine.miou < clean.pytorch.miou


def test_one_wrong_pixel_counts_once(compared: Callable, scenes: Dataset) -> None:
    def change(labels: np.ndarray) -> np.ndarray:
        changed = labels.copy()
        changed[:, 20, 24] = (changed[:, 20, 24] + 1) % 6
        return changed

    result = compared(change, sizes={"batch": 1}, max_images=2)
    for row in result.rows:
        assert row.image_differing == (1, 1)
        assert row.differing == 2
    assert result.data.names == (scenes.pairs[1].name, scenes.pairs[3].name)


def test_the_file_holds_everything(compared: Callable, tmp_path: Path) -> None:
    result = compared(lambda labels: SWAP[labels], max_images=2)
    (tmp_path / "fidelity.json").write_text(to_json(result))
    read = read_result(tmp_path / "fidelity.json", FidelityResult)
    assert read == result
    text = fidelity_markdown(read)
    assert result.bundle.sha256 in text
    assert f"| {result.rows[0].agreement:.4%} |" in text
    assert "not a gate" in text


def test_an_engine_of_one_size_refuses_others(compared: Callable) -> None:
    with pytest.raises(BenchError, match=r"val_00000.*48 x 40.*export again"):
        compared(sizes={"height": 64, "width": 64})


def test_another_checkpoint_is_refused(make_bundle: Callable, run_directory: Path, tmp_path: Path) -> None:
    bundle: Bundle = make_bundle()
    assert reference_of(bundle).path == reference_of(bundle, run_directory).path
    moved = tmp_path / "moved.safetensors"
    content = bytearray((run_directory / "best.safetensors").read_bytes())
    moved.write_bytes(content)
    assert reference_of(bundle, moved).path == moved
    content[-1] ^= 1
    moved.write_bytes(content)
    with pytest.raises(BenchError, match=r"not the checkpoint.*--checkpoint"):
        reference_of(bundle, moved)
    with pytest.raises(BenchError, match="is not at"):
        reference_of(bundle, tmp_path / "nowhere")


def test_another_split_is_said_or_refused(
    compared: Callable, make_bundle: Callable, scenes: Dataset, other_scenes: Callable[[int], Path]
) -> None:
    bundle = make_bundle()
    assert open_bundle_data(bundle) == scenes
    with pytest.raises(BenchError, match="not the one"):
        open_bundle_data(bundle, data_root=other_scenes(2))
    result = compared(bundle=bundle, data=open_bundle_data(bundle, split="train"))
    assert not result.data.usual_split
    assert "**not**" in fidelity_markdown(result)


@pytest.mark.slow  # the export is
def test_a_real_engine(run_directory: Path, checkpoint: Checkpoint, scenes: Dataset, tmp_path: Path) -> None:
    bundle = export(run_directory, tmp_path / "real").bundle
    with open_engine(bundle, threads=1) as engine:
        result = compare(bundle, engine, reference_of(bundle), open_bundle_data(bundle))
    assert result.data.usual_split
    for row in result.rows:
        assert row.agreement > 0.999
        assert row.engine.miou == pytest.approx(row.pytorch.miou, abs=0.002)


def test_the_command(make_bundle: Callable, make_engine: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = make_bundle()
    monkeypatch.setattr("ddcat.engines.open_engine", lambda opened: make_engine(opened, lambda labels: SWAP[labels]))
    done = call("ddcat", "fidelity", bundle.path, "--max-images", 2)
    assert done.returncode == 0  # whatever the figures
    folder = bundle.path.with_name("tiny.bundle-fidelity")
    assert sorted(file.name for file in folder.iterdir()) == ["fidelity.json", "fidelity.md"]
    assert "agreement" in done.stdout
