"""Processes that are the ranks of one run, over gloo on the CPU."""

import faulthandler
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

FORK = multiprocessing.get_context("fork")  # torch is there already: to import it takes longer than most of these tests
# Ranks talk to each other, and torch's threads, which a fork may catch in the middle of something, do not survive one. The
# server imports torch once, has no threads, and forks the ranks.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "ddcat_train.run.loop"])
PATIENCE = 240  # seconds; then a rank shows where it is, and ends
Together = Callable[..., list[Any]]


def call_together(work: Callable[[], Any], folder: Path, size: int, patience: float = PATIENCE) -> list[Any]:
    """Call a function in processes that can talk to each other, and give what each of them returned."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = [folder / f"rank{rank}.pt" for rank in range(size)]
    pickled = cloudpickle.dumps(work)  # a function within a function, which pickle does not take
    ranks = [
        SERVER.Process(target=_be_rank, args=(rank, size, store.port, pickled, result, patience))
        for rank, result in enumerate(results)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(patience + 60)
        process.kill()
    errors = [text for result in results if (text := result.with_suffix(".error").read_text())]
    if errors:
        raise AssertionError("\n".join(errors))
    return [torch.load(result, weights_only=False) for result in results]


def _be_rank(rank: int, size: int, port: int, work: bytes, result: Path, patience: float) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    torch.set_num_threads(1)
    with result.with_suffix(".error").open("w") as errors:
        faulthandler.dump_traceback_later(patience, exit=True, file=errors)
        try:
            torch.save(cloudpickle.loads(work)(), result)
        except BaseException:
            errors.write(traceback.format_exc())
        finally:
            faulthandler.cancel_dump_traceback_later()
