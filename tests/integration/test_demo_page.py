import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from demo_page import Page, Stage, Statement, keeps_twice, loses_half, render_page, robustness_statements
from panels import Panel, Picture
from PIL import Image

from ddcat.classes import Classes
from ddcat_bench.attack.results import Alarm, AttackResult, AttackRow
from ddcat_bench.errors import BenchError
from ddcat_bench.fidelity.compare import FidelityResult, FidelityRow
from ddcat_bench.result_schema import CheckpointEntry, Scores
from ddcat_train.run.image_grid import to_png
from tests.bench.gates import CHECKPOINT, DATA, ENVIRONMENT, bundle_entry, speed_of

NAMES = ("sky & sea", "<script>alert(1)</script>")
PIXELS = 10_000
VOID = {"meta", "img", "br", "link", "line", "circle", "polyline"}


def scores_of(right: int) -> Scores:
    """Two classes: `right` pixels of the first are predicted as such, all others as the second."""
    return Scores.of(np.array([[[right, 0, PIXELS - right], [PIXELS, PIXELS - right, 0]]], dtype=np.int64))


def checkpoint_entry(method: str) -> CheckpointEntry:
    return CHECKPOINT.model_copy(update={"method": method, "sha256": method[0] * 64, "step": 384})


DATA_ENTRY = DATA.model_copy(update={"split_images": 1, "classes": NAMES, "names": ("val_00000",)})


def attack_result(method: str, right: list[int]) -> AttackResult:
    """Pixels that are right on clean images and after n = 1, 2, ...; in 8 bits 7 more than in floats."""
    rows = [
        AttackRow(
            name="BIM" if n else "clean", epsilon=0.03 if n else 0.0, alpha=0.01, steps=n, start="clean", eight_bit=eight_bit,
            grey_levels=7.0 if eight_bit else 7.65, scores=scores_of(pixels + 7 * eight_bit),
        )
        for eight_bit in (False, True)
        for n, pixels in enumerate(right)
        if n or not eight_bit
    ]  # fmt: skip
    return AttackResult(
        checkpoint=checkpoint_entry(method), data=DATA_ENTRY, protocol="", suite="quick", rows=tuple(rows),
        environment=ENVIRONMENT,
    )  # fmt: skip


def fidelity_result() -> FidelityResult:
    rows = [
        FidelityRow(
            name="BIM" if n else "clean", epsilon=0.03, alpha=0.01, steps=n, grey_levels=7.0, pixels=921_600,
            differing=differing, agreement=1 - differing / 921_600, counted_pixels=900_000, counted_differing=differing,
            counted_agreement=1 - differing / 900_000, image_differing=(differing,), engine=scores_of(7531 - n),
            pytorch=scores_of(7777 - n),
        )
        for n, differing in ((0, 0), (3, 5), (7, 1234))
    ]  # fmt: skip
    return FidelityResult(
        bundle=bundle_entry("ddcat"),
        checkpoint=checkpoint_entry("ddcat"), data=DATA_ENTRY, protocol="", rows=tuple(rows), environment=ENVIRONMENT,
    )  # fmt: skip


CLEAN = [8800, 7000, 5000, 3300, 2500, 2000, 1800, 1500]
SAT = [8600, 8000, 7600, 7300, 7000, 6800, 6700, 6600]
DDCAT = [8500, 7900, 7500, 7200, 6900, 6700, 6650, 6590]
ATTACKS = [attack_result("undefended", CLEAN), attack_result("sat", SAT), attack_result("ddcat", DDCAT)]


def picture(title: str, colour: int) -> Picture:
    return Picture(title, f"caption of {title}", to_png(np.full((2, 3, 3), colour, np.uint8)))


@pytest.fixture(scope="module")
def example() -> Page:
    return Page(
        statements=robustness_statements(ATTACKS),
        attacks=ATTACKS,
        panels=[Panel("val_00000", (picture("Image", 10), picture("<b>Truth", 20)))],
        classes=Classes(NAMES, ((1, 2, 3), (200, 100, 50))),
        fidelity=fidelity_result(),
        speed=speed_of("ddcat", 0.00345, 0.00678, 0.00567).model_copy(update={"height": 96, "width": 97, "threads": 2}),
        ready=Panel("a model", (picture("Street", 40), picture("Mask", 50))),
        served=picture("Served", 30),
        stages=[Stage("ddcat train scenes-undefended --out 'a b'", 61.2), Stage("ddcat serve demo/bundle", 2.0)],
    )


class Reader(HTMLParser):
    """Collects tags, attributes, the cells of tables and all text; and checks that every element is closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "th" in self.open or "td" in self.open:
            self.tables[-1][-1][-1] += data.strip()


@pytest.fixture(scope="module")
def read(example: Page) -> Reader:
    return Reader(render_page(example))


def test_a_page_loads_nothing_and_runs_nothing(example: Page, read: Reader) -> None:
    html = render_page(example)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in {"src", "href", "srcset", "data", "action"}:
                assert value is not None
                assert value.startswith("data:image/png;base64,"), (tag, name)
    assert "@import" not in html
    assert "url(" not in html


def test_every_miou_stands_in_the_row_and_column_where_it_belongs(read: Reader) -> None:
    head, *rows = read.tables[0]
    assert head == ["Method", "clean", *(f"n = {n}" for n in range(1, 8))]
    groups = [rows[:3], rows[4:]]
    assert len(rows) == 7  # a line between the floats and the 8-bit images
    for eight_bit, group in zip((False, True), groups, strict=True):
        for name, result, row in zip(("Undefended", "SAT", "DDC-AT"), ATTACKS, group, strict=True):
            found = [result.find(label, eight_bit=eight_bit) for label in head[1:]]
            assert row == [name, *(f"{cell.scores.miou:.3f}" for cell in found if cell)]


def test_the_curves_have_the_heights_of_their_numbers(read: Reader) -> None:
    level = {round(float(a["y1"] or 0), 3) for tag, a in read.tags if tag == "line"}
    zero, one = max(level), min(level)
    lines = [a["points"] or "" for tag, a in read.tags if tag == "polyline"]
    assert len(lines) == len(ATTACKS)
    for result, line in zip(ATTACKS, lines, strict=True):
        points = [tuple(map(float, point.split(","))) for point in line.split()]
        drawn = [(zero - y) / (zero - one) for _, y in points]
        assert drawn == pytest.approx([row.scores.miou for row in result.rows if not row.eight_bit], abs=5e-4)
        steps = np.diff([x for x, _ in points])
        assert steps == pytest.approx([steps[0]] * 7, abs=0.2)


def test_fidelity_and_speed_are_told_with_their_numbers(example: Page, read: Reader) -> None:
    assert read.tables[1][1:] == [
        [r.label, f"{r.differing:,} of 921,600", f"{r.engine.miou:.4f}", f"{r.pytorch.miou:.4f}"] for r in example.fidelity.rows
    ]
    text = " ".join(read.text.split())
    assert "96 \N{MULTIPLICATION SIGN} 97 pixels" in text
    assert (
        "needs 3.45 ms and PyTorch 6.78 ms, so that it is 1.97 times as fast. (Medians of 10 calls in turns, 2 threads each.)"
        in text
    )


def test_it_tells_how_it_was_made(read: Reader) -> None:
    text = " ".join(read.text.split())
    assert "ddcat train scenes-undefended --out 'a b' 1 min 01 s" in text
    assert "together 1 min 03 s" in text
    for fact in ("a CPU", "ddcat 0.1.0", "c" * 40, "at most 384 small steps", "u" * 64, "s" * 64, "a" * 64):
        assert fact in text


def test_names_are_escaped(read: Reader) -> None:
    assert all(name in read.text for name in NAMES)
    assert "<b>Truth" in read.text


def test_every_picture_is_there_unchanged_and_described(example: Page, read: Reader) -> None:
    wanted = [*example.panels[0].pictures, *example.ready.pictures, example.served]
    found = [attributes for tag, attributes in read.tags if tag == "img"]
    for shown, attributes in zip(wanted, found, strict=True):
        content = base64.b64decode((attributes["src"] or "").partition(",")[2])
        assert Image.open(io.BytesIO(content)).getpixel((0, 0)) == Image.open(io.BytesIO(shown.png)).getpixel((0, 0))
        assert shown.caption in (attributes["alt"] or "")


def test_a_statement_that_did_not_hold_is_called_so(example: Page) -> None:
    claims = [Statement("Water is wet.", "7 of 7", held=True), Statement("Pigs fly.", "0 of 3", held=False)]
    text = " ".join(Reader(render_page(Page(**{**vars(example), "statements": claims}))).text.split())
    assert "Confirmed. Water is wet. 7 of 7 Did not hold. Pigs fly. 0 of 3" in text


def test_an_alarm_comes_first(example: Page) -> None:
    alarm = Alarm(name="attacked mIoU is above clean", evidence="n = 3 leaves 99 points", meaning="It says nothing.")
    rung = example.attacks[1].model_copy(update={"alarms": (alarm,)})
    page = render_page(replace(example, attacks=[example.attacks[0], rung, example.attacks[2]]))
    assert "Alarm, " not in render_page(example)
    assert "Alarm, SAT: attacked mIoU is above clean." in page
    assert page.index("Alarm, SAT") < page.index("Without a defence, at least half")


def test_results_on_different_images_are_not_shown_together(example: Page) -> None:
    other = ATTACKS[1].model_copy(update={"data": DATA_ENTRY.model_copy(update={"names": ("val_00001",)})})
    with pytest.raises(BenchError, match="not evaluated on the same images"):
        render_page(Page(**{**vars(example), "attacks": [ATTACKS[0], other]}))


def test_statements_name_the_numbers_that_they_rest_on() -> None:
    lost, kept = robustness_statements(ATTACKS)
    clean, bare, sat, ddcat = (
        result.find(label).scores.miou  # type: ignore[union-attr]
        for result, label in ((ATTACKS[0], "clean"), (ATTACKS[0], "n = 7"), (ATTACKS[1], "n = 7"), (ATTACKS[2], "n = 7"))
    )
    assert bare == pytest.approx((0.15 + 10_000 / 18_500) / 2)  # of the two classes of `scores_of`
    assert lost.held == (bare <= clean / 2)
    assert kept.held == (min(sat, ddcat) >= 2 * bare)
    assert f"{clean:.3f} on clean images, {bare:.3f} at n = 7 ({1 - bare / clean:.0%} lost)" == lost.evidence
    assert f"{sat:.3f} ({sat / bare:.1f} times)" in kept.evidence
    assert f"{ddcat:.3f} ({ddcat / bare:.1f} times)" in kept.evidence


def test_a_statement_needs_every_method() -> None:
    with pytest.raises(BenchError, match="method ddcat"):
        robustness_statements(ATTACKS[:2])


NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "before", "after", "held"),
    [
        (loses_half, 0.8, 0.4, True), (loses_half, 0.8, 0.41, False), (loses_half, 0.0, 0.0, False),
        (loses_half, NAN, 0.1, False), (loses_half, 0.8, NAN, False), (keeps_twice, 0.2, 0.4, True),
        (keeps_twice, 0.2, 0.39, False), (keeps_twice, 0.0, 0.1, True), (keeps_twice, 0.0, 0.0, False),
        (keeps_twice, NAN, 0.4, False), (keeps_twice, 0.2, NAN, False),
    ],
)  # fmt: skip
def test_half_of_a_score_is_lost_or_twice_it_kept(rule: Any, before: float, after: float, held: bool) -> None:
    assert rule(before, after) is held


def test_curves_that_coincide_are_explained(example: Page) -> None:
    text = " ".join(Reader(render_page(example)).text.split())
    assert "The curves of SAT and DDC-AT nearly coincide: under attack they differ by" in text
    assert "DDC-AT claims more accuracy on clean images for the same robustness" in text
    apart = [ATTACKS[0], ATTACKS[1], attack_result("ddcat", [9000, *[9000] * 7])]
    assert "nearly coincide" not in render_page(replace(example, attacks=apart))
    assert "nearly coincide" not in render_page(replace(example, attacks=ATTACKS[:2]))
