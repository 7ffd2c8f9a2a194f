"""Settings of the server: from options, the environment (DDCAT_SERVE_...) and a YAML file, in this order of precedence."""

import ipaddress
import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from ddcat.error_text import first_line
from ddcat.manifest import GOLDEN_TOLERANCE
from ddcat.yaml_text import parse_yaml
from ddcat_serve.errors import ServeError

__all__ = ["PREFIX", "Settings", "read_settings"]

PREFIX = "DDCAT_SERVE_"
# the notation of `limits`, which is not imported here: arguments are checked before libraries are asked for
_RATE = re.compile(r"[1-9][0-9]*\s*(/|per)\s*([1-9][0-9]*\s*)?(second|minute|hour|day|month|year)s?", re.IGNORECASE)


class Settings(BaseModel):
    """All settings of the server; `GET /v2` and `ddcat serve --help` show them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_bytes: int = Field(32 * 2**20, ge=1, description="Maximum size of a request body in bytes.")
    queue_bytes: int | None = Field(
        None,
        ge=1,
        description="Maximum bytes of the bodies of all requests in progress. Default: 8 times max_bytes, at most a quarter "
        "of the memory.",
    )
    max_pixels: int = Field(
        2**25, ge=1, le=89_000_000, description="Maximum number of pixels in a request, at most 89 million."
    )
    timeout: float = Field(10.0, gt=0, description="Seconds until a request's deadline, unless the request sets its own.")
    max_timeout: float = Field(60.0, gt=0, description="Longest timeout that a request may set, in seconds.")
    queue_pixels: int = Field(2**26, ge=1, description="Maximum number of pixels in the queue of one engine.")
    threads: int | None = Field(
        None,
        ge=1,
        description="Number of threads that compute a batch. Default: the physical cores. ddcat ray has its own option.",
    )
    batch_pixels: int = Field(
        2**21, ge=1, description="Maximum number of pixels in a batch; fewer are used if more are not faster."
    )
    engine_timeout: float = Field(
        60.0, gt=0, description="Seconds after which a call of an engine counts as hanging, and the engine is restarted."
    )
    body_timeout: float = Field(
        30.0, gt=0, description="Seconds in which a request's body must arrive, and a client must read 64 KiB of a response."
    )
    header_timeout: float = Field(10.0, gt=0, description="Seconds in which a request's headers must arrive.")
    idle_timeout: float = Field(
        5.0, gt=0, description="Seconds after which an idle connection is closed. A proxy must close its own earlier."
    )
    max_header_bytes: int = Field(32 * 2**10, ge=1024, description="Maximum size of a request's headers in bytes.")
    shutdown_delay: float = Field(
        1.0, ge=0, description="Seconds between SIGTERM, when readiness turns false, and the end of accepting connections."
    )
    drain_timeout: float = Field(
        30.0, gt=0, description="Seconds after the shutdown delay in which accepted requests are answered."
    )
    codec_threads: int = Field(4, ge=1, description="Number of threads that decode images and encode masks.")
    golden_tolerance: float = Field(
        GOLDEN_TOLERANCE,
        ge=0,
        le=1,
        description="Share of the golden labels that may differ at the start: near ties can change on another machine.",
    )
    api_key: SecretStr | None = Field(
        None, description="Key that requests must send as Authorization: Bearer KEY. Default: no key is needed."
    )
    rate_limit: str | None = Field(None, description="Requests per client, such as 100/minute. Default: unlimited.")
    trusted_proxies: tuple[str, ...] = Field(
        (), description="Comma-separated addresses or networks of proxies whose X-Forwarded-For is trusted, for rate and log."
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="Comma-separated domain names accepted in the Host header, with their subdomains. Addresses and names "
        "without a dot are always accepted. Default: localhost if --host is a loopback address, otherwise any name.",
    )
    cors_origins: tuple[str, ...] = Field((), description="Comma-separated origins whose pages may call the server.")
    grpc_port: int | None = Field(None, ge=1, le=65535, description="Port for gRPC, at the same address. Default: no gRPC.")
    repository: Path | None = Field(
        None,
        description="Folder of bundles, NAME/VERSION/, to serve and to swap while the server runs: the newest version of each "
        "name answers. Requests may load and unload them if api_key is set. Default: none.",
    )
    watch: bool = Field(False, description="Load new versions in the folder of repository as they appear, without a request.")
    shadow: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the requests that a new version computes beside the old one, to compare them, until a second "
        "request to load it lets it answer. 0: it answers at once.",
    )
    jobs: Path | None = Field(
        None,
        description="Folder in which jobs are kept, with their images and results: images that take longer than a client waits "
        "(POST /v1/jobs). Default: no jobs.",
    )
    max_jobs: int = Field(100, ge=1, description="Maximum number of jobs that are kept, finished ones included.")
    job_bytes: int = Field(2**30, ge=1, description="Maximum size of a job's image file in bytes.")
    job_pixels: int = Field(
        10**9, ge=1, le=2**32, description="Maximum number of pixels of a job's GeoTIFF; of other files max_pixels."
    )
    job_expiry: float = Field(
        86400.0, gt=0, le=10**9, description="Seconds after which a finished job is removed, with its result."
    )
    demo: bool = Field(False, description="Show golden images, which are from the data set, on the page at /.")

    @field_validator("cors_origins", "trusted_proxies", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(word.strip() for word in value.split(",") if word.strip()) if isinstance(value, str) else value

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
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
    def _check_networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for word in value:
            try:
                ipaddress.ip_network(word)
            except ValueError as cause:
                raise ValueError(f"{cause}: use 127.0.0.1 or 10.0.0.0/8") from cause
        return value

    @property
    def trusted_peers(self) -> list[str]:
        """The trusted proxies as a socket sees them: a dual-stack socket maps IPv4 addresses into IPv6."""
        networks = [ipaddress.ip_network(word) for word in self.trusted_proxies]
        mapped = [f"::ffff:{net.network_address}/{96 + net.prefixlen}" for net in networks if net.version == 4]
        return [*self.trusted_proxies, *mapped]

    @field_validator("rate_limit")
    @classmethod
    def _check_rate(cls, value: str | None) -> str | None:
        if value is not None and not _RATE.fullmatch(value.strip()):
            raise ValueError(f"{value!r} is not a rate: use one such as 100/minute")
        return value

    def public(self) -> dict[str, Any]:
        """Return the settings without secrets and paths, for JSON; `api_key` and folders are whether there is one."""
        values = self.model_dump(mode="json")
        return values | {name: getattr(self, name) is not None for name in ("api_key", "repository", "jobs")}

    def load_refusal(self) -> str | None:
        """
        Return why requests may not load models from the repository; None if they may.

        ServeError if settings need a repository and there is none, or a request that cannot be made.
        """
        if self.repository is None:
            for name, given in (("watch", self.watch), ("shadow", self.shadow > 0)):
                if given:
                    raise ServeError(f"--{name} needs --repository FOLDER")
        if self.api_key is not None:
            return None
        if self.shadow:
            raise ServeError(
                f"--shadow needs --api-key ({PREFIX}API_KEY): a second request to load lets the new version answer"
            )
        return f"models are loaded and unloaded by requests with an API key only: start the server with {PREFIX}API_KEY"


def read_settings(file: Path | None = None, **options: Any) -> Settings:
    """
    Read the settings: those of a YAML file, over them those of the environment, over them the options that are not None.

    ServeError for an invalid value, and for an unknown name in the file or in the environment after `PREFIX`.
    """
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise ServeError(f"the environment variable {unknown[0]} is not a setting; the settings are {', '.join(sorted(known))}")
    in_environment = {known[name.upper()]: value for name, value in os.environ.items() if name.upper() in known}
    in_file = {name: value for name, value in _read_file(file).items() if name not in in_environment}
    given = {name: value for name, value in options.items() if value is not None}
    try:
        return Settings(**(in_file | in_environment | given))
    except ValidationError as cause:
        first = cause.errors()[0]
        name = str(first["loc"][0])
        where = (
            f"--{name.replace('_', '-')}"
            if name in given
            else f"{file}: {name}"
            if name in in_file
            else f"the environment variable {PREFIX}{name.upper()}"
        )
        raise ServeError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from cause


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        content = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise ServeError(f"--config {file} cannot be read: {first_line(cause)}") from cause
    if not isinstance(content, dict):
        raise ServeError(f"--config {file} has no settings: use lines such as `timeout: 5`")
    unknown = sorted(set(map(str, content)) - set(Settings.model_fields))
    if unknown:
        raise ServeError(f"--config {file}: {unknown[0]} is not a setting; the settings are {', '.join(Settings.model_fields)}")
    return content
