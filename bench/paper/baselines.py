"""
The baselines of our training step: the released code's own procedure, and a frugal form of it.

Both take the same step as ours, to the last digits; they only take another way. The network is of plain layers in contiguous
memory (`bench.paper.reference_networks`), the optimiser torch's SGD, and nothing is reused.

*released* (a), as the authors' code goes about it: the attack is on the whole batch; each of its n steps computes all heads,
deep supervision as well, and goes backwards through all of them, with gradients of all parameters, which are thrown away.
DDC-AT and its forms go forward once more after each step, for the combined prediction, and once more for that of the attacked
images: 2n + 2 forwards and n + 1 backwards of the batch, 8 and 4 for n = 3. The other methods: n + 1 and n + 1. (The released
SAT has one forward more, for a figure that it logs: it is left out here.)

*frugal* (b): in the attack the main head alone, and the gradient of the input alone; the two combined predictions of DDC-AT
once each: n + 3 forwards, 6 for n = 3.

TRADES, which the authors do not have, goes forward once more for its reference, and trains on twice the batch.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.paper.reference_networks import PlainSegmenter
from ddcat.classes import IGNORE_INDEX
from ddcat_bench.errors import BenchError
from ddcat_bench.timing.results import Precision
from ddcat_train.attacks import attack_start
from ddcat_train.choices import Head
from ddcat_train.config import Config
from ddcat_train.data.loader import Batch
from ddcat_train.methods import METHODS

__all__ = ["Baseline", "BaselineName", "check_comparable"]

BaselineName = Literal["released", "frugal"]

_DIVIDING = ("ddcat", "ddcat-m", "ddcat-n")
_BRANCHES: tuple[Head, ...] = ("main", "auxiliary", "mask")
_LIKE_RELEASED = {"update": "joint", "predicted_mask": "forward"}  # the options that the baselines have no other form of


def check_comparable(config: Config) -> None:
    """
    Raise an error for a configuration whose step the baselines do not take.

    Raises
    ------
    BenchError
    """
    if config.method.name == "gaussian":
        raise BenchError("method.name gaussian: the baselines draw no noise; use another method")
    for option, only in _LIKE_RELEASED.items():
        if getattr(config.method, option) != only:
            raise BenchError(f"method.{option} {getattr(config.method, option)}: the baselines have no such step; use {only}")
    if config.train.accumulate != 1:
        raise BenchError(f"train.accumulate {config.train.accumulate}: a step is measured in one portion; use 1")
    if config.train.ema is not None:
        raise BenchError(f"train.ema {config.train.ema}: the baselines keep no average of the weights; use null")


class Baseline:
    """
    A network, its optimiser, and one way to take the step of a method.

    Parameters
    ----------
    config : Config
        `train.precision` is passed over.
    name : "released" or "frugal"
    classes : int
    precision : "fp32", "bf16" (autocast) or "fp64"
    device : torch.device
    steps : int
        Number of steps of the whole run, for the poly rule.

    Raises
    ------
    BenchError
        As `check_comparable`, and for a backbone of another package.
    """

    def __init__(
        self, config: Config, name: BaselineName, *, classes: int, precision: Precision, device: torch.device, steps: int
    ) -> None:
        check_comparable(config)
        self._config, self._device, self._steps, self._step = config, device, steps, 0
        self._dtype = torch.float64 if precision == "fp64" else torch.float32
        self._autocast = precision == "bf16"
        self._heads = METHODS[config.method.name].heads(config.method)
        self.network = PlainSegmenter(config.model, classes=classes, heads=self._heads).to(device, self._dtype)
        self._gradient = {"released": self._full_gradient, "frugal": self._input_gradient}[name]
        self._released = name == "released"
        backbone = list(self.network.backbone.parameters())
        others = [*self.network.context.parameters(), *self.network.heads.parameters()]
        self._factors = (1.0, config.optim.head_lr_factor)
        self._optimizer = torch.optim.SGD(
            [{"params": backbone}, {"params": others}],
            lr=config.optim.lr,
            momentum=config.optim.momentum,
            weight_decay=config.optim.weight_decay,
        )

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a network of ours, strictly."""
        self.network.load_state_dict(dict(weights), strict=True)

    def step(self, batch: Batch) -> Tensor:
        """
        Attack, mark, train, update.

        Returns
        -------
        () float
            The loss, detached.
        """
        optim = self._config.optim
        rate = optim.lr * (1 - self._step / self._steps) ** optim.power
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            group["lr"] = rate * factor
        images = batch.images.to(self._device, self._dtype, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        self.network.train()
        with self._precision():
            loss = self._loss(images, labels, batch.seeds)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._step += 1
        return loss.detach()

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._device.type, torch.bfloat16) if self._autocast else nullcontext()

    def _loss(self, images: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        """Loss of training, after the attack."""
        method = self._config.method
        nothing = torch.zeros_like(labels)
        if method.name == "undefended":
            return self._training_loss(self.network(images, self._heads), labels, nothing)
        if method.name == "trades":
            return self._trades(images, labels, seeds)
        dividing = method.name in _DIVIDING
        clean = method.clean_images(len(images)) if dividing or method.name == "sat" else 0
        weights = _segpgd_weights if method.name == "segpgd-at" else _no_weights
        self.network.eval()
        before = self._combined(images) if dividing and not self._released else None
        current = self._start(images, seeds)
        for step in range(1, self._config.attack.steps + 1):
            gradient = self._gradient(
                current,
                labels,
                lambda logits: (weights(logits, labels, step, self._config.attack.steps) * _errors(logits, labels)).sum(),  # noqa: B023
            )
            if dividing and self._released:
                seen = self._combined(images if step == 1 else current)
                before = seen if before is None else before
            current = self._move(current, gradient, images)
        masks = nothing
        if before is not None:
            changed = (self._combined(current) != before).long()
            marked = {"ddcat": slice(clean), "ddcat-m": slice(None), "ddcat-n": slice(clean, None)}[method.name]
            masks[marked] = changed[marked]
        self._optimizer.zero_grad()
        self.network.train()
        return self._training_loss(self.network(torch.cat([images[:clean], current[clean:]]), self._heads), labels, masks)

    def _trades(self, images: Tensor, labels: Tensor, seeds: Tensor) -> Tensor:
        self.network.eval()
        with torch.no_grad():
            reference = self.network(images, self._heads if self._released else ("main",))["main"]
        current = self._start(images, seeds)
        for _ in range(self._config.attack.steps):
            gradient = self._gradient(current, labels, lambda logits: _divergence(reference, logits, labels))
            current = self._move(current, gradient, images)
        self._optimizer.zero_grad()
        self.network.train()
        outputs = self.network(torch.cat([images, current]), self._heads)
        clean, attacked = outputs["main"].split(len(images))
        divergence = _divergence(clean, attacked, labels)
        firsts = {head: logits[: len(images)] for head, logits in outputs.items()}
        return self._training_loss(firsts, labels, torch.zeros_like(labels)) + self._config.method.beta * divergence

    def _start(self, images: Tensor, seeds: Tensor) -> Tensor:
        start = self._config.attack.start or self._config.method.start
        return attack_start(start, images, self._config.attack.epsilon, seeds)

    def _move(self, current: Tensor, gradient: Tensor, images: Tensor) -> Tensor:
        attack = self._config.attack
        moved = current + attack.step_size * gradient.sign()
        return moved.maximum(images - attack.epsilon).minimum(images + attack.epsilon).clamp(0, 1)

    def _full_gradient(self, images: Tensor, labels: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """Through all heads, to all parameters: the loss of training goes along, times 0."""
        leaf = images.clone().requires_grad_()
        outputs = self.network(leaf, self._heads)
        loss = objective(outputs["main"]) + 0 * self._training_loss(outputs, labels, torch.zeros_like(labels))
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        return leaf.grad

    def _input_gradient(self, images: Tensor, labels: Tensor, objective: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(objective(self.network(leaf, ("main",))["main"]), leaf)[0]

    def _combined(self, images: Tensor) -> Tensor:
        """Predictions of o_a p + o_n (1 - p), (N, H, W)."""
        with torch.set_grad_enabled(self._released):
            return _merge(self.network(images, self._heads if self._released else _BRANCHES)).argmax(1)

    def _training_loss(self, outputs: Mapping[Head, Tensor], labels: Tensor, masks: Tensor) -> Tensor:
        """Return the loss of the (combined) prediction, of the mask and of deep supervision, whichever there are."""
        method = self._config.method
        loss = F.cross_entropy(_merge(outputs) if "mask" in outputs else outputs["main"], labels, ignore_index=IGNORE_INDEX)
        if "mask" in outputs:
            counted = masks if method.mask_loss_on_ignored else masks.masked_fill(labels == IGNORE_INDEX, IGNORE_INDEX)
            loss = loss + F.cross_entropy(outputs["mask"], counted, ignore_index=IGNORE_INDEX)
        if "deep" in outputs:
            loss = loss + method.deep_weight * F.cross_entropy(outputs["deep"], labels, ignore_index=IGNORE_INDEX)
        return loss


def _merge(outputs: Mapping[Head, Tensor]) -> Tensor:
    chosen = outputs["mask"].argmax(1, keepdim=True).to(outputs["main"].dtype)
    return chosen * outputs["auxiliary"] + (1 - chosen) * outputs["main"]


def _errors(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")


def _no_weights(logits: Tensor, labels: Tensor, step: int, steps: int) -> float:
    return 1.0


def _segpgd_weights(logits: Tensor, labels: Tensor, step: int, steps: int) -> Tensor:
    share = (step - 1) / (2 * steps)
    return torch.where(logits.detach().argmax(1) == labels, 1 - share, share)


def _divergence(reference: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """Mean KL of the pixels that are not ignored."""
    divergence = F.kl_div(F.log_softmax(logits, 1), F.log_softmax(reference, 1), reduction="none", log_target=True).sum(1)
    return divergence[labels != IGNORE_INDEX].mean()
