"""
`--devices N`: N processes of this very command under torch's elastic agent, as `torchrun` would start them.

The agent is a process of its own: it notices the end of any rank, and ends the others.
"""

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ddcat.agent import ROLE
from ddcat_train.errors import LostRankError, TrainError

__all__ = ["launch"]

_GRACE = 3600  # seconds that a signal leaves for the step at hand and its checkpoint; a second signal ends it


def launch(processes: int, *, reached: Callable[[], str], again: str) -> None:
    """
    Run this command in several processes, and return when all have succeeded.

    Parameters
    ----------
    reached : callable
        Returns the point from which the work would continue, for the message if it breaks off.
    again : str
        The command that continues it.

    Raises
    ------
    TrainError
        Where a process was killed or raised an error. A signal ends this process, too.
    """
    # Its messages are replaced by one line below; each of its loggers has a level of its own.
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_GRACE))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))  # else each takes all cores
    with tempfile.TemporaryDirectory() as errors:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            role=ROLE,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # any free port
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=errors),
        )
        try:
            elastic_launch(config, sys.executable)("-P", "-m", "ddcat", *sys.argv[1:])
        except SignalException as stopped:
            sys.exit(128 + stopped.sigval)  # the first rank has printed the command that continues
        except ChildFailedError as failed:
            rank, cause = min(failed.failures.items(), key=lambda item: _order(item[1]))
            if cause.exitcode > 128:  # a signal to one rank, which has stopped the others
                sys.exit(cause.exitcode)
            raise TrainError(_explain(rank, cause, reached, again)) from failed


def _order(failure: ProcessFailure) -> tuple[bool, int]:
    """Sort what broke the run before what followed from it: a connection that broke, and the signal that the agent sends."""
    return failure.exitcode in (LostRankError.exit_status, -signal.SIGTERM), failure.timestamp


def _explain(rank: int, failure: ProcessFailure, reached: Callable[[], str], again: str) -> str:
    if failure.exitcode == TrainError.exit_status:
        return failure.message
    if failure.exitcode < 0:
        number = signal.Signals(-failure.exitcode)
        end = f"was killed by {number.name}" + (" (by hand, or for want of memory)" if number == signal.SIGKILL else "")
    elif failure.exitcode == LostRankError.exit_status:
        end = f"gave up: {failure.message}"
    else:
        end = f"ended with exit status {failure.exitcode}, what it raised is above"
    return f"rank {rank} {end}; the others were stopped. Continue from {reached()} with: {again}"
