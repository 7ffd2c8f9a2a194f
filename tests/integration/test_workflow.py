"""The workflows of GitHub: what they do on each Python is what .ci/run does, and a release has the changelog's words."""

import re
from pathlib import Path
from typing import Any

import yaml

from ddcat import __version__
from docs.release_notes import notes_of

ROOT = Path(__file__).parents[2]
WORKFLOW: dict[str, Any] = yaml.load(  # whose keys are all text: `on` is true in YAML 1.1
    (ROOT / ".github/workflows/checks.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader
)


def steps(job: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = WORKFLOW["jobs"][job]["steps"]
    return found


def test_it_runs_the_checks_on_each_python() -> None:
    assert set(WORKFLOW["on"]) == {"push", "pull_request"}
    job = WORKFLOW["jobs"]["checks"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    assert "bash .ci/run" in [step.get("run") for step in steps("checks")]
    (setup,) = (step for step in steps("checks") if step.get("uses", "").startswith("actions/setup-python@"))
    assert setup["with"]["python-version"] == "${{ matrix.python }}"
    assert re.search(r"^PYTHON \?=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert job["env"]["PYTHON"] == "python"


def test_it_builds_the_image_of_a_cpu() -> None:
    (build,) = (step["run"] for step in steps("image") if step.get("run", "").startswith("docker build"))
    assert (ROOT / build.split()[build.split().index("-f") + 1]).is_file()


def test_actions_have_a_major_version() -> None:
    used = [step["uses"] for job in WORKFLOW["jobs"] for step in steps(job) if "uses" in step]
    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


def test_a_release_has_the_notes_of_its_version() -> None:
    release: dict[str, Any] = yaml.load(
        (ROOT / ".github/workflows/release.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader
    )
    assert release["on"] == {"push": {"tags": ["v*"]}}
    lines = [step.get("run", "") for step in release["jobs"]["release"]["steps"]]
    assert any(line.startswith("python docs/release_notes.py ") for line in lines)
    notes = notes_of(__version__)
    assert notes is not None
    assert notes.startswith("### ")
    assert notes_of("9.9.9") is None
