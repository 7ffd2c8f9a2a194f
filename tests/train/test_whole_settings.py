"""Whole models of others in a configuration: settings, weights, and what is said where they do not fit."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ddcat_train.config import Config, ModelConfig, load_config, network
from ddcat_train.errors import CheckpointError, ConfigError
from ddcat_train.networks.whole import CutSegmenter, UncutSegmenter, build_whole, sources
from ddcat_train.networks.whole.weights import load_state
from tests.train.test_whole import CLASSES, SEGFORMER, Plain


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
        (["model.whole=hf", "model.settings={model_type: segforme}"], "no model_type segforme: the nearest .* is segformer"),
        (["model.whole=hf", "model.settings={model_type: convnext}"], "convnext is a backbone, .*: use model.backbone hf"),
        (
            ["model.whole=hf", "model.settings={model_type: clipseg}"],
            r"no clipseg that maps images alone to classes of pixels: use .* or a module .* of ddcat\.segmenters",
        ),
        (["model.whole=hf", "model.settings={model_type: segformer, depth: 3}"], "no setting depth: the nearest is depths"),
        (["model.whole=hf", "model.settings=nowhere"], r"nowhere cannot be read \(No such file or directory\): use the folder"),
        (["model.whole=smp", "model.settings={encoder_name: resnet18}"], "which model of smp it is: use its key arch"),
        (["model.cut=head"], "model.cut is for a whole model: name its library by model.whole"),
        (["model.whole=hf", f"model.settings={SEGFORMER}", "model.pretrained=a"], "a whole model has model.weights"),
        (["model.whole=hf", f"model.settings={SEGFORMER}", "method.deep_weight=0.4"], "no head of deep supervision: use 0"),
        (["model.whole=hf", f"model.settings={SEGFORMER}", "model.mean=[0, 0, 0]"], "mean and model.std belong together"),
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


def test_a_model_that_asks_for_more_than_images(packaged: Callable[..., None]) -> None:
    class Told(Plain):
        def forward(self, images: Tensor, task: Tensor, *, names: Any, size: int = 3, **others: Any) -> Any:
            return super().forward(images)

    packaged(Told)
    message = r"mine asks for task, names besides images: wrap it in a module that takes images alone, .* ddcat\.segmenters"
    with pytest.raises(ConfigError, match=message):
        build_whole(described(whole="mine", settings={}), classes=CLASSES, heads=("main",))


def test_a_model_that_cannot_be_cut_is_for_methods_without_branches(packaged: Callable[..., None]) -> None:
    class Doubled(Plain):
        def forward(self, images: Tensor) -> Any:
            return super().forward(images) * 2

    packaged(Doubled)
    config, notes = described(whole="mine", settings={}), list[str]()
    network = build_whole(config, classes=CLASSES, heads=("main",), notes=notes)
    assert isinstance(network, UncutSegmenter)
    assert notes == ["mine: it is not cut; images are padded to multiples of 32"]
    with pytest.raises(
        ConfigError, match=r"no layer of Doubled .*; a method without branches, such as pgd-at, trains it as it"
    ):
        build_whole(config, classes=CLASSES, heads=("main", "auxiliary"))
    with pytest.raises(ConfigError, match=r"model\.cut head: these layers do not give the logits of Doubled"):
        build_whole(described(whole="mine", settings={}, cut="head"), classes=CLASSES, heads=("main",))


def test_a_size_that_is_named_and_does_not_fit(packaged: Callable[..., None]) -> None:
    packaged(Plain)
    message = r"Plain takes no images \(N, 3, H, W\) of 129 x 162: the size is odd; name by model\.multiple"
    with pytest.raises(ConfigError, match=message):
        build_whole(described(whole="mine", settings={}, multiple=3), classes=CLASSES, heads=("main",))


def test_a_backbone_inside_that_takes_one_size() -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    backbone = {
        "model_type": "hiera", "embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 4],
        "out_features": ["stage1", "stage2", "stage3", "stage4"],
    }  # fmt: skip
    settings = {
        "model_type": "upernet", "hidden_size": 8, "auxiliary_in_channels": 32, "auxiliary_channels": 8,
        "backbone_config": backbone,
    }  # fmt: skip
    network = build_whole(described(whole="hf", settings=settings), classes=CLASSES, heads=("main",))
    assert network.largest == 64


def test_channels_that_come_last_are_said(packaged: Callable[..., None]) -> None:
    class Last(Plain):
        def forward(self, images: Tensor) -> Any:
            return self.head(self.body(images.permute(0, 3, 1, 2)))

    packaged(Last)
    message = r"mine takes no images \(N, 3, H, W\) of 128 x 160: .*channels.*; let its settings fit .* such as \(N, H, W, 3\)"
    with pytest.raises(ConfigError, match=message) as caught:
        build_whole(described(whole="mine", settings={}), classes=CLASSES, heads=("main",))
    assert "\n" not in str(caught.value)


def dinov2(**settings: Any) -> dict[str, Any]:
    return {
        "model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "patch_size": 14,
        "out_features": ["stage1", "stage2", "stage3", "stage4"], **settings,
    }  # fmt: skip


def test_images_are_padded_to_patches_of_the_backbone_inside() -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    settings = {
        "model_type": "upernet", "hidden_size": 8, "auxiliary_in_channels": 16, "auxiliary_channels": 8,
        "backbone_config": dinov2(image_size=56),
    }  # fmt: skip
    network = build_whole(described(whole="hf", settings=settings), classes=CLASSES, heads=("main",))
    assert isinstance(network, CutSegmenter)
    assert network.prepared(torch.rand(1, 3, 57, 90)).shape == (1, 3, 70, 98)


@pytest.mark.parametrize(("stated", "side"), [(56, 56), (60, 70)])
def test_the_size_of_the_backbone_inside_in_whole_patches(stated: int, side: int) -> None:
    pytest.importorskip("transformers", reason='transformers is not installed: pip install ".[hf]"')
    settings = {  # DPT's own size of images, 384, says nothing where it has a backbone; other sizes than squares it refuses
        "model_type": "dpt", "hidden_size": 16, "num_attention_heads": 2, "is_hybrid": False, "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8, "backbone_config": dinov2(image_size=stated, reshape_hidden_states=False),
    }  # fmt: skip
    network = build_whole(described(whole="hf", settings=settings), classes=CLASSES, heads=("main",))
    assert network.largest == side


def test_a_folder_of_smp_and_channels_that_are_flipped(tmp_path: Path) -> None:
    content = {"_model_class": "Unet", "_version": "1", "encoder_name": "resnet18", "classes": 3, "encoder_weights": "imagenet"}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": None, "do_flip_channel_order": True}))
    found = described(whole="smp", settings=tmp_path)
    assert found.settings == {"arch": "Unet", "encoder_name": "resnet18"}
    assert (found.mean, found.channels, found.architecture) == ((0, 0, 0), "BGR", "Unet + resnet18")
    for wrong, message in (("{}", "has no _model_class"), ("[]", "holds no table of settings"), ("{", "is not JSON")):
        (tmp_path / "config.json").write_text(wrong)
        with pytest.raises(ValueError, match=message):
            described(whole="smp", settings=tmp_path)


@pytest.mark.parametrize("whole", ["smp", "torchvision"])
def test_libraries_are_asked_for_random_weights(whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def make(*given: Any, classes: int = 0, num_classes: int = 0, **options: Any) -> nn.Module:
        asked.append((given, options))
        return Plain(classes or num_classes)

    libraries = {
        "segmentation_models_pytorch": SimpleNamespace(create_model=make),
        "torchvision": SimpleNamespace(),
        "torchvision.models": SimpleNamespace(get_model=make),
    }
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)
    settings = {"smp": {"arch": "Unet", "encoder_weights": "imagenet"}, "torchvision": {"name": "lraspp", "weights": "X"}}[
        whole
    ]
    made = build_whole(described(whole=whole, settings=settings, multiple=2), classes=CLASSES, heads=("main",))
    assert made(torch.rand(1, 3, 40, 50)).shape == (1, CLASSES, 40, 50)
    expected = {
        "smp": ((), {"arch": "Unet", "encoder_weights": None}),
        "torchvision": (("lraspp",), {"weights": None, "weights_backbone": None}),
    }
    assert asked == [expected[whole]]
    for name in libraries:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f"{whole} .*(needs torchvision: pip install torchvision|a library is missing)"):
        build_whole(described(whole=whole, settings=settings, multiple=2), classes=CLASSES, heads=("main",))


def test_weights_of_torch_save(tmp_path: Path) -> None:
    file, model = tmp_path / "weights.pth", Plain(CLASSES)
    torch.save({"state_dict": Plain(CLASSES).state_dict()}, file)
    load_state(model, file, [])
    assert torch.equal(model.state_dict()["body.0.weight"], torch.load(file)["state_dict"]["body.0.weight"])
    for content, message in (([torch.zeros(1)], "holds no state_dict"), ({"x": Plain}, "holds more than tensors")):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=message):
            load_state(model, file, [])
    file.with_suffix(".safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(model, file.with_suffix(".safetensors"), [])
