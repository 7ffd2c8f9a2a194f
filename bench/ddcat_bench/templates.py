"""Reports from templates: Markdown, and self-contained HTML pages, whose common style and tables are beside this file."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddcat_bench.markdown import (
    cell,
    data_line,
    environment_lines,
    fixed,
    literal,
    number,
    origin_lines,
    provenance_lines,
    signed,
    table,
)

__all__ = ["render"]


def render(template: Path, **values: Any) -> str:
    """
    Fill a template, in which the functions of `ddcat_bench.markdown` are known by their names.

    Parameters
    ----------
    template : Path
        An HTML page, in which values are escaped, or Markdown, in which they are not: texts of others go through `literal`, or
        through `cell` within a table. It may include the files beside itself and beside this module.
    values
        Values by their names in the template.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=template.suffix == ".html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    functions = (cell, data_line, environment_lines, fixed, literal, number, origin_lines, provenance_lines, signed, table)
    environment.globals |= {function.__name__: function for function in functions}
    return environment.get_template(template.name).render(values)
