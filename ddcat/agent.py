"""What a process knows of the agent that started it, if one did: torchrun, or `--devices N` of a command. Needs no torch."""

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

ROLE = "ddcat"  # the agent tells it to the processes that `ddcat_train.launch` starts


def under_agent() -> bool:
    """Whether an agent started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launched() -> bool:
    """Whether that agent is ours, which prints what went wrong."""
    return under_agent() and os.environ.get("ROLE_NAME") == ROLE


def rank() -> int:
    """Place of this process among those of the run; 0 where it is alone."""
    return int(os.environ["RANK"]) if under_agent() else 0


def report_to_agent(app: Callable[[], object]) -> NoReturn:
    """Run a command line application and leave with its exit status; its error is told to our agent, not printed."""
    try:
        status = invoke(app)
    except DdcatError as error:
        write_json(Path(os.environ["TORCHELASTIC_ERROR_FILE"]), {"message": str(error), "timestamp": int(time.time())})
        sys.exit(error.exit_status)
    sys.exit(status)
