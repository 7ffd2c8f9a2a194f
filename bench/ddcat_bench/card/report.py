"""The card for readers: Markdown, and an HTML page that needs nothing else."""

from pathlib import Path

from ddcat_bench.card.collect import Card
from ddcat_bench.markdown import literal, table
from ddcat_bench.templates import render

__all__ = ["card_html", "card_markdown"]

NOTE = (
    "mIoU is the mean over the classes of intersection over union. Intervals hold 95 % of the bootstrap draws. "
    "Those of the gate's threats, in points, hold 90 % of the differences of engine and model. "
    "A dash: the images are too few for an interval, or too alike, such as frames of one clip. A missing row was not measured."
)
_HEADS = ["threat", "what it claims", "what it leaves open", "mIoU", "interval", "images"]


def card_markdown(card: Card) -> str:
    """Write the card as a table."""
    alarms = "".join(f"> **{literal(alarm)}**\n\n" for alarm in card.alarms)
    files = "".join(f"- {literal(file)}\n" for file in dict.fromkeys(row.file for row in card.rows))
    rows = table(_HEADS, _cells(card), texts=3)
    return f"# {literal(_title(card))}\n\n{literal(card.about)}\n\n{alarms}{rows}\n{NOTE}\n\n{files}"


def card_html(card: Card) -> str:
    """Write the card as a page."""
    page = Path(__file__).with_name("card.html")
    return render(page, title=_title(card), about=card.about, alarms=card.alarms, heads=_HEADS, rows=_cells(card), note=NOTE)


def _title(card: Card) -> str:
    return f"Robustness of {Path(card.source).name}"


def _cells(card: Card) -> list[list[str]]:
    return [[row.threat, row.claims, row.leaves_open, row.figure, row.interval or "-", str(row.images)] for row in card.rows]
