"""Fine-tuning for int8: what it wins back, what the bundle says of it, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ddcat.bundle import Bundle
from ddcat.engines.onnxruntime import run_once
from ddcat_export.calibration import measure_ranges
from ddcat_export.data import ExportData
from ddcat_export.errors import ExportError
from ddcat_export.exporting import export
from ddcat_export.finetune import finetune
from ddcat_export.quantise import layers_of, quantise
from ddcat_export.summary import summarise
from ddcat_train.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from tests.commands import refusal
from tests.export.onnx_files import CLASSES, MEAN, STD, network, written

_UPDATES = 16


@pytest.fixture(scope="module")
def checkpoint(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Of a small network that was trained by DDC-AT, in batches of four."""
    loaded = load_checkpoint(run)
    config = loaded.description.config
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 4})})
    file = tmp_path_factory.mktemp("runs") / "best.safetensors"
    save_checkpoint(file, loaded.description.model_copy(update={"config": config}), loaded.segmenter())
    return load_checkpoint(file)


def test_it_wins_back_labels_that_wide_ranges_lose(checkpoint: Checkpoint, bundle: Bundle, scenes: Path) -> None:
    graph, data = bundle.files["model.onnx"], ExportData(checkpoint, root=scenes)
    images = [sample.image for sample in data.val(6)]
    ranges = measure_ranges(graph, images)
    nodes = {node.name: node for node in onnx.load_model_from_string(graph).graph.node}
    wide = {nodes[layer].input[0] for layer in layers_of(graph)[:6]}
    ranges = {name: 40 * largest if name in wide else largest for name, largest in ranges.items()}

    def equal_labels(float_graph: bytes) -> float:
        content = quantise(float_graph, ranges, unsigned=True)
        found = [run_once(content, image)["labels"] == run_once(graph, image)["labels"] for image in images]
        return float(np.mean(np.concatenate(found)))

    told: list[str] = []
    tuned, found = finetune(
        checkpoint, graph, ranges, data_root=scenes, updates=_UPDATES, size=None, unsigned=True, progress=told.append
    )
    plain, better = equal_labels(graph), equal_labels(tuned)
    assert plain < 0.9
    assert better > plain + 0.005, (plain, better)
    assert (found.steps, found.batch_size, found.method, found.graph) == (_UPDATES, 4, "sat", "model.cpu.onnx")
    assert found.attack == {"epsilon": 0.03, "alpha": 0.01, "steps": 3, "start": "clean"}  # that of the checkpoint
    assert told[-1].startswith(f"fine-tuning for int8, update, {_UPDATES} of {_UPDATES}, ")


def test_the_bundle_says_that_its_weights_are_others(
    skip_what_is_slow: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Checkpoint,
    scenes: Path,
    tmp_path: Path,
) -> None:
    skip_what_is_slow(monkeypatch)
    plain, first, second = (
        export(
            checkpoint.path, tmp_path / name, precision="int8", calibration="clean", calibration_images=2, data_root=scenes,
            finetune=updates,
        )
        for name, updates in (("plain", None), ("first", 1), ("second", 1))
    )  # fmt: skip
    assert first.bundle.files == second.bundle.files  # the same for the same arguments
    entries = [done.bundle.manifest.quantisation for done in (plain, first)]
    assert entries[0] is not None
    assert entries[1] is not None
    assert entries[0].finetuning is None
    assert entries[1] == entries[0].model_copy(update={"finetuning": entries[1].finetuning})
    for file in ("model.onnx", "model.cpu.onnx"):
        graphs = [onnx.load_model_from_string(done.bundle.files[file]).graph for done in (plain, first)]
        assert graphs[0].node == graphs[1].node
        assert graphs[0].initializer != graphs[1].initializer
    printed = summarise(first.bundle, first.author, first.replay, first.parity)
    assert "weights fine-tuned for int8 by 1 updates on 4 images each (sat): they differ from the checkpoint's" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp32"}, "--finetune has no effect here, because the precision is fp32: leave it out"),
        ({"calibration_folder": "."}, "--finetune trains on labelled images: use --data-root in place of --calibration-folder"),
        ({}, "int8 and --max-drop need images of scenes: "),  # its data is not there
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_at_once(run: Path, tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export(run, tmp_path / "out", finetune=5, **{"precision": "int8", **options})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp32"], "because the precision is fp32: leave it out"),
        (["--precision", "bf16"], "because the precision is bf16: leave it out"),
    ],
)
def test_the_command_refuses_in_one_line(run: Path, arguments: list[str], message: str) -> None:
    assert refusal("ddcat", "export", run, *arguments, "--finetune", 5) == f"--finetune has no effect here, {message}"


def test_an_onnx_file_has_no_training_to_go_on_with(tmp_path: Path) -> None:
    file = written(tmp_path / "net.onnx", network())
    options: dict[str, Any] = {"classes": CLASSES, "mean": MEAN, "std": STD}
    with pytest.raises(ExportError, match=r"--finetune needs the configuration of a checkpoint, and .*net\.onnx has none"):
        export(file, tmp_path / "out", precision="int8", finetune=5, **options)
