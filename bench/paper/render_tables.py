"""Markdown and CSV of the paper's tables, made from their numbers alone."""

import csv
import io
from collections.abc import Sequence

from bench.paper.paper_tables import StepClaim, Table, Tables
from bench.paper.rows import Cell, Line
from bench.paper.runs import ARCHITECTURES, METHODS, Training
from ddcat_bench.markdown import table as markdown_table

__all__ = ["tables_csv", "tables_markdown"]

_CSV = (
    "data", "table", "paper_table", "source", "architecture", "method", "settings", "substitute", "column",
    "mean", "sd", "count",
)  # fmt: skip


def tables_markdown(tables: Tables) -> str:
    """
    Write all tables, then what the paper claims of more steps, then the alarms.

    Parameters
    ----------
    tables : Tables
    """
    parts = [f"# Tables from {len(tables.results)} results"]
    if tables.alarms:
        parts.append(f"> **{len(tables.alarms)} masking alarms**, at the end: read them before you quote any score.")
    for table in tables.tables:
        notes = "".join(f"- {note}\n" for note in table.notes)
        parts.append(f"{'###' if table.kind == 'stronger' else '##'} {_title(table)}")
        parts.append(f"{markdown_table(_head(table), _body(table), texts=_texts(table))}\n{notes}".rstrip())
    parts += [_claims(tables.claims), _alarms(tables)]
    return "\n\n".join(part for part in parts if part) + "\n"


def tables_csv(tables: Tables) -> str:
    """
    Write one line for each cell of each table; an empty field is a value that there is none of.

    Parameters
    ----------
    tables : Tables
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV)
    for table in tables.tables:
        for line in table.lines:
            kind = (table.data, table.kind, table.paper_table, line.source)
            name = (line.architecture, line.method, line.settings, line.substitute)
            for column, cell in line.cells.items():
                writer.writerow((*kind, *name, column, cell.mean, cell.sd, len(cell.values) or None))
    return text.getvalue()


def _title(table: Table) -> str:
    number = "" if table.paper_table is None else f" (Table {table.paper_table} of the paper)"
    return f"{table.data}: {table.caption}{number}"


def _texts(table: Table) -> int:
    return 3 if table.kind == "black-box" else 2


def _head(table: Table) -> list[str]:
    made_on = ["made on"] if table.kind == "black-box" else []
    return ["network", "method", *made_on, "pairs" if made_on else "runs", *table.columns]


def _body(table: Table) -> list[list[str]]:
    rows = []
    for line in table.lines:
        settings = f" ({line.settings})" if line.settings else ""
        paper = " *(paper)*" if line.source == "paper" else ""
        made_on = [line.substitute or "the other network, SAT"] if table.kind == "black-box" else []
        rows.append(
            [
                ARCHITECTURES.get(line.architecture, line.architecture),
                f"{METHODS.get(line.method, line.method)}{settings}{paper}",
                *made_on,
                str(len(line.runs) or ""),
                *(_cell(line, column) for column in table.columns),
            ]
        )
    return rows


def _cell(line: Line, column: str) -> str:
    cell = line.cells.get(column)
    if cell is None:
        return "-"
    part = f" ({len(cell.values)} of {len(line.runs)})" if len(cell.values) < len(line.runs) else ""
    return f"{_number(cell)}{part}"


def _number(cell: Cell) -> str:
    return f"{cell.mean:.3f}" if cell.sd is None else f"{cell.mean:.3f} ± {cell.sd:.3f}"


def _claims(claims: Sequence[StepClaim]) -> str:
    if not claims:
        return ""
    lines = "".join(
        f"- {claim.data}, {Training(claim.architecture, claim.method, claim.settings).name}: n = {claim.steps} differs by "
        f"{claim.difference:+.3f}: {'holds' if claim.held else '**does not hold**'}\n"
        for claim in claims
    )
    return f"## The paper's claim: n = 10 and 20 stay within 0.025 of n = 7\n\n{lines}".rstrip()


def _alarms(tables: Tables) -> str:
    silent = ""
    if tables.unprobed:
        silent = (
            f"{len(tables.unprobed)} of {len(tables.results)} results were not probed for masked gradients (tables.json names "
            "them): that those have no alarm says little."
        )
    if not tables.alarms:
        none = "" if len(tables.unprobed) == len(tables.results) else "No alarm in the results that were probed."
        return f"## Masking alarms\n\n{' '.join(part for part in (none, silent) if part)}"
    lines = "".join(f"- **{alarm.name}** in {alarm.path}: {alarm.evidence}. {alarm.meaning}\n" for alarm in tables.alarms)
    head = f"## MASKING ALARMS: {len(tables.alarms)}. Read them before you quote any score above"
    return f"{head}\n\n{lines}\n{silent}".rstrip()
