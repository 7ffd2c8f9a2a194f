"""The gate's result for readers: a short answer, Markdown, JUnit XML for a pipeline, an HTML page that needs nothing else."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from ddcat.text import printable
from ddcat_bench.gate.disagreement import BAND
from ddcat_bench.gate.overlays import Overlay
from ddcat_bench.gate.results import GateResult, ThreatRow
from ddcat_bench.gate.words import (
    CLASS_HEADS,
    MEMBER_HEADS,
    PLACE_HEADS,
    WORDS,
    about,
    absent,
    by_verdict,
    class_cells,
    finding_line,
    flip_heads,
    margin_cells,
    member_cells,
    place_cells,
    title,
    untested,
)
from ddcat_bench.markdown import environment_lines, fixed, literal, machine_line, signed, table
from ddcat_bench.templates import render
from ddcat_bench.timing.throughput import THROUGHPUT_HEADS, draw_throughput, throughput_cells, throughput_markdown

__all__ = ["Drawing", "draw_interval", "finding_line", "gate_brief", "gate_html", "gate_junit", "gate_markdown"]

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_WIDTH = 420  # of the drawing of an interval, in its own units
_LEAST, _MOST = 1.5, 3.0  # margins to either side that it shows; what lies beyond the second leaves it, and is marked so
_TIME_HEADS = ["what", "median, ms", "quartiles, ms", "peak, MiB"]


def gate_brief(result: GateResult) -> str:
    """Write the short answer: the verdict, why, and what passed; all else is in gate.md."""
    findings = by_verdict(result)
    failed = [f"- **{f.verdict}** {literal(finding_line(f))}\n" for f in findings if f.verdict != "pass"]
    passed = [f.name for f in findings if f.verdict == "pass"]
    ends = [f"- passed: {', '.join(passed)}\n"] if passed else []
    ends += [f"- not tested: {', '.join(result.limits.unset)}\n"] if result.limits.unset else []
    ends += [f"- **warning** {literal(warning)}\n" for warning in result.warnings]
    return f"# Gate: {result.verdict}\n\n{title(result)}\n\n{''.join([*failed, *ends])}"


def gate_markdown(result: GateResult) -> str:
    """Write tables: the verdict and why, threats, attacks, classes."""
    findings = [[f"**{f.verdict}**", f.name, f.found, f.limit, f.reason] for f in by_verdict(result)]
    findings += [["not tested", name, found, "none", "the limits leave it out"] for name, found in untested(result)]
    threats = [
        [
            row.name, fixed(row.reference), fixed(row.engine), signed(row.difference), _bounds(row.interval),
            *(_bounds(row.by_block[size]) if size in row.by_block else "-" for size in ("5", "20")),
            row.verdict or "nothing to preserve",
        ]
        for row in result.threats
    ]  # fmt: skip
    classes = [[literal(name), *cells] for name, *cells in class_cells(result)]
    nowhere = [literal(name) for name in absent(result)]
    return "\n".join(
        [
            f"# Gate: {result.verdict}\n\n{title(result)}\n\n{literal(about(result))}\n",
            *(f"> **Warning.** {literal(warning)}\n" for warning in result.warnings),
            table(["verdict", "what", "found", "limit", "why"], findings, texts=5),
            "## Robustness\n\nPoints of mIoU; the interval is of engine minus PyTorch model, 90 % of the draws "
            f"({result.drawn}).\n",
            table(
                ["threat", "PyTorch model", "engine", "difference", "interval", "blocks of 5", "of 20", "verdict"],
                threats,
                texts=1,
            ),
            "## Attacks\n",
            "".join(f"- {word}: {meaning}\n" for word, meaning in WORDS.items()),
            table(MEMBER_HEADS, member_cells(result), texts=2),
            "## Where the labels differ\n\nOn the images that were made on the PyTorch model, and on clean ones; near "
            f"boundaries: within {BAND} pixels of a true one.\n",
            table(PLACE_HEADS, place_cells(result), texts=1),
            "Pixels by how far, in logits, the PyTorch model's label was ahead of its second choice; and the share of them "
            "that the engine labels in another way.\n",
            table(["ahead by", *flip_heads(result)], margin_cells(result), texts=1),
            f"## Classes\n\nPoints of IoU; rare: less than one pixel in a hundred. Attacked: {result.threats[-1].name}.\n",
            table(CLASS_HEADS, classes, texts=1),
            *([f"Neither in these images nor labelled by either model: {', '.join(nowhere)}.\n"] if nowhere else []),
            *([] if result.cost is None else ["## Cost of the engine alone\n", throughput_markdown(result.cost)]),
            f"{result.protocol}\n",
            environment_lines(result.environment),
        ]
    )


def gate_junit(result: GateResult) -> str:
    """Write a test suite with a case for each finding: refused ones are failures, inconclusive ones errors, others skipped."""
    count = {verdict: sum(f.verdict == verdict for f in result.findings) for verdict in ("refuse", "inconclusive")}
    left_out = untested(result)
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
        ElementTree.SubElement(case, "skipped", message=_xml(f"not tested: the limits leave it out (found {found})"))
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Escape what a terminal acts on, and leave out what XML cannot hold."""
    return _NO_XML.sub("\ufffd", printable(text, None))


def _bounds(interval: tuple[float, float]) -> str:
    return f"{signed(interval[0])} to {signed(interval[1])}"


class Drawing(NamedTuple):
    """
    Places of an interval between its limits, in units of the drawing.

    Attributes
    ----------
    low, high : float
        Ends of the bar, within the drawing.
    middle : float or None
        The difference; None where it lies outside.
    zero, lower, upper : float
        The places of no difference, and of the two limits.
    leaves_left, leaves_right : bool
        True if the bar continues beyond the edge.
    """

    low: float
    high: float
    middle: float | None
    zero: float
    lower: float
    upper: float
    leaves_left: bool
    leaves_right: bool


def gate_html(result: GateResult, overlays: Sequence[Overlay] | None = None, legend: Sequence[tuple[str, str]] = ()) -> str:
    """
    Make the page.

    Parameters
    ----------
    result : GateResult
    overlays : sequence of Overlay, optional
        Pictures of where the labels differ; None: none are to be shown.
    legend : sequence of (str, str)
        Legend: a name, and a CSS colour.
    """
    reach = _reach(result.threats)
    values = {
        "result": result,
        "title": title(result),
        "about": about(result),
        "findings": by_verdict(result),
        "untested": untested(result),
        "reasons": [finding_line(finding) for finding in by_verdict(result) if finding.verdict != "pass"],
        "drawings": [(row, draw_interval(row, reach)) for row in result.threats],
        "words": WORDS,
        "member_heads": MEMBER_HEADS,
        "members": member_cells(result),
        "place_heads": PLACE_HEADS,
        "places": place_cells(result),
        "margin_heads": ["ahead by", *flip_heads(result)],
        "margins": margin_cells(result),
        "class_heads": CLASS_HEADS,
        "classes": class_cells(result),
        "absent": absent(result),
        "time_heads": _TIME_HEADS,
        "times": _times(result),
        "machine": machine_line(result.environment),
        "band": BAND,
        "overlays": overlays,
        "differing": [overlay for overlay in overlays or () if overlay.pictures],
        "equal": [overlay.caption for overlay in overlays or () if not overlay.pictures],
        "legend": legend,
        "cost_heads": THROUGHPUT_HEADS,
        "cost_rows": [] if result.cost is None else throughput_cells(result.cost),
        "cost_drawings": [] if result.cost is None else draw_throughput(result.cost),
        "width": _WIDTH,
    }
    return render(Path(__file__).with_name("gate.html"), **values)


def draw_interval(row: ThreatRow, reach: float) -> Drawing:
    """
    Place an interval between its limits.

    Parameters
    ----------
    row : ThreatRow
    reach : float
        Width that the drawing shows to either side, in margins.
    """
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


def _times(result: GateResult) -> list[list[str]]:
    return [
        [
            entry.name,
            f"{1000 * entry.times.median:.1f}",
            f"{1000 * entry.times.lower_quartile:.1f} to {1000 * entry.times.upper_quartile:.1f}",
            "-" if entry.peak_memory is None else f"{entry.peak_memory / 2**20:.0f}",
        ]
        for entry in result.speed.contenders
    ]
