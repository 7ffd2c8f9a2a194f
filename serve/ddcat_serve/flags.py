"""A flag of the command line for each setting: their names, meanings and defaults are written once."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from ddcat_serve.settings import PREFIX, Settings

__all__ = ["with_settings"]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """
    Give a command a keyword for each setting, None where it is not given; flags come before environment variables.

    Parameters
    ----------
    command : callable
        Takes them as ``**settings``.
    """
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    flags = [_flag(name, field) for name, field in Settings.model_fields.items()]
    command.__signature__ = signature.replace(parameters=[*own, *flags])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (*own, *flags)} | {"return": None}
    return command


def _flag(name: str, field: FieldInfo) -> inspect.Parameter:
    flag = f"--{name.replace('_', '-')}"
    switch = field.annotation is bool
    option = typer.Option(
        f"{flag}/--no-{flag[2:]}" if switch else flag,
        help=f"{field.description} ({PREFIX}{name.upper()})",
        show_default=_shown(field.default),
        metavar=None if switch else "VALUE",
        rich_help_panel="Settings",
    )
    kind: Any = bool | None if switch else str | None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind, option])


def _shown(default: object) -> str:
    if default is None or default == ():
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)
