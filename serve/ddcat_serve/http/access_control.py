"""API key and rate limit."""

import hmac
import ipaddress
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from limits import RateLimitItem, parse

from ddcat_serve.errors import RequestError
from ddcat_serve.settings import Settings

__all__ = ["AccessControl", "plain_address"]

_WRONG_KEYS = parse("20/minute")  # of one client
_MAX_CLIENTS = 1000  # beyond it, clients that have been silent for long are forgotten


class AccessControl:
    """Checks the API key and the rate limit of the settings; accepts everything if they set neither. `clock` is in seconds."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._key = None if settings.api_key is None else settings.api_key.get_secret_value().encode()
        self._requests = None if settings.rate_limit is None else _Window(parse(settings.rate_limit), clock)
        self._wrong_keys = _Window(_WRONG_KEYS, clock)

    def refusal(self, authorization: Sequence[str], client: str) -> RequestError | None:
        """
        Count a request, and return why it is refused (401 or 429), or None.

        `authorization` are the values of its Authorization header, `client` is its address. The addresses of an IPv6 network of
        64 bits count as one client.
        """
        client = _client(client)
        if self._key is not None:
            if not authorization:
                return _wrong("the API key is missing")
            if seconds := self._wrong_keys.wait(client):  # for the right key as well: otherwise guessing could go on
                return _too_many(f"more than {_WRONG_KEYS} wrong API keys from this client", seconds)
        if self._requests is not None:
            if seconds := self._requests.wait(client):
                return _too_many(f"more than {self._requests.limit} from this client", seconds)
            self._requests.add(client)
        if self._key is not None and not self._has_key(authorization):
            self._wrong_keys.add(client)
            return _wrong("the API key is wrong")
        return None

    def _has_key(self, values: Sequence[str]) -> bool:
        if len(values) != 1:
            return False
        kind, _, key = values[0].partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode(), self._key or b"")


def plain_address(address: str) -> str:
    """Return an IP address, without its IPv6 mapping if it is IPv4; anything else unchanged."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(getattr(parsed, "ipv4_mapped", None) or parsed)


class _Window:
    """Sliding-window rate limit per client. `limits` itself uses the wall clock, which can be set back."""

    def __init__(self, limit: RateLimitItem, clock: Callable[[], float]) -> None:
        self.limit, self._clock = limit, clock
        self._seen: dict[str, deque[float]] = {}
        self._max_clients = _MAX_CLIENTS

    def wait(self, client: str) -> float:
        """Return the seconds until the client may send another request; 0: now."""
        times = self._seen.get(client)
        if times is None or len(times) < self.limit.amount:
            return 0.0
        return max(0.0, times[0] + self.limit.get_expiry() - self._clock())

    def add(self, client: str) -> None:
        """Count a request."""
        now = self._clock()
        if client not in self._seen and len(self._seen) >= self._max_clients:
            since = now - self.limit.get_expiry()
            self._seen = {other: times for other, times in self._seen.items() if times[-1] > since}
            self._max_clients = max(_MAX_CLIENTS, 2 * len(self._seen))
        self._seen.setdefault(client, deque(maxlen=self.limit.amount)).append(now)


def _client(address: str) -> str:
    plain = plain_address(address)
    try:
        parsed = ipaddress.ip_address(plain.partition("%")[0])
    except ValueError:
        return plain
    return plain if parsed.version == 4 else str(ipaddress.ip_network((parsed, 64), strict=False))


def _wrong(message: str) -> RequestError:
    return RequestError(401, f"{message}: send Authorization: Bearer KEY", {"WWW-Authenticate": "Bearer"})


def _too_many(message: str, seconds: float) -> RequestError:
    whole = max(1, math.ceil(seconds))
    return RequestError(429, f"{message}: try again in {whole} s", {"Retry-After": str(whole)})
