"""fp32 means fp32."""

import torch

__all__ = ["forbid_tf32"]


def forbid_tf32() -> None:
    """
    Let no convolution and no matrix product of this process round float32 to TF32, which keeps 10 of 23 bits.

    On a GPU, PyTorch rounds convolutions unless it is told otherwise.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
