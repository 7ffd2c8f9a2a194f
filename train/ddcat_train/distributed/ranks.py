"""
The ranks of a run: its processes, one for each device, and their communication.

torch's elastic agent starts them (`torchrun`, or `ddcat train --devices N`). Any other process is alone, and does not
communicate.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import Tensor

from ddcat.agent import rank, under_agent
from ddcat.error_text import first_line
from ddcat_train.data.readers import is_of_worker
from ddcat_train.errors import ConfigError, LostRankError
from ddcat_train.memory import lacks_memory

__all__ = ["ALONE", "Ranks", "check_device", "connected", "init_distributed", "init_hosts"]

T = TypeVar("T")
_TIMEOUT = timedelta(days=30)
_BUCKET = 2**26  # bytes: few messages, without a second copy of all gradients


@dataclass(frozen=True)
class Ranks:
    """
    The processes, as one of them sees them. Every method is called by all of them, in the same order.

    Attributes
    ----------
    rank : int
        Of this process, in 0..size-1.
    hosts : process group, or None for the usual one
        Over gloo: hosts that agree on something must not wait for their devices.
    """

    rank: int = 0
    size: int = 1
    hosts: dist.ProcessGroup | None = None

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in few messages; on a GPU the host does not wait for it."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            with connected():
                dist.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            torch._foreach_copy_(bucket, [part.view_as(tensor) for tensor, part in zip(bucket, parts, strict=True)])

    def all_reduce_max(self, values: Sequence[int]) -> list[int]:
        """Return the maximum over the ranks of each number."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values)
        with connected():
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.hosts)
        return [int(number) for number in numbers]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order: any object that can be pickled, tensors on the CPU."""
        if self.size == 1:
            return [value]
        values: list[T | None] = [None] * self.size
        with connected():
            dist.all_gather_object(values, value, group=self.hosts)
        return values  # type: ignore[return-value]  # each was filled

    def destroy(self) -> None:
        """Disconnect."""
        if self.size > 1:
            dist.destroy_process_group()


ALONE = Ranks()


def init_distributed(device: str, precision: str) -> tuple[Fabric, Ranks]:
    """
    Connect to the other processes of the run, if there are any, and choose the device.

    Parameters
    ----------
    device : "auto", "cpu" or "cuda"
    precision : str
        As Fabric names it.

    Raises
    ------
    ConfigError
        Where there are fewer GPUs than processes.
    LostRankError
    """
    if not under_agent():
        check_device(device, 1)
        return Fabric(accelerator=device, devices=1, precision=precision), ALONE  # type: ignore[arg-type]
    local, size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    check_device(device, local)
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the first rank's summary says how many there are
    fabric = Fabric(
        accelerator=device,
        devices=local,
        num_nodes=size // local,
        strategy="ddp",
        precision=precision,  # type: ignore[arg-type]
        plugins=[TorchElasticEnvironment()],
    )
    with connected():
        fabric.launch()
        hosts = None if fabric.device.type == "cpu" else dist.new_group(backend="gloo")
    return fabric, Ranks(fabric.global_rank, fabric.world_size, hosts) if size > 1 else ALONE


@contextmanager
def init_hosts() -> Iterator[Ranks]:
    """
    Connect to the other processes without a device, for work that is divided once; they wait for each other without a limit.
    Raises `LostRankError`.
    """
    if not under_agent():
        yield ALONE
        return
    with connected():
        dist.init_process_group("gloo", timeout=_TIMEOUT)
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def check_device(device: str, processes: int) -> None:
    """
    Raise an error where the device is absent, or there are fewer of them than processes of this machine.
    Raises `ConfigError`.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not gpus:
        raise ConfigError("--device cuda: no CUDA device is available here; use --device cpu")
    if processes > gpus:
        raise ConfigError(f"{processes} processes need as many GPUs, and there are {gpus}: use {gpus} or fewer")


@contextmanager
def connected() -> Iterator[None]:
    """Turn the failure of a collective operation into a `LostRankError`."""
    try:
        yield
    except RuntimeError as cause:
        if lacks_memory(cause) or is_of_worker(cause):  # torch raises the second anywhere in this process
            raise
        raise LostRankError(f"rank {rank()} lost the connection to another: {first_line(cause)}") from cause


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        size += tensor.nbytes
        if bucket and size > _BUCKET:
            yield bucket
            bucket, size = [], tensor.nbytes
        bucket.append(tensor)
    if bucket:
        yield bucket
