"""The gate's result in words and tables; its templates call these functions by their names."""

from collections.abc import Sequence

from ddcat.passport import Finding, Verdict
from ddcat_bench.attack.results import grey
from ddcat_bench.gate.checks import CALIBRATION, latency_found
from ddcat_bench.gate.results import MARGINS, GateResult, MemberRow
from ddcat_bench.markdown import fixed, signed

__all__ = [
    "MEANINGS", "about", "absent", "by_verdict", "class_table", "finding_line", "margin_table", "member_table", "place_table",
    "time_table", "title", "untested",
]  # fmt: skip

Table = tuple[list[str], list[list[str]]]  # heads, and rows

_VERDICTS = {"pass": "Passed", "refuse": "Refused", "inconclusive": "Inconclusive"}
_ACCURACY = ("logits", "equal labels", "mIoU, clean")  # findings; all others but the next two are of robustness
_OWN_AREA = {"latency": "latency", CALIBRATION: "confidence"}
_REFUSED = {
    "accuracy": "accuracy is below its limits",
    "robustness": "robustness is below its limits",
    "confidence": "the calibration error is above its limit",
    "latency": "the engine is slower than its limit allows",
}
_UNDECIDED = {
    "accuracy": "accuracy could not be decided",
    "confidence": "the engine gives no confidence",
    "robustness": "robustness could not be decided",
}

MEANINGS = {
    "PyTorch model": "the main branch that the engine was exported from",
    "replay": "an attack made on the PyTorch model, whose images are then given to the engine",
    "twin": "an attack made with the gradients of the engine's own graph, which PyTorch computes node by node",
    "engine": "an attack made with queries to the engine itself",
    "noise": "random signs at the bound. This is a control: every attack should do more than it",
    "corrupted": "not an attack, but one of the common corruptions that leave the PyTorch model the least mIoU",
    "codec": "not an attack, but what another camera, codec or resizing does",
    "bound": "largest change of any colour value, in grey levels of 255",
    "equal labels": "share of the pixels that the engine and the PyTorch model label alike",
    "engine and twin": "share of the pixels that the engine and its twin label alike. Below 99.9 %, the twin counts as another "
    "model, and attacks made on it as transferred",
}


def title(result: GateResult) -> str:
    """Write the verdict in a sentence or two: the areas that are refused or undecided, and those that passed."""
    areas: dict[str, list[Verdict]] = {}
    for finding in result.findings:
        area = _OWN_AREA.get(finding.name, "accuracy" if finding.name in _ACCURACY else "robustness")
        areas.setdefault(area, []).append(finding.verdict)
    refused = [_REFUSED[area] for area, verdicts in areas.items() if "refuse" in verdicts]
    left = [area for area, verdicts in areas.items() if "refuse" not in verdicts and "inconclusive" in verdicts]
    undecided = [_open_latency(result) if area == "latency" else _UNDECIDED[area] for area in left]
    passed = _joined([area for area, verdicts in areas.items() if set(verdicts) == {"pass"}])
    reason = _joined(refused or undecided) or "the engine can replace its PyTorch model"
    sentences = [f"{_VERDICTS[result.verdict]}: {reason}."]
    if refused and undecided:
        sentences.append(f"{_joined(undecided).capitalize()}.")
    if passed:
        sentences.append(f"{passed.capitalize()} passed.")
    if "latency" in result.limits.unset:
        sentences.append("Latency was not tested.")
    return " ".join(sentences)


def _open_latency(result: GateResult) -> str:
    calm = result.speed.stable and not result.speed.disturbed
    return "latency is too close to its limit" if calm else "latency could not be measured on this machine"


def _joined(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def about(result: GateResult) -> str:
    """Name the engine, its model and the images in a sentence."""
    return (
        f"{result.bundle.name} ({result.bundle.engine['runtime']}, {result.precision}) was compared with its PyTorch model "
        f"({result.checkpoint.method}, {result.checkpoint.architecture}) on {len(result.data.names)} images of "
        f"{result.data.name} ({result.data.split}), with the {result.budget} budget."
    )


def by_verdict(result: GateResult) -> list[Finding]:
    """Return the findings in order: refused, undecided, passed."""
    order = {"refuse": 0, "inconclusive": 1, "pass": 2}
    return sorted(result.findings, key=lambda finding: order[finding.verdict])


def finding_line(finding: Finding) -> str:
    """Write a finding beside its limit."""
    return f"{finding.name}: {finding.reason} (measured: {finding.found}; limit: {finding.limit})"


def untested(result: GateResult) -> list[tuple[str, str]]:
    """Return the checks without a limit, and their measured values."""
    lowest = min(row.agreement for row in _replays(result))
    differences = [row.engine - row.reference for row in result.members if row.source in ("corrupted", "codec")]
    measured = {
        "latency": latency_found(result.speed),
        "equal labels": f"{lowest:.3%} of the pixels",
        "logits": "-",
        "corruptions": f"{signed(min(differences))} points at worst" if differences else "-",
    }
    return [(name, measured[name]) for name in result.limits.unset]


def member_table(result: GateResult) -> Table:
    """Return a row for each attack and corruption of the pool."""
    heads = ["made on", "attack", "bound", "images", "PyTorch model", "engine", "equal labels", "engine and twin"]
    return heads, [
        [
            "twin, transferred" if row.source == "twin" and result.transferred else row.source,
            row.label,
            _bound(row),
            str(row.images),
            fixed(row.reference),
            fixed(row.engine),
            f"{row.agreement:.3%}",
            f"{row.twin_agreement:.3%}",
        ]
        for row in result.members
    ]


def _bound(row: MemberRow) -> str:
    return grey(row.epsilon) if row.epsilon else "-"


def _replays(result: GateResult) -> list[MemberRow]:
    return [row for row in result.members if row.source == "replay"]


def place_table(result: GateResult) -> Table:
    """Return the shares of equal labels by place."""
    rows = []
    for row in _replays(result):
        shares = (row.agreement, row.band_agreement, row.interior_agreement)
        rows.append([row.label, _bound(row), *(f"{share:.3%}" if share is not None else "-" for share in shares)])
    return ["attack", "bound", "equal labels", "near boundaries", "elsewhere"], rows


def margin_table(result: GateResult) -> Table:
    """Return the pixels by the margin of the PyTorch model's logits, on clean images and under the last replay."""
    ends = _replays(result)[0], _replays(result)[-1]
    heads = ["ahead by", *(f"{row.label}: {what}" for row in ends for what in ("pixels", "differ"))]
    rows = []
    for place, (low, high) in enumerate(zip(MARGINS, [*MARGINS[1:], None], strict=True)):
        cells = [f"{low:g} to {high:g}" if high is not None else f"{low:g} and more"]
        for row in ends:
            margin = row.margins[place]
            cells.append(f"{margin.pixels / sum(entry.pixels for entry in row.margins):.2%}")
            cells.append(f"{margin.differing / margin.pixels:.3%}" if margin.pixels else "-")
        rows.append(cells)
    return heads, rows


def class_table(result: GateResult) -> Table:
    """Return the IoU of each class that is present, clean and under the last threat."""
    sides = ("PyTorch model", "engine", "difference")
    heads = ["class", "pixels", *(f"{images}: {side}" for images in ("clean", "attacked") for side in sides)]
    rows = []
    for place, entry in enumerate(result.classes):
        if not _is_present(result, place):
            continue
        row = [entry.name + (" (rare)" if entry.rare else ""), f"{entry.share:.2%}"]
        for threat in (result.threats[0], result.threats[-1]):
            reference, engine = threat.class_iou[place]
            if reference is None or engine is None:
                row += ["-", "-", "-"]
            else:
                row += [fixed(reference), fixed(engine), signed(engine - reference)]
        rows.append(row)
    return heads, rows


def _is_present(result: GateResult, place: int) -> bool:
    """Return True if a class is in the images, or either model predicts it."""
    ends = (result.threats[0], result.threats[-1])
    return result.classes[place].share > 0 or any(iou is not None for threat in ends for iou in threat.class_iou[place])


def absent(result: GateResult) -> list[str]:
    """Name the classes that are in no image, and that neither model predicts."""
    return [entry.name for place, entry in enumerate(result.classes) if not _is_present(result, place)]


def time_table(result: GateResult) -> Table:
    """Return the time and the memory of the engine and of PyTorch."""
    return ["what", "median, ms", "quartiles, ms", "peak, MiB"], [
        [
            entry.name,
            f"{1000 * entry.times.median:.1f}",
            f"{1000 * entry.times.lower_quartile:.1f} to {1000 * entry.times.upper_quartile:.1f}",
            "-" if entry.peak_memory is None else f"{entry.peak_memory / 2**20:.0f}",
        ]
        for entry in result.speed.contenders
    ]
