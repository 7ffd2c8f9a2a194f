"""
Steps of training on CUDA tensors without values, on a machine without a GPU; run as a script, in a process of its own.

    LD_PRELOAD=fake_gpu.so python fake_cuda.py OVERRIDES STEP...

torch's FakeTensorMode computes shapes, types and devices. A torch that was built for CPUs knows no CUDA device, which many
operations and all gradients ask for: `fake_gpu.cpp` is one that does nothing. A step fails as on a GPU where tensors of two
devices meet, and also where the host would wait for a value, or a CPU's generator would draw on the GPU. For each STEP,
"METHOD PRECISION" or "planted NAME", the script prints a line of JSON: the fault, or null.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ddcat_train.config import load_config
from ddcat_train.data.loader import Batch
from ddcat_train.optimizer import build_optimizer
from ddcat_train.run.trainer import Trainer

CUDA = torch.device("cuda", 0)
_COPIES = {torch.ops.aten._to_copy.default: 0, torch.ops.aten.copy_.default: 1}  # and the place of their source


class Watch(TorchDispatchMode):
    """Refuses what the fake tensors let pass: waits of the host, and generators of another device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._pin_memory.default:  # the fake tensors have none
            return args[0].clone()
        result = func(*args, **kwargs)
        generator = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)), None)
        if generator is not None and isinstance(result, Tensor) and generator.device.type != result.device.type:
            raise RuntimeError(f"{func} draws on {result.device} with a generator of {generator.device}")
        if func in _COPIES and args[_COPIES[func]].is_cuda and not result.is_cuda:
            raise RuntimeError(f"{func} copies from the GPU to the host, which waits for it")
        return result


class Seeds:
    """Seeds that keep their values in the mode: they are the host's own, so it may read them."""

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def __getitem__(self, part: slice) -> "Seeds":
        return Seeds(self.values[part])

    def __len__(self) -> int:
        return len(self.values)

    def tolist(self) -> list[int]:
        return self.values


@contextlib.contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    autocast = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    bf16 = mock.patch("torch.cuda.is_bf16_supported", return_value=True)
    with autocast, bf16, FakeTensorMode(allow_non_fake_inputs=True) as mode, Watch():
        yield mode


def to_gpu(network: nn.Module) -> None:
    """Put fake CUDA tensors in the place of all parameters and buffers."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(torch.empty_like(value, device=CUDA), value.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty_like(buffer, device=CUDA)


def step(method: str, precision: str, overrides: list[str]) -> None:
    """Do a step of a method, or two: the second finds a momentum."""
    trainer = Trainer(load_config(f"scenes-{method}", overrides))
    count = 2 if method == "undefended" else 1
    batches = [batch for batch, _ in zip(trainer.batches(), range(count), strict=False)]
    with fake_gpu() as mode, mock.patch.object(Fabric, "device", CUDA):
        to_gpu(trainer._network)
        trainer._optimizer = build_optimizer(trainer._network, trainer._config.optim)
        for batch in batches:
            images, labels = (mode.from_tensor(value) for value in (batch.images, batch.labels))
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                log = trainer.train_step(Batch(images, labels, Seeds(batch.seeds.tolist())))  # type: ignore[arg-type]
            assert all(value.device == CUDA for name, value in log.items() if name != "lr")  # type: ignore[union-attr]
        assert all(value.device == CUDA for value in trainer._network.state_dict().values())


PLANTED: dict[str, Callable[[Tensor], object]] = {
    "another device": lambda images: images + torch.zeros(3, 1, 1),
    "a value that is looked at": lambda images: images if images.sum() > 0 else None,
    "a copy to the host": lambda images: images.mean().cpu(),
    "a mask as an index": lambda images: images[images > 0],
    "a generator of the CPU": lambda images: torch.rand(images.shape, device=images.device, generator=torch.Generator()),
    "nothing": lambda images: images * 2,
}


def planted(name: str) -> None:
    with fake_gpu():
        PLANTED[name](torch.empty(2, 3, 8, 8, device=CUDA))


def main(overrides: str, *steps: str) -> None:
    for line in steps:
        kind, _, rest = line.partition(" ")
        fault = None
        try:
            if kind == "planted":
                planted(rest)
            else:
                step(kind, rest, json.loads(overrides))
        except Exception as cause:
            fault = f"{type(cause).__name__}: {cause}"
        print(json.dumps([line, fault]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
