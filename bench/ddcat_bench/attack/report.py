"""Markdown of attack results, made from the results alone."""

from collections.abc import Sequence

from ddcat_bench.attack.results import AttackResult, AttackRow, WorstCase, grey
from ddcat_bench.errors import BenchError
from ddcat_bench.markdown import data_line, literal, number, provenance_lines, table
from ddcat_bench.result_schema import check_same_images

__all__ = ["attack_brief", "attack_lines", "attack_markdown", "columns", "run_names"]

_WIDE = 12  # columns of a table that can still be read


def attack_markdown(result: AttackResult) -> str:
    """Write one result: its alarms, the figures under each attack, those of each class, and where they come from."""
    checkpoint = result.checkpoint
    head = ["attack", "mIoU", "8-bit", "mean per-image mIoU", "8-bit", "pixel accuracy", "8-bit"]
    if result.background is not None:
        head[3:3] = ["foreground mIoU", "8-bit"]
    rows = [_line(result, label) for label in columns([result])] + [_worst_line(result, label) for label in _worst(result)]
    return (
        f"{alarm_lines(result)}"
        f"# {checkpoint.method} ({checkpoint.architecture}) under attack\n\n"
        f"{data_line(result.data)} Suite: {result.suite}. Protocol: {result.protocol_name}.\n\n"
        f"{table(head, rows)}\n"
        f"{attack_lines([result])}{_worst_lines(result)}\n"
        f"{_claim_lines(result)}{_probe_lines(result)}"
        f"IoU of each class (float):\n\n{_class_table(result)}\n"
        f"{result.protocol}\n\n{result.policy}\n\n"
        f"{_seed_line(result)}{_substitute_lines(result)}{provenance_lines(checkpoint, result.environment)}"
    )


def attack_brief(result: AttackResult) -> str:
    """Write the short answer: what the attack leaves, its figures, and alarms; all else is in attack.md."""
    labels, worst = columns([result]), _worst(result)
    scores: list[tuple[str, Sequence[AttackRow | WorstCase | None]]] = [
        *((label, [result.find(label, eight_bit=eight_bit) for eight_bit in (False, True)]) for label in labels),
        *((f"**{label}**", [_find_worst(result, label, eight_bit) for eight_bit in (False, True)]) for label in worst),
    ]
    figures = [[label, *(number(one.scores.miou if one else None) for one in pair)] for label, pair in scores]
    return (
        f"{alarm_lines(result)}{_fall(result)}\n\n{table(['attack', 'mIoU', '8-bit'], figures)}\n"
        f"{data_line(result.data)} Suite: {result.suite}.\n"
    )


def _fall(result: AttackResult) -> str:
    """Write the fall of the mIoU under the last attack, or under the worst case at the largest bound."""
    clean = result.find("clean")
    worst = max((case for case in result.worst_cases if not case.eight_bit), key=lambda case: case.epsilon, default=None)
    last = next((row for row in reversed(result.rows) if not row.eight_bit and row.substitute is None), None)
    weakest = worst or last
    assert clean is not None
    assert weakest is not None
    left = f"{clean.scores.miou:.3f} -> {weakest.scores.miou:.3f} at {weakest.label}"
    return f"{result.checkpoint.method} ({result.checkpoint.architecture}): mIoU {left}"


def alarm_lines(result: AttackResult) -> str:
    """Write what rings: nothing else comes before it."""
    alarms = "".join(f"> **ALARM: {alarm.name}.** {alarm.evidence}. {alarm.meaning}\n>\n" for alarm in result.alarms)
    return alarms and f"{alarms}> Until that is explained, no figure below says how robust the model is.\n\n"


def _line(result: AttackResult, label: str) -> list[str]:
    return [label, *_cells(result, [result.find(label, eight_bit=eight_bit) for eight_bit in (False, True)])]


def _worst_line(result: AttackResult, label: str) -> list[str]:
    cells = _cells(result, [_find_worst(result, label, eight_bit) for eight_bit in (False, True)])
    return [f"**{cell}**" for cell in (label, *cells)]


def _cells(result: AttackResult, pair: Sequence[AttackRow | WorstCase | None]) -> list[str]:
    """Figures of a row in floats and in 8 bits."""
    figures = [
        [one.scores.miou, one.scores.foreground_miou, one.scores.mean_image_miou, one.pixel_accuracy] if one else [None] * 4
        for one in pair
    ]
    shown = (0, 2, 3) if result.background is None else (0, 1, 2, 3)
    return [number(figures[kind][place]) for place in shown for kind in (0, 1)]


def _worst(result: AttackResult) -> list[str]:
    return list(dict.fromkeys(case.label for case in result.worst_cases))


def _find_worst(result: AttackResult, label: str, eight_bit: bool) -> WorstCase | None:
    return next((case for case in result.worst_cases if (case.label, case.eight_bit) == (label, eight_bit)), None)


def _worst_lines(result: AttackResult) -> str:
    lines = []
    for label in _worst(result):
        case = _find_worst(result, label, False)
        if case is not None:
            shares = [case.chosen.count(place) for place in range(len(case.members))]
            chosen = ", ".join(f"{member} {share}" for member, share in zip(case.members, shares, strict=True) if share)
            lines.append(f"- {label}: the worst of {len(case.members)} attacks, chosen for each image ({chosen})\n")
    if lines:
        lines.append(
            "- Worst cases: for the mIoU figures, from the best single attack on, an image's attack is exchanged as long as "
            "the data-set mIoU falls (greedy); for pixel accuracy, the lowest of each image.\n"
        )
    return "".join(lines)


def _claim_lines(result: AttackResult) -> str:
    lines = [f"- {'Holds' if claim.held else 'Does **not** hold'}: {claim.claim} {claim.evidence}\n" for claim in result.claims]
    return f"What the paper says, on this checkpoint:\n\n{''.join(lines)}\n" if lines else ""


def _probe_lines(result: AttackResult) -> str:
    probe = result.probe
    if probe is None:
        return ""
    points = ", ".join(
        f"{point.label}{f' at {grey(point.epsilon)}' if point.epsilon else ''} {point.miou:.3f}" for point in probe.points
    )
    rang = "see the alarms above" if result.alarms else "no alarm was raised, which is no proof that there is nothing to find"
    return (
        f"Probe for masked gradients, on {probe.images} whole images (mIoU; small attacks, not to be quoted): {points}; "
        f"{probe.gradients.zero_pixels:.2%} of the pixels have a loss without a gradient. With the rows above: {rang}.\n\n"
    )


def _class_table(result: AttackResult) -> str:
    labels = columns([result])
    worst = _worst(result)
    if len(labels) + len(worst) > _WIDE:
        labels = [label for label in labels if label in ("clean", "n = 3", "n = 7")]
    scores = [
        *(row.scores for label in labels if (row := result.find(label))),
        *(case.scores for label in worst if (case := _find_worst(result, label, False))),
    ]
    rows = [
        [literal(name), *(number(one.class_iou[index]) for one in scores)] for index, name in enumerate(result.data.classes)
    ]
    return table(["class", *labels, *worst], rows)


def _seed_line(result: AttackResult) -> str:
    batch = "" if result.batch_size is None else f"; at most {result.batch_size} images at once"
    balance = "" if result.class_pixels is None else f"; SEA-MCE-Bal weighs classes by {result.class_pixels}"
    return f"- seed: {result.seed}{batch}{balance}\n"


def _substitute_lines(result: AttackResult) -> str:
    origins: dict[str, AttackRow] = {row.substitute.sha256: row for row in result.rows if row.substitute is not None}
    return "".join(
        f"- transfer from {row.substitute.method} {digest[:8]}: {row.substitute.architecture}, {row.substitute.path}, "
        f"SHA-256 {digest}\n"
        for digest, row in origins.items()
        if row.substitute is not None
    )


def columns(results: Sequence[AttackResult]) -> list[str]:
    """Labels of all attacks that occur, in their order: clean, n = 1, ..., PGD-20."""
    return list(dict.fromkeys(row.label for result in results for row in result.rows))


def run_names(results: Sequence[AttackResult]) -> list[str]:
    """
    Name each run by its method, and by its checkpoint as well where the methods do not tell all apart.

    Raises
    ------
    BenchError
        If there is no result, or they were not evaluated on the same images.
    """
    if not results:
        raise BenchError("no results to compare: name at least one")
    check_same_images([(result.checkpoint.path, result.data) for result in results])
    methods = [result.checkpoint.method for result in results]
    if len(set(methods)) == len(methods):
        return methods
    return [f"{result.checkpoint.method} ({result.checkpoint.path})" for result in results]


def attack_lines(results: Sequence[AttackResult]) -> str:
    """Describe each column: start, step size, and bound, in floats and for 8-bit images."""
    bounds: dict[str, dict[bool, float]] = {}  # of each attack, as floats and in 8 bits
    for row in (row for result in results for row in result.rows if row.name != "clean"):
        name = row.label.replace(f"n = {row.steps}", "n = N") if row.name in ("BIM", "transfer") else row.label
        size = f", alpha {row.alpha:.4g}" if row.alpha else ""
        attack = f"{name}{': BIM of N steps' if row.name == 'BIM' else ''}, start: {row.start}{size}, epsilon {row.epsilon:.4g}"
        bounds.setdefault(attack, {})[row.eight_bit] = row.grey_levels
    return "".join(
        f"- {attack} ({levels[False]:.4g} grey levels; {levels[True]:.0f}/255 for 8-bit images)\n"
        for attack, levels in bounds.items()
    )
