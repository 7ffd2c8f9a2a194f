"""Limits of the server, from the environment."""

import os

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ddcat_serve.errors import ServeError

__all__ = ["Settings", "read_settings"]

_PREFIX = "DDCAT_SERVE_"


class Settings(BaseSettings):
    """Limits of the server; each is read from DDCAT_SERVE_ and its name in capitals."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="forbid")

    max_bytes: int = Field(32 * 2**20, ge=1, description="of a request's body")
    max_pixels: int = Field(2**25, ge=1, le=89_000_000, description="of a request's images; Pillow warns above 89 million")


def read_settings() -> Settings:
    """
    Read the settings from the environment.

    Raises
    ------
    ServeError
        For a value that is none, and for a name that begins like ours but is unknown.
    """
    known = {_PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in os.environ if name.upper().startswith(_PREFIX) and name.upper() not in known)
    if unknown:
        raise ServeError(f"the environment variable {unknown[0]} is no setting; there are {', '.join(sorted(known))}")
    try:
        return Settings()
    except ValidationError as cause:
        first = cause.errors()[0]
        raise ServeError(f"the environment variable {_PREFIX}{str(first['loc'][0]).upper()}: {first['msg']}") from cause
