"""Attacks by name, on any callable that maps images to logits: `ddcat.attack`."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ddcat.bands import MOST_BANDS
from ddcat.classes import IGNORE_INDEX
from ddcat_train.attacks.apgd import apgd
from ddcat_train.attacks.gradient import Model
from ddcat_train.attacks.norms import NORMS
from ddcat_train.attacks.pgd import bim, cospgd, pgd, segpgd, tsallis_pgd
from ddcat_train.attacks.sea import sea
from ddcat_train.attacks.square import square
from ddcat_train.choices import NormName
from ddcat_train.errors import AttackError
from ddcat_train.networks.eval_mode import eval_mode
from ddcat_train.networks.whole.calls import are_probabilities

__all__ = ["ATTACKS", "attack"]

_GRADIENT: dict[str, Callable[..., Tensor]] = {
    "bim": bim, "pgd": pgd, "segpgd": segpgd, "cospgd": cospgd, "tsallis-pgd": tsallis_pgd,
}  # fmt: skip
_STEPS = {  # by default: the paper's for BIM, those of its authors for SEA
    "fgsm": 1, "bim": 3, "pgd": 20, "segpgd": 20, "cospgd": 20, "tsallis-pgd": 20, "apgd": 100, "sea": 300, "square": 1000,
}  # fmt: skip
ATTACKS = tuple(_STEPS)


def attack(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    name: str = "sea",
    *,
    epsilon: float = 8 / 255,
    norm: NormName = "linf",
    steps: int | None = None,
    alpha: float | None = None,
    seed: int = 0,
) -> Tensor:
    """
    Make adversarial images.

    Parameters
    ----------
    model : callable
        Maps images (N, 3, H, W) in [0, 1] to logits (N, K, H, W): a `torch.nn.Module`, `ddcat.load(...)`, or any function. A
        module is put into eval() while it is called, and put back.
    images : (N, C, H, W) float
        In [0, 1].
    labels : (N, H, W) integer
        255 is ignored: such pixels have no influence.
    name : str
        "fgsm", "bim" (Eq. 2 of the paper), "pgd", "segpgd", "cospgd", "tsallis-pgd", "apgd", "sea" (the strongest, and the
        slowest) or "square" (needs no gradient).
    epsilon : float
        Bound of the perturbation, in [0, 1] units.
    norm : "linf" or "l2"
        The maximum over all values of an image, or the root of the sum of their squares, in which an epsilon of 1 is small.
        "sea" and "square" are made for "linf".
    steps : int, optional
        Gradient steps; of each of the three members for "sea"; queries for "square". By default 3 for "bim", 20 for the
        others of constant step, 100 for "apgd", 300 for "sea" and 1000 for "square".
    alpha : float, optional
        Size of a step of the attacks with a constant one: epsilon / steps for "fgsm" and "bim", epsilon / 4 for the others.
    seed : int
        Seed of the random starts: image i of the batch has `seed + i`.

    Returns
    -------
    (N, 3, H, W) float
        Within epsilon of `images` in that norm, in [0, 1], on their device. For "sea" the result of the member that leaves the
        fewest pixels correct, for each image.

    Raises
    ------
    AttackError
        For images, labels or a model of another form, in one line.

    Examples
    --------
    >>> import torch, ddcat
    >>> model = torch.nn.Conv2d(3, 5, 1)
    >>> images, labels = torch.rand(2, 3, 33, 33), torch.randint(5, (2, 33, 33))
    >>> adversarial = ddcat.attack(model, images, labels, "pgd", epsilon=4 / 255)
    >>> bool((adversarial - images).abs().max() <= 4 / 255 + 1e-6)
    True
    """
    if name not in _STEPS:
        raise AttackError(f"there is no attack {name!r}: use {', '.join(ATTACKS[:-1])} or {ATTACKS[-1]}")
    if not callable(model):
        raise AttackError(f"model: expected a module or a function, got {_form(model)}; ddcat.load reads a run or a checkpoint")
    classes = _check(model, images, labels, differentiable=name != "square")
    truth = labels.to(images.device, torch.int64)
    count = _STEPS[name] if steps is None else steps
    _check_options(name, norm, epsilon, alpha, count)
    seeds = seed + torch.arange(len(images))
    if name in ("fgsm", "bim"):
        size = epsilon / max(count, 1) if alpha is None else alpha
        return bim(model, images, truth, epsilon=epsilon, alpha=size, steps=count, norm=norm)
    if name == "square":
        return square(model, images, truth, epsilon=epsilon, queries=count, seeds=seeds)
    if name in _GRADIENT:
        size = epsilon / 4 if alpha is None else alpha
        return _GRADIENT[name](model, images, truth, epsilon=epsilon, alpha=size, steps=count, norm=norm, seeds=seeds)
    if name == "apgd":
        return apgd(model, images, truth, epsilon=epsilon, steps=count, norm=norm, seeds=seeds)
    pixels = torch.bincount(truth[truth != IGNORE_INDEX], minlength=classes)  # of each class, for the balanced loss
    members = sea(model, images, truth, epsilon=epsilon, steps=count, seeds=seeds, class_pixels=pixels)
    return _weakest(model, list(members.values()), truth)


def _check_options(name: str, norm: str, epsilon: float, alpha: float | None, steps: int) -> None:
    """Refuse what would make an attack of another kind, none, or one without a bound."""
    if norm not in NORMS:
        raise AttackError(f"there is no norm {norm!r}: use linf or l2")
    if norm == "l2" and name in ("sea", "square"):
        raise AttackError(f"{name} is made for the maximum norm: use apgd or pgd for l2")
    if not 0 <= epsilon < float("inf") or (norm == "l2" and epsilon == 0):
        above = "above 0" if norm == "l2" else "of 0 or more"
        raise AttackError(
            f"epsilon {epsilon:g}: expected a bound {above}, in [0, 1] units, such as {3 if norm == 'l2' else '8/255'}"
        )
    if alpha is not None and name in ("apgd", "sea", "square"):
        raise AttackError(f"{name} chooses the size of its steps: leave alpha out")
    if alpha is not None and not 0 < alpha < float("inf"):
        raise AttackError(f"alpha {alpha:g}: expected a step above 0, in [0, 1] units, such as 2/255")
    for what, value in (("epsilon", epsilon), ("alpha", alpha or 0.0)):
        if norm == "linf" and value > 1:  # in levels of 0 to 255, every model would lose everything
            raise AttackError(f"{what} {value:g}: expected at most 1, as images are in [0, 1]; did you mean {value:g}/255?")
    if steps < 1:
        raise AttackError(f"steps {steps}: expected 1 or more")


def _weakest(model: Model, members: list[Tensor], labels: Tensor) -> Tensor:
    """Return, for each image, the member that leaves the fewest pixels correct."""
    with torch.no_grad(), eval_mode(model):
        correct = torch.stack([(model(images).argmax(1) == labels).sum((1, 2)) for images in members])  # (members, N)
    choice = correct.argmin(0)
    return torch.stack(members)[choice, torch.arange(len(choice), device=choice.device)]


def _check(model: Callable[[Tensor], Any], images: Tensor, labels: Tensor, *, differentiable: bool) -> int:
    """Raise an error for another form of input or output, and return the number of classes."""
    if not isinstance(images, Tensor) or images.ndim != 4 or _transposed(images) or not images.is_floating_point():
        raise AttackError(f"images: expected floats of shape (N, 3, H, W), got {_form(images)}{_advice(images)}")
    if not images.numel():
        raise AttackError(f"images: expected one or more, got a batch of shape {tuple(images.shape)}")
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 1:
        raise AttackError(
            f"images: expected values in [0, 1], got {low:.3g} to {high:.3g}; divide 8-bit images by 255, and let the model "
            "normalise: lambda images: model((images - mean) / std)"
        )
    if not isinstance(labels, Tensor) or labels.shape != (len(images), *images.shape[2:]) or labels.is_floating_point():
        expected = (len(images), *images.shape[2:])
        raise AttackError(f"labels: expected integers of shape {expected}, got {_form(labels)}")
    with torch.enable_grad(), eval_mode(model):
        leaf = images[:1].detach().requires_grad_()
        given = leaf.clone()  # which a model may change in place, and no leaf
        logits = model(given)
    if not isinstance(logits, Tensor):
        raise AttackError(f"the model returned {_returned(logits)}")
    if logits.ndim != 4 or len(logits) != 1:
        raise AttackError(f"the model: expected logits of shape (N, K, H, W), got {tuple(logits.shape)} for one image")
    if logits.shape[2:] != images.shape[2:]:
        raise AttackError(
            f"the model: expected logits of the images' size {tuple(images.shape[2:])}, got {tuple(logits.shape[2:])}; resize "
            "them: lambda images: torch.nn.functional.interpolate(model(images), images.shape[2:], mode='bilinear')"
        )
    _check_values(logits)
    if not torch.equal(given, leaf):
        raise AttackError("the model changes its images in place: pass lambda images: model(images.clone())")
    if differentiable:
        _check_gradient(logits, leaf)
    counted = labels[labels != IGNORE_INDEX]
    wrong = counted[(counted < 0) | (counted >= logits.shape[1])]
    if len(wrong):
        raise AttackError(
            f"labels: expected 0 to {logits.shape[1] - 1} for the {logits.shape[1]} classes of the model, or {IGNORE_INDEX} "
            f"(ignored), got {int(wrong[0])}"
        )
    return int(logits.shape[1])


def _check_values(logits: Tensor) -> None:
    """Refuse what an attack would take for logits, and be weak on."""
    if logits.shape[1] == 1:
        raise AttackError(
            "the model: expected logits of 2 classes or more, got 1; the logits of a map before its sigmoid are "
            "torch.cat([torch.zeros_like(map), map], 1)"
        )
    if bool(logits.isnan().any()):
        raise AttackError("the model returned NaN, on which every attack stands still: mend it first")
    if are_probabilities(logits):
        raise AttackError("the model returned probabilities, expected logits: leave its softmax out, or pass their logarithm")


def _check_gradient(logits: Tensor, leaf: Tensor) -> None:
    """Refuse a model that an attack by gradients could not move."""
    advice = "attack a model that does not, or use square, which needs no gradient"
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)[:, None, None]  # not all equal
    gradient = None
    if logits.requires_grad:
        (gradient,) = torch.autograd.grad((logits * weights).sum(), leaf, allow_unused=True)
    if gradient is None:
        raise AttackError(
            f"the model detaches its images, by torch.no_grad, detach or numpy, so there is no gradient: {advice}"
        )
    if not gradient.any():
        raise AttackError(f"the gradient of the model is 0 at all pixels, as where it rounds its images: {advice}")


def _transposed(images: Tensor) -> bool:
    return images.shape[1] > MOST_BANDS or (images.shape[1] != 3 and images.shape[3] == 3)


def _form(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"


def _advice(images: object) -> str:
    if isinstance(images, Tensor) and images.ndim == 4 and images.shape[-1] == 3:
        return "; use images.permute(0, 3, 1, 2)"
    if isinstance(images, Tensor) and images.ndim == 3:
        return "; use images[None] for one image"
    return "" if isinstance(images, Tensor) else "; use torch.from_numpy or torch.as_tensor"


def _returned(answer: object) -> str:
    """Describe what a model returned instead of logits, and how to get them."""
    if isinstance(answer, dict):  # torchvision's segmenters; the outputs of transformers are dicts, too
        name = next((key for key in ("out", "logits") if key in answer), None)
        keys = ", ".join(map(repr, answer))
        return f"a dict with {keys}: pass lambda images: model(images)[{name or next(iter(answer), '...')!r}]"
    if isinstance(answer, list | tuple):
        return f"a {type(answer).__name__} of {len(answer)}: pass lambda images: model(images)[0]"
    return f"a {type(answer).__name__}: pass a function that returns logits (N, K, H, W)"
