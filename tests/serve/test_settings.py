"""Where settings come from, and which comes first."""

from pathlib import Path

import pytest

from ddcat_serve.errors import ServeError
from ddcat_serve.settings import read_settings


def test_settings_come_from_the_environment_and_a_name_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
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
    file.write_text("timeout: 1\ndrain: 2\ngrace: 3\ncors_origins: [https://a.example]")
    monkeypatch.setenv("DDCAT_SERVE_DRAIN", "20")
    monkeypatch.setenv("DDCAT_SERVE_GRACE", "30")
    found = read_settings(file, grace="300", max_bytes=None)
    assert (found.timeout, found.drain, found.grace) == (1, 20, 300)
    assert found.cors_origins == ("https://a.example",)
    assert read_settings(cors_origins="https://a.example, https://b.example").cors_origins == (
        "https://a.example", "https://b.example",
    )  # fmt: skip
    for text, message in (
        ("timeouts: 3", "timeouts is not a setting"), ("- 3", "holds no settings"),
        ("timeout: soon", "timeout: Input should be"), ("a: [", "cannot be read"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ServeError, match=message):
            read_settings(file)
    with pytest.raises(ServeError, match="--max-bytes: Input should be a valid integer"):
        read_settings(max_bytes="many")
    for rate, message in (("100/minute;1000/hour", "are 2 rates; expected one: use 100/minute"), ("often", "is not a rate")):
        with pytest.raises(ServeError, match=f"--rate-limit: '{rate}' {message}"):
            read_settings(rate_limit=rate)
    assert read_settings(rate_limit="100/minute").rate_limit == "100/minute"
    secret = read_settings(api_key="very secret")
    assert secret.shown()["api_key"] is True
    assert "very secret" not in repr(secret)


@pytest.mark.parametrize("value", ["inf", "nan", "1e999"])
def test_seconds_have_an_end(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("timeout", "hangs_after", "header_timeout", "body_timeout", "grace", "drain"):
        with pytest.raises(ServeError, match=f"--{name.replace('_', '-')}: Input should be a finite number"):
            read_settings(**{name: value})
    monkeypatch.setenv("DDCAT_SERVE_DRAIN", value)
    with pytest.raises(ServeError, match="DDCAT_SERVE_DRAIN: Input should be a finite number"):
        read_settings()
