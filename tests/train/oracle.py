"""
The training methods word for word and slowly: the oracle of the fast ones.

Algorithms 1 (SAT), 2 (mask labels) and 3 (DDC-AT) of the paper with its forms M and N, adversarial training by PGD and by
SegPGD, and TRADES. Nothing is reused and nothing is clever: every forward runs on a fresh copy of the network, images are
attacked one by one, maps are compared and losses weighed pixel by pixel, and every loss is written out. Only the network itself
is shared with the code under test.
"""

from copy import copy
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch
from torch import Tensor, nn

IGNORED = 255
DIVIDING = ("ddcat", "ddcat-m", "ddcat-n")


@dataclass
class Choice:
    """A method and its options, by the names that the configuration gives them."""

    name: str
    deep_weight: float = 0.4
    adversarial_share: float = 0.5
    update: str = "joint"
    predicted_mask: str = "forward"
    mask_loss_on_ignored: bool = True
    beta: float = 6.0
    sigma: float = 0.25
    epsilon: float = 0.03
    alpha: float | str = 0.01
    steps: int = 3
    start: str = "clean"


@dataclass
class Step:
    """What one training step of the oracle saw and computed."""

    images: Tensor  # (m, 3, H, W): what the network is trained on; for TRADES (2m, 3, H, W), the clean images first
    clean: int  # the first images of the batch, which stay clean
    masks: Tensor | None  # (m, H, W): M
    predicted: Tensor | None  # (m, H, W): p
    losses: dict[str, float]
    total: float  # the sum that is minimised
    gradients: list[dict[str, Tensor]]  # of each update: the gradient of every parameter which that update changes, by name
    buffers: dict[str, Tensor]  # what the step leaves in the batch-norm buffers


def fresh(module: nn.Module) -> nn.Module:
    """Copy modules, parameters and buffers: what deepcopy does as well, in thirty times the time."""
    twin = copy(module)
    twin._parameters = {
        name: value if value is None else nn.Parameter(value.detach().clone()) for name, value in module._parameters.items()
    }
    twin._buffers = {name: value if value is None else value.clone() for name, value in module._buffers.items()}
    twin._modules = {name: fresh(child) for name, child in module._modules.items()}
    return twin


# --- losses


def log_probabilities(logits: Tensor) -> list[Tensor]:
    """log softmax, for each class (N, H, W)."""
    highest = logits.detach().amax(1)
    total = torch.zeros_like(logits[:, 0])
    for k in range(logits.shape[1]):
        total = total + torch.exp(logits[:, k] - highest)
    return [logits[:, k] - highest - torch.log(total) for k in range(logits.shape[1])]


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] of every pixel, (N, H, W); 0 where the label is ignored."""
    loss = torch.zeros_like(logits[:, 0])
    for k, log_probability in enumerate(log_probabilities(logits)):
        loss = torch.where(labels == k, -log_probability, loss)
    return loss


def pixel_divergences(expected: Tensor, found: Tensor, labels: Tensor) -> Tensor:
    """KL(softmax(expected) || softmax(found)) of every pixel, (N, H, W); 0 where the label is ignored."""
    total = torch.zeros_like(expected[:, 0])
    for log_p, log_q in zip(log_probabilities(expected), log_probabilities(found), strict=True):
        total = total + torch.exp(log_p) * log_p - torch.exp(log_p) * log_q
    return torch.where(labels == IGNORED, torch.zeros_like(total), total)


def segpgd_weights(logits: Tensor, labels: Tensor, t: int, steps: int) -> Tensor:
    """Of every pixel, (1, H, W): 1 - lambda(t) where the prediction is right, lambda(t) = (t - 1) / (2 T) where it is wrong."""
    share = (t - 1) / (2 * steps)
    predictions, truth = logits[0].argmax(0).tolist(), labels[0].tolist()
    rows = zip(predictions, truth, strict=True)
    weights = [[1 - share if a == b else share for a, b in zip(*row, strict=True)] for row in rows]
    return torch.tensor([weights], dtype=logits.dtype)


def number_of_valid(labels: Tensor) -> int:
    return sum(value != IGNORED for value in labels.flatten().tolist())


def mean_over_valid(losses: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses over the number of all valid pixels; 0, with gradient 0, when there are none."""
    return losses.sum() / max(number_of_valid(labels), 1)


# --- attacks


def clip(images: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    in_ball = torch.maximum(torch.minimum(images, clean + epsilon), clean - epsilon)
    return torch.clamp(in_ball, 0, 1)


def begin(image: Tensor, seed: int, choice: Choice) -> Tensor:
    if choice.start == "clean":
        return image.clone()
    if choice.start == "lower":
        return clip(image - choice.epsilon, image, choice.epsilon)
    unit = torch.rand(image.shape[1:], generator=torch.Generator().manual_seed(seed))  # one draw for each value, from the seed
    return clip(image - choice.epsilon + 2 * choice.epsilon * unit.to(image.dtype), image, choice.epsilon)


def attack_one(segmenter: nn.Module, image: Tensor, label: Tensor, seed: int, choice: Choice) -> Tensor:
    """Signed gradient steps (Eq. 2) on one image (3, H, W): the main branch, in eval mode."""
    clean, labels = image[None], label[None]
    if choice.name == "gaussian":
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)).to(image.dtype)
        return (image + choice.sigma * noise).clamp(0, 1)
    alpha = choice.epsilon / choice.steps if choice.alpha == "eps/n" else float(choice.alpha)
    current = begin(clean, seed, choice)
    for t in range(1, choice.steps + 1):
        current = current.detach().requires_grad_()
        logits = fresh(segmenter).eval()(current, heads=("main",))["main"]
        if choice.name == "trades":
            with torch.no_grad():
                expected = fresh(segmenter).eval()(clean, heads=("main",))["main"]
            losses = pixel_divergences(expected, logits, labels)
        elif choice.name == "segpgd-at":
            losses = segpgd_weights(logits, labels, t, choice.steps) * pixel_losses(logits, labels)
        else:
            losses = pixel_losses(logits, labels)
        (gradient,) = torch.autograd.grad(mean_over_valid(losses, labels), current)
        current = clip(current.detach() + alpha * torch.sign(gradient), clean, choice.epsilon)
    return current.detach()[0]


# --- Algorithm 2


def predicted_mask(segmenter: nn.Module, image: Tensor) -> Tensor:
    """p of one image in eval mode: 1 where the mask branch says so, (H, W)."""
    with torch.no_grad():
        logits = fresh(segmenter).eval()(image[None], heads=("mask",))["mask"]
    return (logits[0, 1] > logits[0, 0]).long()


def combined_map(segmenter: nn.Module, image: Tensor) -> list[list[int]]:
    """B of one image in eval mode: argmax of o = o_a * p + o_n * (1 - p), (H, W)."""
    p = predicted_mask(segmenter, image).tolist()
    with torch.no_grad():
        main = fresh(segmenter).eval()(image[None], heads=("main",))["main"][0].permute(1, 2, 0).tolist()
        auxiliary = fresh(segmenter).eval()(image[None], heads=("auxiliary",))["auxiliary"][0].permute(1, 2, 0).tolist()
    result = []
    for row in range(len(p)):
        result.append([])
        for column in range(len(p[row])):
            chosen = auxiliary[row][column] if p[row][column] == 1 else main[row][column]
            result[row].append(chosen.index(max(chosen)))
    return result


def changed(segmenter: nn.Module, clean: Tensor, attacked: Tensor) -> Tensor:
    """1[B_clean != B_adv] of one image, (H, W)."""
    before, after = combined_map(segmenter, clean), combined_map(segmenter, attacked)
    return torch.tensor([[int(a != b) for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)])


def mask_label(segmenter: nn.Module, clean: Tensor, attacked: Tensor, choice: Choice, *, stays_clean: bool) -> Tensor:
    """M of one image: the paper marks those that stay clean, its form M all, its form N those that become adversarial."""
    marked = {"ddcat": stays_clean, "ddcat-m": True, "ddcat-n": not stays_clean}[choice.name]
    return changed(segmenter, clean, attacked) if marked else torch.zeros(clean.shape[1:], dtype=torch.int64)


# --- the step


def belongs(name: str, parts: tuple[str, ...]) -> bool:
    """Say whether a parameter is in one of the parts; "shared" is all that is in no head (S)."""
    if name.startswith("heads."):
        return name.split(".")[1] in parts
    return "shared" in parts


def gradients_of(loss: Tensor, network: nn.Module, parts: tuple[str, ...]) -> dict[str, Tensor]:
    named = {name: parameter for name, parameter in network.named_parameters() if belongs(name, parts)}
    found = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(named.items(), found, strict=True)
    }


def clean_count(m: int, choice: Choice) -> int:
    """floor(m * (1 - share)), with the share exactly as it is written; none for a method that attacks all images."""
    if choice.name in ("pgd-at", "segpgd-at", "trades", "gaussian"):
        return 0
    return m if choice.name == "undefended" else floor(m * (1 - Fraction(str(choice.adversarial_share))))


def step(
    segmenter: nn.Module,
    images: Tensor,
    labels: Tensor,
    seeds: Tensor,
    choice: Choice,
    *,
    clean: int | None = None,
    dropout_seed: int | None = None,
) -> Step:
    """
    One step of training; gradients of all updates are those of the weights before any of them.

    `clean` says how many of the first images stay clean where that is not to follow from the share.
    """
    m = len(images)
    clean = clean_count(m, choice) if clean is None else clean
    attacked = [
        attack_one(segmenter, images[i], labels[i], int(seeds[i]), choice)
        if i >= clean or choice.name in ("ddcat", "ddcat-m")  # which attack the clean images to mark them
        else images[i]
        for i in range(m)
    ]
    mixed = torch.stack([images[i] if i < clean else attacked[i] for i in range(m)])

    network = fresh(segmenter).train()
    heads = ("main", "auxiliary", "mask") if choice.name in DIVIDING else ("main",)
    heads = (*heads, "deep") if choice.deep_weight else heads
    if choice.name == "trades":
        mixed = torch.cat([images, torch.stack(attacked)])
    if dropout_seed is not None:
        torch.manual_seed(dropout_seed)
    logits = network(mixed, heads=heads)

    losses, masks, p = {}, None, None
    if choice.name in DIVIDING:
        masks = torch.stack([mask_label(segmenter, images[i], attacked[i], choice, stays_clean=i < clean) for i in range(m)])
        if choice.predicted_mask == "algorithm-2":
            p = torch.stack([predicted_mask(segmenter, mixed[i]) for i in range(m)])
        else:
            p = (logits["mask"][:, 1] > logits["mask"][:, 0]).long()
        losses["main"] = mean_over_valid(pixel_losses(logits["main"], labels) * (1 - p), labels)  # Eq. 3
        losses["auxiliary"] = mean_over_valid(pixel_losses(logits["auxiliary"], labels) * p, labels)  # Eq. 4
        if choice.mask_loss_on_ignored:
            losses["mask"] = pixel_losses(logits["mask"], masks).mean()  # Eq. 5
        else:
            losses["mask"] = mean_over_valid(pixel_losses(logits["mask"], masks) * (labels != IGNORED), labels)
    else:
        losses["main"] = mean_over_valid(pixel_losses(logits["main"][:m], labels), labels)
    if choice.name == "trades":
        losses["divergence"] = mean_over_valid(pixel_divergences(logits["main"][:m], logits["main"][m:], labels), labels)
    if choice.deep_weight:
        losses["deep"] = mean_over_valid(pixel_losses(logits["deep"][:m], labels), labels)

    weighed = {name: {"deep": choice.deep_weight, "divergence": choice.beta}.get(name, 1) * losses[name] for name in losses}
    if choice.update == "two-step":
        supervised = sum(value for name, value in weighed.items() if name != "mask")
        others = tuple(head for head in heads if head != "mask")
        gradients = [
            gradients_of(supervised, network, ("shared", *others)),  # line 8 of Alg. 3
            gradients_of(losses["mask"], network, ("shared", "mask")),  # line 9
        ]
    else:
        gradients = [gradients_of(sum(weighed.values()), network, ("shared", *heads))]  # Eq. 6
    values = {name: loss.item() for name, loss in losses.items()}
    total = sum(weighed.values()).item()
    return Step(mixed, clean, masks, p, values, total, gradients, dict(network.named_buffers()))
