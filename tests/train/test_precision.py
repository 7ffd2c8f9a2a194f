"""bfloat16 leaves images, the ball and the loss in float32, and the direction of an attack as it is."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ddcat_train.attacks import bim, eval_mode
from ddcat_train.choices import ContextName
from ddcat_train.config import ModelConfig, load_config
from ddcat_train.networks import Segmenter, build_segmenter
from ddcat_train.networks.layers import interpolation
from ddcat_train.run.trainer import Trainer

CONTEXTS: tuple[ContextName, ...] = ("pyramid", "aspp")


def network_of(context: ContextName) -> Segmenter:
    torch.manual_seed(0)
    network = build_segmenter(ModelConfig(backbone="resnet18", width=16, context=context), classes=5)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        network(torch.rand(8, 3, 65, 65))  # so that the running statistics are those of images
    return network


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2, 3, 9, 9, generator=generator)
    return F.interpolate(coarse, size=(73, 65), mode="bilinear"), torch.randint(0, 5, (2, 73, 65), generator=generator)


def input_gradient(network: Segmenter, images: Tensor, labels: Tensor, *, rounded: bool) -> Tensor:
    leaf = images.clone().requires_grad_()
    with eval_mode(network), torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        loss = F.cross_entropy(network(leaf), labels, reduction="sum")
    return torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("context", CONTEXTS)
def test_the_sign_of_an_attack_is_kept(context: ContextName) -> None:
    network, (images, labels) = network_of(context), batch()
    exact, rounded = (input_gradient(network, images, labels, rounded=rounded) for rounded in (False, True))
    assert rounded.dtype == torch.float32
    assert (rounded == 0).float().mean() <= (exact == 0).float().mean() + 1e-3  # nothing underflows to a sign of 0
    same = exact.sign() == rounded.sign()
    # What a step of the attack gains, to first order, is the sum of |gradient| where the sign is right less where it is wrong.
    gained = (exact.abs() * (2 * same.float() - 1)).sum() / exact.abs().sum()
    assert gained > 0.95


@pytest.mark.parametrize("context", CONTEXTS)
def test_images_are_not_rounded(context: ContextName) -> None:
    network, (images, labels) = network_of(context), batch()
    seen: list[Tensor] = []
    network.normalise.register_forward_hook(lambda module, inputs, output: seen.extend((*inputs, output)))
    with torch.autocast("cpu", torch.bfloat16):
        adversarial = bim(network, images, labels, epsilon=0.03, alpha=0.01, steps=3)
    assert {tensor.dtype for tensor in (*seen, adversarial)} == {torch.float32}
    # steps of 0.01 would be 0.0078 or 0.0117 in the bfloat16 numbers around 1
    moved = (adversarial - images).abs()[(images > 0.05) & (images < 0.95)]
    assert moved.max() <= 0.03 + 1e-6
    nearest = (moved / 0.01).round() * 0.01
    torch.testing.assert_close(moved, nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [60, 90, 257])
def test_a_basis_in_bfloat16_is_the_exact_one_rounded_once(size: int) -> None:
    exact = interpolation(size, 6, torch.empty(0, dtype=torch.float64))
    found = interpolation(size, 6, torch.empty(0, dtype=torch.bfloat16))
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.fixture
def rounding() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = True
    yield
    cudnn.allow_tf32, matmul.allow_tf32 = before


@pytest.mark.parametrize("precision", ["fp32", "bf16"])  # evaluations of the second are in fp32, too
def test_a_run_rounds_nothing_to_tf32(tiny_run: list[str], precision: str, rounding: None) -> None:
    Trainer(load_config("scenes-undefended", [*tiny_run, f"train.precision={precision}"]), device="cpu")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
