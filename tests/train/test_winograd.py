"""Convolutions with fewer products: torch's own in float64, values and gradients, and about as exact in float32."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ddcat_train.attacks import eval_mode
from ddcat_train.choices import ContextName
from ddcat_train.config import ModelConfig
from ddcat_train.networks import build_segmenter, winograd
from ddcat_train.networks.bilinear import Scheme
from ddcat_train.networks.convolution import Conv2d, Layers

SCHEMES = [Scheme(2, 0), Scheme(3, 0), Scheme(6, 0), Scheme(2, 1), Scheme(3, 1)]


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last if len(shape) == 4 else None)


def gradients(output: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(output.dtype)
    return list(torch.autograd.grad((output * weights).sum(), inputs))


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=25, deadline=None)
@given(
    data=st.data(),
    images=st.integers(1, 3),
    down=st.integers(1, 5),
    right=st.integers(1, 5),
    chunk=st.sampled_from([1, 1 << 24]),
)
def test_a_scheme_convolves(scheme: Scheme, data: st.DataObject, images: int, down: int, right: int, chunk: int) -> None:
    torch.manual_seed(1)
    most = 4 if scheme.border else scheme.size  # a whole map is no larger than a tile
    height, width = (data.draw(st.integers(1, most * dilation), label="size") for dilation in (down, right))
    maps, weight, bias = random(images, 5, height, width).requires_grad_(), random(4, 5, 3, 3).requires_grad_(), random(4)
    expected = F.conv2d(maps, weight, padding=(down, right), dilation=(down, right))
    slopes = gradients(expected, [maps, weight])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(winograd, "_CHUNK", chunk)  # with the smallest, channel by channel
        found = winograd.convolve(maps, weight, (down, right), scheme)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(gradients(found, [maps, weight]), slopes, rtol=1e-10, atol=1e-11)
        transformed = winograd.transform(weight.detach(), scheme)
        constant = winograd.convolve_with(maps, transformed, bias, (down, right), scheme)
        torch.testing.assert_close(constant, expected + bias[:, None, None], rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(gradients(constant, [maps]), slopes[:1], rtol=1e-10, atol=1e-11)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_products(scheme: Scheme) -> None:
    """What is multiplied in a tile, and no more: the figures of the module's table."""
    expected = {(2, 0): 9, (3, 0): 22, (6, 0): 100, (2, 1): 16, (3, 1): 25}
    assert scheme.products == expected[scheme.size, scheme.border]


@pytest.mark.parametrize(
    ("size", "dilation", "expected"),
    [
        ((35, 35), 1, Scheme(3, 1)),
        ((35, 35), 2, Scheme(3, 1)),
        ((35, 35), 4, Scheme(3, 1)),
        ((35, 35), 6, Scheme(6, 0)),
        ((35, 35), 12, Scheme(3, 0)),
        ((35, 35), 18, Scheme(2, 0)),
        ((35, 35), 35, None),  # the middle tap alone
        ((5, 5), 1, None),  # too few tiles to transform the weights for
    ],
)
def test_the_scheme_of_a_map(size: tuple[int, int], dilation: int, expected: Scheme | None) -> None:
    maps = torch.empty(2, 256, *size, device="meta")
    assert winograd.choose(maps, torch.empty(256, 256, 3, 3, device="meta"), (dilation, dilation)) == expected
    assert winograd.choose(maps, torch.empty(64, 256, 3, 3, device="meta"), (dilation, dilation)) is None


@pytest.mark.parametrize("dilation", [1, 2, 4, 6, 12, 18])
def test_rounding_in_float32(dilation: int) -> None:
    """No more than ten times that of a direct convolution, relative and in the mean."""
    torch.manual_seed(2)
    steps = (dilation, dilation)
    maps, weight = (random(*shape).float() for shape in ((2, 256, 35, 35), (256, 256, 3, 3)))
    scheme = winograd.choose(maps, weight, steps)
    assert scheme is not None

    def errors(convolve: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
        inputs = [maps.clone().requires_grad_(), weight.clone().requires_grad_()]
        output = convolve(*inputs)
        found = [output, *gradients(output, inputs)]
        return [((ours - truth).norm() / truth.norm()).item() for ours, truth in zip(found, exact, strict=True)]

    inputs = [maps.double().requires_grad_(), weight.double().requires_grad_()]
    output = F.conv2d(*inputs, padding=steps, dilation=steps)
    exact = [output, *gradients(output, inputs)]
    direct = errors(lambda *both: F.conv2d(*both, padding=steps, dilation=steps))
    ours = errors(lambda *both: winograd.convolve(*both, steps, scheme))
    assert all(own < 10 * other for own, other in zip(ours, direct, strict=True)), (ours, direct)


@pytest.fixture
def for_few_channels(monkeypatch: pytest.MonkeyPatch) -> list[Scheme]:
    """Schemes for the smallest of maps too; a list of those that were used."""
    used: list[Scheme] = []
    choose = winograd.choose
    monkeypatch.setattr(winograd, "_FEWEST_CHANNELS", 1)
    monkeypatch.setattr(winograd, "_WORTH", 0)

    def noting(*arguments: object) -> Scheme | None:
        scheme = choose(*arguments)  # type: ignore[arg-type]
        used.extend([scheme] if scheme else [])
        return scheme

    monkeypatch.setattr(winograd, "choose", noting)
    return used


@pytest.mark.parametrize("context", ["pyramid", "aspp"])
def test_networks_compute_what_torch_does(
    context: ContextName, for_few_channels: list[Scheme], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training, and in an attack in eval(), where the batch norms are folded in."""
    torch.manual_seed(3)
    network = build_segmenter(ModelConfig(backbone="resnet10", width=8, context=context, dropout=0), classes=3).double()
    network = network.to(memory_format=torch.channels_last)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that two passes see the same
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
    images = torch.rand(2, 3, 71, 50, dtype=torch.float64).to(memory_format=torch.channels_last).requires_grad_()
    learnt = [images, *network.parameters()]

    def passes() -> list[Tensor]:
        trained = network.train()(images)
        with eval_mode(network):
            first, second = network(images), network(2 * images)  # the second with weights that are kept
            return [trained, *gradients(trained, learnt), first, second, *gradients(first + second, [images])]

    found, used = passes(), set(for_few_channels)
    monkeypatch.setattr(Conv2d, "_same_size", lambda *_: False)
    torch.testing.assert_close(found, passes(), rtol=1e-8, atol=1e-11)
    assert len(used) > 2


def test_weights_are_kept_while_they_are_constant(for_few_channels: list[Scheme]) -> None:
    torch.manual_seed(4)
    layers = Layers(Conv2d(3, 4, 3, padding=2, dilation=2, bias=False), nn.BatchNorm2d(4)).double()
    convolution = layers[0]
    assert isinstance(convolution, Conv2d)
    maps = random(2, 3, 7, 8)
    with eval_mode(layers):
        before = layers(maps)
        with eval_mode(layers):
            layers(maps)
        (transformed,) = (convolution.kept or {}).values()
        layers(maps)
        assert list((convolution.kept or {}).values()) == [transformed]
    assert convolution.kept is None
    with torch.no_grad():
        convolution.weight.mul_(2)
    with eval_mode(layers):
        assert not torch.allclose(layers(maps), before)
    with pytest.raises(RuntimeError, match="within"), eval_mode(layers):
        raise RuntimeError("within")
    assert convolution.kept is None


@pytest.mark.parametrize("kind", ["bf16", "contiguous", "stride", "kernel", "padding", "groups"])
def test_others_are_left_to_torch(kind: str, for_few_channels: list[Scheme]) -> None:
    options: dict[str, dict[str, int]] = {"stride": {"stride": 2}, "padding": {"padding": 0}, "groups": {"groups": 2}}
    kernel = 5 if kind == "kernel" else 3
    layer = Conv2d(4, 4, kernel, **{"padding": 1, "bias": False, **options.get(kind, {})})
    maps = torch.randn(2, 4, 6, 7).to(memory_format=torch.contiguous_format if kind == "contiguous" else torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        layer(maps)
        with eval_mode(layer):
            layer(maps)
    assert for_few_channels == []
