"""Processes that are the ranks of one run, over gloo on the CPU."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

FORK = multiprocessing.get_context("fork")  # torch is there already: to import it takes longer than most of these tests
Together = Callable[..., list[Any]]


def call_together(work: Callable[[], Any], folder: Path, size: int) -> list[Any]:
    """Call a function in processes that can talk to each other, and give what each of them returned."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    results = [folder / f"rank{rank}.pt" for rank in range(size)]
    ranks = [FORK.Process(target=_be_rank, args=(r, size, store.port, work, result)) for r, result in enumerate(results)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        process.kill()
    errors = [result.with_suffix(".error") for result in results]
    assert [error.read_text() for error in errors if error.exists()] == []
    return [torch.load(result, weights_only=False) for result in results]


def _be_rank(rank: int, size: int, port: int, work: Callable[[], Any], result: Path) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
    }  # fmt: skip
    torch.set_num_threads(1)
    try:
        torch.save(work(), result)
    except BaseException:
        result.with_suffix(".error").write_text(traceback.format_exc())
