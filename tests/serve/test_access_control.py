"""API key and rate limit."""

import pytest

from ddcat_serve.http.access_control import AccessControl
from ddcat_serve.settings import Settings


def test_wrong_keys_are_limited_before_they_are_compared() -> None:
    clock = [1000.0]
    control = AccessControl(Settings(api_key="a long secret"), clock=lambda: clock[0])

    def status(client: str, *values: str) -> int:
        refusal = control.refusal(values, client)
        return 200 if refusal is None else refusal.status

    assert [status("1.2.3.4", "Bearer guess") for _ in range(25)] == 20 * [401] + 5 * [429]
    assert status("1.2.3.4", "Bearer a long secret") == 429  # else the right guess would still be told from the others
    assert status("1.2.3.4") == 401  # no guess
    assert status("1.2.3.5", "Bearer a long secret") == 200
    refusal = control.refusal(["Bearer guess"], "1.2.3.4")
    assert refusal is not None
    assert refusal.headers == {"Retry-After": "60"}
    clock[0] += 60
    assert status("1.2.3.4", "Bearer a long secret") == 200
    assert [status("1.2.3.4", "Bearer a long secret") for _ in range(30)] == 30 * [200]  # right keys are not counted


def test_wrong_keys_count_as_requests() -> None:
    control = AccessControl(Settings(api_key="a long secret", rate_limit="3/minute"))
    refusals = [control.refusal(["Bearer guess"], "1.2.3.4") for _ in range(5)]
    assert [refusal and refusal.status for refusal in refusals] == [401, 401, 401, 429, 429]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("127.0.0.1", "::ffff:127.0.0.1", True), ("2001:db8:1:2::1", "2001:db8:1:2:3:4:5:6", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False), ("127.0.0.1", "127.0.0.2", False),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.2", False), ("fe80::1%eth0", "fe80::2%eth0", True), ("unknown", "other", False),
    ],
)  # fmt: skip
def test_addresses_of_one_client_have_one_rate(first: str, second: str, same: bool) -> None:
    control = AccessControl(Settings(rate_limit="2/minute"))
    assert [control.refusal((), client) is None for client in (first, second, first)] == [True, True, not same]


def test_a_rate_is_counted_by_a_clock_that_nobody_sets_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    control = AccessControl(Settings(rate_limit="2/minute"), clock=lambda: clock[0])
    monkeypatch.setattr("time.time", lambda: 1.0)
    found = []
    for moment in (0, 30, 59, 60, 61, 90):  # two in any minute
        clock[0] = float(moment)
        found.append(control.refusal((), "1.2.3.4") is None)
    assert found == [True, True, False, True, False, True]


def test_silent_clients_are_forgotten() -> None:
    clock = [0.0]
    control = AccessControl(Settings(rate_limit="1/second"), clock=lambda: clock[0])
    for number in range(5000):
        clock[0] += 0.01
        assert control.refusal((), f"10.0.{number // 250}.{number % 250}") is None
    assert len(control._requests._seen) <= 1001  # type: ignore[union-attr]
