"""What the page on Python and the notebook show works as it stands."""

import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

from ddcat_train.data.synthetic.generate import write_scenes

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/python.md"


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the page's examples print, one after the other."""
    where = tmp_path_factory.mktemp("python")
    write_scenes(where / "data/scenes", train=40, val=8, size=(64, 80))
    (where / "page.py").write_text("\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)))
    done = subprocess.run([sys.executable, "page.py"], cwd=where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_page_does_what_it_says(printed: str) -> None:
    assert re.search(r"^\{0: 0\.\d+, 3: 0\.\d+\}$", printed, re.MULTILINE)
    assert float(re.findall(r"tensor\((0\.\d+)\)", printed)[0]) <= 4 / 255 + 1e-4
    assert "(64, 80) ['" in printed
    assert printed.rstrip().endswith("inconclusive")


def test_the_page_names_the_whole_interface() -> None:
    import ddcat  # noqa: PLC0415

    text = PAGE.read_text()
    for name, (module, _) in ddcat._MODULES.items():
        assert f"::: {module}.{name}" in text
        assert f"ddcat.{name}(" in text


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "examples/quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear the outputs before a commit"
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert notebook.cells[-1].outputs[-1]["data"]["text/plain"] == "'inconclusive'"
    same = float(notebook.cells[-3].outputs[-1]["data"]["text/plain"])
    assert same > 0.99
