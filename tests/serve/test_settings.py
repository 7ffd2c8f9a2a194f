"""Where settings come from, and which comes first."""

from pathlib import Path

import pytest

from ddcat_serve.errors import ServeError
from ddcat_serve.settings import read_settings


def test_settings_come_from_the_environment_and_unknown_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDCAT_SERVE_MAX_BYTES", "123")
    assert read_settings().max_bytes == 123
    monkeypatch.setenv("DDCAT_SERVE_MAX_PIXELS", "many")
    with pytest.raises(ServeError, match="DDCAT_SERVE_MAX_PIXELS"):
        read_settings()
    monkeypatch.delenv("DDCAT_SERVE_MAX_PIXELS")
    monkeypatch.setenv("DDCAT_SERVE_MAX_PIXEL", "5")
    with pytest.raises(ServeError, match="DDCAT_SERVE_MAX_PIXEL is not a setting"):
        read_settings()


def test_flags_come_before_the_environment_and_that_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("timeout: 1\ndrain_timeout: 2\nshutdown_delay: 3\ncors_origins: [https://a.example]")
    monkeypatch.setenv("DDCAT_SERVE_DRAIN_TIMEOUT", "20")
    monkeypatch.setenv("DDCAT_SERVE_SHUTDOWN_DELAY", "30")
    found = read_settings(file, shutdown_delay="300", max_bytes=None)
    assert (found.timeout, found.drain_timeout, found.shutdown_delay) == (1, 20, 300)
    assert found.cors_origins == ("https://a.example",)
    assert read_settings(cors_origins="https://a.example, https://b.example").cors_origins == (
        "https://a.example", "https://b.example",
    )  # fmt: skip
    for text, message in (
        ("timeouts: 3", "timeouts is not a setting"), ("- 3", "has no settings"),
        ("timeout: soon", "timeout: Input should be"), ("a: [", "cannot be read"),
        ("rate_limit: 5/minute\ntimeout: 1\nrate_limit: 5000/minute", "rate_limit occurs twice"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ServeError, match=message):
            read_settings(file)
    with pytest.raises(ServeError, match="--max-bytes: Input should be a valid integer"):
        read_settings(max_bytes="many")
    for rate, message in (("100/minute;1000/hour", "is not a rate: use one such as 100/minute"), ("often", "is not a rate")):
        with pytest.raises(ServeError, match=f"--rate-limit: '{rate}' {message}"):
            read_settings(rate_limit=rate)
    assert read_settings(rate_limit="100/minute").rate_limit == "100/minute"
    secret = read_settings(api_key="very secret")
    assert secret.public()["api_key"] is True
    assert "very secret" not in repr(secret)


@pytest.mark.parametrize("value", ["inf", "nan", "1e999"])
def test_seconds_have_an_end(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timeout", "engine_timeout", "header_timeout", "body_timeout", "shutdown_delay", "drain_timeout"):
        with pytest.raises(ServeError, match=f"--{name.replace('_', '-')}: Input should be a finite number"):
            read_settings(**{name: value})
    monkeypatch.setenv("DDCAT_SERVE_DRAIN_TIMEOUT", value)
    with pytest.raises(ServeError, match="DDCAT_SERVE_DRAIN_TIMEOUT: Input should be a finite number"):
        read_settings()


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("api_key", "short", "--api-key: expected 8 to 512 characters, got 5"),
        ("api_key", "x" * 40_000, "--api-key: expected 8 to 512 characters, got 40000"),
        *(
            ("api_key", key, "--api-key: a header cannot carry it: use printable ASCII, without spaces or line ends around it")
            for key in ("ключключ", "schlüssel-größe", " spaces around ", "with a line end\n", "with a\ttab")
        ),
        ("rate_limit", "0/minute", "--rate-limit: '0/minute' is not a rate: use one such as 100/minute"),
        (
            "trusted_proxies", "10.0.0.0/8,proxy.local",
            "--trusted-proxies: 'proxy.local' does not appear to be an IPv4 or IPv6 network: "
            "use 127.0.0.1 or 10.0.0.0/8",
        ),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused(setting: str, value: str, message: str) -> None:
    with pytest.raises(ServeError) as caught:
        read_settings(**{setting: value})
    assert str(caught.value) == message
