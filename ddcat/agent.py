"""The agent that started this process, if any: torchrun, or `--devices N` of a command. Needs no torch."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from ddcat.atomic_files import write_json
from ddcat.cli_support import invoke
from ddcat.errors import DdcatError

__all__ = ["ROLE", "launched", "rank", "report_to_agent", "under_agent"]

ROLE = "ddcat"  # of the processes that `ddcat_train.distributed.launch` starts; the agent passes it on


def under_agent() -> bool:
    """Return whether an agent started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched() -> bool:
    """Return whether that agent is ours, which prints errors itself."""
    return under_agent() and os.environ.get("ROLE_NAME") == ROLE


def rank() -> int:
    """Return the rank of this process; 0 where it runs alone."""
    return int(os.environ["RANK"]) if under_agent() else 0


def report_to_agent(app: Callable[[], object]) -> NoReturn:
    """Run a command line application and exit with its status; its error goes to our agent, which prints it."""
    try:
        status = invoke(app)
    except DdcatError as error:
        write_json(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), {"message": str(error), "timestamp": int(time.time())})
        sys.exit(error.exit_status)
    sys.exit(status)
