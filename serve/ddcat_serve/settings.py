"""Settings of the server: from flags, the environment (DDCAT_SERVE_...), and a YAML file, in this order of precedence."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from ddcat.error_text import first_line
from ddcat.manifest import GOLDEN_TOLERANCE
from ddcat_serve.errors import ServeError

__all__ = ["PREFIX", "Settings", "read_settings"]

PREFIX = "DDCAT_SERVE_"


class Settings(BaseModel):
    """All that changes how the server answers; `GET /v2` and `ddcat serve --help` show each."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_bytes: int = Field(32 * 2**20, ge=1, description="Most bytes of a request's body.")
    queue_bytes: int | None = Field(
        None,
        ge=1,
        description="Most bytes of the bodies of all requests in progress; by default 8 times max_bytes, within a quarter "
        "of the memory.",
    )
    max_pixels: int = Field(
        2**25, ge=1, le=89_000_000, description="Most pixels of a request's images; Pillow warns above 89 million."
    )
    timeout: float = Field(10.0, gt=0, description="Seconds in which an answer is wanted, where the request does not say.")
    max_timeout: float = Field(60.0, gt=0, description="Most seconds that a request may ask for.")
    queue_pixels: int = Field(2**26, ge=1, description="Most pixels that wait for one engine.")
    batch_pixels: int = Field(
        2**21, ge=1, description="Most pixels that are computed at once, and fewer where more are not faster."
    )
    hangs_after: float = Field(
        60.0, gt=0, description="Seconds after which a call of an engine is given up, and the engine restarted."
    )
    body_timeout: float = Field(
        30.0, gt=0, description="Seconds in which a request's body must have come, and 64 KiB of an answer must be read."
    )
    header_timeout: float = Field(10.0, gt=0, description="Seconds in which a request's headers must have come.")
    idle_timeout: float = Field(
        5.0, gt=0, description="Seconds after which an idle connection is closed; a proxy must close its own sooner."
    )
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="Most bytes of a request's headers.")
    grace: float = Field(
        1.0, ge=0, description="Seconds from SIGTERM, when ready turns false, until no connection is taken any more."
    )
    drain: float = Field(30.0, gt=0, description="Seconds after that in which what was accepted is answered.")
    decoders: int = Field(4, ge=1, description="Threads that decode images and encode masks.")
    golden_tolerance: float = Field(
        GOLDEN_TOLERANCE,
        ge=0,
        le=1,
        description="Share of the golden labels that may differ at the start: near ties fall either way on another machine.",
    )
    api_key: SecretStr | None = Field(None, description="Where set, requests must carry it: Authorization: Bearer KEY.")
    rate_limit: str | None = Field(None, description="Requests of one client, such as 100/minute; no limit by default.")
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Addresses or networks whose X-Forwarded-For names the client, for rate and log, with commas between."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Domain names in the Host header that are answered, with commas between them, and those below them; by "
        "default localhost where --host is of this machine alone, else all. Addresses and names without a dot are answered.",
    )
    cors_origins: tuple[str, ...] = Field((), description="Origins whose pages may ask, with commas between them.")
    grpc_port: int | None = Field(None, ge=1, le=65535, description="Port at which gRPC is served, too, at the same address.")
    demo: bool = Field(False, description="Show golden images, which are of the data set, on the page at /.")

    @field_validator("cors_origins", "trusted_proxies", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _can_be_sent(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        key = value.get_secret_value()
        if not 8 <= len(key) <= 512:
            raise ValueError(f"expected 8 to 512 characters, got {len(key)}")
        if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", key):
            raise ValueError("a header cannot carry it: use printable ASCII, without spaces or line ends around it")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            try:
                ipaddress.ip_network(word)
            except ValueError as cause:
                raise ValueError(f"{cause}: use 127.0.0.1 or 10.0.0.0/8") from cause
        return value

    @property
    def trusted_peers(self) -> list[str]:
        """The trusted proxies as a socket sees them: one that takes IPv4 and IPv6 maps the former into the latter."""
        networks = [ipaddress.ip_network(word) for word in self.trusted_proxies]
        mapped = [f"::ffff:{net.network_address}/{96 + net.prefixlen}" for net in networks if net.version == 4]
        return [*self.trusted_proxies, *mapped]

    @field_validator("rate_limit")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        import limits  # noqa: PLC0415 -- nobody else needs it at the start

        if value is not None:
            try:
                rates = limits.parse_many(value)
            except ValueError as cause:
                raise ValueError(f"{value!r} is not a rate: use 100/minute") from cause
            if len(rates) > 1:
                raise ValueError(f"{value!r} are {len(rates)} rates; expected one: use 100/minute")
            if rates[0].amount < 1:
                raise ValueError(f"{value!r} would refuse every request: use a rate such as 100/minute")
        return value

    def shown(self) -> dict[str, Any]:
        """Give what anybody may see: secrets only as whether there is one."""
        values = self.model_dump(mode="json")
        return values | {"api_key": self.api_key is not None}


def read_settings(file: Path | None = None, **flags: Any) -> Settings:
    """
    Read the settings.

    Parameters
    ----------
    file : Path, optional
        YAML: names of settings and their values.
    **flags
        Take precedence; None: not given.

    Raises
    ------
    ServeError
        For a value that is none, and for a name that is unknown, in the file or in the environment behind `PREFIX`.
    """
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise ServeError(f"the environment variable {unknown[0]} is not a setting; the settings are {', '.join(sorted(known))}")
    in_environment = {known[name.upper()]: value for name, value in os.environ.items() if name.upper() in known}
    beneath = {name: value for name, value in _read_file(file).items() if name not in in_environment}
    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Settings(**(beneath | in_environment | given))
    except ValidationError as cause:
        first = cause.errors()[0]
        name = str(first["loc"][0])
        where = (
            f"--{name.replace('_', '-')}"
            if name in given
            else f"{file}: {name}"
            if name in beneath
            else f"the environment variable {PREFIX}{name.upper()}"
        )
        raise ServeError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from cause


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as cause:
        raise ServeError(f"--config {file} cannot be read: {first_line(cause)}") from cause
    if not isinstance(content, dict):
        raise ServeError(f"--config {file} holds no settings: use lines such as `timeout: 5`")
    unknown = sorted(set(map(str, content)) - set(Settings.model_fields))
    if unknown:
        raise ServeError(f"--config {file}: {unknown[0]} is not a setting; the settings are {', '.join(Settings.model_fields)}")
    return content
