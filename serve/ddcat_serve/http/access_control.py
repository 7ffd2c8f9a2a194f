"""Who may ask, and how often."""

import hmac
import ipaddress
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from limits import RateLimitItem, parse

from ddcat_serve.errors import RequestError
from ddcat_serve.settings import Settings

__all__ = ["Guard", "plain_address"]

_WRONG_KEYS = parse("20/minute")  # of one client
_FORGETS = 1000  # clients, after which those are forgotten who have not asked for long


class Guard:
    """
    The key and the rate that the settings ask for; nothing where they ask for none.

    Parameters
    ----------
    settings : Settings
    clock : callable, optional
        In seconds, never going back.
    """

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._requests = None if settings.rate_limit is None else _Window(parse(settings.rate_limit), clock)
        self._wrong_keys = _Window(_WRONG_KEYS, clock)

    def refusal(self, authorization: Sequence[str], client: str) -> RequestError | None:
        """
        Say why a request is refused: 401 or 429, or None.

        Parameters
        ----------
        authorization : sequence of str
            The values of its Authorization header.
        client : str
            Its address. Those of one IPv6 network of 64 bits are one client.
        """
        client = _client(client)
        if self._key is not None:
            if not authorization:
                return _wrong("the API key is missing")
            if seconds := self._wrong_keys.wait(client):  # the right key, too: else a guess would still be told from it
                return _too_many(f"more than {_WRONG_KEYS} wrong API keys from this client", seconds)
        if self._requests is not None:
            if seconds := self._requests.wait(client):
                return _too_many(f"more than {self._requests.limit} from this client", seconds)
            self._requests.add(client)
        if self._key is not None and not self._has_key(authorization):
            self._wrong_keys.add(client)
            return _wrong("the API key is another one")
        return None

    def _has_key(self, values: Sequence[str]) -> bool:
        if len(values) != 1:
            return False
        kind, _, key = values[0].partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key or b"")


def plain_address(address: str) -> str:
    """Return an address, as itself where IPv6 only wraps IPv4; anything else as it is."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(getattr(found, "ipv4_mapped", None) or found)


class _Window:
    """So many events of one client in any stretch of time. `limits` itself counts by the wall clock, which can be set back."""

    def __init__(self, limit: RateLimitItem, clock: Callable[[], float]) -> None:
        self.limit, self._clock = limit, clock
        self._seen: dict[str, deque[float]] = {}
        self._forgets = _FORGETS

    def wait(self, client: str) -> float:
        """Return the seconds until another event fits; 0: now."""
        times = self._seen.get(client)
        if times is None or len(times) < self.limit.amount:
            return 0.0
        return max(0.0, times[0] + self.limit.get_expiry() - self._clock())

    def add(self, client: str) -> None:
        """Count an event."""
        now = self._clock()
        if client not in self._seen and len(self._seen) >= self._forgets:
            since = now - self.limit.get_expiry()
            self._seen = {other: times for other, times in self._seen.items() if times[-1] > since}
            self._forgets = max(_FORGETS, 2 * len(self._seen))
        self._seen.setdefault(client, deque(maxlen=self.limit.amount)).append(now)


def _client(address: str) -> str:
    plain = plain_address(address)
    try:
        found = ipaddress.ip_address(plain.partition("%")[0])
    except ValueError:
        return plain
    return plain if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))


def _wrong(message: str) -> RequestError:
    return RequestError(401, f"{message}: send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})


def _too_many(message: str, seconds: float) -> RequestError:
    whole = max(1, math.ceil(seconds))
    return RequestError(429, f"{message}: try again in {whole} s", {"Retry-After": str(whole)})
