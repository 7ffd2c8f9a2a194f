"""Engines side by side: what compares, what does not, and which none beats."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ddcat.bundle import Bundle
from ddcat_bench.compare.comparison import CompareResult, compare, load_gate_results
from ddcat_bench.compare.report import compare_html, compare_markdown, pareto
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import read_result, to_json
from tests.bench.gates import made_gate
from tests.commands import call


@pytest.fixture
def three() -> CompareResult:
    return compare(
        {
            "slow and robust": made_gate(seconds=0.2, attacked=30.0),
            "quick": made_gate(seconds=0.1, attacked=28.0, verdict="inconclusive"),
            "beaten": made_gate(seconds=0.15, attacked=27.0),
            "quicker, but refused": made_gate(seconds=0.05, attacked=40.0, verdict="refuse"),
        }
    )


def test_what_another_beats_in_both_is_not_among_the_best(three: CompareResult) -> None:
    assert {row.name: row.best for row in three.rows} == {
        "slow and robust": True, "quick": True, "beaten": False, "quicker, but refused": False,
    }  # fmt: skip
    assert three.rows[0].milliseconds == pytest.approx(200)


def test_equals_do_not_beat_each_other() -> None:
    assert all(row.best for row in compare({"a": made_gate(), "b": made_gate()}).rows)


def test_the_pages_say_the_same(three: CompareResult) -> None:
    markdown, page = compare_markdown(three), compare_html(three)
    for row in three.rows:
        line = next(line for line in markdown.splitlines() if line.startswith(f"| {row.name}, "))
        assert f"| {row.attacked:.2f} |" in line
        assert (line.rstrip().endswith("| yes |")) == row.best
        assert f">{row.verdict}</span>" in page
    for place, row in enumerate(three.rows):  # the numbers of the plot
        assert f"| {row.name}, {row.runtime} | {place + 1} | {row.precision} |" in markdown
    assert "up and to the left" in page
    assert "http" not in page.replace("data:image", "")
    assert pareto(three).startswith(b"\x89PNG")


def test_other_images_or_threats_do_not_compare() -> None:
    passed = made_gate()
    fewer = passed.data.model_copy(update={"names": passed.data.names[:-1]})
    with pytest.raises(BenchError, match="were not evaluated on the same images"):
        compare({"a": passed, "b": passed.model_copy(update={"data": fewer})})
    with pytest.raises(BenchError, match="under no common attack"):
        compare({"a": passed, "b": passed.model_copy(update={"threats": passed.threats[:1]})})
    common = compare({"a": passed, "b": passed.model_copy(update={"threats": passed.threats[:2]})})
    assert common.threat == passed.threats[1].name


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "gate.json").write_text(to_json(made_gate(name, seconds=0.1, attacked=20)))
    (tmp_path / "one/report.html").touch()
    out = tmp_path / "out"
    assert call("ddcat", "compare", tmp_path / "one", tmp_path / "two", "--out", out).returncode == 0
    assert {file.name for file in out.iterdir()} == {"compare.json", "compare.md", "compare.html", "pareto.png"}
    assert [row.name for row in read_result(out / "compare.json", CompareResult).rows] == ["one", "two"]
    page = (out / "compare.html").read_text()
    assert page.count("<a href=") == 1  # of the other there is no report
    assert '<a href="../one/report.html">one, onnxruntime 1.0</a>' in page


def test_a_bundle_needs_a_gate_of_its_own(make_bundle: Callable[..., Bundle]) -> None:
    bundle = make_bundle()
    place = bundle.path.with_name(f"{bundle.path.name}-gate")
    with pytest.raises(BenchError, match=r"was not tested: no .*gate.json"):
        load_gate_results([bundle.path])
    gate = made_gate()
    own = gate.model_copy(update={"bundle": gate.bundle.model_copy(update={"sha256": bundle.digest})})
    place.mkdir()
    (place / "gate.json").write_text(to_json(own))
    assert load_gate_results([bundle.path]) == {"tiny.bundle": own}
    (place / "gate.json").write_text(to_json(gate))
    with pytest.raises(BenchError, match="is the result of a bundle other than"):
        load_gate_results([bundle.path])


def test_names_tell_results_apart(tmp_path: Path) -> None:
    for folder in ("a/same", "b/same"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "gate.json").write_text(to_json(made_gate()))
    with pytest.raises(BenchError, match="two of the folders are named same"):
        load_gate_results([tmp_path / "a/same", tmp_path / "b/same"])
