"""Find the results that belong to a run or a bundle, and put their figures into rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from ddcat.schema import StrictModel
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.bootstrap import FEWEST_UNITS, interval, scheme_of
from ddcat_bench.certify.results import CertificateResult
from ddcat_bench.corruption.results import CorruptionResult, Group
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.results import GateResult
from ddcat_bench.perturbation.report import NOT_CLAIMED, row_interval, strongest
from ddcat_bench.perturbation.results import PerturbationRow
from ddcat_bench.result_io import read_result
from ddcat_bench.result_schema import DataEntry, Scores

__all__ = ["Card", "CardRow", "Found", "find_results", "make_card"]

Result = AttackResult | CorruptionResult | CertificateResult | GateResult
_KINDS: dict[str, type[AttackResult | CorruptionResult | CertificateResult | GateResult]] = {
    "attack.json": AttackResult,
    "corruptions.json": CorruptionResult,
    "certificate.json": CertificateResult,
    "gate.json": GateResult,
}
_CLAIMS = {
    "clean": ("how often labels are right on images as they are", "anything about images that differ from these"),
    "attack": ("what is left against this attack, made with full knowledge of the model", "that no attack leaves less"),
    "worst": ("what is left against the worst of several strong attacks, chosen for each image", "that no attack leaves less"),
    "common": ("what is left under snow, fog, blur, noise and the like, drawn on the images", "how real weather looks"),
    "extra": ("the same for four further corruptions", "how real weather looks"),
    "capture": ("what is left after another camera, codec or resizing", "every codec and camera there is"),
    "certificate": ("that no noise below this norm changes the label of a certified pixel", "anything about larger changes"),
    "L2": ("what is left where the sum of all squared changes is bounded, not each change", NOT_CLAIMED["L2"]),
    "universal": ("what is left under one perturbation that was learnt on other images", NOT_CLAIMED["universal"]),
    "patch": ("what is left around a square in the scene, learnt on other images", NOT_CLAIMED["patch"]),
    "minimal norm": (
        "what is left after the least change that was found to make nearly every pixel wrong",
        NOT_CLAIMED["minimal norm"],
    ),
    "gate": ("that the engine is as good as its model, within the limits", "that the model is good"),
}
_GROUPS: dict[Group, str] = {"common": "common corruptions", "extra": "extra corruptions", "capture": "camera and codec"}


class Found(NamedTuple):
    """A result and its file."""

    file: Path
    result: Result


class CardRow(StrictModel):
    """One figure of the card."""

    threat: str
    figure: str = Field(description="mIoU, or a verdict.")
    interval: str = Field(description="95 % of the bootstrap draws, of the gate's differences 90 %; empty: there is none.")
    images: int = Field(ge=1)
    claims: str = Field(description="What the figure says.")
    leaves_open: str = Field(description="What it does not.")
    file: str = Field(description="The result that it is from.")


class Card(StrictModel):
    """The result of `ddcat report`."""

    schema_version: Literal[1] = 1
    kind: Literal["card"] = "card"
    source: str
    about: str = Field(description="The model and the images.")
    alarms: tuple[str, ...] = Field(description="Signs that a figure must not be believed.")
    rows: tuple[CardRow, ...]


def find_results(source: Path) -> list[Found]:
    """
    Find the results in a run's folder or a result's, and those beside a bundle: BUNDLE-gate, BUNDLE-corruptions, ...

    Raises BenchError where there is none, or one cannot be read.
    """
    if not source.is_dir():
        raise BenchError(f"{source} is not a folder: use a run, a bundle, or the folder of a result")
    whole = source.resolve()
    beside = sorted(whole.parent.glob(f"{whole.name}-*")) if (source / "manifest.json").is_file() else []
    folders = [source, *sorted(child for child in source.glob("*") if child.is_dir()), *beside]
    files = [folder / name for folder in folders for name in _KINDS if (folder / name).is_file()]
    if not files:
        raise BenchError(
            f"no result was found for {source}: run ddcat attack, with --suite sea, --suite corruptions or --certify"
        )
    return [Found(file, read_result(file, _KINDS[file.name])) for file in files]


def make_card(source: Path, found: Sequence[Found]) -> Card:
    """Put results together: clean, attacks, corruptions, certificates, verdicts."""
    checkpoints = [one.result.checkpoint for one in found if one.result.checkpoint is not None]
    data = found[0].result.data
    model = f"{checkpoints[0].method}, {checkpoints[0].architecture}, " if checkpoints else ""
    alarms = [
        f"ALARM: {alarm.name}. {alarm.evidence}"
        for one in found
        if isinstance(one.result, AttackResult | GateResult)
        for alarm in one.result.alarms
    ]
    if (models := len({checkpoint.sha256 for checkpoint in checkpoints})) > 1:
        alarms.append(f"These results are of {models} different checkpoints: measure one of them anew.")
    return Card(
        source=str(source),
        about=f"{model}evaluated on {data.name}, {data.split} split.",
        alarms=tuple(dict.fromkeys(alarms)),
        rows=tuple(_all_rows(found)),
    )


def _all_rows(found: Sequence[Found]) -> Iterator[CardRow]:
    kinds: dict[type, int] = {kind: place for place, kind in enumerate(_KINDS.values())}
    clean: set[tuple[str, str]] = set()
    for one in sorted(found, key=lambda one: kinds[type(one.result)]):
        for row in _rows(one):
            scored = row.threat in {"clean", "engine, clean"}
            if not scored or (row.threat, row.figure) not in clean:  # each suite begins with it
                yield row
            if scored:
                clean.add((row.threat, row.figure))


def _rows(found: Found) -> Iterator[CardRow]:
    result = found.result
    if isinstance(result, AttackResult):
        yield from _attack_rows(found.file, result)
    elif isinstance(result, CorruptionResult):
        engine = "" if result.bundle is None else "engine, "
        yield _scored(found.file, f"{engine}clean", "clean", result.clean, result.data)
        for group, name in _GROUPS.items():
            mean = result.mean(group)
            if mean is None:
                continue
            title = f"{engine}{name}{result.part(group)}"
            yield _row(found.file, f"{title}, mean", group, f"{mean:.3f}", "", result.data)
            low = min((row for row in result.rows if row.group == group), key=lambda row: row.miou)
            bounds = "" if low.low is None or low.high is None else f"{low.low:.3f} to {low.high:.3f}"
            worst = f"{title}, worst: {low.name}, severity {low.severity}"
            yield _row(found.file, worst, group, f"{low.miou:.3f}", bounds, result.data)
    elif isinstance(result, CertificateResult):
        engine = "" if result.bundle is None else "engine, "
        threat = f"{engine}certified, L2 below {result.radius:.3f}"
        yield _row(found.file, threat, "certificate", f"{result.certified_miou:.3f}", "", result.data)
    else:
        yield _row(found.file, "gate", "gate", result.verdict, "", result.data)
        for row in result.threats:
            low_end, high_end = row.interval
            bounds = f"{low_end:+.2f} to {high_end:+.2f} points"
            yield _row(found.file, f"engine, {row.name}", "gate", f"{row.engine / 100:.3f}", bounds, result.data)
        yield from _perturbed(found.file, result.perturbations, result.data)


def _attack_rows(file: Path, result: AttackResult) -> Iterator[CardRow]:
    for label in ("clean", "n = 3", "n = 7"):
        row = result.find(label)
        if row is not None:
            threat = label if label == "clean" else f"BIM, {label}, {255 * row.epsilon:.4g}/255"
            yield _scored(file, threat, "clean" if label == "clean" else "attack", row.scores, result.data)
    for case in result.worst_cases:
        if not case.eight_bit:
            yield _scored(file, case.label, "worst", case.scores, result.data)
    yield from _perturbed(file, result.perturbations, result.data)


def _perturbed(file: Path, rows: Sequence[PerturbationRow], data: DataEntry) -> Iterator[CardRow]:
    """Show the strongest attack of each kind and bound; its controls are in the result."""
    for row in strongest(rows):
        scores = row.scores if row.engine is None else row.engine
        bounds = row_interval(row, data)
        bound = "" if row.limit == "-" else f", {row.limit}"
        threat = f"{'' if row.engine is None else 'engine, '}{row.threat}: {row.attack}{bound}"
        between = "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
        yield _row(file, threat, row.threat, f"{scores.miou:.3f}", between, data).model_copy(update={"images": len(row.places)})


def _scored(file: Path, threat: str, claim: str, scores: Scores, data: DataEntry) -> CardRow:
    scheme = scheme_of(data.name, data.names, data.clips)
    bounds = ""
    if scheme.units >= FEWEST_UNITS:
        low, high = interval(np.asarray(scores.array()), scheme)
        bounds = f"{low:.3f} to {high:.3f}"
    return _row(file, threat, claim, f"{scores.miou:.3f}", bounds, data)


def _row(file: Path, threat: str, claim: str, figure: str, bounds: str, data: DataEntry) -> CardRow:
    claims, leaves_open = _CLAIMS[claim]
    return CardRow(
        threat=threat,
        figure=figure,
        interval=bounds,
        images=len(data.names),
        claims=claims,
        leaves_open=leaves_open,
        file=str(file),
    )
