"""Content negotiation: Accept and Accept-Encoding (RFC 9110, 12.5)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ddcat_serve.errors import RequestError, quoted

__all__ = ["Representation", "accepts_coding", "negotiate"]


class Representation(NamedTuple):
    """
    A representation of the response: a media type such as image/png.

    Its one parameter, `view`, distinguishes representations of one type; None: the plain one.
    """

    media_type: str
    view: str | None = None

    def __str__(self) -> str:
        """Return it as in a header."""
        return self.media_type if self.view is None else f"{self.media_type};view={self.view}"


class _Range(NamedTuple):
    kind: str
    subkind: str
    view: str | None
    quality: float

    def specificity(self, representation: Representation) -> int | None:
        """Return how exactly this range matches: 3 by view, 2 by type, 1 by kind (image/*), 0 as anything, None: not at all."""
        kind, subkind = representation.media_type.split("/")
        if self.view is not None:
            return 3 if (self.kind, self.subkind, self.view) == (kind, subkind, representation.view) else None
        if (self.kind, self.subkind) == ("*", "*"):
            return 0
        if self.kind != kind:
            return None
        return 1 if self.subkind == "*" else 2 if self.subkind == subkind else None


def negotiate(accept: str | None, available: Sequence[Representation]) -> Representation:
    """
    Return the available representation that the client prefers; raise RequestError (406) if it accepts none of them.

    `accept` is the value of the header; None or empty: anything. The first available one is the default; one with a view is
    chosen only if the client names it.
    """
    ranges = list(_ranges(accept or "*/*"))
    best, highest = None, 0.0
    for representation in available:
        matches = [(exact, r.quality) for r in ranges if (exact := r.specificity(representation)) is not None]
        if not matches or (representation.view is not None and max(matches)[0] < 3):
            continue
        quality = max(matches)[1]
        if quality > highest:
            best, highest = representation, quality
    if best is None:
        raise RequestError(406, f"none of {quoted(accept or '')} is available; there is {', '.join(map(str, available))}")
    return best


def accepts_coding(values: Sequence[str], coding: str) -> bool:
    """Return whether a client accepts a coding; `values` are those of its Accept-Encoding headers."""
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
            continue  # not a media type: ignored
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
