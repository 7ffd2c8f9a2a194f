"""Whole models of others: where they are cut, that the cut model is the whole one, and what is said where it cannot be cut."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddcat_train.errors import ConfigError
from ddcat_train.networks.whole import Blueprint, CutSegmenter, UncutSegmenter
from ddcat_train.networks.whole.calls import logits_of
from ddcat_train.networks.whole.cut import find_cut

CLASSES = 5
SEGFORMER = {
    "model_type": "segformer", "hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 8],
    "decoder_hidden_size": 32,
}  # fmt: skip


class Plain(nn.Module):
    """A body, one hidden layer and a classifier, at half of the size."""

    def __init__(self, classes: int, *, resized: bool | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True))
        self.head = nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout2d(0.2), nn.Conv2d(8, classes, 1)
        )
        self.resized = resized  # with aligned corners, without, or not at all

    def forward(self, images: Tensor) -> Any:
        if images.shape[-1] % 2 or images.shape[-2] % 2:
            raise ValueError("the size is odd")
        logits = self.head(self.body(images))
        if self.resized is not None:
            logits = F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=self.resized)
        return logits


class InADict(Plain):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": super().forward(images)}


class Functional(Plain):
    """Its activation is no module, so no chain leads to the classifier."""

    def forward(self, images: Tensor) -> Tensor:
        maps = F.relu(self.head[0](self.body(images)))
        logits: Tensor = self.head[4](maps)
        return logits


class AsksForStride(Plain):
    """Reads an attribute of the layer at which it is cut."""

    def forward(self, images: Tensor) -> Tensor:
        maps = self.body(images)
        assert self.head[0].stride == (1, 1)
        logits: Tensor = self.head(maps)
        return logits


class InPlace(Plain):
    """Normalises its images in their own memory."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.sub_(0.1).mul_(2))  # type: ignore[no-any-return]


class Shuffled(Plain):
    """Its classifier has four channels for each class, which become pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__(4 * classes)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.shuffle(super().forward(images))
        return logits


def blueprint(kind: Callable[[int], nn.Module], **options: Any) -> Blueprint:
    return Blueprint(kind, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), **{"multiple": 2, **options})


def cut(kind: Callable[[int], nn.Module], **options: Any) -> CutSegmenter:
    torch.manual_seed(0)
    return CutSegmenter(blueprint(kind, **options), classes=CLASSES, heads=("main", "auxiliary", "mask")).eval()


@pytest.mark.parametrize("kind", [Plain, InADict, AsksForStride, InPlace])
@pytest.mark.parametrize("corners", [None, False, True])
def test_the_cut_model_is_the_whole_one(kind: type[Plain], corners: bool | None) -> None:
    images = torch.rand(2, 3, 40, 50)
    network = cut(lambda classes: kind(classes, resized=corners))
    torch.manual_seed(0)
    whole = kind(CLASSES, resized=corners).eval()
    assert str(network.cut) == "head.0+head.1+head.2+head.3+head.4"
    with torch.no_grad():
        logits = logits_of(whole(network.normalise(images)))
        assert logits is not None
        if logits.shape[2:] != images.shape[2:]:
            logits = F.interpolate(logits, size=(40, 50), mode="bilinear", align_corners=False)
        torch.testing.assert_close(network(images), logits)
        outputs = network(images, ("main", "auxiliary", "mask"))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "main": (2, 5, 40, 50), "auxiliary": (2, 5, 40, 50), "mask": (2, 2, 40, 50),
    }  # fmt: skip


def test_branches_share_all_but_the_last_layers() -> None:
    network = cut(Plain)
    shared = {id(parameter) for parameter in network.shared()}
    own = [{id(parameter) for parameter in head.parameters()} for head in network.heads.values()]
    assert not shared & set.union(*own)
    assert len(set.union(*own)) == sum(map(len, own))
    assert {id(parameter) for parameter in network.parameters()} == shared | set.union(*own)
    main = torch.autograd.grad(network(torch.rand(1, 3, 40, 40), ("mask",))["mask"].sum(), tuple(network.shared()))
    assert all(gradient.any() for gradient in main)


def test_images_are_padded_with_the_mean_and_logits_cut() -> None:
    network = cut(Plain)
    seen: list[Tensor] = []
    network.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    images = torch.rand(2, 3, 33, 47)
    with torch.no_grad():
        logits = network(images)
    assert logits.shape == (2, 5, 33, 47)
    assert seen[0].shape == (2, 3, 34, 48)
    assert not seen[0][..., 33:, :].any()
    assert not seen[0][..., 47:].any()
    torch.testing.assert_close(seen[0][..., :33, :47], network.normalise(images))


def test_blue_first() -> None:
    network, other = cut(Plain, bgr=True), cut(Plain)
    images = torch.full((1, 3, 40, 40), 0.5)
    images[:, 0] = 0.9
    seen: list[Tensor] = []
    for each in (network, other):
        each.backbone.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
        each(images)
    assert torch.equal(seen[0], seen[1].flip(1))


def test_the_first_images_of_features() -> None:
    network = cut(Plain)
    with torch.no_grad():
        features = network.features(torch.rand(3, 3, 40, 40))
        torch.testing.assert_close(network.logits("auxiliary", features.first(2)), network.logits("auxiliary", features)[:2])


def test_a_size_that_it_does_not_take() -> None:
    network = cut(Plain, multiple=64, largest=64)
    with pytest.raises(ConfigError, match=r"takes images up to 64 x 64, got 70 x 40: use augment\.crop and data\.long_side"):
        network(torch.rand(1, 3, 70, 40))


def test_a_size_on_which_the_model_itself_fails() -> None:
    network = cut(Plain, multiple=1)
    with pytest.raises(
        ConfigError, match=r"fails on images of 33 x 40: the size is odd; use images of another size, or model\.multiple"
    ):
        network(torch.rand(1, 3, 33, 40))


class SoftMax(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).softmax(1)  # type: ignore[no-any-return]


class Doubled(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * 2  # type: ignore[no-any-return]


class ChannelsLast(Plain):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).permute(0, 2, 3, 1)  # type: ignore[no-any-return]


class AlwaysDrops(Plain):
    def forward(self, images: Tensor) -> Any:
        return self.head(F.dropout(self.body(images), 0.5))


class WithoutGradient(Plain):
    def forward(self, images: Tensor) -> Any:
        with torch.no_grad():
            maps = self.body(images)
        return self.head(maps)


class Twice(Plain):
    def forward(self, images: Tensor) -> Tensor:
        maps = self.head[0](self.head[0](self.body(images)))
        logits: Tensor = self.head[4](maps)
        return logits


class InAList(Plain):
    def forward(self, images: Tensor) -> str:
        return "segments"


@pytest.mark.parametrize(
    ("kind", "wanted", "message"),
    [
        (Plain, "heat", r"has no module heat: the nearest is head; use head\.0\+head\.1\+head\.2\+head\.3\+head\.4 or head or"),
        (Plain, "body", r"model\.cut body: these layers do not give the logits of Plain.*use head\.0"),
        (Plain, "head.4+head.0", "these layers do not give the logits"),
        (Twice, "head.0+head.4", r"calls 2 times head\.0, expected once; use head\.4"),
        (Plain, "head.0.weight", r"has no module head\.0\.weight"),
        (Doubled, None, "no layer of Doubled gives its logits, or more than a resize follows it: name one by model.cut"),
        (Doubled, "head", "more than a resize follows them; none fits: wrap it in a module that returns them"),
        (SoftMax, None, "SoftMax gives probabilities, expected logits: leave its softmax out"),
        (ChannelsLast, None, r"ChannelsLast gives logits \(N, h, w, K\), .*: let it return logits\.permute\(0, 3, 1, 2\)"),
        (AlwaysDrops, None, r"gives other logits each time: leave out what is random in eval\(\), such as F\.dropout without"),
        (WithoutGradient, "head.4", "the model detaches its images, by torch.no_grad, detach or numpy, so no attack has a"),
        (InAList, None, r"InAList gives a str, expected logits \(N, K, h, w\)"),
        (lambda classes: Plain(3), None, "Plain gives logits of 3 classes, expected 5"),
    ],
)  # fmt: skip
def test_a_wrong_cut_is_told_in_a_line(kind: Callable[[int], nn.Module], wanted: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        cut(kind, cut=wanted)
    assert "\n" not in str(caught.value)


def test_the_last_convolution_alone_where_no_layer_leads_to_it() -> None:
    assert str(find_cut(Functional(5).eval(), torch.rand(1, 3, 40, 40), 5)) == "head.4"


def test_a_classifier_whose_channels_become_pixels() -> None:
    network = cut(Shuffled)
    assert str(network.cut) == "head.0+head.1+head.2+head.3+head.4+shuffle"
    torch.manual_seed(0)
    whole, images = Shuffled(CLASSES).eval(), torch.rand(2, 3, 40, 50)
    with torch.no_grad():
        torch.testing.assert_close(network(images), whole(network.normalise(images)))


@pytest.mark.parametrize("kind", [Plain, InADict, InPlace, Doubled])
@pytest.mark.parametrize("corners", [None, False])
def test_a_model_that_is_not_cut(kind: type[Plain], corners: bool | None) -> None:
    torch.manual_seed(0)
    network = UncutSegmenter(blueprint(lambda classes: kind(classes, resized=corners)), classes=CLASSES).eval()
    torch.manual_seed(0)
    whole, images = kind(CLASSES, resized=corners).eval(), torch.rand(2, 3, 33, 47)
    with torch.no_grad():
        logits = logits_of(whole(F.pad(network.normalise(images), (0, 1, 0, 1))))
        assert logits is not None
        expected = logits if corners is False else F.interpolate(logits, size=(34, 48), mode="bilinear")
        torch.testing.assert_close(network(images), expected[..., :33, :47])
    assert {id(value) for value in network.shared()} == {id(value) for value in network.parameters()}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (SoftMax, "SoftMax gives probabilities"),
        (AlwaysDrops, "gives other logits each time"),
        (lambda classes: WithoutGradient(classes).requires_grad_(False), "the model detaches its images"),
        (InAList, "InAList gives a str"),
    ],
)
def test_what_is_no_model_of_logits_is_not_taken_uncut(kind: Callable[[int], nn.Module], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        UncutSegmenter(blueprint(kind), classes=CLASSES)
