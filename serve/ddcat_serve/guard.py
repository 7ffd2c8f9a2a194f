"""Who may ask, and how often."""

import hmac
import time
from collections.abc import Sequence

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from ddcat_serve.errors import RequestError
from ddcat_serve.settings import Settings

__all__ = ["Guard"]


class Guard:
    """
    The key and the rate that the settings ask for; nothing where they ask for none.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._limit = None if settings.rate_limit is None else parse(settings.rate_limit)
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def refusal(self, authorization: Sequence[str], client: str) -> RequestError | None:
        """
        Say why a request is refused: 401 or 429, or None.

        Parameters
        ----------
        authorization : sequence of str
            The values of its Authorization header.
        client : str
            Its address.
        """
        if self._key is not None and not self._has_key(authorization):
            message = "the API key is missing or another one: send Authorization: Bearer KEY"
            return RequestError(401, message, {"WWW-Authenticate": "Bearer"})
        if self._limit is not None and not self._limiter.hit(self._limit, client):
            reset, _ = self._limiter.get_window_stats(self._limit, client)
            seconds = max(1, round(reset - time.time()))
            message = f"more than {self._limit} from this client: try again in {seconds} s"
            return RequestError(429, message, {"Retry-After": str(seconds)})
        return None

    def _has_key(self, values: Sequence[str]) -> bool:
        if len(values) != 1:
            return False
        kind, _, key = values[0].partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key or b"")
