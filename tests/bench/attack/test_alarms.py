"""Each alarm rings on figures that are wrong, and is silent on those of sound models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ddcat_bench.attack.alarms import raise_alarms
from ddcat_bench.attack.results import AttackResult, AttackRow, GradientShares, Probe, ProbePoint
from ddcat_bench.result_io import read_result
from ddcat_bench.result_schema import Scores

RESULTS = Path(__file__).parents[3] / "docs" / "results"
MEASURED = sorted(path for path in RESULTS.glob("camvid-*/*.json") if '"kind": "attack"' in path.read_text())
SOUND = GradientShares(zero_images=0, non_finite_images=0, zero_pixels=0)


def row(name: str, points: float, steps: int = 7, epsilon: float = 0.03, **changed: Any) -> AttackRow:
    scores = Scores(miou=points / 100, pixel_accuracy=0.5, mean_image_miou=0.5, class_iou=(), counts=())
    made = AttackRow(
        name="BIM", epsilon=epsilon, alpha=0.01, steps=steps, start="clean", eight_bit=False, grey_levels=7.65, scores=scores
    )
    return made.model_copy(update={"name": name, **changed})


def curve(*points: float) -> list[AttackRow]:
    """The clean row and n = 1, 2, ... of BIM."""
    return [row("clean", points[0], 0, 0)] + [row("BIM", value, n) for n, value in enumerate(points) if n]


def probe(
    *, clean: float = 40, few: float = 12, more: float = 10, large: float = 1, gradients: GradientShares = SOUND, **black: float
) -> Probe:
    def point(name: Any, points: float, epsilon: float, steps: int) -> ProbePoint:
        return ProbePoint(name=name, epsilon=epsilon, steps=steps, miou=points / 100, pixel_accuracy=0.5)

    return Probe(
        images=8,
        seed=0,
        points=(
            point("clean", clean, 0, 0),
            point("PGD", few, 8 / 255, 5),
            point("PGD", more, 8 / 255, 20),
            point("CosPGD", large, 64 / 255, 20),
            *(point(name, points, 8 / 255, 50) for name, points in black.items()),
        ),
        gradients=gradients,
        seconds=1,
    )


def names(rows: Sequence[AttackRow] = (), found: Probe | None = None, trained_steps: int | None = None) -> list[str]:
    return [alarm.name for alarm in raise_alarms(rows, found, trained_steps=trained_steps)]


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_models_that_were_measured_raise_none(path: Path) -> None:
    result = read_result(path, AttackResult)
    steps = None if result.checkpoint.attack is None else result.checkpoint.attack["steps"]
    assert raise_alarms(result.rows, result.probe, trained_steps=steps) == ()


def test_there_are_such_models() -> None:
    assert len(MEASURED) >= 12


def test_black_box_beats_white_box() -> None:
    rows = [*curve(40, 20, 15), row("Square", 13, 100)]
    [alarm] = raise_alarms(rows, None, trained_steps=None)
    assert alarm.name == "black-box beats white-box"
    assert (
        alarm.evidence == "Square of 100 queries at 7.65/255 leaves 13.0 points, BIM of 2 steps at 7.65/255 leaves 15.0 points"
    )


def test_black_box_is_compared_with_the_best_of_its_own_kind() -> None:
    assert names([*curve(40, 20, 15), row("DLA", 14.5)]) == []  # within the tolerance
    assert names([*curve(40, 20, 15), row("SEA-JS", 5, alpha=0.02), row("DLA", 6)]) == []  # weaker than the strongest
    assert names([*curve(40, 20, 15), row("DLA", 2, epsilon=0.06)]) == []  # at a bound at which nothing else was tried
    assert names([*curve(40, 20, 15), row("DLA", 2, eight_bit=True)]) == []  # in 8 bits, as nothing else was
    assert names([*curve(40, 20, 15), row("BIM", 16, epsilon=0.06), row("transfer", 15.5, epsilon=0.06)]) == []
    assert names([*curve(40, 20, 15), row("BIM", 16, epsilon=0.06), row("transfer", 13, epsilon=0.06)]) == [
        "black-box beats white-box"
    ]


def test_more_steps_weaken_the_attack() -> None:
    assert names(curve(40, 20, 15, 15.4, 15.2)) == []
    assert names(curve(40, 20, 15, 15.6, 15.2)) == ["more steps weaken the attack"]
    other = [row("PGD", 20, 20, alpha=0.02, start="random"), row("BIM", 10, 7)]
    assert names(other) == []  # not one curve
    assert names([row("transfer", 20, 1), row("transfer", 25, 2)]) == []  # steps on a substitute
    assert names([*curve(40, 20), row("BIM", 35, 2, eight_bit=True)]) == []


def test_accuracy_is_left_at_a_large_epsilon() -> None:
    assert names([row("PGD", 15.1, epsilon=64 / 255)]) == ["accuracy is left at epsilon 64/255"]
    assert names([row("PGD", 14.9, epsilon=64 / 255), row("PGD", 30, epsilon=32 / 255)]) == []
    assert names([row("PGD", 0, epsilon=64 / 255), row("Square", 30, epsilon=64 / 255)]) == []  # weak by its nature


def test_trained_n_is_easier_than_its_neighbours() -> None:
    overfitted = curve(40, 38, 37, 37.3, 20, 18)
    assert names(overfitted, trained_steps=3) == ["the trained n is easier than its neighbours"]
    assert names(overfitted, trained_steps=1) == []
    assert names(overfitted) == []
    assert names(curve(40, 30, 22, 16, 13, 11), trained_steps=3) == []
    assert names(curve(40, 39, 20), trained_steps=1) == ["the trained n is easier than its neighbours"]  # beside the clean row
    assert names(curve(40, 39, 20), trained_steps=2) == []  # no neighbour above


def test_attacked_is_above_clean() -> None:
    assert names(curve(40, 40.6)) == ["attacked mIoU is above clean"]
    assert names(curve(40, 40.4)) == []
    assert names([*curve(40, 10), row("Square", 40.6)]) == []  # found nothing


def test_a_sound_probe_raises_none() -> None:
    assert names(found=probe(noise=38, Square=30, DLA=15)) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"Square": 7.9}, "black-box beats white-box"),
        ({"noise": 7.9}, "black-box beats white-box"),
        ({"DLA": 7.9}, "black-box beats white-box"),
        ({"few": 9.4}, "more steps weaken the attack"),
        ({"large": 15.1}, "accuracy is left at epsilon 64/255"),
        ({"clean": 9.4}, "attacked mIoU is above clean"),
        *(
            ({"gradients": SOUND.model_copy(update=missing)}, "gradients are zero or not finite")
            for missing in ({"zero_images": 0.125}, {"non_finite_images": 0.125}, {"zero_pixels": 0.02})
        ),
    ],
)
def test_probe_rings(changed: dict[str, Any], expected: str) -> None:
    assert names(found=probe(**changed)) == [expected]


@pytest.mark.parametrize("changed", [{"Square": 8.1}, {"few": 9.6}, {"large": 9.9}, {"clean": 9.6}])
def test_probe_is_silent_within_the_tolerances(changed: dict[str, Any]) -> None:
    assert names(found=probe(**changed)) == []


def test_alarms_say_what_they_mean() -> None:
    found = raise_alarms(curve(40, 41, 20, 22), probe(Square=1), trained_steps=1)
    assert len({alarm.name for alarm in found}) == 4
    assert all(alarm.evidence and alarm.meaning for alarm in found)
