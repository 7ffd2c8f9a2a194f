"""Logs as lines of JSON on the standard error, which a collector reads as they are; one of them for each request."""

import datetime
import json
import logging
import re
import sys
import uuid

__all__ = ["ACCESS", "log_access", "log_as_json", "request_id"]

ACCESS = "ddcat_serve.access"  # the logger of requests
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_log = logging.getLogger(ACCESS)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        try:
            fields = json.loads(message)
        except ValueError:
            fields = None
        line |= fields if isinstance(fields, dict) else {"message": message}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Log everything of ddcat_serve, and the warnings of all other packages, as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)  # otherwise Python's warnings are lines in another format
    logging.getLogger("ddcat_serve").setLevel(logging.INFO)


def request_id(sent: str) -> str:
    """Return the client's own request ID if it is valid, otherwise a new one."""
    return sent if _ID.fullmatch(sent) else uuid.uuid4().hex


def log_access(identity: str, *, client: str, method: str, path: str, status: int | str, seconds: float) -> None:
    """Log an answered request, over HTTP or gRPC."""
    line = {"request_id": identity, "client": client, "method": method, "path": path, "status": status}
    _log.info(json.dumps(line | {"ms": round(1000 * seconds, 1)}))
