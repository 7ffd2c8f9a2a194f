"""What is computed in another order than torch would: equal to torch's layers in float64, values and gradients."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddcat_train.attacks import eval_mode
from ddcat_train.choices import ContextName
from ddcat_train.config import ModelConfig
from ddcat_train.networks import build_segmenter
from ddcat_train.networks import convolution as convolutions
from ddcat_train.networks.contexts import Context, ContextConv2d
from ddcat_train.networks.convolution import Conv2d, Layers, conv_bn
from ddcat_train.networks.layers import interpolation

SIZES = st.integers(2, 9)


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0), dtype=output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


@settings(deadline=None)
@given(size=st.integers(1, 70), bins=st.integers(1, 9), align_corners=st.booleans())
@example(size=2, bins=1, align_corners=True)
@example(size=1, bins=6, align_corners=False)
def test_interpolation_is_torchs_upsampling(size: int, bins: int, align_corners: bool) -> None:
    assume(size > 1 or not align_corners)
    values = random(1, 1, 1, bins)
    expected = F.interpolate(values, size=(1, size), mode="bilinear", align_corners=align_corners)
    found = values @ interpolation(size, bins, values, align_corners=align_corners).T
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=12, deadline=None)
@given(
    height=SIZES,
    width=SIZES,
    kernel=st.sampled_from([1, 3]),
    bins=st.lists(st.integers(1, 6), max_size=4),
    align_corners=st.booleans(),
)
@example(height=60, width=60, kernel=3, bins=[1, 2, 3, 6], align_corners=True)
@example(height=2, width=9, kernel=3, bins=[6], align_corners=True)
@example(height=5, width=5, kernel=3, bins=[], align_corners=True)
def test_a_convolution_over_a_context_is_one_over_the_concatenation(
    height: int, width: int, kernel: int, bins: list[int], align_corners: bool
) -> None:
    torch.manual_seed(1)
    pooled = tuple(random(2, 3, b, b).requires_grad_() for b in bins)
    context = Context(random(2, 5, height, width).requires_grad_(), pooled, align_corners)
    layer = ContextConv2d(5 + 3 * len(bins), 4, kernel, padding=kernel // 2).double()
    inputs = [context.maps, *context.pooled, layer.weight, layer.bias]
    found = layer(context)
    expected = F.conv2d(context.concatenated(), layer.weight, layer.bias, padding=kernel // 2)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(gradients(found, inputs), gradients(expected, inputs), rtol=1e-11, atol=1e-11)


def test_the_first_images_of_a_context() -> None:
    context = Context(random(3, 4, 5, 6), (random(3, 2, 1, 1), random(3, 2, 3, 3)))
    torch.testing.assert_close(context.first(2).concatenated(), context.concatenated()[:2])


@settings(max_examples=12, deadline=None)
@given(height=st.integers(1, 9), width=st.integers(1, 9), down=st.integers(1, 6), right=st.integers(1, 6))
@example(height=7, width=9, down=18, right=18)  # one tap alone lies inside
@example(height=4, width=5, down=4, right=2)
def test_weight_gradients_by_matrix_products(height: int, width: int, down: int, right: int) -> None:
    torch.manual_seed(2)
    channels = 128
    maps = random(2, channels, height, width).to(memory_format=torch.channels_last).requires_grad_()
    dilation = (down, right)
    layer = Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False).double()
    assert layer._same_size(maps, layer.weight)
    inputs = [maps, layer.weight]
    found = layer(maps)
    expected = F.conv2d(maps, layer.weight, padding=dilation, dilation=dilation)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, inputs), gradients(expected, inputs), rtol=1e-10, atol=1e-10)


def test_an_input_that_needs_no_gradient_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "_FEWEST_CHANNELS", 1)
    maps, layer = random(1, 3, 4, 5).to(memory_format=torch.channels_last), Conv2d(3, 2, 3, padding=1, bias=False).double()
    layer(maps).sum().backward()
    assert maps.grad is None
    assert layer.weight.grad is not None


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_after_a_convolution(monkeypatch: pytest.MonkeyPatch, training: bool) -> None:
    monkeypatch.setattr(convolutions, "_FEWEST_CHANNELS", 1)
    torch.manual_seed(3)
    layer, norm = Conv2d(3, 4, 3, padding=1, bias=False).double(), nn.BatchNorm2d(4).double()
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert values is not None
        nn.init.uniform_(values, 0.5, 2)
    maps = random(2, 3, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    inputs = [maps, layer.weight, norm.weight, norm.bias]
    norm.train(training)  # with `layer` in train() either way: batch norms are frozen in some recipes
    plain = copy.deepcopy(norm)
    found = conv_bn(maps, layer, norm)
    expected = plain(F.conv2d(maps, layer.weight, padding=1))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, inputs), gradients(expected, [maps, layer.weight, plain.weight, plain.bias]))
    torch.testing.assert_close(norm.running_var, plain.running_var)


def test_layers_fold_what_can_be_folded() -> None:
    torch.manual_seed(4)
    layers = [Conv2d(3, 4, 3), nn.ReLU(), Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)]
    ours, plain = Layers(*layers).double().eval(), nn.Sequential(*layers)
    calls: list[nn.Module] = []
    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: calls.append(module))
    maps = random(2, 3, 7, 8)
    torch.testing.assert_close(ours(maps), plain(maps))
    assert calls == [layers[0], layers[1], layers[4], *layers]


@pytest.mark.parametrize("context", ["pyramid", "aspp"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("size", [(33, 33), (71, 50)])
def test_an_attack_sees_the_network_that_inference_does(
    context: ContextName, layout: torch.memory_format, size: tuple[int, int]
) -> None:
    """Folding and factorising change no gradient of an image: it is that of the layers, one by one."""
    torch.manual_seed(5)
    network = build_segmenter(ModelConfig(backbone="resnet10", width=8, context=context), classes=3).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.rand(2, 3, *size, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    with eval_mode(network):
        found = network(images)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)  # so that no batch norm is folded
            patched.setattr(ContextConv2d, "convolve", _plain)
            expected = network(images)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients(found, [images]), gradients(expected, [images]), rtol=1e-9, atol=1e-12)


def _plain(layer: ContextConv2d, context: Context, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(context.concatenated(), weight, bias, padding=layer.padding)
