"""What a person reads of a bundle that a GPU or int8 is in, which the command on a plain one does not show."""

import dataclasses
import re
from collections.abc import Callable

import pytest

from ddcat.bundle import Bundle
from ddcat.confidence import Temperature
from ddcat.manifest import Device, DeviceKinds, Golden, TensorEntry
from ddcat.manifest_precision import AccuracyDrop, Calibration, EqualLabels, Finetuning, KeptNode, MixedPrecision, Quantisation
from ddcat.preprocess import FileRule, Resize
from ddcat_serve.inspection import print_bundle

ATTACK = {"name": "bim", "steps": 3}
MIXED = Calibration(kind="mixed", images=8, split="train", list_sha256="2" * 64, attack=ATTACK)
CLEAN = Calibration(kind="clean", images=5, split="val", list_sha256="2" * 64, attack=None)
DROP = AccuracyDrop(clean=0.125, adversarial=1.5, images=30, attack={"name": "pgd", "steps": 10})


@pytest.fixture
def shown(bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """What is printed of a bundle with other entries in its manifest."""
    monkeypatch.setenv("COLUMNS", "250")

    def printed(**changes: object) -> str:
        print_bundle(dataclasses.replace(bundle, manifest=bundle.manifest.model_copy(update=changes)))
        return capsys.readouterr().out

    return printed


@pytest.mark.parametrize(
    ("calibration", "floats", "limit", "drop", "said", "unsaid"),
    [
        (
            MIXED, ("heads/main",), 1.0, DROP,
            [
                "12 layers in int8, 1 in float: heads/main",
                "calibrated on 8 mixed images of the train split (name bim, steps 3)",
                "it costs 0.12 points of clean and 1.50 of adversarial mIoU on 30 images (name pgd, steps 10); "
                "1 points of mIoU were allowed",
            ],
            ["no limit", "not measured"],
        ),
        (
            CLEAN, (), None, None,
            [
                "12 layers in int8, 0 in float: none", "calibrated on 5 clean images of the val split ",
                "its drop was not measured; no limit was set",
            ],
            ["it costs", "were allowed", "val split ("],
        ),
    ],
)  # fmt: skip
def test_how_a_graph_became_int8_is_told(
    shown: Callable[..., str], calibration: Calibration,
    floats: tuple[str, ...], limit: float | None, drop: AccuracyDrop | None, said: list[str], unsaid: list[str],
) -> None:  # fmt: skip
    entry = Quantisation(calibration=calibration, float_layers=floats, quantised_layers=12, max_drop=limit, drop=drop)
    printed = shown(quantisation=entry)
    assert [text for text in said if text not in printed] == []
    assert [text for text in unsaid if text in printed] == []


def test_the_nodes_that_stay_in_fp32_are_told(shown: Callable[..., str]) -> None:
    kept = (KeptNode(name="stem", reason="range", largest=123456.0), KeptNode(name="head", reason="labels"))
    entry = MixedPrecision(
        kept=kept, typed_nodes=12, calibration=MIXED, max_drop=0.5, drop=DROP, least_equal=0.999,
        equal_labels=EqualLabels(clean=0.9995, adversarial=0.99912), report="sensitivity.json",
    )  # fmt: skip
    printed = shown(mixed=entry)
    for text in (
        "2 nodes; 12 round to the precision", "stem: range, up to 1.23e+05", "head: labels ",
        "ranges measured on 8 mixed images of the train split (name bim, steps 3)",
        "equal labels: 99.950% clean, 99.912% attacked; 99.90% were needed",
        "it costs 0.12 points of clean and 1.50 of adversarial mIoU on 30 images (name pgd, steps 10); 0.5 points were allowed",
    ):  # fmt: skip
        assert text in printed
    assert "no nodes: none were looked for" in shown()


def test_weights_that_are_not_the_checkpoints_are_told(shown: Callable[..., str]) -> None:
    tuned = Finetuning(
        steps=20, batch_size=16, method="pgd-at", attack={"epsilon": 0.03, "steps": 3}, graph="model.onnx", elements=7, seed=0
    )
    entry = Quantisation(calibration=CLEAN, float_layers=(), quantised_layers=12, max_drop=None, drop=None, finetuning=tuned)
    printed = shown(quantisation=entry)
    assert "weights fine-tuned after the export by 20 updates of pgd-at, attacked (epsilon 0.03, steps 3)" in printed


def test_the_one_gpu_that_a_plan_runs_on_is_told(bundle: Bundle, shown: Callable[..., str]) -> None:
    device = Device(name="NVIDIA T4", compute_capability="7.5", driver="580.1", runtime="tensorrt 10.13.2.6")
    printed = shown(engine=bundle.manifest.engine.model_copy(update={"built_for": device}))
    assert "NVIDIA T4, compute capability 7.5, tensorrt 10.13.2.6 (driver 580.1) alone" in printed
    assert "any machine" not in printed


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (FileRule(), "as they are stored, and not resized"),
        (
            FileRule(orientation="exif", resize=Resize(to=512)),
            "turned as their EXIF orientation says, and resized to a long side of 512 pixels (area); masks have the size of",
        ),
        (
            FileRule(resize=Resize(to=(512, 768), kernel="linear")),
            "as they are stored, and resized to 512x768 (height x width)",
        ),
    ],
)
def test_what_becomes_of_image_files_is_shown(bundle: Bundle, shown: Callable[..., str], rule: FileRule, said: str) -> None:
    preprocessing = bundle.manifest.preprocessing.model_copy(update=dict(rule))
    assert re.search(rf"image files +│ {re.escape(said)}", shown(preprocessing=preprocessing))


def test_how_images_were_resized_before_schema_3_is_shown(bundle: Bundle, shown: Callable[..., str]) -> None:
    data = bundle.manifest.data.model_copy(update={"long_side": 512})
    assert "resized to a long side of 512 pixels when this engine was" in shown(data=data)


def test_bands_of_16_bits_kinds_of_gpus_temperatures_and_golden_labels_are_told(
    bundle: Bundle, shown: Callable[..., str]
) -> None:
    manifest = bundle.manifest
    device = DeviceKinds(compute_capabilities=("8.6", "8.9"), runtime="tensorrt_rtx 1.7")
    golden = Golden(file="golden.safetensors", images=2, source="made up", attack=ATTACK, labelled_by="ort")
    confidence = TensorEntry(name="confidence", dtype="float32", shape=("batch", "height", "width"))
    printed = shown(
        preprocessing=manifest.preprocessing.model_copy(update={"bands": (4, 1, 2), "values": (0, 4095)}),
        engine=manifest.engine.model_copy(update={"built_for": device}), golden=golden, main_branch_only=None,
        outputs=(*manifest.outputs, confidence), temperature=Temperature(value=1.5, images=7),
    )  # fmt: skip
    for text in (
        "bands [4, 1, 2], of 16 bits a channel, with 0 and 4095 as 0 and 255", "GPUs of compute capability 8.6, 8.9, tensorrt",
        "2 images and their adversarial ones (name bim, steps 3), made up; labelled by ort, not by the engine", "not proven",
        "the softmax of the logits / 1.5, a temperature that was fitted on 7 images of the val split",
    ):  # fmt: skip
        assert text in printed


HOSTILE = "x\x1b[2J\x1b]0;title\x07\x0apassport    pass\n\u202etxt"


def test_what_a_manifest_says_never_acts_on_the_terminal(bundle: Bundle, shown: Callable[..., str]) -> None:
    manifest = bundle.manifest
    classes = (manifest.classes[0].model_copy(update={"name": f"[bold]{HOSTILE}"}), *manifest.classes[1:])
    entry = Quantisation(
        calibration=CLEAN, float_layers=(HOSTILE,), quantised_layers=1, max_drop=None, drop=None
    )  # of each kind of row: plain, joined, of several lines
    source = manifest.source.model_copy(update={"checkpoint": HOSTILE, "attack": {HOSTILE: HOSTILE}})
    versions = {"ddcat": HOSTILE}
    printed = shown(
        classes=classes, quantisation=entry, source=source, versions=versions,
        data=manifest.data.model_copy(update={"root": HOSTILE}),
    )  # fmt: skip
    assert all(character == "\n" or character.isprintable() for character in printed)
    assert not re.search(r"^\W*passport +pass", printed, re.MULTILINE)
    assert printed.count(r"x\x1b[2J\x1b]0;title\x07\x0apassport") >= 5
    assert "[bold]x" in printed
