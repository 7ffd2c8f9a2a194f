"""`ddcat compare`: engines and precisions side by side, from the gate's results."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import Field

from ddcat.bundle import open_bundle
from ddcat.passport import Verdict
from ddcat.schema import StrictModel
from ddcat_bench.errors import BenchError
from ddcat_bench.gate.results import Bounds, GateResult, ThreatRow
from ddcat_bench.markdown import machine_line
from ddcat_bench.publish import sibling_folder
from ddcat_bench.result_io import read_result
from ddcat_bench.result_schema import check_same_images

__all__ = ["CompareResult", "EngineRow", "compare", "find_reports", "load_gate_results"]

_RESULT = "gate.json"


class EngineRow(StrictModel):
    """One engine, from its gate result."""

    name: str = Field(description="Name of the bundle's folder, or of the result folder.")
    bundle: str = Field(description="SHA-256 of its manifest.")
    checkpoint: str = Field(description="Method and architecture, and the beginning of its SHA-256.")
    runtime: str
    precision: str
    budget: Literal["default", "quick"]
    verdict: Verdict
    clean: float = Field(description="Points of mIoU.")
    clean_difference: float = Field(description="Engine minus PyTorch.")
    clean_interval: Bounds
    attacked: float = Field(description="Points of mIoU under the threat that all were tested under.")
    attacked_difference: float
    attacked_interval: Bounds
    milliseconds: float = Field(description="Median, of a batch of one.")
    milliseconds_quartiles: Bounds
    steady: bool = Field(description="True where the machine was steady and idle when that was timed.")
    of_pytorch: float = Field(description="Median of the engine's time as a share of eager fp32 PyTorch's.")
    peak_memory: int | None = Field(description="Bytes of a process of its own.")
    engine_bytes: int
    report: str | None = Field(
        None, description="The gate's report, seen from the folder of this result; null: it is not there."
    )
    best: bool = Field(
        description="True where no other engine here is both quicker and more robust (Pareto), of those that the gate did not "
        "refuse and that were timed on a steady machine."
    )


class CompareResult(StrictModel):
    """The result of `ddcat compare`."""

    schema_version: Literal[1] = 1
    kind: Literal["compare"] = "compare"
    data: str
    images: int
    threat: str = Field(description="The strongest threat that all were tested under.")
    machines: tuple[str, ...] = Field(description="Machines that the times are of; they compare only where there is one.")
    rows: tuple[EngineRow, ...]


def load_gate_results(paths: Sequence[Path]) -> dict[str, GateResult]:
    """
    Read the gate results of bundles, whose result folders (BUNDLE-gate) lie beside them, or of result folders themselves.

    Returns them by the names of the folders. Raises BenchError if there is none, it is of another bundle than lies there now,
    or two folders have one name.
    """
    results: dict[str, GateResult] = {}
    for path in paths:
        name = _name(path)
        if name in results:
            raise BenchError(f"two of the folders are named {name}, expected different names: rename one of them")
        if (path / _RESULT).is_file():
            results[name] = read_result(path / _RESULT, GateResult)
            continue
        bundle, file = open_bundle(path), sibling_folder(path, "gate") / _RESULT
        if not file.is_file():
            raise BenchError(f"{path} was not tested: no {file}; run ddcat gate {path}, or use its result folder")
        result = read_result(file, GateResult)
        if result.bundle.sha256 != bundle.digest:
            raise BenchError(f"{file} is the result of a bundle other than {path}: run ddcat gate {path}")
        results[name] = result
    return results


def find_reports(paths: Sequence[Path], out: Path) -> dict[str, str]:
    """
    Find the reports beside the results that `load_gate_results` reads.

    Returns their addresses relative to the folder `out` of the page that links to them, by the names that it gives.
    """
    reports = {}
    for path in paths:
        folder = path if (path / _RESULT).is_file() else sibling_folder(path, "gate")
        report = next((folder / name for name in ("report.html", "gate.md") if (folder / name).is_file()), None)
        if report is not None:
            reports[_name(path)] = quote(Path(os.path.relpath(report.resolve(), out.resolve())).as_posix())
    return reports


def _name(path: Path) -> str:
    return path.resolve().name.removesuffix("-gate")


def compare(gates: Mapping[str, GateResult], reports: Mapping[str, str] | None = None) -> CompareResult:
    """
    Put engines side by side under the strongest threat that all were tested under; `reports` is that of `find_reports`.

    Raises BenchError if they were evaluated on other images, or under no common attack.
    """
    check_same_images([(name, gate.data) for name, gate in gates.items()])
    first = next(iter(gates.values()))
    common = [
        row.name
        for row in first.threats
        if row.name != "clean" and all(_threat(other, row.name) is not None for other in gates.values())
    ]
    if not common:
        raise BenchError("the engines were tested under no common attack: use the same budget for all")
    rows = [
        _row(name, gate, common[-1]).model_copy(update={"report": (reports or {}).get(name)}) for name, gate in gates.items()
    ]
    return CompareResult(
        data=first.data.summary,
        images=len(first.data.names),
        threat=common[-1],
        machines=tuple(dict.fromkeys(machine_line(gate.environment) for gate in gates.values())),
        rows=tuple(
            row.model_copy(update={"best": _counts(row) and not any(_beats(other, row) for other in rows if _counts(other))})
            for row in rows
        ),
    )


def _counts(row: EngineRow) -> bool:
    return row.verdict != "refuse" and row.steady


def _beats(other: EngineRow, row: EngineRow) -> bool:
    """Return True if another engine is at least as fast and as robust, and better in one."""
    return (
        other.milliseconds <= row.milliseconds
        and other.attacked >= row.attacked
        and (other.milliseconds, other.attacked) != (row.milliseconds, row.attacked)
    )


def _row(name: str, gate: GateResult, threat: str) -> EngineRow:
    clean, attacked = gate.threats[0], _threat(gate, threat)
    assert attacked is not None
    timed, ratio = gate.speed.find("engine"), gate.speed.ratios[0]
    return EngineRow(
        name=name,
        bundle=gate.bundle.sha256,
        checkpoint=f"{gate.checkpoint.method}, {gate.checkpoint.architecture}, {gate.checkpoint.sha256[:8]}",
        runtime=str(gate.bundle.engine["runtime"]).partition("-")[0],
        precision=gate.precision,
        budget=gate.budget,
        verdict=gate.verdict,
        clean=clean.engine,
        clean_difference=clean.difference,
        clean_interval=clean.interval,
        attacked=attacked.engine,
        attacked_difference=attacked.difference,
        attacked_interval=attacked.interval,
        milliseconds=1000 * timed.times.median,
        milliseconds_quartiles=(1000 * timed.times.lower_quartile, 1000 * timed.times.upper_quartile),
        steady=gate.speed.stable and not gate.speed.disturbed,
        of_pytorch=1 / ratio.median,
        peak_memory=timed.peak_memory,
        engine_bytes=gate.speed.engine_bytes,
        best=False,
    )


def _threat(gate: GateResult, name: str) -> ThreatRow | None:
    return next((row for row in gate.threats if row.name == name), None)
