"""PyTorch's threads and TF32 while it is timed."""

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["torch_settings"]


@contextlib.contextmanager
def torch_settings(threads: int, *, tf32: bool = False) -> Iterator[None]:
    """
    Set how PyTorch computes, and put back what was set before.

    Parameters
    ----------
    threads : int
        On the CPU.
    tf32 : bool
        True if matrix products and convolutions in float32 may round to TF32 on a GPU.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, torch.get_num_threads()
    matmul.allow_tf32 = cudnn.allow_tf32 = tf32
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before[:2]
        torch.set_num_threads(before[2])
