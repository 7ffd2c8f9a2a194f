"""Exports with a temperature and a threshold to abstain by: the manifest, the engine's own answers, and what is refused."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

import ddcat
from ddcat import cli
from ddcat.bundle import Bundle, open_bundle
from ddcat.confidence import Temperature
from ddcat.engines import open_engine
from ddcat.errors import DdcatError
from ddcat.manifest import Manifest, parse_manifest
from ddcat_export import exporting, sources
from ddcat_export.exporting import export
from ddcat_export.parity import sample_images
from ddcat_export.rebuild import rebuild
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.pixels import to_planes
from tests.bundles import small_graph, small_manifest
from tests.commands import call


@pytest.fixture
def quick(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports skip the second tracing, which is tested elsewhere."""
    monkeypatch.setattr(sources, "prove_main_branch", lambda *given, **options: None)


def test_both_are_in_the_manifest_and_in_what_the_engine_says(run: Path, scenes: Path, tmp_path: Path, quick: None) -> None:
    made = export(run, tmp_path / "out", confidence=True, temperature="fit", risk=0.5, data_root=scenes)
    temperature = made.bundle.manifest.temperature
    assert temperature is not None
    assert temperature.images == 6
    images = sample_images((1, 96, 76), 0)
    logits = load_checkpoint(run).segmenter()(to_planes(images)).detach().numpy()
    with open_engine(made.bundle, threads=1) as engine:
        outputs = engine.infer(images)
    np.testing.assert_allclose(outputs.confidence, softmax(logits / temperature.value, 1).max(1), atol=1e-3)
    assert (outputs.labels == logits.argmax(1)).mean() > 0.999

    rule = made.bundle.manifest.abstention
    check_rule(made.bundle, scenes)

    same = rebuild(made.bundle.path, tmp_path / "same", engine="ort", max_batch=2).bundle
    assert (same.manifest.temperature, same.manifest.abstention) == (temperature, rule)
    older = rebuild(made.bundle.path, tmp_path / "older", engine="ort", opset=18).bundle
    assert older.manifest.abstention is None

    done = call("ddcat", "export", made.bundle.path, "--engine", "openvino", "--out", tmp_path / "again")
    assert "no threshold for abstaining: the source bundle's was chosen on the outputs of ort in fp32; " in done.stdout
    assert "export again with --confidence --risk 0.5" in done.stdout
    again = open_bundle(tmp_path / "again")
    assert again.manifest.temperature == temperature
    assert again.manifest.abstention is None  # it was promised of another engine
    with ddcat.open_bundle(again.path, threads=1) as engine, pytest.raises(DdcatError, match="no threshold to abstain by"):
        engine.predict(images[0], abstain=True)
    with open_engine(again, threads=1) as engine:
        np.testing.assert_allclose(engine.infer(images).confidence, outputs.confidence, atol=1e-3)


def check_rule(bundle: Bundle, scenes: Path) -> None:
    """The rule says of the validation split what `predict` does there."""
    rule, losses, unanswered, labelled = bundle.manifest.abstention, [], 0, 0
    assert rule is not None
    assert (rule.kind, rule.units, rule.images, rule.risk) == ("images", 6, 6, 0.5)
    dataset = open_dataset("scenes", scenes, "val")
    with ddcat.open_bundle(bundle.path, threads=1) as engine:
        for place, pair in enumerate(dataset.pairs):
            truth, mask = dataset.read(place).labels, engine.predict(pair.image, abstain=True)
            whole = engine.predict(pair.image)
            np.testing.assert_array_equal(mask[mask != 255], whole[mask != 255])
            known = truth != 255
            losses.append(((mask != truth) & (mask != 255) & known).sum() / known.sum())
            unanswered, labelled = unanswered + (mask == 255)[known].sum(), labelled + known.sum()
    assert rule.found == pytest.approx(np.mean(losses), abs=1e-9)
    assert rule.abstained == pytest.approx(unanswered / labelled, abs=1e-9)
    assert (6 * rule.found + 1) / 7 <= 0.5


@pytest.mark.slow
def test_a_threshold_is_of_images_that_are_cut_where_the_bundle_cuts_them(
    run: Path, scenes: Path, tmp_path: Path, quick: None
) -> None:
    made = export(run, tmp_path / "out", confidence=True, temperature=1.5, risk=0.5, tiles=64, data_root=scenes).bundle
    with ddcat.open_bundle(made.path, threads=1) as engine:
        assert engine.cuts(96, 77)  # as the run resizes the split
    check_rule(made, scenes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--confidence", "--temperature", "0"], "--temperature 0: expected a positive number or fit"),
        (["--confidence", "--temperature", "-1.5"], "--temperature -1.5: expected a positive number or fit"),
        (["--confidence", "--temperature", "nan"], "--temperature nan: expected a positive number or fit"),
        (["--confidence", "--temperature", "inf"], "--temperature inf: expected a positive number or fit"),
        (["--confidence", "--temperature", "warm"], "--temperature warm: expected a positive number or fit"),
        (["--temperature", "2"], "--temperature has no effect here, because the bundle has no confidence output: add"),
        (["--confidence", "--risk", "0"], "--risk 0: expected a number between 0 and 1, such as 0.05"),
        (["--confidence", "--risk", "1"], "--risk 1: expected a number between 0 and 1, such as 0.05"),
        (["--confidence", "--risk", "nan"], "--risk nan: expected a number between 0 and 1, such as 0.05"),
        (["--risk", "0.05"], "--risk has no effect here, because the bundle has no confidence output: add"),
        (["--confidence", "--risk", "0.05"], "--temperature fit and --risk need labelled images: "),
        (["--confidence", "--temperature", "fit"], "--temperature fit and --risk need labelled images: "),
    ],
)
def test_what_cannot_be_is_one_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quick: None,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(
        sys, "argv", ["ddcat", "export", str(run), "--out", str(tmp_path / "out"), "--size", "64x64", *arguments]
    )
    monkeypatch.setattr(exporting, "golden_images", None)  # what is slow is never reached
    with pytest.raises(SystemExit) as caught:
        cli.main()
    printed = capsys.readouterr().err
    assert caught.value.code == 2
    assert printed.startswith(f"error: {message}")
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_manifests_of_before_have_none_and_one_without_a_confidence_is_refused() -> None:
    manifest = small_manifest(small_graph())
    values = manifest.model_dump(mode="json")
    del values["temperature"], values["abstention"]
    assert parse_manifest(json.dumps(values).encode(), "it") == manifest
    with pytest.raises(ValueError, match="temperature is of the output confidence, which there is not"):
        Manifest.model_validate(dict(manifest) | {"temperature": Temperature(value=2.0, images=None)})
