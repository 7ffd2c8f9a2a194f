"""The gate's thresholds, by precision."""

from pathlib import Path

from pydantic import Field, TypeAdapter, ValidationError

from ddcat.choices import Precision
from ddcat.error_text import first_line, first_validation_error, unknown_key
from ddcat.schema import Fraction, StrictModel
from ddcat.text import printable
from ddcat.yaml_text import parse_yaml
from ddcat_bench.errors import BenchError

__all__ = ["DEFAULT", "Thresholds", "read_thresholds"]

DEFAULT = Path(__file__).with_name("limits.yaml")


class Thresholds(StrictModel):
    """Thresholds of one precision; what each means stands at the head of `limits.yaml`."""

    logit_error: float | None = Field(gt=0)
    agreement: Fraction | None
    clean_margin: float = Field(gt=0)
    adversarial_margin: float = Field(gt=0)
    corrupted_margin: float | None = Field(None, gt=0)
    latency: float | None = Field(gt=0)
    calibration_error: float | None = Field(None, gt=0, le=1)

    @property
    def unset(self) -> tuple[str, ...]:
        """Names of what has no limit, as the findings call it: it is reported, and decides nothing."""
        limits = {"logits": self.logit_error, "equal labels": self.agreement, "latency": self.latency}
        limits["corruptions"] = self.corrupted_margin
        return tuple(name for name, limit in limits.items() if limit is None)


def read_thresholds(file: Path, precision: Precision) -> Thresholds:
    """
    Read the limits of a precision.

    Raises BenchError if the file cannot be read, or an entry is missing, unknown or of a wrong type.
    """
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
        return TypeAdapter(dict[Precision, Thresholds]).validate_python(content)[precision]
    except ValidationError as cause:
        keys = Thresholds.model_fields
        fault = unknown_key(cause, keys) or f"{first_validation_error(cause)}; the keys of a precision are {', '.join(keys)}"
        raise BenchError(f"--thresholds {printable(file)}: {fault}") from cause
    except (OSError, ValueError) as cause:
        raise BenchError(f"--thresholds {file} cannot be read: {first_line(cause)}") from cause
    except KeyError as cause:
        raise BenchError(
            f"--thresholds {file} has no entry for {precision}: add one, such as {precision}: {{agreement: 0.999, ...}}"
        ) from cause
