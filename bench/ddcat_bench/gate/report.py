"""The gate's result for readers: a short answer, Markdown, JUnit XML for a pipeline, an HTML page that needs nothing else."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from ddcat.text import printable
from ddcat_bench.gate import words
from ddcat_bench.gate.overlays import Overlay
from ddcat_bench.gate.reliability import calibration_table, draw_calibration
from ddcat_bench.gate.results import BAND, GateResult, ThreatRow
from ddcat_bench.markdown import machine_line
from ddcat_bench.perturbation.report import NOT_CLAIMED, perturbation_brief, perturbation_markdown, perturbation_sheets
from ddcat_bench.templates import render
from ddcat_bench.timing.throughput import draw_throughput, throughput_table

__all__ = ["Drawing", "draw_interval", "gate_brief", "gate_html", "gate_junit", "gate_markdown"]

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WIDTH = 420  # of the drawing of an interval, in its own units
_LEAST, _MOST = 1.5, 3.0  # margins to either side that it shows; what lies beyond the second leaves it, and is marked so


def gate_brief(result: GateResult) -> str:
    """Write the short answer: the verdict, why, and what passed; all else is in gate.md."""
    return render(Path(__file__).with_name("brief.md"), **_values(result))


def gate_markdown(result: GateResult) -> str:
    """Write tables: the verdict and why, threats, attacks, classes."""
    return render(Path(__file__).with_name("gate.md"), **_values(result))


def gate_junit(result: GateResult) -> str:
    """Write a test suite with a case for each finding: refused ones are failures, inconclusive ones errors, others skipped."""
    count = {verdict: sum(f.verdict == verdict for f in result.findings) for verdict in ("refuse", "inconclusive")}
    left_out = words.untested(result)
    name = _xml(result.bundle.name)
    suite = ElementTree.Element(
        "testsuite", name=f"gate {name}", tests=str(len(result.findings) + len(left_out)), failures=str(count["refuse"]),
        errors=str(count["inconclusive"]), skipped=str(len(left_out)), time=f"{result.environment.seconds:.1f}",
    )  # fmt: skip
    for finding in result.findings:
        case = ElementTree.SubElement(suite, "testcase", classname=f"gate.{name}", name=_xml(finding.name))
        if finding.verdict != "pass":
            kind = "failure" if finding.verdict == "refuse" else "error"
            message = _xml(f"{finding.found}; limit: {finding.limit}")
            ElementTree.SubElement(case, kind, message=message).text = _xml(finding.reason)
    for what, found in left_out:
        case = ElementTree.SubElement(suite, "testcase", classname=f"gate.{name}", name=what)
        ElementTree.SubElement(case, "skipped", message=_xml(f"not tested: no limit is set (measured: {found})"))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Escape what a terminal acts on, and leave out what XML cannot hold."""
    return _NO_XML.sub("\ufffd", printable(text, None))


class Drawing(NamedTuple):
    """Places of an interval between its limits, in units of the drawing."""

    low: float  # ends of the bar, within the drawing
    high: float
    middle: float | None  # the difference itself; None: outside of the plotted range
    zero: float  # the places of no difference, and of the two limits
    lower: float
    upper: float
    leaves_left: bool  # True if the bar continues beyond the edge
    leaves_right: bool


def gate_html(result: GateResult, overlays: Sequence[Overlay] | None = None, legend: Sequence[tuple[str, str]] = ()) -> str:
    """Make the page; with pictures of where labels differ unless `overlays` is None, and a legend of names and CSS colours."""
    reach = _reach(result.threats)
    return render(
        Path(__file__).with_name("gate.html"),
        **_values(result),
        drawings=[(row, draw_interval(row, reach)) for row in result.threats],
        width=_WIDTH,
        machine=machine_line(result.environment),
        overlays=overlays,
        legend=legend,
        diagrams=draw_calibration(result.calibration),
        perturbation_sheets=perturbation_sheets(result.perturbations, result.data),
        not_claimed=NOT_CLAIMED,
        cost_drawings=[] if result.cost is None else draw_throughput(result.cost),
    )


def _values(result: GateResult) -> dict[str, Any]:
    """Return what all the templates know."""
    return {
        "result": result,
        "words": words,
        "findings": words.by_verdict(result),
        "band": BAND,
        "calibration": calibration_table(result.calibration),
        "perturbations": perturbation_markdown(result.perturbations, result.data),
        "perturbed": [
            f"{name}: PyTorch model {model}, engine {engine}, control {control}"
            for name, model, engine, control in perturbation_brief(result.perturbations)
        ],
        "cost": None if result.cost is None else throughput_table(result.cost),
    }


def draw_interval(row: ThreatRow, reach: float) -> Drawing:
    """Place an interval between its limits; the drawing shows `reach` margins to either side."""
    shown = reach * row.margin

    def place(points: float) -> float:
        return round(_WIDTH * (min(max(points, -shown), shown) + shown) / (2 * shown), 1)

    low, high = row.interval
    return Drawing(
        low=place(low),
        high=place(high),
        middle=place(row.difference) if abs(row.difference) <= shown else None,
        zero=place(0),
        lower=place(-row.margin),
        upper=place(row.margin),
        leaves_left=low < -shown,
        leaves_right=high > shown,
    )


def _reach(threats: Sequence[ThreatRow]) -> float:
    """Return the number of margins that the drawings show to either side: all, unless they are too many."""
    furthest = max(abs(end) / row.margin for row in threats for end in (*row.interval, row.difference))
    return min(max(_LEAST, 1.05 * furthest), _MOST)
