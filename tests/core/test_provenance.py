"""A result says which code it is from, and nothing where that is not known."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from ddcat import provenance
from ddcat.provenance import git_commit, machine, versions


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, from which ddcat seems to run."""
    if shutil.which("git") is None:
        pytest.skip("no git is here")
    (tmp_path / "ddcat").mkdir()
    (tmp_path / "ddcat/provenance.py").write_text("")
    for line in ("init -q", "add .", "-c user.name=A -c user.email=a@b.c commit -q -m first"):
        subprocess.run(["git", "-C", str(tmp_path), *line.split()], check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "ddcat/provenance.py"))
    return tmp_path


def head(folder: Path) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_commit_of_the_checkout(checkout: Path) -> None:
    assert git_commit() == head(checkout)


def test_a_tree_with_changes_says_so(checkout: Path) -> None:
    (checkout / "new").write_text("")
    assert git_commit() == f"{head(checkout)}+changes"


def test_the_commit_of_somebody_elses_repository_is_not_ours(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = checkout / "venv/site-packages/ddcat/provenance.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert git_commit() is None


def test_outside_of_a_checkout_and_without_git_there_is_none(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent))
    shutil.rmtree(checkout / ".git")
    assert git_commit() is None
    monkeypatch.setenv("PATH", str(checkout))
    assert git_commit() is None


def test_versions_of_what_is_installed_alone() -> None:
    found = versions(["numpy", "no-such-distribution"])
    assert list(found) == ["python", "ddcat", "numpy"]
    assert found["python"] == platform.python_version()
    assert found["numpy"] == importlib.metadata.version("numpy")


def test_a_machine_has_the_cores_that_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    found = machine()
    assert set(found) == {"processor", "cores", "memory_gib", "system"}
    assert found["processor"]
    assert found["system"] == f"{platform.system()} {platform.machine()}"
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert machine()["cores"] == 3
