"""`ddcat attack --suite corruptions` and `--certify`, from the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ddcat_bench import judged as judging
from ddcat_bench.card.collect import find_results, make_card
from tests.commands import call, refusal


def test_corruptions_of_a_run_and_of_a_bundle(
    run_directory: Path, make_bundle: Callable, make_engine: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--suite", "corruptions", "--corruption", "fog", "--max-images", 2)
    assert call("ddcat", "attack", run_directory, *options, "--out", tmp_path / "run").returncode == 0
    assert (tmp_path / "run/corruptions.md").read_text().startswith("# sat (resnet10")
    bundle = make_bundle()
    monkeypatch.setattr(judging, "open_engine", make_engine)
    assert call("ddcat", "attack", bundle.path, *options).returncode == 0
    results = bundle.path.parent / f"{bundle.path.name}-corruptions"
    assert "| common corruptions (1 of 15) |" in (results / "corruptions.md").read_text()
    threats = {row.threat for row in make_card(bundle.path, find_results(bundle.path)).rows}
    assert {"engine, clean", "engine, common corruptions (1 of 15), mean"} <= threats


def test_a_certificate_of_a_run(run_directory: Path, tmp_path: Path) -> None:
    options = ("--certify", "--sigma", 0.02, "--samples", 60, "--max-images", 1, "--out", tmp_path / "out")
    assert call("ddcat", "attack", run_directory, *options).returncode == 0
    assert "# Certified: nothing below an L2 norm of 0.013" in (tmp_path / "out/certificate.md").read_text()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--suite", "corruptions", "--corruption", "rain"], "there is no corruption 'rain'"),
        (["--suite", "corruptions", "--epsilon", "8/255"], "--epsilon changes nothing for the suite corruptions"),
        (["--suite", "corruptions", "--jobs", "2"], "--jobs changes nothing for the suite corruptions"),
        (["--corruption", "fog"], "--corruption changes nothing for the suite quick"),
        (["--sigma", "0.25"], "--sigma changes nothing for the suite quick"),
        (["--certify", "--sigma", "0"], "--sigma 0: expected a deviation above 0"),
        (["--certify", "--suite", "sea"], "--suite changes nothing for --certify"),
    ],
)
def test_bad_input_is_one_line(run_directory: Path, tmp_path: Path, options: list[str], says: str) -> None:
    assert says in refusal("ddcat", "attack", run_directory, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
