"""What a user says of the confidence, in the command and in Python."""

import math
from typing import Annotated, Literal

import typer

from ddcat_export.errors import ExportError

__all__ = ["Risk", "TemperatureOption", "check_confidence_options", "parse_temperature"]


TemperatureOption = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE|fit",
        help="Temperature of the softmax of the confidence; fit: fitted to the labels of the validation split.",
        show_default="1",
    ),
]
Risk = Annotated[
    float | None,
    typer.Option(
        help="Choose a threshold of the confidence so that at most this share of pixels is above it and wrong.",
        show_default="none: no threshold",
    ),
]


def parse_temperature(text: str | None) -> float | Literal["fit"] | None:
    """Read a temperature: a positive number, or fit."""
    if text is None or text == "fit":
        return None if text is None else "fit"
    try:
        return float(text)
    except ValueError as cause:
        raise ExportError(f"--temperature {text}: expected a positive number or fit") from cause


def check_confidence_options(*, confidence: bool, temperature: float | Literal["fit"] | None, risk: float | None) -> None:
    """Refuse values that are out of range, and those that concern a confidence that the bundle does not give."""
    if isinstance(temperature, str) and temperature != "fit":
        raise ExportError(f"--temperature {temperature}: expected a positive number or fit")
    if isinstance(temperature, int | float) and not (temperature > 0 and math.isfinite(temperature)):
        raise ExportError(f"--temperature {temperature:g}: expected a positive number or fit")
    if risk is not None and not 0 < risk < 1:
        raise ExportError(f"--risk {risk:g}: expected a number between 0 and 1, such as 0.05")
    for option, value in (("--temperature", temperature), ("--risk", risk)):
        if value is not None and not confidence:
            raise ExportError(f"{option} has no effect here, because the bundle has no confidence output: add --confidence")
