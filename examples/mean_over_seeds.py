"""
Put attack results of several methods and seeds into one Markdown table: mIoU, mean and standard deviation over seeds.

    python examples/mean_over_seeds.py docs/results/camvid-methods/*.json
"""

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Columns = dict[str, list[float]]  # mIoU of each seed, by the name of the attack


def read(files: list[Path]) -> dict[str, Columns]:
    """Give the mIoU of every attack on images in floating point, by method."""
    methods: dict[str, Columns] = defaultdict(lambda: defaultdict(list))
    for file in dict.fromkeys(files):  # a file that two patterns match is one seed all the same
        result = json.loads(file.read_text(encoding="utf-8"))
        for row in result["rows"]:
            if not row["eight_bit"]:
                methods[result["checkpoint"]["method"]][_label(row)].append(row["scores"]["miou"])
    return methods


def _label(row: dict[str, Any]) -> str:
    if row["steps"] == 0:
        return "clean"
    return f"n = {row['steps']}" if row["name"] == "BIM" else f"{row['name']}-{row['steps']}"


def table(methods: dict[str, Columns]) -> str:
    """Write mean and sample standard deviation, or the one value where there is one seed."""
    attacks = list(next(iter(methods.values())))
    lines = [f"| method | seeds | {' | '.join(attacks)} |", f"| --- | ---: |{' ---: |' * len(attacks)}"]
    for method, columns in methods.items():
        cells = [_cell(columns[attack]) for attack in attacks]
        lines.append(f"| {method} | {len(columns[attacks[0]])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


if __name__ == "__main__":
    print(table(read([Path(name) for name in sys.argv[1:]])))
