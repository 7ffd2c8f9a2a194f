"""A network, a linear model and images so small that an attack takes milliseconds."""

import torch
from torch import Tensor, nn

from ddcat_train.attacks import Model, eval_mode

CLASSES = 4


class Pixelwise(nn.Module):
    """Two classes told apart by a weighted sum of the colours: the sign of every gradient is known."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        score = torch.einsum("nchw,c->nhw", images, self.weights)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Tanh(), nn.Dropout2d(0.5), nn.Conv2d(6, CLASSES, 3, padding=1)
    ).double()
    with torch.no_grad():
        made(torch.rand(4, 3, 9, 9, dtype=torch.float64))  # batch-norm buffers that are not the initial ones
    return made


def batch(seed: int, count: int = 3, size: int = 6, ignored: float = 0.2, classes: int = CLASSES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, size, size, dtype=torch.float64, generator=generator)
    images[torch.rand(images.shape, generator=generator) < 0.1] = 0  # on the border of what an image may hold
    labels = torch.randint(classes, (count, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return images, labels


def right_pixels(model: Model, images: Tensor, labels: Tensor) -> Tensor:
    """How many valid pixels of each image the model labels right, (N,) int64."""
    with torch.no_grad(), eval_mode(model):
        return (model(images).argmax(1) == labels).flatten(1).sum(1)
