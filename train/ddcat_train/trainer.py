"""The state of a training run and what can be done with it: a step, an evaluation, saving and restoring."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ddcat import provenance
from ddcat.scores import miou
from ddcat_train.average import start_average, update_average
from ddcat_train.checkpoints import Checkpoint, Description, SplitEntry, build_network, find_checkpoint, save_checkpoint
from ddcat_train.config import Config
from ddcat_train.data import AUGMENTATIONS, Dataset, open_dataset
from ddcat_train.data.loader import Batch, batches_per_epoch, train_batches
from ddcat_train.errors import ConfigError
from ddcat_train.evaluation import evaluate
from ddcat_train.losses import valid_pixels
from ddcat_train.methods import METHODS, Portion
from ddcat_train.networks import load_backbone
from ddcat_train.optimizer import apply_updates, build_optimizer, load_momentum, momentum, set_learning_rate

__all__ = ["Trainer"]

# No fp16: gradients of an attack underflow, and the sign() of what is left is 0.
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed"}
_LIBRARIES = ("torch", "lightning-fabric", "numpy", "opencv-python-headless", "safetensors")
_MOMENTUM, _RANDOM, _TRAINING = "optimizer.momentum.", "random.", "training."


class Trainer:
    """
    A run at some step.

    Parameters
    ----------
    config : Config
    device : "auto", "cpu" or "cuda"

    Attributes
    ----------
    step, steps : int
        Updates done, and of the whole run.
    scores : dict of str to float
        Of the latest evaluation: mIoU `clean`, `attacked` by the attack of training, and their mean, `selection`.
    best : float or None
        The highest `selection` so far.
    """

    def __init__(self, config: Config, *, device: str = "auto") -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("--device cuda: no CUDA device is available here; --device cpu would work")
        self._config = config
        data = config.data
        self._train = open_dataset(data.name, data.root, data.train_split, long_side=data.long_side)
        self._val = open_dataset(data.name, data.root, data.val_split, long_side=data.judged_long_side)
        self._augment = AUGMENTATIONS[config.augment.policy](crop=config.augment.crop, scale=config.augment.scale)
        self._method = METHODS[config.method.name]
        self._clean = clean_images(config.train.batch_size, config.method.adversarial_share)
        self._fabric = Fabric(accelerator=device, devices=1, precision=_PRECISION[config.train.precision])  # type: ignore[arg-type]
        torch.manual_seed(config.seed)
        network = build_network(config, len(self._train.classes))
        if config.model.pretrained is not None:
            load_backbone(network.backbone, find_checkpoint(config.model.pretrained))
        self._network = network.to(self._fabric.device)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        self._average = None if config.train.ema is None else start_average(self._network)
        self._used = self._network if self._average is None else self._average  # what is evaluated and exported
        self._optimizer = build_optimizer(self._network, config.optim)
        self._per_epoch = batches_per_epoch(self._train, config.train.batch_size)
        self.step = 0
        self.steps = config.train.epochs * self._per_epoch
        self.scores: dict[str, float] = {}
        self.best: float | None = None

    def summary(self) -> str:
        """One line that says what is trained on what."""
        config, parameters = self._config, sum(parameter.numel() for parameter in self._network.parameters())
        return (
            f"{config.method.name}: {config.model.backbone} + {config.model.context}, {parameters / 1e6:.2f} M parameters, "
            f"{config.data.name} {len(self._train)} + {len(self._val)} images, {self.steps} steps of "
            f"{config.train.batch_size}, {config.train.precision} on {self._fabric.device}"
            + (f", from step {self.step}" if self.step else "")
        )

    def batches(self) -> Iterator[Batch]:
        """Batches from here to the end of the run."""
        config = self._config
        return train_batches(
            self._train,
            self._augment,
            batch_size=config.train.batch_size,
            seed=config.seed,
            steps=self.steps,
            first=self.step,
            workers=config.train.workers,
            skip_corrupt=config.data.skip_corrupt,
            pin=self._fabric.device.type == "cuda",
        )

    def apply(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """Do one step: all gradients at the weights as they are, then the method's updates in their order."""
        rate = set_learning_rate(self._optimizer, self._config.optim, step=self.step, steps=self.steps)
        self._network.train()
        with self._fabric.autocast():
            updates = self._method.step(
                self._network,
                self._portion(batch),
                attack=self._config.attack,
                options=self._config.method,
            )
        gradients = apply_updates(self._optimizer, updates)
        if self._average is not None:
            assert self._config.train.ema is not None
            update_average(self._average, self._network, decay=self._config.train.ema, step=self.step)
        log: dict[str, Tensor | float] = {"lr": rate}
        for update in updates:
            log.update(update.log)
        log["loss"] = torch.stack([update.loss.detach() for update in updates]).sum()
        log["gradient_norm"] = torch.nn.utils.get_total_norm(gradients)
        self.step += 1
        return log

    def _portion(self, batch: Batch) -> Portion:
        device = self._fabric.device
        images = batch.images.to(device, non_blocking=True, memory_format=torch.channels_last)
        labels = batch.labels.to(device, non_blocking=True)
        return Portion(images, labels, batch.seeds, self._clean, valid_pixels(labels), labels.numel())

    def evaluation_due(self) -> bool:
        """Whether an epoch ended after which the network is to be evaluated; the last one always is."""
        epoch, inside = divmod(self.step, self._per_epoch)
        return not inside and (epoch % self._config.train.evaluate_every == 0 or self.step == self.steps)

    def evaluate(self) -> dict[str, float]:
        """Score the validation split, clean and under the attack of training from x on."""
        attack, settings = self._config.attack, self._config.train
        scored = evaluate(
            self._used,
            self._val,
            epsilon=attack.epsilon,
            alpha=attack.epsilon / attack.steps if attack.alpha == "eps/n" else attack.alpha,
            steps=(0, attack.steps),
            batch_size=settings.evaluate_batch,
            limit=settings.evaluate_images,
            device=self._fabric.device,
        )
        clean, attacked = (miou(scored.counts[n].sum(0)) for n in (0, attack.steps))
        self.scores = {"clean": clean, "attacked": attacked, "selection": (clean + attacked) / 2}
        return self.scores

    def is_best(self) -> bool:
        """Whether the latest evaluation is the best so far; from then on it is the one to beat."""
        if self.best is not None and self.scores["selection"] <= self.best:
            return False
        self.best = self.scores["selection"]
        return True

    def save(self, path: Path, *, resumable: bool) -> None:
        """Write a checkpoint; a resumable one holds the optimiser and the random state as well."""
        extra: dict[str, Tensor] = {}
        if resumable:
            extra = {f"{_MOMENTUM}{name}": value for name, value in momentum(self._network, self._optimizer).items()}
            extra[f"{_RANDOM}cpu"] = torch.get_rng_state()
            if self._fabric.device.type == "cuda":
                extra[f"{_RANDOM}cuda"] = torch.cuda.get_rng_state(self._fabric.device)
            if self._average is not None:
                extra |= {f"{_TRAINING}{name}": value for name, value in self._network.state_dict().items()}
        description = Description(
            config=self._config,
            classes=self._train.classes,
            train=_entry(self._train),
            val=_entry(self._val),
            step=self.step,
            steps=self.steps,
            scores=self.scores,
            best=self.best,
            git_commit=provenance.git_commit(),
            versions=provenance.versions(_LIBRARIES),
        )
        save_checkpoint(path, description, self._used, extra)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a resumable checkpoint of the same configuration."""
        description = checkpoint.description
        if description.step is None:
            raise ConfigError(f"{checkpoint.path} was imported and has no run to continue: name it as model.pretrained instead")
        for name, split, entry in (("train", self._train, description.train), ("val", self._val, description.val)):
            if _entry(split) != entry:
                raise ConfigError(f"the {name} split at {split.root} is not the one that {checkpoint.path} was trained on")
        self._used.load_state_dict(checkpoint.segmenter().state_dict())
        if self._average is not None:
            self._network.load_state_dict(checkpoint.segmenter(_TRAINING).state_dict())
        load_momentum(self._network, self._optimizer, checkpoint.part(_MOMENTUM))
        random = checkpoint.part(_RANDOM)
        torch.set_rng_state(random["cpu"])
        if "cuda" in random and self._fabric.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self._fabric.device)
        self.step, self.scores, self.best = description.step, description.scores, description.best


def clean_images(count: int, adversarial_share: float) -> int:
    """Say how many images of a batch stay clean: floor(m * (1 - share)), whatever the rounding of the share."""
    return math.floor(count * (1 - adversarial_share) + 1e-9)


def _entry(dataset: Dataset) -> SplitEntry:
    return SplitEntry(images=len(dataset), list_sha256=dataset.list_sha256())
