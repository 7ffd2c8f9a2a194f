"""What the report of a gate says."""

import html
import re
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from ddcat.passport import Finding, Verdict
from ddcat_bench.gate.overlays import Overlay
from ddcat_bench.gate.report import draw_interval, gate_brief, gate_html, gate_junit, gate_markdown
from ddcat_bench.gate.results import ClassEntry, GateResult
from ddcat_bench.gate.verdict import worst
from ddcat_bench.gate.words import class_table, title
from ddcat_bench.markdown import signed
from tests.bench.gates import made_gate


def test_classes_that_are_nowhere_are_named_below_the_table() -> None:
    made = made_gate()
    assert "No image has these classes" not in gate_markdown(made)
    classes = (*made.classes, ClassEntry(name="boat", share=0), ClassEntry(name="bottle", share=0))
    nowhere, labelled = (None, None), (0.0, None)  # one of the two models labels pixels as boats
    threats = tuple(row.model_copy(update={"class_iou": (*row.class_iou, labelled, nowhere)}) for row in made.threats)
    report = gate_markdown(made.model_copy(update={"classes": classes, "threats": threats}))
    assert "| boat (rare) | 0.00% | - |" in report
    assert "| bottle" not in report
    assert "No image has these classes, and neither model predicts them: bottle.\n" in report


HOSTILE = (
    "<script>alert(1)</script>", "a | b", "\x1b[2J", "line\nend", "[x](javascript:1)", "**bold**", "&lt;", "\ufffe",
    "\u202egpj", "é 道",
)  # fmt: skip


def hostile() -> GateResult:
    made = made_gate(name=HOSTILE[0])
    classes = tuple(ClassEntry(name=name, share=1 / len(HOSTILE)) for name in HOSTILE)
    threats = tuple(row.model_copy(update={"class_iou": ((38.0, 38.0),) * len(HOSTILE)}) for row in made.threats)
    finding = Finding(name="mIoU, \x1b clean", verdict="refuse", found="<b>\x00", limit="|", reason="\x0b\n")
    data = made.data.model_copy(update={"name": "|\x1b", "split": "<i>"})
    return made.model_copy(
        update={"classes": classes, "threats": threats, "findings": (finding,), "data": data, "warnings": ("<u>\x1b|",)}
    )


def test_names_of_others_are_text_in_every_report() -> None:
    made = hostile()
    suite = ElementTree.fromstring(gate_junit(made))  # it is well-formed
    assert suite.get("failures") == "1"
    assert suite.get("name") == f"gate {HOSTILE[0]}"
    for text in (gate_markdown(made), gate_brief(made)):
        assert not set("\x1b\x00\x0b\u202e") & set(text)
        assert not re.search(r"(?<!\\)<", text)
    rows = [
        line for line in gate_markdown(made).splitlines() if line.endswith("| 38.00 | 38.00 | 0.00 | 38.00 | 38.00 | 0.00 |")
    ]
    assert len(rows) == len(HOSTILE)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == len(class_table(made)[0]) + 1 for row in rows)
    shown = html.unescape(MarkdownIt("commonmark", {"html": False}).enable("table").render(gate_markdown(made)))
    for name in HOSTILE[:2] + HOSTILE[4:7] + HOSTILE[9:]:
        assert f"<td>{name}</td>" in shown
    page = gate_html(made)
    assert "<script>alert" not in page


@pytest.mark.parametrize(
    ("findings", "speed", "expected"),
    [
        (
            {"mIoU, clean": "pass", "latency": "pass"}, {},
            "Passed: the engine can replace its PyTorch model. Accuracy and latency passed.",
        ),
        (
            {"latency": "inconclusive", "mIoU, clean": "pass", "mIoU, BIM, n = 3": "pass"}, {"others": 2.0},
            "Inconclusive: latency could not be measured on this machine. Accuracy and robustness passed.",
        ),
        (
            {"latency": "inconclusive", "mIoU, clean": "pass"}, {},
            "Inconclusive: latency is too close to its limit. Accuracy passed.",
        ),
        (
            {"mIoU, clean": "inconclusive", "equal labels": "refuse", "robustness": "inconclusive"}, {},
            "Refused: accuracy is below its limits. Robustness could not be decided.",
        ),
        (
            {"latency": "refuse", "logits": "refuse", "black-box beats white-box": "inconclusive"}, {},
            "Refused: the engine is slower than its limit allows and accuracy is below its limits. Robustness could",
        ),
    ],
)  # fmt: skip
def test_the_title_says_what_was_found(findings: dict[str, Verdict], speed: dict[str, float], expected: str) -> None:
    made = made_gate()
    found = tuple(Finding(name=n, verdict=v, found="x", limit="y", reason="z") for n, v in findings.items())
    result = made.model_copy(
        update={"findings": found, "verdict": worst(findings.values()), "speed": made.speed.model_copy(update=speed)}
    )
    assert title(result).startswith(expected)


def test_what_is_refused_comes_first() -> None:
    verdicts: tuple[Verdict, ...] = ("pass", "inconclusive", "refuse")
    found = tuple(Finding(name=f"of {verdict}", verdict=verdict, found="x", limit="y", reason="z") for verdict in verdicts)
    made = made_gate(verdict="refuse", findings=found)
    for text in (gate_markdown(made), gate_html(made), gate_brief(made)):
        places = [text.index(f"of {verdict}") for verdict in ("refuse", "inconclusive", "pass")]
        assert places == sorted(places)


def test_no_figure_is_minus_nothing() -> None:
    made = made_gate()
    tiny = tuple(row.model_copy(update={"difference": -0.001, "interval": (-0.004, 0.004)}) for row in made.threats)
    equal = made.model_copy(update={"threats": tiny})
    for text in (gate_markdown(equal), gate_html(equal)):
        assert "-0.00" not in text
        assert "+0.00" not in text
    assert (signed(-0.004), signed(0.0), signed(-0.006), signed(0.006)) == ("0.00", "0.00", "-0.01", "+0.01")


@pytest.mark.parametrize(
    ("interval", "left", "right", "dot"),
    [
        ((-0.05, 0.05), False, False, True),
        ((-0.31, 0.1), True, False, True),
        ((-0.1, 0.31), False, True, True),
        ((-1.0, 1.0), True, True, True),
        ((-5.76, -3.07), True, False, False),
    ],
)
def test_a_bar_that_leaves_the_drawing_is_marked(interval: tuple[float, float], left: bool, right: bool, dot: bool) -> None:
    row = made_gate().threats[1].model_copy(update={"interval": interval, "difference": sum(interval) / 2})
    drawn = draw_interval(row, 3.0)
    assert (drawn.leaves_left, drawn.leaves_right, drawn.middle is not None) == (left, right, dot)
    assert 0 <= drawn.low <= drawn.high <= 420


def test_equal_pictures_are_not_shown_and_colours_have_names() -> None:
    equal, other = (
        Overlay("a, clean", ()),
        Overlay("b, clean: 0.1 % of the labels differ", (("image", "data:image/webp;base64,"),)),
    )
    legend = [("sky", "rgb(1 2 3)")]
    page = gate_html(made_gate(), (equal, other), legend)
    assert "No label differs on a, clean." in page
    assert 'style="background: rgb(1 2 3)"></i>sky' in page
    assert page.count("<img") == 1
    assert "background: rgb" not in gate_html(made_gate(), (equal,), legend)
    assert "on which most labels differ" not in gate_html(made_gate())


def test_the_page_has_a_date_and_units() -> None:
    made = made_gate()
    assert "date not recorded; a CPU, 2 cores, 8 GiB, Linux x86_64" in gate_html(made)
    dated = made.environment.model_copy(update={"date": "2026-01-02"})
    assert "2026-01-02; a CPU" in gate_html(made.model_copy(update={"environment": dated}))
    assert "- date: 2026-01-02\n" in gate_markdown(made.model_copy(update={"environment": dated}))
