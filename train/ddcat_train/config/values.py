"""The kinds of values that sections of a configuration are made of."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator

__all__ = ["FilePath", "Fraction", "Section", "Size", "fraction"]


def fraction(value: Any) -> Any:
    """Return the number that a text such as 8/255 stands for; anything else as it is."""
    if isinstance(value, str) and value.count("/") == 1 and value != "eps/n":
        numerator, denominator = value.split("/")
        try:
            return float(numerator) / float(denominator)
        except (ValueError, ZeroDivisionError):
            return value
    return value


def _utf8(path: Path) -> Path:
    try:
        str(path).encode()
    except UnicodeEncodeError as cause:
        raise ValueError("a path must be UTF-8, because the run's files hold it: rename it, or use a link") from cause
    return path


def _pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


Fraction = Annotated[float, BeforeValidator(fraction)]  # 0.03, or "8/255"
FilePath = Annotated[Path, AfterValidator(_utf8)]
Size = Annotated[tuple[int, int], BeforeValidator(_pair)]  # height and width, or one number for both


class Section(BaseModel):
    """Keys and values, of which none may be unknown."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false, which YAML also makes of yes, no, on and off, where pydantic would take them for 1 and 0."""
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("expected a value that is not true or false (YAML reads yes, no, on and off as these)")
        return value
