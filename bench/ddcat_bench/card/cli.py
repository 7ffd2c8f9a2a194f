"""The command `ddcat report`."""

from pathlib import Path
from typing import Annotated

import typer

from ddcat_bench.cli_options import Force

__all__ = ["report"]


def report(
    source: Annotated[Path, typer.Argument(metavar="RUN|BUNDLE", help="A run, a bundle, or a folder with results.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write the card into this folder.", show_default="RUN-card or BUNDLE-card beside it"),
    ] = None,
    force: Force = False,
) -> None:
    """
    Put everything that was measured about a model or an engine on one page: a robustness card.

    Nothing is measured. The results of `ddcat attack` and `ddcat gate` are taken as they are; what is missing is left out.

    For example:

    - `ddcat report runs/camvid-sat`

    - `ddcat report runs/camvid-sat/bundle --out cards/camvid`
    """
    from ddcat_bench.card.collect import find_results, make_card
    from ddcat_bench.card.report import card_html, card_markdown
    from ddcat_bench.publish import claim, publish, sibling_folder

    card = make_card(source, find_results(source))
    folder = out or sibling_folder(source, "card")
    with claim(folder, "card", force=force):
        publish(folder, "card", card, card_markdown(card), {"card.html": card_html(card).encode()}, force=force)
