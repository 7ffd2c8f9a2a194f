"""A bar for a person, and nothing for a file."""

from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

import ddcat.progress
from ddcat.progress import Rate, progress


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The bars that are made, each with the tasks that it holds to the end."""
    made: list[Any] = []

    class Kept(ddcat.progress.Progress):
        def __init__(self, *columns: Any, **options: Any) -> None:
            super().__init__(*columns, **options)
            made.append(self)

    monkeypatch.setattr(ddcat.progress, "Progress", Kept)
    return made


def test_what_is_no_terminal_is_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("attacking", 3) as advance:
        advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_sees_what_is_done_of_how_much(monkeypatch: pytest.MonkeyPatch, bars: list[Any]) -> None:
    monkeypatch.setattr(ddcat.progress, "Console", lambda **options: Console(force_terminal=True, width=120, **options))
    with progress("attacking", 5) as advance:
        advance(2)
        advance(1)
        with bars[0].console.capture() as printed:
            bars[0].console.print(bars[0].get_renderable())
    assert "attacking" in printed.get()
    assert "3/5" in printed.get()


@pytest.mark.parametrize(
    ("speed", "shown"),
    [(None, ""), (0.0, ""), (12.34, "12.3 images/s"), (1.0, "1.0 images/s"), (0.25, "4.0 s each")],
)
def test_slow_work_is_told_in_seconds_for_each(speed: float | None, shown: str) -> None:
    task: Any = SimpleNamespace(speed=speed)
    assert Rate("images").render(task).plain == shown
