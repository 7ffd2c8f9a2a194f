"""Which of the forms and codings that a server can give a client wants: Accept and Accept-Encoding (RFC 9110, 12.5)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ddcat_serve.errors import RequestError, quoted

__all__ = ["Form", "accepts_coding", "choose"]


class Form(NamedTuple):
    """
    A media type with at most one parameter.

    Attributes
    ----------
    media_type : str
        Such as image/png.
    view : str or None
        The value of its parameter `view`, which tells two forms of one type apart; None: it is the plain one.
    """

    media_type: str
    view: str | None = None

    def __str__(self) -> str:
        """Write as in a header."""
        return self.media_type if self.view is None else f"{self.media_type};view={self.view}"


class _Range(NamedTuple):
    kind: str
    subkind: str
    view: str | None
    quality: float

    def fits(self, form: Form) -> int | None:
        """How exactly it names a form: 3 with its view, 2 its type, 1 a kind of types, 0 anything; None: not at all."""
        kind, subkind = form.media_type.split("/")
        if self.view is not None:
            return 3 if (self.kind, self.subkind, self.view) == (kind, subkind, form.view) else None
        if (self.kind, self.subkind) == ("*", "*"):
            return 0
        if self.kind != kind:
            return None
        return 1 if self.subkind == "*" else 2 if self.subkind == subkind else None


def choose(accept: str | None, forms: Sequence[Form]) -> Form:
    """
    Choose the form that a client wants most.

    Parameters
    ----------
    accept : str or None
        The header; None or empty: anything.
    forms : sequence of Form
        That can be given, the one that is given by default first; a view is given only where it is named.

    Raises
    ------
    RequestError
        406 where none is wanted.
    """
    ranges = list(_ranges(accept or "*/*"))
    best, highest = None, 0.0
    for form in forms:
        fitting = [(exactness, r.quality) for r in ranges if (exactness := r.fits(form)) is not None]
        if not fitting or (form.view is not None and max(fitting)[0] < 3):
            continue
        quality = max(fitting)[1]
        if quality > highest:
            best, highest = form, quality
    if best is None:
        raise RequestError(406, f"none of {quoted(accept or '')} can be given; there is {', '.join(map(str, forms))}")
    return best


def accepts_coding(values: Sequence[str], coding: str) -> bool:
    """Return whether a client takes a coding; `values` are those of its Accept-Encoding."""
    qualities = {}
    for part in ",".join(values).split(","):
        name, _, parameter = (word.strip().lower() for word in part.partition(";"))
        qualities[name] = _quality(parameter.removeprefix("q=")) if parameter else 1.0
    return qualities.get(coding, qualities.get("*", 0.0)) > 0


def _ranges(accept: str) -> Iterator[_Range]:
    for part in accept.split(","):
        media_type, *parameters = (word.strip() for word in part.split(";"))
        kind, slash, subkind = media_type.lower().partition("/")
        if not slash:
            continue  # no media type: as if it were not there
        view, quality = None, 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip().lower() == "q":
                quality = _quality(value)
            elif name.strip().lower() == "view":
                view = value.strip().strip('"').lower()
        yield _Range(kind, subkind, view, quality)


def _quality(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
