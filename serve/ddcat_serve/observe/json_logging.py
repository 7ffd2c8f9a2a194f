"""Logs as lines of JSON on the standard error, which a collector reads as they are."""

import datetime
import json
import logging
import sys

__all__ = ["log_as_json"]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        line = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        try:
            about = json.loads(message)
        except ValueError:
            about = None
        line |= about if isinstance(about, dict) else {"message": message}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Let ddcat_serve say all, and everybody else warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.captureWarnings(True)  # those of Python's module warnings would be lines of another form
    logging.getLogger("ddcat_serve").setLevel(logging.INFO)
