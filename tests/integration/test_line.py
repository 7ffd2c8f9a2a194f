"""The whole line at its smallest, by the commands: train, attack, export, judge, and HTTP answers that equal the engine's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ddcat.bundle import open_bundle
from ddcat_train.data.synthetic.generate import write_scenes
from tests.commands import call

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and its bundle."""
    folder = tmp_path_factory.mktemp("line")
    write_scenes(folder / "scenes", train=4, val=2, size=(40, 36))
    overrides = ["augment.crop=33", "model.width=4", "model.context=aspp", "train.epochs=1", "train.batch_size=4"]
    options = [part for override in overrides for part in ("--set", override)]
    done("ddcat", "train", "scenes-ddcat", "--data-root", folder / "scenes", *options, "--out", folder / "run")
    done("ddcat", "export", folder / "run", "--engine", "ort", "--size", "40x36", "--out", folder / "bundle")
    return folder


def done(command: str, *arguments: object) -> str:
    ended = call(command, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_attack_fidelity_and_speed_leave_files_that_agree(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddcat_bench.timing.serving_memory.serving_peak", lambda serving: 2**20)  # in processes of their own
    done("ddcat", "attack", made / "run", "--suite", "paper", "--out", made / "attack")
    done("ddcat", "fidelity", made / "bundle", "--out", made / "fidelity")
    done("ddcat", "speed", made / "bundle", "--repeats", 10, "--threads", 1, "--out", made / "speed")
    attack, fidelity, speed = (json.loads((made / f"{n}/{n}.json").read_text()) for n in ("attack", "fidelity", "speed"))
    assert [row["steps"] for row in attack["rows"]] == [*range(8), 10, 20, 20, *range(1, 8), 10, 20, 20]
    rounded = {row["steps"]: row["scores"]["miou"] for row in attack["rows"] if row["eight_bit"] or not row["steps"]}
    for row in fidelity["rows"]:
        assert row["pytorch"]["miou"] == pytest.approx(
            rounded[row["steps"]], abs=0.005
        )  # batches of other sizes round otherwise
        assert row["agreement"] > 0.999
    assert {entry["bundle"]["sha256"] for entry in (fidelity, speed)} == {open_bundle(made / "bundle").digest}
    assert (made / "attack/attack.png").read_bytes().startswith(b"\x89PNG")
    assert all((made / f"{n}/{n}.md").is_file() for n in ("attack", "fidelity", "speed"))
    assert "Integrity only" in done("ddcat-serve", "inspect", made / "bundle")  # which is as it was


@pytest.mark.slow
def test_scores_over_http_are_those_of_the_engine(made: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "examples/score_over_http.py", made / "bundle", "--out", made / "http.json"], check=True
    )
    result = json.loads((made / "http.json").read_text())
    assert result["images"] == 6  # two images, clean and after 3 and 7 steps
    assert result["differing_pixels"] == 0
    assert all(pair["http"] == pair["engine"] for pair in result["miou"].values())
    assert result["bundle"] == open_bundle(made / "bundle").digest
