"""The gate's result for readers: Markdown, JUnit XML for a pipeline, and one HTML page that needs nothing else."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

from ddcat.passport import Finding
from ddcat_bench.attack.results import grey
from ddcat_bench.gate.flips import BAND, MARGINS
from ddcat_bench.gate.pictures import Overlay
from ddcat_bench.gate.results import GateResult, MemberRow, ThreatRow
from ddcat_bench.markdown import environment_lines, table
from ddcat_bench.pages import render
from ddcat_bench.timing.cost_report import COST_HEADS, cost_cells, cost_markdown, draw_cost

__all__ = ["finding_line", "gate_html", "gate_junit", "gate_markdown", "headline"]

HEADLINES = {
    "pass": "The engine may stand in for its model",
    "refuse": "The engine may not stand in for its model",
    "inconclusive": "It is not known whether the engine may stand in for its model",
}
_CLASS_HEADS = ["class", "pixels", "clean: reference", "engine", "difference", "attacked: reference", "engine", "difference"]
_LOWEST, _WIDTH = 1.6, 420  # of the drawing of an interval: margins to either side, and its own units


def gate_markdown(result: GateResult) -> str:
    """Write tables: the verdict and why, threats, attacks, classes."""
    findings = [[f"**{f.verdict}**", f.name, f.found, f.limit, f.reason] for f in result.findings]
    threats = [
        [
            row.name, f"{row.reference:.2f}", f"{row.engine:.2f}", f"{row.difference:+.2f}", _bounds(row.interval),
            *(_bounds(row.by_block[size]) if size in row.by_block else "-" for size in ("5", "20")),
            row.verdict or "nothing to preserve",
        ]
        for row in result.threats
    ]  # fmt: skip
    members = [
        [
            _source(row, result), row.label, grey(row.epsilon) if row.epsilon else "-", str(row.images), f"{row.reference:.2f}",
            f"{row.engine:.2f}", f"{row.agreement:.3%}", f"{row.twin_agreement:.3%}",
        ]
        for row in result.members
    ]  # fmt: skip
    return "\n".join(
        [
            f"# Gate: {result.verdict}\n\n{headline(result)}\n",
            table(["verdict", "what", "found", "limit", "why"], findings, texts=5),
            "## Robustness\n\nPoints of mIoU; the interval is of engine minus reference, 90 % of the draws "
            f"({result.drawn}).\n",
            table(
                ["threat", "reference", "engine", "difference", "interval", "blocks of 5", "of 20", "verdict"], threats, texts=1
            ),
            "## Attacks\n",
            table(
                ["made on", "attack", "bound", "images", "reference", "engine", "equal labels", "engine and twin"],
                members,
                texts=2,
            ),
            "## Where the labels differ\n\nOn the images that were made on the reference, and on clean ones; near: within "
            f"{BAND} pixels of a true boundary.\n",
            table(["attack", "bound", "equal labels", "near", "elsewhere"], _places(result), texts=1),
            "Pixels by how far, in logits, the reference's label was ahead of its second choice; and the share of them that "
            "the engine labels in another way.\n",
            table(["ahead by", *_flip_heads(result)], _margins(result), texts=1),
            f"## Classes\n\nPoints of IoU; rare: less than one pixel in a hundred. Attacked: {result.threats[-1].name}.\n",
            table(_CLASS_HEADS, _classes(result), texts=1),
            *_absent(result),
            *([] if result.cost is None else ["## Cost of the engine alone\n", cost_markdown(result.cost)]),
            f"{result.protocol}\n",
            environment_lines(result.environment),
        ]
    )


def _source(row: MemberRow, result: GateResult) -> str:
    return "twin, transferred" if row.source == "twin" and result.transferred else row.source


def _replays(result: GateResult) -> list[MemberRow]:
    return [row for row in result.members if row.source == "replay"]


def _places(result: GateResult) -> list[list[str]]:
    found = []
    for row in _replays(result):
        shares = (row.agreement, row.band_agreement, row.interior_agreement)
        bound = grey(row.epsilon) if row.epsilon else "-"
        found.append([row.label, bound, *(f"{share:.3%}" if share is not None else "-" for share in shares)])
    return found


def _flip_heads(result: GateResult) -> list[str]:
    return [f"{row.label}: {what}" for row in (_replays(result)[0], _replays(result)[-1]) for what in ("pixels", "differ")]


def _margins(result: GateResult) -> list[list[str]]:
    rows = _replays(result)[0], _replays(result)[-1]
    return [
        [
            f"{low:g} to {high:g}" if high is not None else f"{low:g} and more",
            *(
                text
                for row in rows
                for text in (
                    f"{row.margins[place].pixels / sum(entry.pixels for entry in row.margins):.2%}",
                    f"{row.margins[place].differing / row.margins[place].pixels:.3%}" if row.margins[place].pixels else "-",
                )
            ),
        ]
        for place, (low, high) in enumerate(zip(MARGINS, [*MARGINS[1:], None], strict=True))
    ]


def _classes(result: GateResult) -> list[list[str]]:
    found = []
    for place, entry in enumerate(result.classes):
        if not _is_there(result, place):
            continue
        row = [entry.name + (" (rare)" if entry.rare else ""), f"{entry.share:.2%}"]
        for threat in (result.threats[0], result.threats[-1]):
            reference, engine = threat.class_iou[place]
            if reference is None or engine is None:
                row += ["-", "-", "-"]
            else:
                row += [f"{reference:.2f}", f"{engine:.2f}", f"{engine - reference:+.2f}"]
        found.append(row)
    return found


def _is_there(result: GateResult, place: int) -> bool:
    """Whether a class is in the images, or labelled by either model."""
    ends = (result.threats[0], result.threats[-1])
    return result.classes[place].share > 0 or any(iou is not None for threat in ends for iou in threat.class_iou[place])


def _absent(result: GateResult) -> list[str]:
    names = [entry.name for place, entry in enumerate(result.classes) if not _is_there(result, place)]
    return [f"Neither in these images nor labelled by either model: {', '.join(names)}.\n"] if names else []


def headline(result: GateResult) -> str:
    """Say it in a sentence."""
    engine = result.bundle.engine
    return (
        f"{HEADLINES[result.verdict]}: {result.bundle.name}, {engine['runtime']} in {result.precision}, beside "
        f"{result.checkpoint.method}, {result.checkpoint.architecture}, on {len(result.data.names)} images of "
        f"{result.data.name} ({result.data.split}), with the {result.budget} budget."
    )


def gate_junit(result: GateResult) -> str:
    """Write a test suite with a case for each finding: refused ones are failures, inconclusive ones errors."""
    count = {verdict: sum(f.verdict == verdict for f in result.findings) for verdict in ("refuse", "inconclusive")}
    suite = ElementTree.Element(
        "testsuite", name=f"gate {result.bundle.name}", tests=str(len(result.findings)), failures=str(count["refuse"]),
        errors=str(count["inconclusive"]), time=f"{result.environment.seconds:.1f}",
    )  # fmt: skip
    for finding in result.findings:
        case = ElementTree.SubElement(suite, "testcase", classname=f"gate.{result.bundle.name}", name=finding.name)
        if finding.verdict != "pass":
            kind = "failure" if finding.verdict == "refuse" else "error"
            ElementTree.SubElement(case, kind, message=f"{finding.found}; limit: {finding.limit}").text = finding.reason
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def gate_html(result: GateResult, overlays: Sequence[Overlay] = ()) -> str:
    """
    Make the page: verdict first, then why, then all figures.

    Parameters
    ----------
    result : GateResult
    overlays : sequence of Overlay, optional
        Pictures of where the labels differ.
    """
    order = {"refuse": 0, "inconclusive": 1, "pass": 2}
    values = {
        "result": result,
        "title": HEADLINES[result.verdict],
        "about": headline(result).partition(": ")[2],
        "findings": sorted(result.findings, key=lambda finding: order[finding.verdict]),
        "drawings": [(row, _drawing(row)) for row in result.threats],
        "reasons": [finding_line(finding) for finding in result.findings if finding.verdict != "pass"],
        "grey": grey,
        "source": _source,
        "places": _places(result),
        "flip_heads": _flip_heads(result),
        "margins": _margins(result),
        "class_heads": _CLASS_HEADS,
        "classes": _classes(result),
        "band": BAND,
        "overlays": overlays,
        "cost_heads": COST_HEADS,
        "cost_rows": [] if result.cost is None else cost_cells(result.cost),
        "cost_drawings": [] if result.cost is None else draw_cost(result.cost),
        "width": _WIDTH,
    }
    return render(Path(__file__).with_name("gate.html"), values)


def finding_line(finding: Finding) -> str:
    """Say what was found, beside what is allowed."""
    return f"{finding.name}: {finding.reason} (found {finding.found}; limit {finding.limit})"


def _drawing(row: ThreatRow) -> dict[str, float]:
    """Places of an interval between the margins, in units of the drawing; what lies beyond is drawn at its edge."""
    reach = _LOWEST * row.margin

    def place(points: float) -> float:
        return round(_WIDTH * (min(max(points, -reach), reach) + reach) / (2 * reach), 1)

    low, high = row.interval
    return {
        "low": place(low), "high": place(high), "middle": place(row.difference), "zero": place(0),
        "from": place(-row.margin), "to": place(row.margin),
    }  # fmt: skip


def _bounds(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.2f} to {interval[1]:+.2f}"
