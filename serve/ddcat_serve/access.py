"""The line of the log that each request leaves, whether it came by HTTP or by gRPC."""

import json
import logging
import re
import uuid

__all__ = ["log_access", "request_id"]

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(__name__)  # a JSON object for each request


def request_id(sent: str) -> str:
    """Return the client's own id of a request where it is one, or a new one."""
    return sent if _ID.fullmatch(sent) else uuid.uuid4().hex


def log_access(identity: str, *, client: str, method: str, path: str, status: int | str, seconds: float) -> None:
    """Log a request that was answered."""
    line = {"request_id": identity, "client": client, "method": method, "path": path, "status": status}
    _log.info(json.dumps(line | {"ms": round(1000 * seconds, 1)}))
