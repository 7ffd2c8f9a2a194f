"""The sessions of a run: the machine, the steps and the time of each."""

import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ddcat import provenance
from ddcat.atomic_files import read_json, write_json
from ddcat.error_text import first_validation_error
from ddcat_train.errors import ConfigError

__all__ = ["LIBRARIES", "SESSIONS", "Session", "SessionRecorder", "read_sessions"]

LIBRARIES = ("torch", "lightning-fabric", "numpy", "opencv-python-headless", "safetensors", "transformers")
SESSIONS = "sessions.json"


class Session(BaseModel):
    """The time from the start of a process, or of several together, to its latest checkpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str
    began: str  # in UTC
    machine: dict[str, str | int]
    device: str
    processes: int
    threads: int  # of torch, of each process
    versions: dict[str, str]
    git_commit: str | None
    first: int  # updates that were done before
    last: int  # and at the latest checkpoint
    seconds: float  # between the two


_SESSIONS = TypeAdapter(tuple[Session, ...])


def read_sessions(run: Path) -> tuple[Session, ...]:
    """Read the sessions of a run; an empty tuple where there was none. Raises `ConfigError`."""
    path = run / SESSIONS
    try:
        return _SESSIONS.validate_python(read_json(path, ConfigError)) if path.is_file() else ()
    except ValidationError as cause:
        raise ConfigError(f"{path} does not hold the sessions of a run: {first_validation_error(cause)}; remove it") from cause


class SessionRecorder:
    """
    Records the session of this process.

    Parameters
    ----------
    run : Path
        The run directory.
    step : int
        Updates already done; those of an earlier session beyond them are lost.
    command : str
        The command line of the user.
    """

    def __init__(self, run: Path, step: int, command: str, device: torch.device, processes: int) -> None:
        self._path = run / SESSIONS
        self._earlier = [one.model_copy(update={"last": min(one.last, step)}) for one in read_sessions(run)]
        self._began = time.monotonic()
        self._session = Session(
            command=command,
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=provenance.machine(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            processes=processes,
            threads=torch.get_num_threads(),
            versions=provenance.versions(LIBRARIES),
            git_commit=provenance.git_commit(),
            first=step,
            last=step,
            seconds=0.0,
        )

    def save(self, step: int) -> None:
        """Write the session with its latest step; nothing before its first one."""
        if step == self._session.first:
            return
        update = {"last": step, "seconds": round(time.monotonic() - self._began, 2)}
        self._session = self._session.model_copy(update=update)
        write_json(self._path, [one.model_dump() for one in (*self._earlier, self._session)])
