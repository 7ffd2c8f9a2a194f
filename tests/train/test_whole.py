"""Whole models of others: where they are cut, that the cut model is the whole one, and what is said where it cannot be cut."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from ddcat_train.config import Config, ModelConfig, load_config, network
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks.whole import Blueprint, CutSegmenter, build_whole, sources
from ddcat_train.networks.whole.calls import logits_of
from ddcat_train.networks.whole.cut import find_cut
from ddcat_train.networks.whole.weights import load_state

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


def blueprint(kind: Callable[[int], nn.Module], **options: Any) -> Blueprint:
    return Blueprint(kind, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), **{"multiple": 2, **options})


def cut(kind: Callable[[int], nn.Module], **options: Any) -> CutSegmenter:
    torch.manual_seed(0)
    return CutSegmenter(blueprint(kind, **options), classes=CLASSES, heads=("main", "auxiliary", "mask")).eval()


@pytest.mark.parametrize("kind", [Plain, InADict, AsksForStride])
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
        (SoftMax, None, "no layer of SoftMax gives its logits, or more than a resize follows it: name one by model.cut"),
        (SoftMax, "head", "more than a resize follows them; none fits: wrap it in a module that returns them"),
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


def described(**model: Any) -> ModelConfig:
    return ModelConfig.model_validate(model)


def test_a_whole_model_takes_the_place_of_a_presets_backbone() -> None:
    config = load_config("camvid-ddcat", ["model.whole=hf", f"model.settings={SEGFORMER}"])
    assert (config.model.backbone, config.model.architecture, config.method.deep_weight) == (None, "segformer", 0)
    assert config.model.settings is not None
    assert config.model.settings["mlp_ratios"] == [4, 4, 4, 4]  # resolved
    assert Config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.whole=mmseg"],
            "no such library of whole models: use hf, smp, torchvision, segmenter, or an entry point",
        ),
        (["model.whole=hf"], "model.whole hf needs model.settings, or model.weights with a folder that has them"),
        (["model.whole=hf", "model.settings={model_type: segforme}"], r"not a segmentation model of .* \(nearest: segformer\)"),
        (["model.whole=hf", "model.settings={model_type: segformer, depth: 3}"], "no setting depth: the nearest is depths"),
        (["model.whole=hf", "model.settings=nowhere"], r"nowhere cannot be read \(No such file or directory\): use the folder"),
        (["model.whole=smp", "model.settings={encoder_name: resnet18}"], "which model of smp it is: use its key arch"),
        (["model.cut=head"], "model.cut is for a whole model: name its library by model.whole"),
        (["model.whole=hf", f"model.settings={SEGFORMER}", "model.pretrained=a"], "a whole model has model.weights"),
        (["model.whole=hf", f"model.settings={SEGFORMER}", "method.deep_weight=0.4"], "no head of deep supervision: use 0"),
        (["model.whole=hf", f"model.settings={SEGFORMER}", "model.mean=[0, 0, 0]"], "mean and model.std are for each other"),
    ],
)
def test_what_does_not_fit_in_a_configuration(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config("camvid-ddcat", overrides)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_names_no_folder_to_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "segformer"}')
    config = load_config("camvid-ddcat", ["model.whole=hf", f"model.settings={tmp_path}"])
    tree = config.model_dump(mode="json")
    tree["model"]["settings"] = str(tmp_path)
    with pytest.raises(ValueError, match="expected the settings themselves, not the path of a file"):
        Config.model_validate_json(json.dumps(tree))


def saved(folder: Path, classes: int, preprocessing: Mapping[str, Any] | None = None) -> nn.Module:
    """A folder as it is downloaded."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation  # noqa: PLC0415 -- not everybody has it

    torch.manual_seed(3)
    options = {key: value for key, value in SEGFORMER.items() if key != "model_type"}
    model = SegformerForSemanticSegmentation(SegformerConfig(**options, num_labels=classes)).eval()
    model.save_pretrained(folder)
    if preprocessing is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return model


def test_weights_mean_and_settings_of_a_downloaded_folder(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "do_normalize": True, "rescale_factor": 1 / 255}
    model = saved(tmp_path, CLASSES, values)
    config = described(whole="hf", weights=tmp_path)
    assert (config.mean, config.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    notes: list[str] = []
    network = build_whole(config, classes=CLASSES, heads=("main", "mask"), weights=tmp_path, notes=notes).eval()
    images = torch.rand(2, 3, 64, 80)
    with torch.no_grad():
        logits = model(network.normalise(images)).logits
        torch.testing.assert_close(network.low_resolution_logits("main", network.features(images)), logits)
    (of_mask, where) = notes
    assert "2 tensors are of other classes there and begin random: decode_head.classifier" in of_mask
    assert where.startswith("segformer: each branch has decode_head.linear_fuse+")


@pytest.mark.parametrize(
    ("values", "message"),
    [({"rescale_factor": 1.0}, "multiplies images by 1, expected 1/255"), ({"do_normalize": False}, None)],
)
def test_other_preprocessing(tmp_path: Path, values: dict[str, Any], message: str | None) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    saved(tmp_path, CLASSES, values)
    if message is not None:
        with pytest.raises(ValueError, match=message):
            described(whole="hf", weights=tmp_path)
    else:
        assert described(whole="hf", weights=tmp_path).mean == (0, 0, 0)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    saved(tmp_path, CLASSES)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights \(model.safetensors or pytorch_model.bin\): download them"):
        build_whole(described(whole="hf", weights=tmp_path), classes=CLASSES, heads=("main",), weights=tmp_path)


def test_weights_of_other_classes_and_of_another_model(tmp_path: Path) -> None:
    file, notes = tmp_path / "weights.safetensors", list[str]()
    save_file(Plain(7).state_dict(), file)
    model = Plain(CLASSES)
    load_state(model, file, notes)
    assert notes == [f"{file}: 2 tensors are of other classes there and begin random: head.4.bias; head.4.weight"]
    save_file({"stem.weight": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"is of another model: it has stem\.weight, and not body\.0\.weight"):
        load_state(model, file, notes)
    with pytest.raises(CheckpointError, match="holds no weights: use a safetensors file"):
        load_state(model, tmp_path / "none", notes)


@pytest.mark.parametrize(
    ("raised", "message"),
    [
        (RuntimeError("operator torchvision::nms does not exist"), "the installed torchvision does not fit torch"),
        (ImportError("Mask2FormerLoss requires the scipy library"), "needs scipy: pip install scipy"),
        (ValueError("depths: bad\nand more"), "cannot be built of these settings: depths: bad"),
    ],
)
def test_what_libraries_raise(raised: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*given: Any) -> nn.Module:
        raise raised

    monkeypatch.setattr(sources, "load_hugging_face", failing)
    with pytest.raises(ConfigError, match=f"^hf segformer:? {message}") as caught:
        build_whole(described(whole="hf", settings=SEGFORMER), classes=CLASSES, heads=("main",))
    assert "\n" not in str(caught.value)


class _Entry:
    """As importlib.metadata gives it."""

    value = "my_package:build"

    def __init__(self, build: Any) -> None:
        self.build = build

    def load(self) -> Any:
        if isinstance(self.build, Exception):
            raise self.build
        return self.build


class _Entries(tuple[_Entry, ...]):
    names = ("mine",)


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let installed packages bring the segmenter `mine`."""

    def bring(*builds: Any) -> None:
        found = _Entries(map(_Entry, builds))
        for module in (network, sources):
            monkeypatch.setattr(module, "entry_points", lambda **wanted: found)

    return bring


def test_a_model_of_a_package(packaged: Callable[..., None]) -> None:
    packaged(lambda classes, corners: Plain(classes, resized=corners))
    config = described(whole="mine", settings={"corners": True}, multiple=2, mean=(0.1, 0.2, 0.3), std=(1, 1, 1))
    notes: list[str] = []
    made = build_whole(config, classes=CLASSES, heads=("main", "auxiliary", "mask"), notes=notes)
    assert isinstance(made, CutSegmenter)
    assert (made.cut.corners, config.architecture) == (True, "mine")
    assert notes == ["mine: each branch has head.0+head.1+head.2+head.3+head.4 of its own; images are padded to multiples of 2"]
    assert made.normalise.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("builds", "message"),
    [
        ((lambda classes: "a model",), r"the segmenter mine: expected a torch\.nn\.Module"),
        ((ImportError("no my_package"),), r"the segmenter mine is not at my_package:build, as its package says: no my_package"),
        ((Plain, Plain), "several packages bring the segmenter mine"),
        ((lambda classes, depth: Plain(classes),), "^mine cannot be built of these settings: .*depth"),
    ],
)
def test_a_package_that_does_not_bring_what_it_says(
    packaged: Callable[..., None], builds: tuple[Any, ...], message: str
) -> None:
    packaged(*builds)
    with pytest.raises(ConfigError, match=message):
        build_whole(described(whole="mine", multiple=2), classes=CLASSES, heads=("main",))


def test_the_multiple_is_tried(packaged: Callable[..., None]) -> None:
    class Strict(Plain):
        def __init__(self, classes: int, side: int) -> None:
            super().__init__(classes)
            self.side = side

        def forward(self, images: Tensor) -> Any:
            if images.shape[-1] % self.side or images.shape[-2] % self.side:
                raise ValueError(f"the size is no multiple of {self.side}")
            return super().forward(images)

    packaged(lambda classes, **settings: Strict(classes, settings["side"]))
    for side, multiple in ((2, 32), (64, 64)):
        made = build_whole(described(whole="mine", settings={"side": side}), classes=CLASSES, heads=("main",))
        assert made(torch.rand(1, 3, 40, 50)).shape == (1, CLASSES, 40, 50)
        assert made.prepared(torch.rand(1, 3, 40, 50)).shape[-1] % multiple == 0  # type: ignore[operator]
    message = r"mine takes no images \(N, 3, H, W\) of 128 x 160: the size is no multiple of 100; name by model.multiple"
    with pytest.raises(ConfigError, match=message):
        build_whole(described(whole="mine", settings={"side": 100}), classes=CLASSES, heads=("main",))
    fixed = build_whole(described(whole="mine", settings={"side": 100, "image_size": 100}), classes=CLASSES, heads=("main",))
    assert fixed.largest == 100


def test_channels_that_come_last_are_said(packaged: Callable[..., None]) -> None:
    class Last(Plain):
        def forward(self, images: Tensor) -> Any:
            return self.head(self.body(images.permute(0, 3, 1, 2)))

    packaged(Last)
    with pytest.raises(ConfigError, match=r"mine takes no images \(N, 3, H, W\) of 128 x 160: .*channels") as caught:
        build_whole(described(whole="mine", settings={}), classes=CLASSES, heads=("main",))
    assert "\n" not in str(caught.value)


def test_images_are_padded_to_patches_of_the_backbone_inside() -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    backbone = {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 56,
        "patch_size": 14, "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }  # fmt: skip
    settings = {
        "model_type": "upernet", "hidden_size": 8, "auxiliary_in_channels": 16, "auxiliary_channels": 8,
        "backbone_config": backbone,
    }  # fmt: skip
    network = build_whole(described(whole="hf", settings=settings), classes=CLASSES, heads=("main",))
    assert isinstance(network, CutSegmenter)
    assert network.prepared(torch.rand(1, 3, 57, 90)).shape == (1, 3, 70, 98)
