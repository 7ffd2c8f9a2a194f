import html
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from demo_page import robustness_statements
from PIL import Image

from ddcat.bundle import open_bundle
from ddcat.engines import open_engine
from ddcat.engines.golden import read_golden
from ddcat.errors import DdcatError
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.fidelity.compare import FidelityResult
from ddcat_bench.result_io import read_result
from ddcat_bench.timing.results import SpeedResult
from ddcat_train.data import open_dataset
from tests.files import script

DEMO = Path(__file__).parents[2] / "examples/demo.py"
METHODS = ("undefended", "sat", "ddcat")


@pytest.fixture(scope="module")
def demo() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DEMO.parent)  # as Python does for a script
        yield script("examples/demo.py")


def test_a_failing_stage_ends_the_demo_with_its_status(
    demo: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        demo.command("ddcat", "serve", tmp_path / "no such")
    assert ended.value.code == 2
    output, errors = capfd.readouterr()
    typed = f"ddcat serve '{tmp_path}/no such'"
    assert output.strip().splitlines()[0] == f"$ {typed}"
    assert errors.splitlines()[-1] == f"error: {typed} ended with exit status 2"


def test_a_server_that_ends_before_it_listens_ends_the_demo(demo: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(DdcatError, match="ended before it listened, with exit status 2"), demo.served(tmp_path / "no such"):
        pass


def test_it_removes_what_it_made_and_nothing_else(demo: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scenes/JPEGImages").mkdir(parents=True)
    for name in ("index.html", "mine.txt"):
        (tmp_path / name).write_text("x")
    demo.remove_what_was_made(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert capfd.readouterr().out == f"removing what was made before: {tmp_path}/scenes, {tmp_path}/index.html\n"
    demo.remove_what_was_made(tmp_path / "absent")
    assert not capfd.readouterr().out


@pytest.mark.slow
def test_the_demo_leaves_everything_that_it_promises(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, str(DEMO), "--out", str(out), "--epochs", "1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "200"},
    )
    attacks = [read_result(out / f"results/{method}/attack.json", AttackResult) for method in METHODS]
    statements = robustness_statements(attacks)
    held = all(statement.held for statement in statements)
    assert done.returncode == (0 if held else 1), done.stderr
    assert ("what it claims of the defences did not hold" in done.stderr) is not held

    page = (out / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    told = " ".join(html.unescape(page).split())
    for result in attacks:
        row = [result.find(label) for label in ("clean", *(f"n = {n}" for n in range(1, 8)))]
        numbers = [f"{cell.scores.miou:.3f}" for cell in row if cell]
        assert len(numbers) == 8
        assert re.search(r"[^\d.]+".join(map(re.escape, numbers)), done.stdout)
        assert "</td> <td>".join(numbers) in told
    for statement in statements:
        assert statement.evidence in told
        assert statement.evidence in done.stdout
    for line in re.findall(r"^\$ (.*)$", done.stdout, re.MULTILINE):
        assert f"<code>{line}</code>" in told
    assert re.search(
        r"^next: open the server.*: ddcat serve undefended=.*bundle-undefended ddc-at=.*bundle --demo$",
        done.stdout,
        re.MULTILINE,
    )
    open_bundle(out / "bundle-undefended")

    fidelity = read_result(out / "results/fidelity/fidelity.json", FidelityResult)
    speed = read_result(out / "results/speed/speed.json", SpeedResult)
    bundle = open_bundle(out / "bundle")
    assert bundle.digest == fidelity.bundle.sha256 == speed.bundle.sha256
    first = read_golden(ready := open_bundle(out / "zoo/bundle"))[0]
    with open_engine(ready) as engine, Image.open(out / "ready.png") as served:
        assert np.array_equal(np.asarray(served), engine.infer(first.image[None]).labels[0])
    sample = open_dataset("scenes", out / "scenes", "val").read(0)
    with open_engine(bundle) as engine, Image.open(io.BytesIO((out / "served.png").read_bytes())) as served:
        assert np.array_equal(np.asarray(served), engine.infer(sample.image[None]).labels[0])


@pytest.mark.parametrize(("busy", "threads", "said"), [(0.1, None, False), (2.0, "1", True), (None, None, False)])
def test_a_busy_machine_is_said_to_be_so_and_shared(
    demo: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    busy: float | None,
    threads: str | None,
    said: bool,
) -> None:
    monkeypatch.setattr(demo, "watch_contention", lambda: lambda: busy)
    monkeypatch.setattr(demo, "processors", lambda: 2)
    monkeypatch.setattr(demo, "LOOK", 0)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert demo.beside_others().get("OMP_NUM_THREADS") == threads
    assert ("the machine is busy: others keep 2.0 of its 2 cores at work" in capfd.readouterr().out) == said
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert demo.beside_others()["OMP_NUM_THREADS"] == "2"  # of the user's own choice
