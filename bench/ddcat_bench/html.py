"""Self-contained HTML pages; their common style and table sorting are beside this file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

__all__ = ["render"]


def render(template: Path, values: Mapping[str, Any]) -> str:
    """
    Fill a template.

    Parameters
    ----------
    template : Path
        It may include the files beside itself and beside this module.
    values : mapping
        Values by their names in the template.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)
