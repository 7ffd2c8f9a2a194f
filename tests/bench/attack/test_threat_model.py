"""What docs/threat-model.md says of alarms, tolerances, the probe and suites is what there is."""

import re
from pathlib import Path
from typing import get_args

from ddcat_bench.attack import alarms, probe
from ddcat_bench.attack.results import AlarmName
from ddcat_bench.attack.suites import SUITES, attack_specs

PAGE = (Path(__file__).parents[3] / "docs/threat-model.md").read_text(encoding="utf-8")


def table(heading: str) -> dict[str, list[str]]:
    """Rows of the table whose header begins with a cell, by their first cell."""
    lines = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_every_alarm_is_there_with_its_tolerance() -> None:
    rows = table("alarm")
    assert sorted(rows) == sorted(get_args(AlarmName))
    said = {
        name: [float(n) for n in re.findall(r"over (\d[\d.]*)|probe: (\d+)", row[0]) for n in n if n]
        for name, row in rows.items()
    }
    assert said == {
        "black-box beats white-box": [alarms.BLACK_BOX_MARGIN, alarms.PROBE_MARGIN],
        "more steps weaken the attack": [alarms.WEAKENED_BY],
        "accuracy is left at epsilon 64/255": [alarms.LEFT_AT_MOST],
        "gradients are zero or not finite": [100 * alarms.ZERO_PIXELS_AT_MOST],
        "the trained n is easier than its neighbours": [alarms.EASIER_BY],
        "attacked mIoU is above clean": [alarms.ABOVE_CLEAN_BY],
    }
    assert alarms.LARGE_EPSILON == 64 / 255


def test_the_probe_is_described_as_it_is() -> None:
    text = " ".join(PAGE.split())
    images = probe.run_probe.__kwdefaults__["images"]
    assert f"on {images} whole images at 8/255. It has PGD with {probe.FEW} and {probe.MORE} steps, CosPGD at 64/255" in text


def test_every_attack_of_the_suites_has_an_attacker() -> None:
    rows = table("who")
    told = " ".join(cells[1] for cells in rows.values())
    made = {plan.name for suite in SUITES for plan in attack_specs(suite)}
    assert all(name in told.replace("random signs", "noise") for name in made)
    black = {plan.name for suite in ("quick", "paper", "sea") for plan in attack_specs(suite)} & alarms.BLACK_BOX  # type: ignore[arg-type]
    assert not black
    assert {plan.name for plan in attack_specs("full")} >= {"Square", "DLA"}
    assert {name: {plan.name for plan in attack_specs(name)} - {"BIM"} for name in ("quick", "paper", "sea")} == {
        "quick": set(), "paper": {"PGD"}, "sea": {"SEA", "PGD", "SegPGD", "CosPGD"},
    }  # fmt: skip
