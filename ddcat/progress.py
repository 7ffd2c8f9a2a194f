"""A progress bar with a rate and the time left, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Rate", "progress"]


class Rate(ProgressColumn):
    """Units per second, or seconds per unit where that is below one."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Draw the column."""
        if not task.speed:
            return Text("")
        return Text(f"{task.speed:.1f} {self._unit}/s" if task.speed >= 1 else f"{1 / task.speed:.1f} s each")


@contextmanager
def progress(what: str, total: int, *, unit: str = "images") -> Iterator[Callable[[int], None]]:
    """Show the progress of work; yields a function to call with the number of units just done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(unit), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)
