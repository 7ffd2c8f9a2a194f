"""The summary of a run says what its files say."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from ddcat import provenance
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.config import load_config
from ddcat_train.run import summary
from ddcat_train.run.loop import train
from ddcat_train.run.plots import draw_curves
from ddcat_train.run.sessions import read_sessions
from tests.train.runs import Finished, stop_after


def rows(text: str, heading: str) -> list[list[str]]:
    """The rows of the table under a heading."""
    section = text.split(f"## {heading}\n")[1].split("\n## ", maxsplit=1)[0]
    found = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in found[2:]]


def log_of(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_scores_are_those_of_the_log(tiny_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config("scenes-ddcat", [*tiny_run, "train.evaluate_every=1", "train.evaluate_images=3"])
    train(config, run, command="ddcat train scenes-ddcat --set x=y")
    text = (run / "summary.md").read_text()
    judged = [line for line in log_of(run) if "val/clean" in line]
    assert len(judged) == 3
    best = load_checkpoint(run).description
    expected = [next(line for line in judged if line["step"] == best.step), judged[-1]]
    for row, line in zip(rows(text, "Scores"), expected, strict=True):
        assert row[1:] == [str(line["step"]), *(f"{line[f'val/{key}']:.4f}" for key in ("clean", "attacked", "selection"))]
    assert "mIoU on 3 of the 4 images of the split `val`, evenly spread over it." in text
    assert "epsilon 0.03 (7.65 grey levels), n = 3 steps of 0.01" in text
    assert "stronger attacks leave less" in text
    assert f"ddcat attack {run} --suite paper" in text
    assert f"ddcat export {run} --engine ort" in text
    assert "Finished: 9 steps." in text
    assert "ddcat train scenes-ddcat --set x=y" in text


def test_every_picture_is_there_and_all_is_made_from_the_folder_alone(
    tiny_run: list[str], finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = finished(load_config("scenes-ddcat", tiny_run))
    links = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (run / "summary.md").read_text())
    assert links == ["panels/step-000009.png", "losses.png", "scores.png", "mask.png"]
    for link in links:
        with Image.open(run / link) as opened:
            opened.verify()
    monkeypatch.setattr(summary, "draw_curves", draw_curves)
    made = {name: (run / name).read_bytes() for name in ("summary.md", *links[1:])}
    for name in made:
        (run / name).unlink()
    summary.write_summary(run)
    assert made == {name: (run / name).read_bytes() for name in made}


def test_how_it_was_trained_is_said(tiny_run: list[str], tmp_path: Path) -> None:
    overrides = ["train.ema=0.99", "train.epochs=1", "method.deep_weight=0", "attack.steps=2", "attack.alpha=eps/n"]
    train(load_config("scenes-sat", [*tiny_run, *overrides]), tmp_path / "run")
    text = (tmp_path / "run/summary.md").read_text()
    table = dict(rows(text, "Training"))
    assert table["method"] == "sat, deep_weight 0.0"
    assert table["attack of training"] == "BIM, epsilon 0.03, n = 2 steps of epsilon / n, starts at the image"
    assert table["steps"] == "1 epoch of 3 steps of 4 images"
    assert table["weights that are used"] == "an average with decay 0.99"
    assert table["data"].startswith("10 images of `train` of scenes in ")
    assert "Deep supervision" not in text
    for fact in (*provenance.versions(["torch", "numpy"]).values(), str(provenance.machine()["processor"])):
        assert fact in text
    commit = provenance.git_commit()
    assert (commit.removesuffix("+changes") if commit else "not from a git checkout") in text


def test_a_method_that_attacks_nothing_says_so(tiny_run: list[str], finished: Finished) -> None:
    text = (finished(load_config("scenes-undefended", tiny_run)) / "summary.md").read_text()
    assert dict(rows(text, "Training"))["attack of training"] == "none"
    assert "trained without any attack" in text
    assert "mask.png" not in text


def test_a_stopped_run_says_how_to_go_on_and_a_resumed_one_has_two_sessions(
    tiny_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "a run"
    config = load_config("scenes-ddcat", tiny_run)
    stop_after(5, config, run, monkeypatch, command="first")
    text = (run / "summary.md").read_text()
    assert f"**Not finished**: step 5 of 9. `ddcat train '{run}/config.yaml' --resume` continues it." in text
    assert "was not evaluated yet" in text
    assert [row[1] for row in rows(text, "Time and machine")] == ["1 to 5"]
    train(config, run, resume=True, command="second")
    text = (run / "summary.md").read_text()
    sessions = read_sessions(run)
    assert [(one.command, one.first, one.last) for one in sessions] == [("first", 0, 5), ("second", 5, 9)]
    table = rows(text, "Time and machine")
    assert [row[1] for row in table] == ["1 to 5", "6 to 9"]
    timing = [json.loads(line) for line in (run / "timing.jsonl").read_text().splitlines()]
    for one, row in zip(sessions, table, strict=True):
        seconds = sum(line["seconds"] for line in timing if one.first < line["step"] <= one.last)
        assert 0 < seconds < one.seconds
        assert row[5] == f"{(one.last - one.first) * 4 / seconds:.1f}"
    before = text
    train(config, run, resume=True, command="third")  # nothing is left to do
    assert (run / "summary.md").read_text() == before


def test_what_a_killed_session_did_beyond_its_checkpoint_is_not_counted(tiny_run: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = load_config("scenes-undefended", tiny_run)
    train(config, run, command="first")
    sessions = json.loads((run / "sessions.json").read_text())
    sessions[0]["last"] = 11  # as if it had been killed between its note and its checkpoint
    (run / "sessions.json").write_text(json.dumps(sessions))
    longer = load_config("scenes-undefended", [*tiny_run, "train.epochs=4"])
    train(longer, run, resume=True, more_epochs=True, command="second")
    assert [(one.first, one.last) for one in read_sessions(run)] == [(0, 9), (9, 12)]
