"""The gate's result in words and in the cells of its tables, which all of its reports have in common."""

from collections.abc import Sequence

from ddcat.passport import Finding, Verdict
from ddcat_bench.attack.results import grey
from ddcat_bench.gate.checks import CALIBRATION, latency_found
from ddcat_bench.gate.disagreement import MARGINS
from ddcat_bench.gate.results import GateResult, MemberRow
from ddcat_bench.markdown import fixed, signed

__all__ = [
    "CLASS_HEADS",
    "MEMBER_HEADS",
    "PLACE_HEADS",
    "WORDS",
    "about",
    "absent",
    "by_verdict",
    "class_cells",
    "finding_line",
    "flip_heads",
    "margin_cells",
    "member_cells",
    "place_cells",
    "title",
    "untested",
]

_VERDICTS = {"pass": "Passed", "refuse": "Refused", "inconclusive": "Inconclusive"}
_ACCURACY = ("logits", "equal labels", "mIoU, clean")  # findings; all others but the next two are of robustness
_OWN_AREA = {"latency": "latency", CALIBRATION: "confidence"}
_REFUSED = {
    "accuracy": "accuracy is worse than its limits allow",
    "robustness": "robustness is worse than its limits allow",
    "confidence": "confidence is further from the truth than its limit allows",
    "latency": "the engine is slower than its limit allows",
}
_OPEN = {"accuracy": "accuracy is undecided", "confidence": "confidence is not known", "robustness": "robustness is undecided"}

WORDS = {
    "PyTorch model": "the main branch that the engine was made from",
    "replay": "an attack that was made on the PyTorch model and is replayed on the engine",
    "twin": "an attack made with the gradients of the engine's own graph, which torch computes node by node",
    "engine": "an attack made with queries to the engine itself",
    "noise": "random signs at the bound: no attack, which any attack should beat",
    "corrupted": "no attack: one of the common corruptions that leave the reference least",
    "codec": "no attack: what another camera, codec or resizing does",
    "bound": "largest change of a colour value of a pixel, in grey levels of 255",
    "equal labels": "share of the pixels that the engine and the PyTorch model label alike",
    "engine and twin": "share of the pixels that the engine and its twin label alike: below 99.9 % the twin is another model, "
    "and attacks on it are transferred ones",
}
PLACE_HEADS = ["attack", "bound", "equal labels", "near boundaries", "elsewhere"]
MEMBER_HEADS = ["made on", "attack", "bound", "images", "PyTorch model", "engine", "equal labels", "engine and twin"]
_SIDES = ("PyTorch model", "engine", "difference")
CLASS_HEADS = ["class", "pixels", *(f"{images}: {side}" for images in ("clean", "attacked") for side in _SIDES)]


def title(result: GateResult) -> str:
    """Write the verdict in a sentence or two: the areas that are refused or undecided, and those that passed."""
    areas: dict[str, list[Verdict]] = {}
    for finding in result.findings:
        area = _OWN_AREA.get(finding.name, "accuracy" if finding.name in _ACCURACY else "robustness")
        areas.setdefault(area, []).append(finding.verdict)
    refused = [_REFUSED[area] for area, verdicts in areas.items() if "refuse" in verdicts]
    left = [area for area, verdicts in areas.items() if "refuse" not in verdicts and "inconclusive" in verdicts]
    undecided = [_open_latency(result) if area == "latency" else _OPEN[area] for area in left]
    passed = [area for area, verdicts in areas.items() if set(verdicts) == {"pass"}]
    reason = _joined(refused or undecided)
    if not reason:
        first = (
            f"the engine may stand in for its model: {_joined(passed)} {'is' if len(passed) == 1 else 'are'} within the limits"
        )
        passed = []
    else:
        first = reason
    sentences = [f"{_VERDICTS[result.verdict]}: {first}."]
    if refused and undecided:
        sentences.append(f"{_joined(undecided).capitalize()}.")
    if passed:
        sentences.append(f"{_joined(passed).capitalize()} passed.")
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
        f"{result.bundle.name}, {result.bundle.engine['runtime']} in {result.precision}, beside {result.checkpoint.method}, "
        f"{result.checkpoint.architecture}, on {len(result.data.names)} images of {result.data.name} ({result.data.split}), "
        f"with the {result.budget} budget."
    )


def by_verdict(result: GateResult) -> list[Finding]:
    """Return the findings in order: refused, undecided, passed."""
    order = {"refuse": 0, "inconclusive": 1, "pass": 2}
    return sorted(result.findings, key=lambda finding: order[finding.verdict])


def finding_line(finding: Finding) -> str:
    """Write a finding beside its limit."""
    return f"{finding.name}: {finding.reason} (found {finding.found}; limit {finding.limit})"


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


def member_cells(result: GateResult) -> list[list[str]]:
    """Return a row for each attack of the pool, under `MEMBER_HEADS`."""
    return [
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


def place_cells(result: GateResult) -> list[list[str]]:
    """Return the shares of equal labels by place, under `PLACE_HEADS`."""
    rows = []
    for row in _replays(result):
        shares = (row.agreement, row.band_agreement, row.interior_agreement)
        rows.append([row.label, _bound(row), *(f"{share:.3%}" if share is not None else "-" for share in shares)])
    return rows


def flip_heads(result: GateResult) -> list[str]:
    """Return the heads of `margin_cells`, without the first."""
    return [f"{row.label}: {what}" for row in (_replays(result)[0], _replays(result)[-1]) for what in ("pixels", "differ")]


def margin_cells(result: GateResult) -> list[list[str]]:
    """Return the pixels by the margin of the PyTorch model's logits."""
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


def class_cells(result: GateResult) -> list[list[str]]:
    """Return the IoU of each class that is present, under `CLASS_HEADS`."""
    rows = []
    for place, entry in enumerate(result.classes):
        if not _is_there(result, place):
            continue
        row = [entry.name + (" (rare)" if entry.rare else ""), f"{entry.share:.2%}"]
        for threat in (result.threats[0], result.threats[-1]):
            reference, engine = threat.class_iou[place]
            if reference is None or engine is None:
                row += ["-", "-", "-"]
            else:
                row += [fixed(reference), fixed(engine), signed(engine - reference)]
        rows.append(row)
    return rows


def _is_there(result: GateResult, place: int) -> bool:
    """Return True if a class is in the images, or either model predicts it."""
    ends = (result.threats[0], result.threats[-1])
    return result.classes[place].share > 0 or any(iou is not None for threat in ends for iou in threat.class_iou[place])


def absent(result: GateResult) -> list[str]:
    """Name the classes that are in no image, and that neither model labels."""
    return [entry.name for place, entry in enumerate(result.classes) if not _is_there(result, place)]
