"""APGD (Croce and Hein, 2020): projected gradient ascent that sets its own step for each image."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddcat_train.attacks.gradient import Model, Objective, Observer, StepOutput, input_gradient
from ddcat_train.attacks.norms import NORMS, Norm, each
from ddcat_train.attacks.pgd import attack_start
from ddcat_train.attacks.pixel_weights import weighted
from ddcat_train.choices import NormName, Start, WeightName
from ddcat_train.networks.eval_mode import eval_mode

__all__ = ["CONSTANT", "SHRINKING", "Schedule", "apgd", "step_checkpoints"]

Schedule = tuple[tuple[float, int], ...]  # multiples of epsilon, and the percentage of the iterations spent at each
CONSTANT: Schedule = ((1.0, 100),)
SHRINKING: Schedule = ((2.0, 30), (1.5, 30), (1.0, 40))  # of SEA

_MOMENTUM = 0.75  # alpha of the paper
_RISING = 0.75  # rho: the fraction of steps that must raise the loss


def apgd(
    model: Model,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    steps: int = 100,
    weight: WeightName = "PGD",
    class_pixels: Tensor | None = None,
    schedule: Schedule = CONSTANT,
    norm: NormName = "linf",
    start: Start = "random",
    seeds: Tensor | None = None,
    observe: Observer | None = None,
) -> Tensor:
    """
    Ascend a weighted cross-entropy with momentum and with a step that halves when it no longer helps.

    The plain cross-entropy of each image decides on its step, whatever the weight is. With a schedule the ball is larger at
    first: each stage is a run of its own from the best iterate of the one before, projected to its ball. Images that have no
    correct pixel left cost nothing more; the host waits for the device at every step.

    Parameters
    ----------
    model : callable
        Maps images to logits (N, K, H, W); a module is put into eval() while it is called, and put back.
    images : (N, 3, H, W) float
        In [0, 1].
    labels : (N, H, W) int64
        255 = ignored: without influence on the result.
    epsilon : float
        Bound of the result, in [0, 1] units.
    steps : int
        Input gradients, over all stages.
    weight : WeightName
        Of the pixels: a key of `WEIGHTS`.
    class_pixels : (K,) int64, optional
        As for `weighted`.
    schedule : tuple of (float, int)
        Multiples of epsilon and percentages of the steps. The last multiple is 1.
    norm, start, seeds
        As for `signed_gradient_ascent`; a random start is drawn in the first ball of the schedule.
    observe : callable, optional
        Receives, at every step, the output and the input gradient as computed.

    Returns
    -------
    (N, 3, H, W) float
        For each image, the iterate of the last stage with the fewest correct pixels; the earliest of equals.
    """
    if epsilon < 0 or steps < 0:
        raise ValueError(f"epsilon {epsilon} and steps {steps} must not be negative")
    objective = weighted(weight, class_pixels)
    *early, last = _stages(epsilon, steps, schedule)
    current = attack_start(start, images, (early or [last])[0].radius, seeds, norm).detach()
    for stage in early:
        current, _ = _run_stage(model, images, labels, current, objective, stage, observe, norm=norm, skip_fooled=False)
    _, strongest = _run_stage(model, images, labels, current, objective, last, observe, norm=norm, skip_fooled=True)
    return strongest


class _Stage(NamedTuple):
    radius: float
    steps: int
    before: int  # steps of the stages before it
    of: int  # steps of all stages


def _stages(epsilon: float, steps: int, schedule: Schedule) -> list[_Stage]:
    """Return the stages that have steps, and the last one, which gets the steps that rounding down leaves over."""
    if not schedule or schedule[-1][0] != 1 or sum(percent for _, percent in schedule) != 100:
        raise ValueError(f"a schedule ends at 1 epsilon and its percentages add up to 100: {schedule} does not")
    counts = [steps * percent // 100 for _, percent in schedule[:-1]]
    counts.append(steps - sum(counts))
    stages = [
        _Stage(factor * epsilon, count, sum(counts[:place]), steps)
        for place, ((factor, _), count) in enumerate(zip(schedule, counts, strict=True))
    ]
    return [stage for stage in stages[:-1] if stage.steps] + stages[-1:]


def step_checkpoints(steps: int) -> list[int]:
    """
    Return the steps, of 1..`steps`, after which the step size is checked.

    The first window is 22 % of the steps, and each is 3 % shorter than the one before, but not shorter than 6 %.
    """
    percents = [0, 22]
    while percents[-1] < 100:
        percents.append(percents[-1] + max(percents[-1] - percents[-2] - 3, 6))
    return sorted({-(-percent * steps // 100) for percent in percents[1:-1]})


class _State(NamedTuple):
    """State of each image that is still attacked."""

    indices: Tensor  # (N,) in the batch
    clean: Tensor  # (N, 3, H, W)
    labels: Tensor  # (N, H, W)
    before: Tensor  # (N, 3, H, W) the iterate before the present one
    present: Tensor
    gradient: Tensor  # (N, 3, H, W) at the present one
    loss: Tensor  # (N,) there
    best: Tensor  # (N, 3, H, W) the iterate of the highest loss
    best_gradient: Tensor
    best_loss: Tensor
    strongest: Tensor  # (N, 3, H, W) the iterate of the fewest correct pixels
    strongest_correct: Tensor  # (N,) its correct pixels
    size: Tensor  # (N,) of a step
    rises: Tensor  # (N,) of the loss since the last checkpoint
    known_loss: Tensor  # (N,) the highest at the last checkpoint
    halved: Tensor  # (N,) bool, True where the step was halved there


def _run_stage(
    model: Model,
    images: Tensor,
    labels: Tensor,
    begin: Tensor,
    objective: Objective,
    stage: _Stage,
    observe: Observer | None,
    *,
    norm: NormName = "linf",
    skip_fooled: bool,
) -> tuple[Tensor, Tensor]:
    """Return, for each image, the iterate of the highest loss (not if fooled) and the one of the fewest correct pixels."""

    def evaluate(at: Tensor, truth: Tensor, indices: Tensor, step: int) -> tuple[StepOutput, Tensor]:
        if step == stage.steps:  # no step follows, so no gradient is needed
            with torch.no_grad(), eval_mode(model):
                return StepOutput(model(at), truth, indices, stage.before + step, stage.of), torch.zeros_like(at)
        return input_gradient(
            *(model, at, truth, indices, objective),
            step=stage.before + step + 1,
            steps=stage.of,
            observe=observe,
            skip_fooled=skip_fooled,
        )

    indices = torch.arange(len(images), device=images.device)
    bound = NORMS[norm]
    strongest = present = bound.project(begin, images, stage.radius)
    output, gradient = evaluate(present, labels, indices, 0)
    run = _initial_state(images, present, output, gradient, size=2 * stage.radius)
    checks, last_check = step_checkpoints(stage.steps), 0
    for step in range(1, stage.steps + 1):
        if skip_fooled and not output.not_fooled.all():
            strongest = strongest.index_copy(0, run.indices, run.strongest)
            run = _State(*(part[output.not_fooled] for part in run))
        if not len(run.indices):
            break
        moved = _step(run, bound, stage.radius, 1.0 if step == 1 else _MOMENTUM)
        output, gradient = evaluate(moved, run.labels, run.indices, step)
        run = _moved_to(run, moved, output, gradient)
        if step in checks:
            run, last_check = _at_checkpoint(run, step - last_check), step
    return run.best, strongest.index_copy(0, run.indices, run.strongest)


def _initial_state(clean: Tensor, present: Tensor, output: StepOutput, gradient: Tensor, *, size: float) -> _State:
    loss, correct = _loss(output), _correct(output)
    return _State(
        indices=output.indices,
        clean=clean,
        labels=output.labels,
        before=present,
        present=present,
        gradient=gradient,
        loss=loss,
        best=present,
        best_gradient=gradient,
        best_loss=loss,
        strongest=present,
        strongest_correct=correct,
        size=present.new_full((len(present),), size),
        rises=torch.zeros_like(correct),
        known_loss=loss,
        halved=torch.zeros_like(correct, dtype=torch.bool),
    )


def _step(run: _State, bound: Norm, radius: float, momentum: float) -> Tensor:
    ahead = bound.project(run.present + each(run.size) * bound.direction(run.gradient), run.clean, radius)
    moved = run.present + momentum * (ahead - run.present) + (1 - momentum) * (run.present - run.before)
    return bound.project(moved, run.clean, radius)


def _moved_to(run: _State, moved: Tensor, output: StepOutput, gradient: Tensor) -> _State:
    """Move on to an iterate, and keep it if it is the best or the strongest."""
    loss, correct = _loss(output), _correct(output)
    higher, fewer = loss > run.best_loss, correct < run.strongest_correct
    return run._replace(
        before=run.present,
        present=moved,
        gradient=gradient,
        loss=loss,
        best=torch.where(each(higher), moved, run.best),
        best_gradient=torch.where(each(higher), gradient, run.best_gradient),
        best_loss=torch.where(higher, loss, run.best_loss),
        strongest=torch.where(each(fewer), moved, run.strongest),
        strongest_correct=torch.where(fewer, correct, run.strongest_correct),
        rises=run.rises + (loss > run.loss),
    )


def _at_checkpoint(run: _State, window: int) -> _State:
    """
    Halve the step of an image, and return to its best iterate, where one of two conditions holds.

    Condition 1: too few of its steps raised the loss. Condition 2: neither the step nor the highest loss has changed.
    """
    halved = (run.rises < _RISING * window) | (~run.halved & (run.best_loss == run.known_loss))
    return run._replace(
        present=torch.where(each(halved), run.best, run.present),
        gradient=torch.where(each(halved), run.best_gradient, run.gradient),
        loss=torch.where(halved, run.best_loss, run.loss),
        size=torch.where(halved, run.size / 2, run.size),
        rises=torch.zeros_like(run.rises),
        known_loss=run.best_loss,
        halved=halved,
    )


def _loss(output: StepOutput) -> Tensor:
    """Return the plain cross-entropy of each image, (N,) float64; one that is not a number is never the best."""
    loss = output.loss.detach().flatten(1).sum(1, dtype=torch.float64)
    return loss.masked_fill(loss.isnan(), -torch.inf)


def _correct(output: StepOutput) -> Tensor:
    """Return the correct pixels of each image, (N,) int64."""
    return output.correct.flatten(1).sum(1)
