"""The Accept header, with the examples of RFC 9110 and those that clients send."""

import pytest

from ddcat_serve.errors import RequestError
from ddcat_serve.http.content_negotiation import Representation, negotiate

PNG, OVERLAY, RAW, JSON = (
    Representation("image/png"),
    Representation("image/png", "overlay"),
    Representation("application/octet-stream"),
    Representation("application/json"),
)
FORMS = [PNG, OVERLAY, RAW, JSON]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, PNG), ("", PNG), ("*/*", PNG), ("image/*", PNG), ("image/png", PNG), ("IMAGE/PNG", PNG),
        ("application/json", JSON), ("application/*", RAW), ("image/png;view=overlay", OVERLAY),
        ('image/png; view="overlay"', OVERLAY), ("image/webp, image/png;q=0.5", PNG),
        ("image/png;q=0.5, application/json", JSON),
        ("application/json;q=0.2, */*;q=0.1", JSON), ("*/*;q=0.5, image/png;q=0", RAW),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8", PNG),  # a browser
        ("image/png;view=overlay;q=0.3, image/png;q=0.2", OVERLAY), ("nonsense, application/json", JSON),
    ],
)  # fmt: skip
def test_the_preferred_representation_is_chosen(accept: str | None, expected: Representation) -> None:
    assert negotiate(accept, FORMS) == expected


@pytest.mark.parametrize(
    "accept", ["text/html", "image/png;q=0", "image/png;view=depth", "*/*;q=0", "nonsense", "image/png;q=x"]
)
def test_unavailable_representations_are_a_406(accept: str) -> None:
    with pytest.raises(RequestError, match="there is image/png, image/png;view=overlay, application/octet-stream") as caught:
        negotiate(accept, FORMS)
    assert caught.value.status == 406
