"""
In a step the host never waits for the device.

On the meta device there are no values, so a step that looked at one would fail there; copies to it are watched as well. On
a GPU torch itself tells of each wait.
"""

from typing import Any, get_args

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ddcat_train.choices import MethodName
from ddcat_train.config import load_config
from ddcat_train.data.loader import Batch
from ddcat_train.optimizer import build_optimizer
from ddcat_train.run.trainer import Trainer

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Collects the names of operations that copy from one device to another in a way that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []
        self.copied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        devices = {value.device for value in (*args, *kwargs.values(), result) if isinstance(value, Tensor)}
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default) and len(devices) > 1:
            self.copied += 1
            source = args[0] if func is torch.ops.aten._to_copy.default else args[1]
            asynchronous = kwargs.get("non_blocking") or args[2:] == (True,)
            if not (asynchronous and source.is_contiguous()):  # what is not is first copied to where it is, not page-locked
                self.waited.append(str(func))
        return result


CHOICES = [
    *((method, ()) for method in get_args(MethodName) if method not in ("sat", "ddcat")),
    ("sat", ("attack.start=random", "train.accumulate=2", "train.ema=0.9")),
    ("ddcat", ("method.update=two-step", "method.predicted_mask=algorithm-2", "method.mask_loss_on_ignored=false")),
    *(
        pytest.param(*choice, marks=pytest.mark.slow)
        for choice in (
            ("ddcat", ()),
            ("ddcat", ("attack.start=random", "model.context=aspp", "train.accumulate=2")),
            ("sat", ("model.context=aspp", "model.backbone=mobilenet_v2", "model.width=64")),
        )
    ),
]


def steps(trainer: Trainer, batches: list[Batch]) -> list[dict[str, Any]]:
    return [dict(trainer.train_step(batch)) for batch in batches]


def trainer_of(method: str, overrides: tuple[str, ...], tiny_run: list[str]) -> Trainer:
    return Trainer(load_config(f"scenes-{method}", [*tiny_run, *overrides]))


@pytest.mark.parametrize(
    ("method", "overrides"), CHOICES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_no_step_needs_a_value_of_the_device(
    method: str, overrides: tuple[str, ...], tiny_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(method, overrides, tiny_run)
    count = 2 if method == "undefended" else 1  # the second step finds a momentum
    batches = [batch for batch, _ in zip(trainer.batches(), range(count), strict=False)]
    trainer._network.to(META)
    if trainer._average is not None:
        trainer._average.to(META)
    trainer._optimizer = build_optimizer(trainer._network, trainer._config.optim)
    monkeypatch.setattr(Fabric, "device", META)
    with Copies() as copies:
        logs = steps(trainer, batches)
    assert copies.waited == []
    assert copies.copied >= 2 * count  # images and labels
    assert trainer.step == count
    assert all(value.device == META for log in logs for name, value in log.items() if name != "lr")


def test_a_wait_is_seen(tiny_run: list[str]) -> None:
    """What the other tests would fail on."""
    value = torch.rand(3, device=META)
    with pytest.raises(RuntimeError):
        value[0].item()
    with pytest.raises(RuntimeError):
        value[value > 0]
    with pytest.raises(RuntimeError):
        value.cpu()
    with Copies() as copies:
        torch.rand(3).to(META)
        torch.rand(3).to(META, non_blocking=True)
        value.copy_(torch.rand(3))
        value.copy_(torch.rand(3), non_blocking=True)
        torch.rand(3, 4).T.to(META, non_blocking=True)
    assert copies.waited == ["aten._to_copy.default", "aten.copy_.default", "aten._to_copy.default"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", get_args(MethodName))
def test_on_a_gpu_no_step_waits(method: str, tiny_run: list[str]) -> None:
    trainer = trainer_of(method, (), tiny_run)
    first, *others = [batch for batch, _ in zip(trainer.batches(), range(3), strict=False)]
    steps(trainer, [first])  # sets up what is set up once
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(trainer, others)
    finally:
        torch.cuda.set_sync_debug_mode("default")
