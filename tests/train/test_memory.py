"""Memory that does not suffice is told from other errors, whoever it is that says so."""

import errno

import numpy as np
import pytest
import torch

from ddcat_train.errors import TrainError
from ddcat_train.memory import enough_memory, lacks_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((9,), np.dtype(np.uint8)),  # type: ignore[attr-defined]
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 5 bytes."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
        RuntimeError("could not create a primitive"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_every_library_s_word_for_it_is_known(error: Exception) -> None:
    assert lacks_memory(error)
    line = r"^out of memory in step 3 \(.*\): less of it$"
    with pytest.raises(TrainError, match=line) as caught, enough_memory("step 3", "less of it"):
        raise error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        KeyError("x"),
        TrainError("y"),
    ],
)
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, enough_memory("step 3", "less of it"):
        raise error
    assert caught.value is error


def test_a_real_allocator_that_refuses_is_known() -> None:
    with pytest.raises(TrainError, match="out of memory in a test"), enough_memory("a test", "less of it"):
        torch.empty(2**46)
