"""What docs/results says is what its files hold."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from bench.any_model.table import page as any_model_page
from bench.paper.paper_tables import make_tables
from bench.paper.render_tables import tables_markdown
from bench.paper.runs import find_results
from ddcat.metrics import miou
from ddcat_bench.fidelity.compare import FidelityResult
from ddcat_bench.result_io import read_result
from tests.files import script

ROOT = Path(__file__).parents[2]


def test_the_table_of_other_models_is_that_of_its_figures() -> None:
    rows = json.loads((ROOT / "docs/results/any-model.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs/results/any-model.md").read_text(encoding="utf-8") == any_model_page(rows)


def test_the_tables_of_methods_are_made_of_the_files_beside_them() -> None:
    page = (ROOT / "docs/results/camvid-methods.md").read_text(encoding="utf-8")
    made = tables_markdown(make_tables(find_results(sorted((ROOT / "docs/results/camvid-methods").glob("*.json")))))
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(tables) == 4
    assert all(table in made for table in tables)


def test_the_tables_of_robustness_are_made_of_the_files_beside_them() -> None:
    page = (ROOT / "docs/results/robustness-camvid.md").read_text(encoding="utf-8")
    folder = ROOT / "docs/results/robustness-camvid"
    files = [folder / f"{run}-{suite}.json" for run in ("clean", "sat", "ddcat", "pgd-at-4") for suite in ("paper", "sea")]
    made = tables_markdown(make_tables(find_results(files)))
    tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert sum(table in made for table in tables) == 2


def test_the_training_steps_are_those_of_the_files() -> None:
    page = (ROOT / "docs/results/train-step.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "docs/results/train-step").glob("*.json"))
    assert len(files) == page.count("](train-step/voc-")
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        row = next(line for line in page.splitlines() if line.startswith(f"| [{result['preset']}]"))
        released, frugal = (ratio["median"] for ratio in result["ratios"])
        assert f"| **{released:.2f}** (" in row
        assert f") | {frugal:.2f} |" in row


def test_what_int8_costs_is_counted_in_the_files() -> None:
    page = (ROOT / "docs/results/int8-camvid.md").read_text(encoding="utf-8")
    files = sorted((ROOT / "docs/results/int8-camvid").glob("*.json"))
    assert [file.stem for file in files] == ["ddcat", "pgd-at-4"]
    for file in files:
        result = json.loads(file.read_text(encoding="utf-8"))
        fp32: dict[str, list[float]] = {}
        pixels = set()
        for found in result["engines"]:
            counts = [np.asarray(found["counts"][case]) for case in ("clean", "n=3", "n=7")]
            pixels |= {int(counted[:, [0, 2]].sum()) for counted in counts}
            points = [100 * miou(counted) for counted in counts]
            if found["quantisation"] is None:
                fp32[found["engine"]] = points
                row = f"fp32 | {points[0]:.2f} | {points[1]:.2f} | {points[2]:.2f} |"
            else:
                lost = [before - value for before, value in zip(fp32[found["engine"]], points, strict=True)]
                kind = found["quantisation"]["calibration"]["kind"]
                row = f"int8, {kind} | {lost[0]:+.2f} | {lost[1]:+.2f} | {lost[2]:+.2f} |"
                assert max(lost) < 0.035  # as the page says
            assert f"| {result['run']} | {found['engine']} | {row}" in page
        assert len(pixels) == 1  # all were judged on the same ones
        assert page.count(f"| {result['run']} |") == len(result["engines"]) == 6


def test_the_page_of_engines_is_made_of_the_files_beside_it() -> None:
    module = script("bench/cpu/engines_page.py")
    folder = ROOT / "docs/results/engines-cpu"
    assert (ROOT / "docs/results/engines-cpu.md").read_text(encoding="utf-8") == module.page(folder)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for network, title in module.NETWORKS.items():
        fastest: dict[str, float] = {}
        for file in folder.glob(f"{network}-*-speed.json"):
            result = json.loads(file.read_text(encoding="utf-8"))
            precision = result["bundle"]["engine"]["precision"]
            fastest[precision] = max(fastest.get(precision, 0), result["ratios"][0]["median"])
        assert sorted(fastest) == ["bf16", "fp32", "int8"]
        row = " | ".join(f"{fastest[precision]:.2f}" for precision in ("fp32", "bf16", "int8"))
        assert f"\n| {title} | {row} |\n" in readme


def test_the_page_of_gates_is_made_of_the_files_beside_it() -> None:
    module = script("bench/cpu/gates_page.py")
    folder = ROOT / "docs/results/gates-cpu"
    assert folder.with_suffix(".md").read_text(encoding="utf-8") == module.page(folder)
    verdicts = {
        file.parent.name: json.loads(file.read_text(encoding="utf-8"))["verdict"] for file in folder.glob("*/gate.json")
    }
    assert {verdict for name, verdict in verdicts.items() if name.endswith("-fp32")} == {"pass"}
    assert {verdict for name, verdict in verdicts.items() if name.endswith("-bad")} == {"refuse"}
    assert not any("data:image" in file.read_text(encoding="utf-8") for file in folder.glob("*/report.html"))  # of CamVid


def test_what_drift_sees_is_what_the_files_hold() -> None:
    page = (ROOT / "docs/results/drift.md").read_text(encoding="utf-8")
    for method, called in (("clean", "undefended"), ("ddcat", "DDC-AT")):
        result = json.loads((ROOT / f"docs/results/drift/camvid-{method}.json").read_text(encoding="utf-8"))
        assert result["method"] == method
        assert all(f"{value:.3f}" in page for value in result["miou"].values())
        alarms = {(row["reference"], row["traffic"]): row["above_large"] for row in result["rows"]}
        assert len(alarms) == 6
        for reference in dict.fromkeys(reference for reference, _ in alarms):
            clean, attack, adaptive = (alarms[reference, name] for name in ("clean", "attack", "adaptive"))
            assert f"| {called} | {reference} | {clean:.3f} | {attack:.3f} | {adaptive:.3f} |" in page


def test_the_tables_of_layers_are_made_of_the_file_beside_them() -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    result = json.loads((ROOT / "docs/results/layers.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs/results/layers.md").read_text(encoding="utf-8")
    assert page.startswith(script("bench/cpu/layers.py").markdown(result, "layers"))


def test_fine_tuning_for_int8_changed_as_many_labels_as_the_page_says() -> None:
    page = (ROOT / "docs/results/int8-camvid.md").read_text(encoding="utf-8")
    folder = ROOT / "docs/results/int8-camvid/finetuned"
    plain, tuned = (read_result(folder / f"{name}.json", FidelityResult).rows for name in ("int8", "int8-finetuned"))
    for name, before, after in zip(("clean", "BIM, n = 3", "BIM, n = 7"), plain, tuned, strict=True):
        shares = [f"{100 * row.differing / row.pixels:.2f}%" for row in (before, after)]
        assert f"| {name} | {shares[0]} | {shares[1]} |" in page
