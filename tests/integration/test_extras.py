"""Every command starts where none of its extras is installed, and says in one line which it lacks."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.serve.bundles import small_bundle

ROOT = Path(__file__).parents[2]

# Runs lines of one command where only what `pip install .` brings can be imported.
PROGRAM = """
import contextlib
import importlib.metadata
import io
import json
import re
import sys


def needed(name, found):
    if name not in found:
        found.add(name)
        for line in importlib.metadata.requires(name) or ():
            if "extra ==" not in line and "sys_platform == 'win32'" not in line:
                other = re.match(r"[A-Za-z0-9._-]+", line)[0]
                try:
                    needed(other.lower().replace("_", "-"), found)
                except importlib.metadata.PackageNotFoundError:
                    pass  # of another system or Python
    return found

distributions = needed("ddcat", set())
modules = {
    module
    for module, names in importlib.metadata.packages_distributions().items()
    if distributions & {name.lower().replace("_", "-") for name in names}
}
modules |= {"ddcat", "ddcat_train", "ddcat_export", "ddcat_serve", "ddcat_bench", *sys.stdlib_module_names}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in modules and not name.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
command, lines = json.loads(sys.argv[1])
from ddcat import cli
answers = []
for line in lines:
    sys.argv = line.split()
    status, out, err = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            getattr(cli, command)()
        except SystemExit as ended:
            status = ended.code or 0
    answers.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""
COMMANDS = {
    "ddcat": "main",
    "ddcat-train": "train",
    "ddcat-data": "data",
    "ddcat-export": "export",
    "ddcat-bench": "bench",
    "ddcat-serve": "serve",
}
# with what follows each would begin its work, were everything installed
LACKING = [
    "ddcat-train scenes-ddcat",
    "ddcat-data check scenes nowhere",
    "ddcat-data scenes new",
    "ddcat-data import-checkpoint a.pth b.safetensors",
    "ddcat-export nowhere",
    "ddcat-export BUNDLE --engine openvino --out new",
    "ddcat-bench attack nowhere",
    "ddcat-bench gate BUNDLE",
    "ddcat-bench compare BUNDLE",
    "ddcat-bench scenarios BUNDLE",
    "ddcat-bench drift BUNDLE",
    "ddcat-bench fidelity BUNDLE",
    "ddcat-bench speed BUNDLE",
    "ddcat-bench train-step scenes-ddcat",
    "ddcat-serve run BUNDLE --port 0",
    "ddcat-serve ray BUNDLE",
    "ddcat-serve triton BUNDLE new",
]
WORKING = {
    "ddcat-train --list": "scenes-ddcat",
    "ddcat-train --show scenes-ddcat": "backbone:",
    "ddcat-serve inspect BUNDLE": "Every file is the one that the manifest names.",
    "ddcat-serve inspect BUNDLE --json": '"digest"',
}
HELP = [f"{name} --help" for name in COMMANDS] + sorted(
    {
        " ".join([*line.split()[:2], "--help"])
        for line in (*LACKING, *WORKING)
        if line.split()[0] in ("ddcat-data", "ddcat-bench", "ddcat-serve")
    }
)


class Answer(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What each line answers; a command is started once for all its lines."""
    where, found = tmp_path_factory.mktemp("extras"), {}
    small_bundle(where / "BUNDLE")
    for name, function in COMMANDS.items():
        lines = [line for line in (*HELP, *LACKING, *WORKING) if line.split()[0] == name]
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps([function, lines])],
            cwd=where, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"},
        )  # fmt: skip
        found |= {line: Answer(*answer) for line, answer in zip(lines, json.loads(done.stdout), strict=True)}
    return found


@pytest.mark.parametrize("line", HELP)
def test_a_command_explains_itself(line: str, answers: dict[str, Answer]) -> None:
    assert answers[line].status == 0
    assert "Usage" in answers[line].out


@pytest.mark.parametrize("line", LACKING)
def test_a_command_says_which_extras_it_lacks(line: str, answers: dict[str, Answer]) -> None:
    status, out, err = answers[line]
    assert (status, out) == (2, "")
    found = re.fullmatch(r'error: .*No module named .*: pip install "\.\[([a-z,-]+)\]" in a clone of ddcat\n', err)
    assert found, err
    assert set(found[1].split(",")) <= set(importlib.metadata.metadata("ddcat").get_all("Provides-Extra") or ())


@pytest.mark.parametrize("line", WORKING)
def test_what_needs_no_extra_works_without(line: str, answers: dict[str, Answer]) -> None:
    assert (answers[line].status, answers[line].err) == (0, "")
    assert WORKING[line] in answers[line].out


def test_tables_and_comparisons_of_results_need_no_torch() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("torch", "lightning_fabric", "safetensors", "cv2", "onnxruntime")))
import ddcat_bench.compare.engines, ddcat_bench.compare.report, ddcat_bench.output
import ddcat_bench.tables.files, ddcat_bench.tables.paper_tables, ddcat_bench.tables.runs
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nobody_is_told_to_install_a_name_that_is_not_ours() -> None:
    """The distribution is in no index: whoever registered its name would run code on the machines of those who were told to."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("docker/*"), *ROOT.glob("kubernetes/*")]
    sources = [file for folder in ("ddcat", "train", "export", "serve", "bench") for file in (ROOT / folder).rglob("*.py")]
    told = re.compile(r"pip install (?:-\S+ )*[\"']?ddcat\b")
    assert [str(file) for file in (*pages, *sources) if told.search(file.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_a_clean_environment_has_working_commands(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    build = [sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run([*map(str, build)], check=True, env=environment, cwd=tmp_path, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    install = [tmp_path / "venv/bin/pip", "install", "--quiet", wheel]
    subprocess.run([*map(str, install)], check=True, env=environment, cwd=tmp_path)
    small_bundle(tmp_path / "BUNDLE")
    for line in (*HELP, *LACKING, *WORKING):
        name, *arguments = line.split()
        done = subprocess.run(
            [tmp_path / "venv/bin" / name, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, line
        if line in LACKING:
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), line
            assert 'pip install ".[' in done.stderr, line
        else:
            assert done.returncode == 0, f"{line}: {done.stderr}"
