"""Every command starts where none of its extras is installed, and says in one line which it lacks."""

import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import NamedTuple

import pytest

from ddcat.bundle import write_bundle
from ddcat_bench.publish import write_result
from tests.bench.gates import made_gate
from tests.bundles import small_bundle

ROOT = Path(__file__).parents[2]

# Runs lines of commands where only what `pip install .` brings can be imported.
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
lines = json.loads(sys.argv[1])
from ddcat import cli
answers = []
for command, line in lines:
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
# with what follows each would begin its work, were everything installed; and the extras for that
LACKING = {
    "ddcat-train scenes-ddcat": "train",
    "ddcat-data check scenes BUNDLE": "train",
    "ddcat-data scenes new": "train",
    "ddcat-data import-checkpoint CHECKPOINT new.safetensors": "train",
    "ddcat-export CHECKPOINT": "train,export,cpu",
    "ddcat-export CHECKPOINT --compare-layers": "train,export,cpu",
    "ddcat-export CHECKPOINT --engine openvino": "train,export,cpu,openvino",
    "ddcat-export CHECKPOINT --engine trt": "train,export,gpu",
    "ddcat-export BUNDLE --out new": "export,cpu",
    "ddcat-export BUNDLE --engine openvino --out new": "export,openvino",
    "ddcat-export BUNDLE --engine trt --out new": "export,gpu",
    "ddcat-export CHECKPOINT --engine trt-rtx": "train,export,cpu,rtx",
    "ddcat-export BUNDLE --engine trt-rtx --out new": "export,cpu,rtx",
    "ddcat-export CHECKPOINT --check trt": "export,rtx",
    "ddcat-bench attack CHECKPOINT": "bench,export,cpu",
    "ddcat-bench gate BUNDLE --checkpoint CHECKPOINT": "bench,export,cpu",
    "ddcat-bench gate OPENVINO --checkpoint CHECKPOINT": "bench,export,openvino",
    "ddcat-bench compare RESULT": "bench",
    "ddcat-bench scenarios BUNDLE": "bench,export,cpu",
    "ddcat-bench drift BUNDLE --checkpoint CHECKPOINT": "bench,export,cpu",
    "ddcat-bench fidelity BUNDLE --checkpoint CHECKPOINT": "bench,export,cpu",
    "ddcat-bench speed BUNDLE --checkpoint CHECKPOINT": "bench,export,cpu",
    "ddcat predict BUNDLE CHECKPOINT --out new": "cpu",
    "ddcat predict OPENVINO CHECKPOINT --out new": "openvino",
    "ddcat-serve run BUNDLE --port 0": "serve,cpu",
    "ddcat-serve run BUNDLE OPENVINO": "serve,cpu,openvino",
    "ddcat-serve ray BUNDLE": "serve,ray,cpu",
    "ddcat-serve triton BUNDLE new": "serve,cpu",
}
# what is wrong with the line itself is said first, whatever is installed
WRONG = {
    "ddcat-train nonsense": "nonsense is neither a file nor a preset",
    "ddcat-train scenes-ddcat --device x": "'--device': 'x' is not one of 'auto', 'cpu', 'cuda'",
    "ddcat-train scenes-ddcat --devices 0": "'--devices': Input should be greater than or equal to 1",
    "ddcat-train scenes-ddcat --devices 3": "train.batch_size 16 does not divide into 3 devices",
    "ddcat-train scenes-ddcat --data-root nowhere": "--data-root nowhere is not a folder",
    "ddcat-train scenes-ddcat --out BUNDLE --resume": "BUNDLE is not empty and is not a run",
    "ddcat-data check x BUNDLE": "'x' is not one of 'scenes', 'voc'",
    "ddcat-data check scenes nowhere": "nowhere is not a folder",
    "ddcat-data check scenes BUNDLE --long-side 0": "'--long-side': Input should be greater than or equal to 1",
    "ddcat-data scenes new --train 0": "'--train': Input should be greater than or equal to 1",
    "ddcat-data scenes new --size 8x8": "--size 8x8: use 32x32 or more",
    "ddcat-data import-checkpoint nowhere new.safetensors": "no such file: nowhere",
    "ddcat-data import-checkpoint CHECKPOINT new.pth": "use new.safetensors",
    "ddcat-data import-checkpoint CHECKPOINT new.safetensors --config nonsense": "nonsense is neither a file nor a preset",
    "ddcat-data scenes new --size x": "--size x: use HEIGHTxWIDTH, such as 180x240\n",
    "ddcat-data scenes BUNDLE": "BUNDLE exists already",
    "ddcat-export nowhere": "no such checkpoint: nowhere",
    "ddcat-export nowhere --compare-layers": "no such checkpoint: nowhere",
    "ddcat-export nowhere --engine x": "'--engine': 'x' is not one of 'ort', 'openvino', 'trt'",
    "ddcat-export CHECKPOINT --precision x": "'--precision': 'x' is not one of 'fp32'",
    "ddcat-export CHECKPOINT --out BUNDLE": "BUNDLE exists already",
    "ddcat-export CHECKPOINT --size x": "--size x: use HEIGHTxWIDTH",
    "ddcat-export CHECKPOINT --opset 23": "'--opset': Input should be less than or equal to 22",
    "ddcat-export BUNDLE --opset 16": "'--opset': Input should be greater than or equal to 17",
    "ddcat-export BUNDLE --expect-digest 00 --out new": "expected 00",
    "ddcat-bench attack nowhere": "no such checkpoint: nowhere",
    "ddcat-bench attack CHECKPOINT --surrogate nowhere": "no such checkpoint: nowhere",
    "ddcat-bench attack CHECKPOINT --suite x": "'--suite': 'x' is not one of 'quick'",
    "ddcat-bench attack CHECKPOINT --protocol x": "'--protocol': 'x' is not one of 'whole', 'windows'",
    "ddcat-bench attack CHECKPOINT --epsilon x": "--epsilon x: use a number",
    "ddcat-bench attack CHECKPOINT --device x": "'--device': 'x' is not one of 'auto', 'cpu', 'cuda'",
    "ddcat-bench gate nowhere": "nowhere is not a directory",
    "ddcat-bench gate BUNDLE --thresholds nowhere.yaml": "--thresholds nowhere.yaml cannot be read",
    "ddcat-bench gate BUNDLE --quick --steps 3": "--steps 3: --quick",
    "ddcat-bench gate BUNDLE --checkpoint nowhere": "is not at nowhere: use --checkpoint",
    "ddcat-bench compare nowhere": "nowhere is not a directory",
    "ddcat-bench compare BUNDLE": "BUNDLE was not tested",
    "ddcat-bench compare RESULT --out BUNDLE": "BUNDLE exists already, and was not written by this command",
    "ddcat-bench scenarios nowhere": "nowhere is not a directory",
    "ddcat-bench scenarios BUNDLE --size x": "--size x: use HEIGHTxWIDTH",
    "ddcat-bench scenarios BUNDLE --out BUNDLE": "BUNDLE exists already, and was not written by this command",
    "ddcat-bench drift nowhere": "nowhere is not a directory",
    "ddcat-bench drift BUNDLE --epsilon x": "--epsilon x: use a number",
    "ddcat-bench drift BUNDLE": "is not at runs/small/best: use --checkpoint",
    "ddcat-bench fidelity nowhere": "nowhere is not a directory",
    "ddcat-bench fidelity BUNDLE": "is not at runs/small/best: use --checkpoint",
    "ddcat-bench speed nowhere": "nowhere is not a directory",
    "ddcat-bench speed BUNDLE --size x": "--size x: use HEIGHTxWIDTH",
    "ddcat-bench speed BUNDLE": "is not at runs/small/best: use --checkpoint",
    "ddcat predict nowhere BUNDLE --out new": "nowhere is not a directory",
    "ddcat predict BUNDLE nowhere --out new": "no such file or folder: nowhere",
    "ddcat predict BUNDLE BUNDLE --out new --format x": "'--format': 'x' is not one of 'png', 'coco'",
    "ddcat-serve run nowhere": "nowhere is not a directory",
    "ddcat-serve run BUNDLE --config nowhere.yaml": "--config nowhere.yaml cannot be read",
    "ddcat-serve run BUNDLE --expect-digest 00": "expected 00",
    "ddcat-serve run BUNDLE --rate-limit x": "--rate-limit: 'x' is not a rate",
    "ddcat-serve ray BUNDLE --replicas 2 --max-replicas 1": "--max-replicas 1 is less than --replicas 2",
    "ddcat-serve ray nowhere": "nowhere is not a directory",
    "ddcat-serve triton nowhere new": "nowhere is not a directory",
    "ddcat-serve triton BUNDLE BUNDLE": "BUNDLE exists already",
}
WORKING = {
    "ddcat-train --list": "scenes-ddcat",
    "ddcat-train --show scenes-ddcat": "backbone:",
    "ddcat-serve inspect BUNDLE": "Every file matches the manifest.",
    "ddcat-serve inspect BUNDLE --json": '"digest"',
}
HELP = [f"{name} --help" for name in COMMANDS] + sorted(
    {
        " ".join([*line.split()[:2], "--help"])
        for line in (*LACKING, *WORKING)
        if line.split()[0] in ("ddcat", "ddcat-data", "ddcat-bench", "ddcat-serve")
    }
)


class Answer(NamedTuple):
    status: int
    out: str
    err: str


def make_files(where: Path) -> set[str]:
    """Make what the lines name."""
    bundle = small_bundle(where / "BUNDLE")
    manifest, files = bundle.manifest, bundle.files
    engine = manifest.engine.model_copy(update={"name": "openvino"})
    write_bundle(where / "OPENVINO", manifest.model_copy(update={"engine": engine}), files)
    (where / "CHECKPOINT").write_bytes(b"looked at by what is not installed")
    write_result(where / "RESULT", "gate", made_gate(), "")
    return {"BUNDLE", "OPENVINO", "CHECKPOINT", "RESULT"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answer]:
    """What each line answers, all in one process."""
    where, lines = tmp_path_factory.mktemp("extras"), [*HELP, *LACKING, *WRONG, *WORKING]
    files = make_files(where)
    program = [sys.executable, "-c", PROGRAM, json.dumps([(COMMANDS[line.split()[0]], line) for line in lines])]
    done = subprocess.run(program, cwd=where, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "120"})
    assert {file.name for file in where.iterdir()} == files  # nothing was begun
    return {line: Answer(*answer) for line, answer in zip(lines, json.loads(done.stdout), strict=True)}


@pytest.mark.parametrize("line", HELP)
def test_a_command_explains_itself(line: str, answers: dict[str, Answer]) -> None:
    assert answers[line].status == 0
    assert "Usage" in answers[line].out


@pytest.mark.parametrize("line", LACKING)
def test_a_command_says_which_extras_it_lacks(line: str, answers: dict[str, Answer]) -> None:
    status, out, err = answers[line]
    assert (status, out) == (2, "")
    assert re.fullmatch(rf'error: .*No module named .*: pip install "\.\[{LACKING[line]}\]" in a clone of ddcat\n', err), err
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert set(LACKING[line].split(",")) <= set(extras)


@pytest.mark.parametrize("line", WRONG)
def test_a_command_says_first_what_is_wrong_with_its_arguments(line: str, answers: dict[str, Answer]) -> None:
    status, out, err = answers[line]
    assert (status, out) == (2, "")
    assert WRONG[line] in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("line", WORKING)
def test_what_needs_no_extra_works_without(line: str, answers: dict[str, Answer]) -> None:
    assert (answers[line].status, answers[line].err) == (0, "")
    assert WORKING[line] in answers[line].out


def test_tables_and_comparisons_of_results_need_no_torch() -> None:
    program = """
import sys
sys.modules.update(dict.fromkeys(("torch", "lightning_fabric", "safetensors", "cv2", "onnxruntime")))
import ddcat_bench.compare.comparison, ddcat_bench.compare.report, ddcat_bench.publish
import bench.paper.tables
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nobody_is_told_to_install_a_name_that_is_not_ours() -> None:
    """The distribution is in no index: whoever registered its name would run code on the machines of those who were told to."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("docker/*"), *(ROOT / "kubernetes").rglob("*.yaml")]
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
    make_files(tmp_path)
    for line in (*HELP, *LACKING, *WRONG, *WORKING):
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
        if line in LACKING or line in WRONG:
            assert (done.returncode, done.stderr.count("\n")) == (2, 1), line
            assert (WRONG[line] if line in WRONG else f'pip install ".[{LACKING[line]}]"') in done.stderr, line
        else:
            assert done.returncode == 0, f"{line}: {done.stderr}"
