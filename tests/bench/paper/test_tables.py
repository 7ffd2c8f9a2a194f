import csv
import hashlib
import io
import re
import statistics
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.paper.paper_numbers import PaperTable, paper_numbers
from bench.paper.paper_tables import Table, Tables, make_tables
from bench.paper.render_tables import tables_csv, tables_markdown
from bench.paper.rows import Line
from bench.paper.runs import EvaluatedRun, find_results
from bench.paper.tables import main
from ddcat.cli_support import run as run_script
from ddcat_bench.attack.results import Alarm, AttackResult, AttackRow, WorstCase
from ddcat_bench.errors import BenchError
from ddcat_bench.result_io import to_json
from ddcat_bench.result_schema import CheckpointEntry, Scores
from tests.bench.gates import CHECKPOINT, DATA, ENVIRONMENT

PSPNET, DEEPLAB = "resnet50 + pyramid", "resnet50 + aspp"
PIXELS = 1000
Rights = tuple[int, ...]  # of 1000 pixels of each image, those that are right: their sum / all is the mIoU


def scores(rights: Rights) -> Scores:
    return Scores.of(np.array([[[right, 0, PIXELS - right], [0, 0, 0]] for right in rights], dtype=np.int64))


def checkpoint(method: str, seed: int | None = 0, architecture: str = PSPNET, **training: Any) -> CheckpointEntry:
    path = f"runs/{architecture}/{method}-{seed}{''.join(map(str, training.values()))}.safetensors"
    known = None if seed is None else {"method": {"name": method}, **training}
    digest = hashlib.sha256(path.encode()).hexdigest()
    about = {"path": path, "sha256": digest, "method": method, "architecture": architecture, "seed": seed, "training": known}
    return CHECKPOINT.model_copy(update=about)


def row(steps: int, rights: Rights, *, name: Any = "BIM", epsilon: float = 0.03, **more: Any) -> AttackRow:
    return AttackRow(
        name="clean" if steps == 0 else name, epsilon=epsilon if steps else 0.0, alpha=0.01 if steps else 0.0, steps=steps,
        start="clean", grey_levels=7.65, scores=scores(rights), **({"eight_bit": False} | more),
    )  # fmt: skip


def sea(rights: Rights, *, epsilon: float = 4 / 255, steps: int = 300, eight_bit: bool = False) -> tuple[AttackRow, WorstCase]:
    member = row(steps, rights, name="SEA-JS", epsilon=epsilon, eight_bit=eight_bit)
    zeros = (0,) * len(rights)
    return member, WorstCase(
        name="SEA", epsilon=epsilon, eight_bit=eight_bit, members=(member.label,), chosen=zeros, chosen_for_accuracy=zeros,
        scores=member.scores, pixel_accuracy=member.scores.pixel_accuracy,
    )  # fmt: skip


def result(
    evaluated: CheckpointEntry,
    rows: list[AttackRow],
    *,
    data: str = "voc",
    names: tuple[str, ...] = ("a", "b"),
    worst: tuple[WorstCase, ...] = (),
    suite: Literal["quick", "paper", "sea"] = "quick",
    **more: Any,
) -> EvaluatedRun:
    entry = DATA.model_copy(update={"name": data, "split_images": 2, "classes": ("one", "other"), "names": names})
    made = AttackResult(
        checkpoint=evaluated, data=entry, protocol="", suite=suite, rows=tuple(rows), worst_cases=worst,
        environment=ENVIRONMENT, **more,
    )  # fmt: skip
    return EvaluatedRun(Path(f"{Path(evaluated.path).stem}-{suite}-{len(names)}.json"), made)


def bim(evaluated: CheckpointEntry, *mious: int, **more: Any) -> EvaluatedRun:
    """mIoU in thousandths under 0, 1, 2, ... steps; the two images differ by 10 to either side. In 8 bits it is another."""
    rounded = [row(n, (999, 999), eight_bit=True) for n in range(1, len(mious))]
    return result(evaluated, rounded + [row(n, (r - 10, r + 10)) for n, r in enumerate(mious)], **more)


def find(tables: Tables, kind: str, index: int = 0) -> Table:
    return [table for table in tables.tables if table.kind == kind][index]


def ours(table: Table, method: str = "sat", architecture: str = PSPNET) -> Line:
    [line] = [line for line in table.lines if (line.source, line.method, line.architecture) == ("ours", method, architecture)]
    return line


def test_mean_and_deviation_over_seeds() -> None:
    tables = make_tables([bim(checkpoint("sat", 0), 250, 100), bim(checkpoint("sat", 1), 750, 200)])
    line = ours(find(tables, "white-box"))
    assert line.seeds == (0, 1)
    assert line.cells["clean"].values == (0.25, 0.75)
    assert line.cells["clean"].mean == pytest.approx(0.5)
    assert line.cells["clean"].sd == pytest.approx(0.25 * 2**0.5)
    assert line.cells["n = 1"].sd == pytest.approx(0.05 * 2**0.5)
    assert "over runs that differ in their seed alone (seeds 0, 1)." in " ".join(find(tables, "white-box").notes)
    assert "| PSPNet-50 | SAT | 2 | 0.500 ± 0.354 | 0.150 ± 0.071 |" in tables_markdown(tables)


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_of_the_runs_changes_nothing(order: list[int]) -> None:
    results = [
        bim(checkpoint(method, seed), 500 + 7 * seed, 99) for method in ("trades", "undefended", "sat") for seed in (0, 1)
    ]
    assert make_tables([results[i] for i in order]).tables == make_tables(results).tables


def test_the_papers_lines_stand_beside_ours() -> None:
    models = [checkpoint(m, 0, a) for a in (DEEPLAB, PSPNET) for m in ("pgd-at", "ddcat", "undefended")]
    table = find(make_tables([bim(model, 250, 100) for model in models]), "white-box")
    assert table.paper_table == 1
    order = [(line.architecture, line.method, line.source) for line in table.lines if line.architecture == PSPNET]
    assert order == [
        (PSPNET, "undefended", "ours"),
        (PSPNET, "undefended", "paper"),
        (PSPNET, "sat", "paper"),
        (PSPNET, "ddcat", "ours"),
        (PSPNET, "ddcat", "paper"),
        (PSPNET, "pgd-at", "ours"),
    ]
    assert [line.architecture for line in table.lines] == [PSPNET] * 6 + [DEEPLAB] * 6
    assert table.columns == ("clean", *(f"n = {n}" for n in range(1, 8)))
    assert "| PSPNet-50 | DDC-AT *(paper)* |  | 0.760 ± 0.001 | 0.535 ± 0.005 |" in tables_markdown(
        make_tables([bim(models[0], 250, 100)])
    )
    elsewhere = make_tables([bim(models[0], 250, 100, data="camvid")])
    assert all(line.source == "ours" for table in elsewhere.tables for line in table.lines)


def test_ablation_has_the_variants_beside_ddcat_and_sat() -> None:
    methods = ("undefended", "sat", "ddcat", "ddcat-m")
    tables = make_tables([bim(checkpoint(method), 250, 100) for method in methods])
    table = find(tables, "ablation")
    assert table.paper_table == 3
    assert [line.method for line in table.lines if line.source == "ours"] == ["sat", "ddcat-m", "ddcat"]
    paper = [line for line in table.lines if line.source == "paper"]
    assert len(paper) == 8
    assert next(line for line in paper if line.method == "sat").cells["n = 3"].mean == 0.707  # as in Table 1
    assert [line.method for line in find(tables, "white-box").lines if line.source == "ours"] == ["undefended", "sat", "ddcat"]
    assert not [t for t in make_tables([bim(checkpoint("ddcat"), 250, 100)]).tables if t.kind == "ablation"]


def test_clean_table_has_all_figures_of_clean_images() -> None:
    table = find(make_tables([bim(checkpoint("sat"), 250, 100, data="cityscapes")]), "clean")
    assert table.paper_table == 4
    assert table.columns == ("mIoU", "pixel accuracy", "mean per-image mIoU")
    assert [cell.mean for cell in ours(table).cells.values()] == pytest.approx([0.25] * 3)
    assert [line.cells["mIoU"].mean for line in table.lines if line.source == "paper"] == [
        0.746, 0.690, 0.717, 0.748, 0.694, 0.713,
    ]  # fmt: skip


def transfer(rights: Rights, substitute: CheckpointEntry, *, eight_bit: bool = False) -> AttackRow:
    return row(1, rights, name="transfer", substitute=substitute, eight_bit=eight_bit)


def test_black_box_is_over_all_pairs_of_target_and_substitute() -> None:
    substitutes = [checkpoint("sat", seed, DEEPLAB) for seed in (0, 1)]
    rights = {0: (100, 300), 1: (500, 900)}  # of the target's seed, for either substitute
    evaluated = [
        result(
            checkpoint("ddcat", seed), [row(0, (9, 9)), *(transfer((r, r), s) for r, s in zip(of, substitutes, strict=True))]
        )
        for seed, of in rights.items()
    ]
    table = find(make_tables(evaluated), "black-box")
    assert table.paper_table == 2
    line = ours(table, "ddcat")
    assert len(line.runs) == 4
    assert line.substitute == "DeepLabv3-50, SAT"
    assert line.cells["n = 1"].mean == pytest.approx(0.45)
    assert line.cells["n = 1"].sd == pytest.approx(statistics.stdev([0.1, 0.3, 0.5, 0.9]))
    assert "clean" not in line.cells
    assert "over all pairs of a target and a substitute" in " ".join(table.notes)


def test_pairs_with_other_kinds_of_substitutes_have_lines_of_their_own() -> None:
    kinds = [checkpoint("sat", 0, DEEPLAB), checkpoint("undefended", 0, PSPNET)]
    evaluated = result(
        checkpoint("ddcat"),
        [transfer((9, 9), kinds[0], eight_bit=True), transfer((100, 100), kinds[0]), transfer((900, 900), kinds[1])],
        data="cityscapes",
    )
    table = find(make_tables([evaluated]), "black-box")
    assert table.paper_table == 5
    found = {line.substitute: line.cells["n = 1"].mean for line in table.lines if line.source == "ours"}
    assert found == {"DeepLabv3-50, SAT": 0.1, "PSPNet-50, undefended": 0.9}


def test_sea_stands_below_on_its_own_images_alone() -> None:
    one, other = checkpoint("sat", 0), checkpoint("sat", 1)
    member, case = sea((7,))
    _, rounded = sea((8,), eight_bit=True)
    tables = make_tables(
        [
            bim(other, *range(950, 150, -100)),
            bim(one, *range(900, 100, -100)),
            result(one, [row(0, (910,)), member], names=("b",), worst=(case, rounded), suite="sea"),
        ]
    )
    assert [table.kind for table in tables.tables] == ["white-box", "stronger", "clean"]
    table = find(tables, "stronger")
    assert table.columns == ("clean", "n = 7", "SEA at 4/255, 300 steps", "SEA at 4/255, 300 steps, 8-bit")
    line = ours(table)
    assert [cell.mean for cell in line.cells.values()] == [0.91, 0.21, 0.007, 0.008]  # of image b: 10 above the mean of both
    assert "SEA was run on 1 of the 2 runs of PSPNet-50, SAT." in table.notes
    assert "voc, val split: 1 of 2 images." in " ".join(table.notes)
    assert any("strong under its own BIM may be nothing under SEA" in note for note in table.notes)


def test_without_sea_the_strongest_attack_is_named_and_how_to_run_sea() -> None:
    pgd = row(20, (50, 70), name="PGD", epsilon=8 / 255)
    seen = row(20, (0, 0), name="PGD", epsilon=64 / 255)  # a bound so large that what it leaves says nothing
    evaluated = result(checkpoint("sat"), [row(0, (900, 900)), row(7, (400, 400)), pgd, seen])
    table = find(make_tables([evaluated]), "stronger")
    assert table.columns == ("clean", "n = 7", "PGD-20 at 8/255")
    assert ours(table).cells["PGD-20 at 8/255"].mean == 0.06
    assert table.notes[0].startswith(
        "**SEA was not run on these checkpoints.** The strongest attack among their results is PGD-20"
    )
    assert "--suite sea" in table.notes[0]


def test_other_trainings_are_other_lines() -> None:
    fast, slow = (checkpoint("sat", 0, optim={"lr": lr}) for lr in (0.1, 0.2))
    old = checkpoint("sat", None)
    table = find(make_tables([bim(model, 250, 100) for model in (fast, slow, old)]), "white-box")
    settings = [line.settings for line in table.lines if line.source == "ours"]
    assert settings == ["optim.lr 0.1", "optim.lr 0.2", "training not recorded"]
    assert "| PSPNet-50 | SAT (optim.lr 0.2) | 1 |" in tables_markdown(make_tables([bim(fast, 10, 10), bim(slow, 10, 10)]))


def test_a_suite_within_another_counts_once() -> None:
    model = checkpoint("sat")
    table = find(make_tables([bim(model, 250, 100), bim(model, 250, 100, 90, suite="paper")]), "white-box")
    assert {column: cell.values for column, cell in ours(table).cells.items()} == {
        "clean": (0.25,), "n = 1": (0.1,), "n = 2": (0.09,),
    }  # fmt: skip


SAT = [checkpoint("sat", seed) for seed in (0, 1)]


@pytest.mark.parametrize(
    ("evaluated", "message"),
    [
        ([bim(SAT[0], 250, 100), result(SAT[1], [row(1, (5,))], names=("a",))], "same images .*all 2 images; voc val, 1 of 2"),
        ([bim(SAT[0], 250, 100), bim(SAT[1], 250, 100, protocol_name="windows")], r"protocols \(whole, windows\)"),
        ([bim(SAT[0], 250, 100), bim(SAT[1], 250, 100, 90, suite="paper")], "same suite: only one of them has n = 2"),
        ([bim(SAT[0], 250, 100), result(SAT[1], [row(0, (5, 5)), row(1, (5, 5), epsilon=0.05)])], "n = 1 is not the same"),
        ([bim(SAT[0], 250, 100), bim(checkpoint("sat", 0).model_copy(update={"sha256": "e" * 64}), 30, 30)], "and seed 0 "),
    ],
)  # fmt: skip
def test_what_does_not_compare_is_refused_in_a_line_that_names_both(evaluated: list[EvaluatedRun], message: str) -> None:
    with pytest.raises(BenchError, match=message) as refused:
        make_tables(evaluated)
    assert "\n" not in str(refused.value)
    assert all(str(one.path) in str(refused.value) for one in evaluated)


def test_results_without_any_attack_make_no_table() -> None:
    with pytest.raises(BenchError, match="none of the results"):
        make_tables([result(checkpoint("sat"), [row(0, (5, 5))])])


def test_the_claim_that_more_steps_change_little_is_checked_for_each_method() -> None:
    steps = [(0, 900), (7, 300), (10, 280), (20, 270)]
    evaluated = [
        result(checkpoint("sat", 0), [row(n, (r, r)) for n, r in steps]),
        result(checkpoint("ddcat", 0, DEEPLAB), [row(n, (r, r)) for n, r in steps[:3]]),
    ]
    tables = make_tables(evaluated)
    found = [(c.method, c.steps, round(c.difference, 6), c.held) for c in tables.claims]
    assert found == [("sat", 10, -0.02, True), ("sat", 20, -0.03, False), ("ddcat", 10, -0.02, True)]
    assert "- voc, PSPNet-50, SAT: n = 20 differs by -0.030: **does not hold**" in tables_markdown(tables)


def test_alarms_are_loud_below_the_tables() -> None:
    alarm = Alarm(name="attacked mIoU is above clean", evidence="0.9 above 0.5 at n = 3", meaning="Label leaking.")
    text = tables_markdown(
        make_tables([bim(checkpoint("sat"), 250, 100, alarms=(alarm,)), bim(checkpoint("undefended"), 50, 50)])
    )
    below = text[text.rindex("|") :]
    assert "## MASKING ALARMS: 1." in below
    assert "- **attacked mIoU is above clean** in sat-0-quick-2.json: 0.9 above 0.5 at n = 3. Label leaking." in below
    silent = tables_markdown(make_tables([bim(checkpoint("sat"), 250, 100)]))
    assert "1 of 1 results were not probed" in silent
    assert "No alarm" not in silent


@pytest.fixture
def everything() -> Tables:
    models = [checkpoint(m, s, a) for a in (PSPNET, "a_b & c + {pyramid}") for m in ("undefended", "ddcat-m") for s in (0, 1)]
    member, case = sea((3, 4))
    return make_tables(
        [
            *(result(m, [row(0, (900, 900)), row(7, (300, 300)), row(10, (9, 9))]) for m in models),
            result(models[0], [member, transfer((5, 5), models[-1])], worst=(case,), suite="sea"),
        ]
    )


def test_csv_has_one_line_for_each_cell(everything: Tables) -> None:
    lines = list(csv.DictReader(io.StringIO(tables_csv(everything))))
    assert len(lines) == sum(len(line.cells) for table in everything.tables for line in table.lines)
    [cell] = [
        line
        for line in lines
        if (line["table"], line["source"], line["architecture"], line["method"], line["column"])
        == ("white-box", "ours", PSPNET, "undefended", "n = 7")
    ]
    assert (float(cell["mean"]), float(cell["sd"]), cell["count"], cell["paper_table"]) == (0.3, 0.0, "2", "1")
    paper = next(line for line in lines if line["source"] == "paper" and line["method"] == "undefended")
    assert (paper["mean"], paper["sd"], paper["count"]) == ("0.769", "", "")


def test_json_holds_all_of_it(everything: Tables) -> None:
    assert Tables.model_validate_json(to_json(everything)) == everything


def test_the_papers_numbers_are_complete() -> None:
    numbers = paper_numbers()
    assert "2003.06555" in numbers.source
    counts = {(t.number, t.data, t.kind): (_count(t, "mean"), _count(t, "sd")) for t in numbers.tables}
    assert counts == {
        (1, "voc", "white-box"): (48, 32),
        (2, "voc", "black-box"): (42, 28),
        (3, "voc", "ablation"): (32, 0),
        (4, "cityscapes", "clean"): (6, 4),
        (5, "cityscapes", "black-box"): (42, 28),
    }
    for table in numbers.tables:
        assert {line.architecture for line in table.lines} == {PSPNET, DEEPLAB}
        for line in table.lines:
            assert all(0 < mean < 0.8 and round(mean, 3) == mean for mean in line.mean)
            assert all(0 < sd <= 0.051 and round(sd, 3) == sd for sd in line.sd or ())
            if line.method == "undefended":  # without a defence every step costs
                assert list(line.mean) == sorted(line.mean, reverse=True)


def _count(table: PaperTable, key: str) -> int:
    return sum(len(getattr(line, key) or ()) for line in table.lines)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with a checkpoint's two result folders."""
    folder = tmp_path / "run"
    for evaluated in (bim(SAT[0], 250, 100), result(SAT[0], [sea((3, 4))[0]], worst=(sea((3, 4))[1],), suite="sea")):
        place = folder / f"attack-{evaluated.result.suite}"
        place.mkdir(parents=True)
        (place / "attack.json").write_text(to_json(evaluated.result))
    return folder


def test_results_are_found_in_files_folders_and_runs_once(run: Path, tmp_path: Path) -> None:
    quick, strong = run / "attack-quick/attack.json", run / "attack-sea/attack.json"
    assert [one.path for one in find_results([run])] == [quick, strong]
    assert [one.path for one in find_results([quick, quick.parent, run])] == [quick, strong]
    with pytest.raises(BenchError, match=re.escape(f"{tmp_path / 'none'}: no attack.json in it")):
        find_results([tmp_path / "none"])


def test_the_command(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def status(*arguments: str) -> int | str | None:
        monkeypatch.setattr(sys, "argv", ["tables.py", *arguments])
        with pytest.raises(SystemExit) as left:
            run_script(main)
        return left.value.code

    out = tmp_path / "tables"
    assert status(str(run), "--out", str(out)) == 0
    assert sorted(file.name for file in out.iterdir()) == ["tables.csv", "tables.json", "tables.md"]
    assert (out / "tables.md").read_text() in capsys.readouterr().out
    assert Tables.model_validate_json((out / "tables.json").read_text()) == make_tables(find_results([run]))
    assert status(str(run), "--out", str(out)) == 2  # it is there already
    assert status(str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")) == 2
    assert not (tmp_path / "new").exists()
    capsys.readouterr()
    assert status("--help") == 0
    assert "bench/paper/tables.py runs/voc-*" in capsys.readouterr().out
