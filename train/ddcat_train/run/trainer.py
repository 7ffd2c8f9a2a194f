"""The state of a training run: it does a step, evaluates, saves and restores itself."""

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ddcat import provenance
from ddcat.agent import rank
from ddcat.metrics import miou
from ddcat_train.checkpoints import (
    Checkpoint,
    Description,
    SplitEntry,
    build_network,
    save_checkpoint,
)
from ddcat_train.config import Config
from ddcat_train.data import AUGMENTATIONS, Dataset, corrupted, open_dataset
from ddcat_train.data.dataset import U8
from ddcat_train.data.first_look import first_look
from ddcat_train.data.loader import Batch, batches_per_epoch, train_batches
from ddcat_train.distributed.batch_norm import synchronise_batch_norm
from ddcat_train.distributed.partition import clean_images, rank_slice
from ddcat_train.distributed.ranks import init_distributed
from ddcat_train.errors import ConfigError, DataError
from ddcat_train.evaluation import evaluate
from ddcat_train.losses import valid_pixels
from ddcat_train.methods import METHODS, MicroBatch
from ddcat_train.optimizer import (
    Gradients,
    add_gradients,
    apply_gradients,
    build_optimizer,
    load_optimizer_state,
    optimizer_state,
    set_learning_rate,
)
from ddcat_train.run.class_weights import class_weights
from ddcat_train.run.ema import init_ema, update_ema
from ddcat_train.run.panels import draw_panels
from ddcat_train.run.resume import RANDOM, changed_measures, check_same_data, note_more_epochs
from ddcat_train.run.sessions import LIBRARIES
from ddcat_train.run.start import check_same_start, load_first_weights, random_states, restore_random_states
from ddcat_train.seeds import derive_seed
from ddcat_train.tf32 import forbid_tf32

__all__ = ["Trainer"]

# No fp16: gradients of an attack underflow, and the sign() of what is left is 0.
_PRECISION = {"fp32": "32-true", "bf16": "bf16-mixed", "fp64": "64-true"}
_OPTIMIZER, _TRAINING = "optimizer.", "training."


class Trainer:
    """
    A run at some step, as one of its ranks sees it: all of them call the same methods in the same order.

    Every rank holds the whole network and computes on its slice of a batch; the ranks' weights stay the same. Losses are sums
    divided by counts of the whole batch (see `MicroBatch`), so gradients and logged values are summed over ranks and
    micro-batches.

    Parameters
    ----------
    device : "auto", "cpu" or "cuda"
    begun : Checkpoint, optional
        The checkpoint to continue from: the weights that the run began with, which may be gone, are not read.

    Attributes
    ----------
    ranks : Ranks
    eval_network : Segmenter
        The network that is evaluated and exported: the average of weights, or the latest.
    step, steps : int
        Updates done, and of the whole run.
    scores : dict of str to float
        Scores of the latest evaluation: mIoU `clean`, `attacked` by the attack of training, and their mean, `selection`.
    best : float or None
        The highest `selection` so far.
    evaluated : bool
        True unless an evaluation is due after that many updates and not done yet.
    longer : bool
        True where a finished run continues with more epochs.
    notes : list of str
        Lines for the user at the start of the run; only the first rank has them.
    """

    def __init__(self, config: Config, *, device: str = "auto", begun: Checkpoint | None = None) -> None:
        self._config = config
        data = config.data
        self._train = open_dataset(data.name, data.root, data.train_split, rule=data.rule())
        self._val = open_dataset(data.name, data.root, data.val_split, rule=data.rule(evaluation=True))
        self._entries = SplitEntry.of(self._train), SplitEntry.of(self._val)
        # Read at the start: the checkout may change while the process runs.
        self._commit, self._versions = provenance.git_commit(), provenance.versions(LIBRARIES)
        self.notes = [] if begun is not None or rank() else first_look(self._train, self._val)
        forbid_tf32()
        self._fabric, self.ranks = init_distributed(device, _PRECISION[config.train.precision])
        self._places = rank_slice(self.ranks.rank, self.ranks.size, config)
        augment = AUGMENTATIONS[config.augment.policy](crop=config.augment.crop, scale=config.augment.scale, mean=config.fill)
        self._augment = corrupted(augment, config.augment.corruptions, share=config.augment.corrupted_share)
        self._method = METHODS[config.method.name]
        self._dtype = torch.float64 if config.train.precision == "fp64" else torch.float32
        torch.manual_seed(config.seed)
        network = build_network(config, len(self._train.classes))
        if begun is None:
            self.notes += load_first_weights(network, config, self._train.classes)
        self._network = network.to(self._fabric.device, self._dtype)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster convolutions
        self._average = None if config.train.ema is None else init_ema(self._network)
        if self.ranks.size > 1:
            self._network = synchronise_batch_norm(self._network)
            torch.manual_seed(self._own_seed(0))  # every rank draws other numbers for dropout
        weights = begun.description.class_weights if begun is not None else class_weights(config.train, self._train, self.ranks)
        self._class_weights = weights
        if weights is not None:
            named = zip(self._train.classes.names, weights, strict=True)
            self.notes.append("class weights: " + ", ".join(f"{name} {weight:.3g}" for name, weight in named))
        self._weights = None if weights is None else torch.tensor(weights, dtype=self._dtype, device=self._fabric.device)
        self.eval_network = self._network if self._average is None else self._average  # what is evaluated and exported
        self._optimizer = build_optimizer(self._network, config.optim)
        drop = config.train.last_batch == "drop"
        self._per_epoch = batches_per_epoch(self._train, config.train.batch_size, drop_last=drop)
        if not self._per_epoch:
            raise ConfigError(
                f"{len(self._train)} images make no batch of {config.train.batch_size}: use a smaller train.batch_size, or "
                "train.last_batch=fill"
            )
        self.step = 0
        self.steps = config.train.epochs * self._per_epoch
        self.scores: dict[str, float] = {}
        self.best: float | None = None
        self.evaluated = True
        self.longer = False
        self._initial_ranks = self.ranks.size

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self._fabric.device

    @property
    def data(self) -> Dataset:
        """The training split."""
        return self._train

    def max_abs(self) -> Tensor:
        """Return the largest absolute value among weights, optimiser's state and average; not finite where any is not."""
        state = {**self._network.state_dict(), **optimizer_state(self._network, self._optimizer)}
        held = [*state.values(), *(self._average.state_dict().values() if self._average is not None else ())]
        return torch.nn.utils.get_total_norm([value for value in held if value.is_floating_point()], norm_type=torch.inf)

    def summary(self) -> str:
        """Return one line on the run: method, network, data, steps and device."""
        config, parameters = self._config, sum(parameter.numel() for parameter in self._network.parameters())
        return (
            f"{config.method.name}: {config.model.architecture}, {parameters / 1e6:.2f} M parameters, "
            f"{config.data.name} {len(self._train)} + {len(self._val)} images, {self.steps} steps of "
            f"{config.train.batch_size}"
            + (" (some images more than once in each)" if config.train.batch_size > len(self._train) else "")
            + f", {config.train.precision} on "
            + (str(self._fabric.device) if self.ranks.size == 1 else f"{self.ranks.size} x {self._fabric.device.type}")
            + (f", from step {self.step}" if self.step else "")
            + (
                f", begun on {self._initial_ranks} ranks: the result differs from that of a run on {self.ranks.size} throughout"
                if self._initial_ranks != self.ranks.size
                else ""
            )
        )

    def batches(self) -> Generator[Batch, None, None]:
        """Yield this rank's slices of the batches from here to the end of the run."""
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
            drop_last=config.train.last_batch == "drop",
            pin=self._fabric.device.type == "cuda",
            rank_indices=self._places,
        )

    def train_step(self, batch: Batch) -> Mapping[str, Tensor | float]:
        """Do one step: compute all gradients at the present weights, then apply the method's updates in their order."""
        rate = set_learning_rate(self._optimizer, self._config.optim, step=self.step, steps=self.steps)
        self._network.train()
        gradients: list[Gradients] = []
        parameters: list[tuple[nn.Parameter, ...]] = []  # of each update
        log: dict[str, Tensor] = {}
        for micro_batch in self._micro_batches(batch):
            with self._fabric.autocast():
                updates = self._method.step(self._network, micro_batch, attack=self._config.attack, options=self._config.method)
            moved = [update.parameters for update in updates]
            if parameters and not _same(parameters, moved):  # the last micro-batch's stand for all of them below
                raise ValueError(
                    f"{self._config.method.name} moves other parameters in one micro-batch of a batch than in another"
                )
            parameters = moved
            gradients = add_gradients(updates, gradients)
            for update in updates:
                for name, value in (*update.log.items(), ("loss", update.loss.detach())):
                    log[name] = log[name] + value if name in log else value
        # Our own sum, and not DistributedDataParallel: that averages, and it counts on one forward and one backward of its own
        # forward(), where a method has forwards of parts of the network, attacks in between, and up to two backwards. What it
        # would win by communicating during the backward is small beside an attack's further backwards.
        used = [gradient for of_update in gradients for gradient in of_update if gradient is not None]
        self.ranks.all_reduce_sum(used)
        norm = torch.nn.utils.get_total_norm(used)  # before it is clipped
        apply_gradients(self._optimizer, updates, gradients, clip_norm=self._config.optim.clip_norm)
        if self._average is not None:
            assert self._config.train.ema is not None
            update_ema(self._average, self._network, decay=self._config.train.ema, step=self.step)
        values = torch.stack(list(log.values()))
        self.ranks.all_reduce_sum([values])
        self.step += 1
        self.evaluated = not self._evaluation_due()
        return {
            "lr": rate,
            **dict(zip(log, values.unbind(), strict=True)),
            "gradient_norm": norm,
        }

    def _micro_batches(self, batch: Batch) -> Iterator[MicroBatch]:
        """Cut this rank's slice of a batch; every micro-batch holds images from all over the batch, so clean ones first."""
        ranks, count, device = self.ranks, self._config.train.accumulate, self._fabric.device
        labels = batch.labels.to(device, non_blocking=True)
        valid = valid_pixels(labels, self._weights)
        ranks.all_reduce_sum([valid])
        for first in range(count):
            part = slice(first, None, count)
            # One by one: a micro-batch is not contiguous in the loader's memory, and the host would wait for the copy.
            images = torch.stack([image.to(device, non_blocking=True) for image in batch.images[part]])
            yield MicroBatch(
                images.to(self._dtype, memory_format=torch.channels_last),
                labels[part],
                batch.seeds[part],
                clean_images(self._places[part], self._config),
                valid.clamp(min=1) if self._weights is None else valid.clamp(min=torch.finfo(valid.dtype).tiny),
                labels.numel() * ranks.size,
                self._weights,
            )

    def _evaluation_due(self) -> bool:
        """Return True at the end of an epoch after which the network is evaluated; the last one always is."""
        epoch, inside = divmod(self.step, self._per_epoch)
        return not inside and (epoch % self._config.train.evaluate_every == 0 or self.step == self.steps)

    def evaluate(self) -> dict[str, float]:
        """
        Score the validation split, clean and under the attack of training from x on.

        Raises
        ------
        DataError
            Where no pixel of it has a label, or an image cannot be read.
        """
        attack, settings = self._config.attack, self._config.train
        try:
            scored = evaluate(
                self.eval_network,
                self._val,
                epsilon=attack.epsilon,
                alpha=attack.step_size,
                steps=(0, attack.steps),
                batch_size=settings.evaluate_batch,
                limit=settings.evaluate_images,
                device=self._fabric.device,
                dtype=self._dtype,
                ranks=self.ranks,
            )
        except DataError as error:
            if not self._config.data.skip_corrupt:
                raise
            val = self._val
            raise DataError(
                f"{error}; data.skip_corrupt is for training images only, because a score covers all images:  "
                f"'ddcat data check {val.name} {val.root} --split {val.split}' lists every fault"
            ) from error
        clean, attacked = (miou(scored.counts[n].sum(0)) for n in (0, attack.steps))
        if math.isnan(clean + attacked):
            raise DataError(
                f"the {self._val.split} split at {self._val.root} has no score: every pixel of the images that are evaluated "
                f"({len(scored.names)}) is ignored; label classes in some of them, or raise train.evaluate_images"
            )
        self.scores = {"clean": clean, "attacked": attacked, "selection": (clean + attacked) / 2}
        self.evaluated = True
        return self.scores

    def panels(self) -> U8:
        """Draw the predictions for some validation images, (H, W, 3); without influence on the run."""
        return draw_panels(
            self.eval_network,
            self._val,
            attack=self._config.attack,
            device=self._fabric.device,
            dtype=self._dtype,
            batch_size=self._config.train.evaluate_batch,
            title=f"{self._config.method.name}, step {self.step:,} of {self.steps:,}",
        )

    def is_best(self) -> bool:
        """Return True where the latest evaluation is the best so far, and remember its score."""
        if self.best is not None and self.scores["selection"] <= self.best:
            return False
        self.best = self.scores["selection"]
        return True

    def save(self, path: Path, *, resumable: bool) -> None:
        """Write a checkpoint on the first rank; a resumable one also holds the optimiser's and every rank's random state."""
        extra: dict[str, Tensor] = {}
        if resumable:
            extra = {f"{_OPTIMIZER}{name}": value for name, value in optimizer_state(self._network, self._optimizer).items()}
            if self._average is not None:
                extra |= {f"{_TRAINING}{name}": value for name, value in self._network.state_dict().items()}
            for kind, state in random_states(self.device).items():
                extra[f"{RANDOM}{kind}"] = torch.stack(self.ranks.gather(state))
        if self.ranks.rank:
            return
        description = Description(
            config=self._config,
            classes=self._train.classes,
            train=self._entries[0],
            val=self._entries[1],
            step=self.step,
            steps=self.steps,
            class_weights=self._class_weights,
            scores=self.scores,
            best=self.best,
            judged=self.evaluated,
            git_commit=self._commit,
            versions=self._versions,
        )
        save_checkpoint(path, description, self.eval_network, extra)

    def restore(self, checkpoint: Checkpoint) -> None:
        """
        Continue from a resumable checkpoint of the same configuration.

        Raises
        ------
        CheckpointError, ConfigError
            Where it holds weights alone, or other images, classes or meanings of masks than the run has now.
        """
        check_same_data(checkpoint, {"train": (self._train, self._entries[0]), "val": (self._val, self._entries[1])})
        checkpoint.load_into(self.eval_network)
        if self._average is not None:
            checkpoint.load_into(self._network, _TRAINING)
        load_optimizer_state(self._network, self._optimizer, checkpoint.part(_OPTIMIZER))
        saved = checkpoint.description
        assert saved.step is not None  # as checked
        self.step, self.scores, self.best = saved.step, saved.scores, saved.best
        self.evaluated = saved.judged
        self.longer = saved.step == saved.steps != self.steps
        if (measures := changed_measures(self._config, saved)) and self.best is not None:
            self.best = None  # of another measure
            self.notes.append(f"{' and '.join(measures)} changed: scores from here on cannot be compared with those before")
        if self.longer:
            self.notes.append(note_more_epochs(self._config, saved, step=self.step, steps=self.steps))
        self._restore_random_state(checkpoint.part(RANDOM))

    def _restore_random_state(self, states: Mapping[str, Tensor]) -> None:
        """Restore this rank's states; with another number of ranks there are none, and dropout draws other numbers."""
        self._initial_ranks = restore_random_states(states, self.device, rank=self.ranks.rank, ranks=self.ranks.size)
        if self._initial_ranks != self.ranks.size:
            torch.manual_seed(self._own_seed(self.step))

    def _own_seed(self, step: int) -> int:
        return derive_seed(self._config.seed, step, self.ranks.rank)

    def check_ranks_agree(self) -> None:
        """
        Check that the ranks begin with the same weights and data: those of different machines may have read other files.
        Raises `ConfigError`.
        """
        tensors = (*self._network.state_dict().values(), *optimizer_state(self._network, self._optimizer).values())
        check_same_start(self.ranks, f"{self.step} {self._entries}", tensors)


def _same(one: Sequence[Sequence[nn.Parameter]], other: Sequence[Sequence[nn.Parameter]]) -> bool:
    return [[*map(id, update)] for update in one] == [[*map(id, update)] for update in other]
