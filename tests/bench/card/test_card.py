"""The robustness card: every result that is there, with its claim, and nothing that is not."""

import shutil
from pathlib import Path

import pytest

from ddcat_bench.attack.results import AttackResult
from ddcat_bench.card.collect import Card, find_results, make_card
from ddcat_bench.certify.run import run_certify
from ddcat_bench.corruption.results import CorruptionResult
from ddcat_bench.corruption.run import run_corruptions
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import read_result
from ddcat_train.checkpoints import load_checkpoint
from tests.bench.suite import quiet_probe, row_of
from tests.commands import call, refusal


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, run_directory: Path) -> Path:
    """A run with all results that need no engine."""
    folder = shutil.copytree(run_directory, tmp_path_factory.mktemp("card") / "run")
    checkpoint = load_checkpoint(folder)
    run_corruptions(checkpoint, folder / "corruptions", names=("fog", "jpeg"))
    run_certify(checkpoint, folder / "certificate", sigma=0.02, samples=60, max_images=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddcat_bench.attack.rank_work.run_probe", quiet_probe)
        assert call("ddcat", "attack", folder, "--max-images", 2).returncode == 0
    return folder


def test_the_card_has_the_figures_of_the_results(measured: Path, tmp_path: Path) -> None:
    done = call("ddcat", "report", measured, "--out", tmp_path / "card")
    assert done.returncode == 0
    card = read_result(tmp_path / "card/card.json", Card)
    rows = {row.threat: row for row in card.rows}
    attack = read_result(measured / "attack-quick/attack.json", AttackResult)
    corruptions = read_result(measured / "corruptions/corruptions.json", CorruptionResult)
    assert rows["BIM, n = 3, 7.65/255"].figure == f"{row_of(attack, 'n = 3').scores.miou:.3f}"
    assert rows["common corruptions (1 of 15), mean"].figure == f"{corruptions.mean('common'):.3f}"
    assert rows["common corruptions (1 of 15), mean"].images == len(corruptions.data.names)
    assert any(threat.startswith("camera and codec (1 of 12), worst: jpeg, severity") for threat in rows)
    assert "certified, L2 below 0.013" in rows
    assert "extra corruptions, mean" not in rows
    assert all(row.claims and row.leaves_open for row in card.rows)
    page = (tmp_path / "card/card.html").read_text()
    assert "http" not in page.replace("http-equiv", "")
    assert "common corruptions (1 of 15), mean" in page
    assert "| threat | what it claims |" in done.stdout
    assert "use --force to replace" in refusal("ddcat", "report", measured, "--out", tmp_path / "card")


def test_alarms_stand_on_the_card_and_other_models_are_noticed(measured: Path, tmp_path: Path) -> None:
    found = find_results(measured)
    [of_attack] = [one for one in found if isinstance(one.result, AttackResult)]
    other = of_attack.result.checkpoint.model_copy(update={"sha256": "f" * 64})
    changed = of_attack._replace(result=of_attack.result.model_copy(update={"checkpoint": other}))
    alarms = make_card(measured, [changed, *(one for one in found if one is not of_attack)]).alarms
    assert "These results are of 2 different checkpoints: measure one of them anew." in alarms
    assert len(alarms) == len(of_attack.result.alarms) + 1


@pytest.mark.parametrize(("made", "says"), [(True, "no result was found"), (False, "is not a folder")])
def test_nothing_to_report_is_one_line(tmp_path: Path, made: bool, says: str) -> None:
    if made:
        (tmp_path / "empty").mkdir()
    with pytest.raises(BenchError, match=says):
        find_results(tmp_path / "empty")
