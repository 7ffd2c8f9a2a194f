"""
The paper's Algorithms 1 (SAT), 2 (mask labels) and 3 (DDC-AT), word for word and slowly: the oracle of the training methods.

Nothing is reused and nothing is clever: every forward runs on a fresh deep copy of the network, images are attacked one by one,
maps are compared pixel by pixel, and cross-entropy is written out. Only the network itself is shared with the code under test.
"""

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

IGNORED = 255
DEEP_WEIGHT = 0.4


@dataclass
class Step:
    """What one training step of the oracle saw and computed."""

    images: Tensor  # (m, 3, H, W): the batch T, its clean half first
    labels: Tensor  # (m, H, W)
    attacked: Tensor  # (m, 3, H, W): every image after its attack; one that the algorithm does not attack is left as it was
    masks: Tensor | None  # (m, H, W): M
    predicted: Tensor | None  # (m, H, W): p
    losses: dict[str, float]
    gradients: list[dict[str, Tensor]]  # of each update: the gradient of every parameter which that update changes, by name
    buffers: dict[str, Tensor]  # what the step leaves in the batch-norm buffers


def pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label] of every pixel, (N, H, W); 0 where the label is ignored."""
    highest = logits.detach().amax(1)
    total = torch.zeros_like(logits[:, 0])
    chosen = torch.zeros_like(logits[:, 0])
    for k in range(logits.shape[1]):
        total = total + torch.exp(logits[:, k] - highest)
        chosen = torch.where(labels == k, logits[:, k], chosen)
    return torch.where(labels == IGNORED, torch.zeros_like(total), highest + torch.log(total) - chosen)


def number_of_valid(labels: Tensor) -> int:
    return sum(value != IGNORED for value in labels.flatten().tolist())


def mean_over_valid(losses: Tensor, labels: Tensor) -> Tensor:
    """Sum of the losses over the number of all valid pixels; 0, with gradient 0, when there are none."""
    return losses.sum() / max(number_of_valid(labels), 1)


def clip(images: Tensor, clean: Tensor, epsilon: float) -> Tensor:
    in_ball = torch.maximum(torch.minimum(images, clean + epsilon), clean - epsilon)
    return torch.clamp(in_ball, 0, 1)


def attack_one(
    segmenter: nn.Module, image: Tensor, label: Tensor, *, epsilon: float, alpha: float, steps: int, lower: bool
) -> Tensor:
    """BIM (Eq. 2) on one image (3, H, W), from x or from x - epsilon: the main branch, in eval mode."""
    clean = image[None]
    current = clip(clean - epsilon, clean, epsilon) if lower else clean.clone()
    for _ in range(steps):
        current = current.detach().requires_grad_()
        logits = deepcopy(segmenter).eval()(current, heads=("main",))["main"]
        loss = mean_over_valid(pixel_losses(logits, label[None]), label[None])
        (gradient,) = torch.autograd.grad(loss, current)
        current = clip(current.detach() + alpha * torch.sign(gradient), clean, epsilon)
    return current.detach()[0]


def predicted_mask(segmenter: nn.Module, image: Tensor) -> Tensor:
    """p of one image in eval mode: 1 where the mask branch says so, (H, W)."""
    with torch.no_grad():
        logits = deepcopy(segmenter).eval()(image[None], heads=("mask",))["mask"]
    return (logits[0, 1] > logits[0, 0]).long()


def combined_map(segmenter: nn.Module, image: Tensor) -> Tensor:
    """B of one image in eval mode: argmax of o = o_a * p + o_n * (1 - p), (H, W)."""
    p = predicted_mask(segmenter, image)
    with torch.no_grad():
        main = deepcopy(segmenter).eval()(image[None], heads=("main",))["main"][0]
        auxiliary = deepcopy(segmenter).eval()(image[None], heads=("auxiliary",))["auxiliary"][0]
    result = torch.zeros_like(p)
    for row in range(p.shape[0]):
        for column in range(p.shape[1]):
            chosen = auxiliary if p[row, column] == 1 else main
            result[row, column] = chosen[:, row, column].argmax()
    return result


def mask_label(segmenter: nn.Module, clean: Tensor, attacked: Tensor) -> Tensor:
    """Algorithm 2, M_clean of one image: 1[B_clean != B_adv], (H, W)."""
    before = combined_map(segmenter, clean).tolist()
    after = combined_map(segmenter, attacked).tolist()
    return torch.tensor([[int(a != b) for a, b in zip(*rows, strict=True)] for rows in zip(before, after, strict=True)])


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


def sat_step(
    segmenter: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    alpha: float,
    steps: int,
    paper_literal: bool = False,
    clean_only: bool = False,
    seed: int | None = None,
) -> Step:
    """Algorithm 1; with `clean_only`, training without any attack."""
    m = len(images)
    attacked = images.clone()
    for i in range(m):
        if i >= m // 2 and not clean_only:
            attacked[i] = attack_one(
                segmenter, images[i], labels[i], epsilon=epsilon, alpha=alpha, steps=steps, lower=paper_literal
            )

    network = deepcopy(segmenter).train()
    parts = ("shared", "main") if paper_literal else ("shared", "main", "deep")
    if seed is not None:
        torch.manual_seed(seed)
    logits = network(attacked, heads=tuple(part for part in parts if part != "shared"))
    loss_main = mean_over_valid(pixel_losses(logits["main"], labels), labels)
    losses = {"main": loss_main.item()}
    total = loss_main
    if not paper_literal:
        loss_deep = mean_over_valid(pixel_losses(logits["deep"], labels), labels)
        losses["deep"] = loss_deep.item()
        total = total + DEEP_WEIGHT * loss_deep
    gradients = [gradients_of(total, network, parts)]
    return Step(attacked, labels, attacked, None, None, losses, gradients, dict(network.named_buffers()))


def ddcat_step(
    segmenter: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    alpha: float,
    steps: int,
    paper_literal: bool = False,
    seed: int | None = None,
) -> Step:
    """Algorithm 3, with the mask labels of Algorithm 2; gradients of both updates are those of the weights before either."""
    m = len(images)
    half = m // 2
    attacked = torch.stack(
        [
            attack_one(segmenter, images[i], labels[i], epsilon=epsilon, alpha=alpha, steps=steps, lower=paper_literal)
            for i in range(m)
        ]
    )
    mixed = torch.stack([images[i] if i < half else attacked[i] for i in range(m)])
    masks = torch.stack(
        [mask_label(segmenter, images[i], attacked[i]) if i < half else torch.zeros_like(labels[i]) for i in range(m)]
    )

    network = deepcopy(segmenter).train()
    heads = ("main", "auxiliary", "mask") if paper_literal else ("main", "auxiliary", "mask", "deep")
    if seed is not None:
        torch.manual_seed(seed)
    logits = network(mixed, heads=heads)
    if paper_literal:
        p = torch.stack([predicted_mask(segmenter, mixed[i]) for i in range(m)])
    else:
        p = (logits["mask"][:, 1] > logits["mask"][:, 0]).long()
    q = 1 - p

    loss_main = mean_over_valid(pixel_losses(logits["main"], labels) * q, labels)  # Eq. 3
    loss_auxiliary = mean_over_valid(pixel_losses(logits["auxiliary"], labels) * p, labels)  # Eq. 4
    loss_mask = pixel_losses(logits["mask"], masks).mean()  # Eq. 5, ignored pixels included
    losses = {"main": loss_main.item(), "auxiliary": loss_auxiliary.item(), "mask": loss_mask.item()}
    if paper_literal:
        gradients = [
            gradients_of(loss_main + loss_auxiliary, network, ("shared", "main", "auxiliary")),
            gradients_of(loss_mask, network, ("shared", "mask")),
        ]
    else:
        loss_deep = mean_over_valid(pixel_losses(logits["deep"], labels), labels)
        losses["deep"] = loss_deep.item()
        total = loss_main + loss_auxiliary + loss_mask + DEEP_WEIGHT * loss_deep  # Eq. 6 and deep supervision
        gradients = [gradients_of(total, network, ("shared", "main", "auxiliary", "mask", "deep"))]
    return Step(mixed, labels, attacked, masks, p, losses, gradients, dict(network.named_buffers()))
