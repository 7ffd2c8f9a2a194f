"""fp32 means fp32."""

import torch

__all__ = ["forbid_tf32"]


def forbid_tf32() -> None:
    """
    Forbid TF32 in convolutions and matrix products of this process: it keeps 10 of float32's 23 bits.

    On a GPU, PyTorch rounds convolutions unless it is told otherwise.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
