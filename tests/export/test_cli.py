"""The command and the bundle that it leaves: all of it, or nothing."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ddcat_export
from ddcat.bundle import Bundle, open_bundle
from ddcat.engines import open_engine
from ddcat.errors import DdcatError, WriteError
from ddcat.hashing import sha256_of_file
from ddcat.preprocess import Resize
from ddcat_export import exporting, sources
from ddcat_export.errors import ExportError
from ddcat_export.exporting import export
from ddcat_export.opsets import opset_of
from ddcat_export.parity import sample_images
from ddcat_train import imagenet
from ddcat_train.checkpoints import load_checkpoint
from tests.commands import call, refusal


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_the_command_says_what_was_proven_and_what_comes_next(run: Path, bundle: Bundle, printed: str) -> None:
    for expected in (
        "ort in fp32, CPUExecutionProvider, opset 22, image uint8, labels uint8, logits float32",
        f"without the {bundle.manifest.main_branch_only.spare_parameters} parameters of other heads, and its "
        f"{bundle.manifest.main_branch_only.multiply_adds} multiply-adds at 71x103 are those of the main branch",
        "on shapes 1x33x33, 2x33x65,",
        "worst logit error ",
        "4 golden images, clean and attacked (generated noise and waves, because the data set was missing): ",
        "labels differ from those of PyTorch",
        f"digest {bundle.digest}",
        f"ddcat fidelity {run / 'bundle-ort-fp32'}",
        f"ddcat serve {run / 'bundle-ort-fp32'}",
    ):
        assert expected in printed


def test_the_manifest_tells_where_it_comes_from(run: Path, bundle: Bundle) -> None:
    manifest = bundle.manifest
    heads = load_checkpoint(run).segmenter().heads
    floats = [v for name, head in heads.items() if name != "main" for v in head.state_dict().values() if v.is_floating_point()]
    assert manifest.main_branch_only.spare_parameters == sum(value.numel() for value in floats) > 0
    assert manifest.name == "my-run"
    assert manifest.source.checkpoint == str((run / "best.safetensors").resolve())
    assert manifest.source.sha256 == sha256_of_file(run / "best.safetensors")
    assert (manifest.source.method, manifest.source.step) == ("ddcat", 12)
    assert manifest.source.attack == {"epsilon": 0.03, "alpha": 0.01, "steps": 3, "start": "clean"}
    assert manifest.source.architecture == "resnet10 + aspp"
    assert manifest.data.model_dump() == {
        "name": "scenes", "root": "some/where", "split": "val", "list_sha256": "ab" * 32, "images": 7, "long_side": None
    }  # fmt: skip
    assert manifest.preprocessing.resize == Resize(to=96)
    assert manifest.class_table().names[1] == "red thing"
    assert (manifest.preprocessing.mean, manifest.preprocessing.std) == (imagenet.MEAN, imagenet.STD)
    assert manifest.shapes.height.model_dump() == {"minimum": 33, "maximum": None}
    assert manifest.opset == 22
    assert manifest.engine.provider == "CPUExecutionProvider"
    assert {"python", "ddcat", "torch", "onnx", "onnxscript", "onnxruntime", "numpy"} <= set(manifest.versions)


def test_the_server_opens_what_was_exported(bundle: Bundle) -> None:
    images = sample_images((1, 40, 48), 0)
    with open_engine(bundle, threads=1) as engine:
        outputs = engine.infer(images)
    assert outputs.labels.shape == images.shape[:3]
    assert outputs.logits is not None
    assert outputs.logits.shape == (1, 6, 5, 6)


def test_one_size_of_a_checkpoint_file(make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "prove_main_branch", lambda *given, **options: None)  # a second tracing, tested elsewhere
    path = tmp_path / "net v2.safetensors"
    shutil.copy(make_run("flat", method="undefended", context="aspp") / "best.safetensors", path)
    done = call("ddcat", "export", path, "--engine", "ort", "--size", "48x64")
    assert done.returncode == 0
    manifest = open_bundle(tmp_path / "bundle-ort-fp32").manifest
    assert manifest.name == "net-v2"
    assert (manifest.shapes.height.minimum, manifest.shapes.height.maximum) == (48, 48)
    assert (manifest.shapes.width.minimum, manifest.shapes.width.maximum) == (64, 64)
    assert manifest.shapes.batch.maximum is None
    assert [entry.shape for entry in (*manifest.inputs, *manifest.outputs)] == [("batch", 48, 64, 3), ("batch", 48, 64)]
    assert "on shapes 1x48x64, 2x48x64, 3x48x64:" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--engine", "tflite"], "invalid value for '--engine': 'tflite' is not one of 'ort', 'openvino', 'trt'"),
        (
            ["{run}", "--engine", "ort", "--precision", "bf16"],
            "ONNX Runtime does not compute in bf16 on a CPU, only in fp32 and",
        ),
        (["{run}", "--engine", "ort", "--precision", "fp8"], "invalid value for '--precision': 'fp8' is not one of"),
        (
            ["{run}", "--engine", "ort", "--expect-digest", "0"],
            "--expect-digest has no effect here, because {run} is not a bundle",
        ),
        (["{run}", "--engine", "ort", "--hardware", "ampere-plus"], "--hardware has no effect here, because this is not trt"),
        (
            ["{run}", "--engine", "openvino", "--version-compatible"],
            "--version-compatible has no effect here, because this is not",
        ),
        (
            ["{run}", "--engine", "trt", "--hardware", "any"],
            "invalid value for '--hardware': 'any' is not one of 'this', 'same-compute-capability'",
        ),
        (
            ["{run}", "--engine", "trt", "--from-timing-cache"],
            "--from-timing-cache has no effect here, because {run} is not a bundle",
        ),
        (
            ["{run}", "--engine", "ort", "--out", "{tmp}/out", "--sign", "{tmp}/none.pem"],
            "cannot sign with {tmp}/none.pem ([Errno 2] No such file",
        ),
        (["{run}", "--engine", "ort", "--out", "{tmp}/out", "--data-root", "{tmp}/none"], "{tmp}/none"),
        (
            ["{run}/bundle-ort-fp32", "--engine", "ort", "--logits"],
            "--logits has no effect here, because {run}/bundle-ort-fp32 is a",
        ),
        (["{run}", "--engine", "ort", "--size", "64"], "--size 64: use HEIGHTxWIDTH, such as 180x240, or dynamic alone"),
        (["{run}", "--engine", "ort", "--size", "dynamic", "--size", "64x64"], "--size dynamic: use HEIGHTxWIDTH"),
        (["{run}", "--engine", "ort", "--size", "64x-3"], "--size 64x-3: use HEIGHTxWIDTH"),
        (["{run}", "--engine", "ort", "--out", "{tmp}/out", "--size", "32x64"], "size 32x64 is too small: use 33x33 or more"),
        (["{tmp}/nothing", "--engine", "ort"], "no such checkpoint: {tmp}/nothing"),
        (["{tmp}", "--engine", "ort"], "{tmp} holds no best.safetensors"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    run: Path, bundle: Bundle, tmp_path: Path, arguments: list[str], message: str
) -> None:
    before = tree(run)
    said = refusal("ddcat", "export", *(argument.format(run=run, tmp=tmp_path) for argument in arguments))
    assert said.startswith(message.format(run=run, tmp=tmp_path))
    assert (tree(run), tree(tmp_path)) == (before, set())


@pytest.mark.parametrize("taken", ["a bundle", "a file"])
def test_what_is_there_is_not_overwritten(run: Path, bundle: Bundle, tmp_path: Path, taken: str) -> None:
    out = bundle.path if taken == "a bundle" else tmp_path / "file"
    if taken == "a file":
        out.write_text("mine")
    before = tree(run)
    with pytest.raises(DdcatError, match="exists already: name another one, or remove it first"):
        export(run, out)
    assert tree(run) == before


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, skip_what_is_slow: Callable[[pytest.MonkeyPatch], None]) -> pytest.MonkeyPatch:
    """The slow stages, already done."""
    skip_what_is_slow(monkeypatch)
    return monkeypatch


def test_the_same_checkpoint_gives_the_same_manifest(
    quick: pytest.MonkeyPatch, run: Path, bundle: Bundle, tmp_path: Path
) -> None:
    again = export(run, tmp_path / "bundle", logits=True).bundle.manifest
    source = again.source.model_copy(update={"git_commit": bundle.manifest.source.git_commit})  # of a checkout in use
    assert again.model_copy(update={"source": source}) == bundle.manifest


def test_a_folder_that_cannot_be_made_is_one_line(quick: pytest.MonkeyPatch, run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(WriteError, match=r"cannot write .*/file: Not a directory"):
        export(run, tmp_path / "file" / "bundle")
    assert tree(tmp_path) == {"file"}


@pytest.mark.parametrize("stage", ["golden_images", "build_graph", "prove_main_branch", "check_parity", "assemble"])
def test_a_failure_at_any_stage_leaves_nothing(quick: pytest.MonkeyPatch, run: Path, tmp_path: Path, stage: str) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ExportError(f"{stage} refuses")

    quick.setattr(sources if hasattr(sources, stage) else exporting, stage, fail)
    with pytest.raises(ExportError, match=f"{stage} refuses"):
        export(run, tmp_path / "bundle", logits=True)
    assert tree(tmp_path) == set()


def test_a_library_that_is_not_there_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ddcat_export, "exporting")
    monkeypatch.setitem(sys.modules, "ddcat_export.exporting", None)
    said = refusal("ddcat", "export", run, "--engine", "ort", "--out", run / "new")
    assert 'pip install ".[train,export,cpu]"' in said
    (run / "taken").write_text("mine")  # an argument that is wrong comes first
    assert "taken exists already" in refusal("ddcat", "export", run, "--engine", "ort", "--out", run / "taken")


def test_the_engine_is_onnx_runtime_where_none_is_named(tmp_path: Path) -> None:
    assert "no such checkpoint" in refusal("ddcat", "export", tmp_path / "none.safetensors")


def test_an_export_for_an_older_runtime_is_compared_with_pytorch_as_it_is(
    quick: pytest.MonkeyPatch, run: Path, tmp_path: Path
) -> None:
    swept = []
    quick.setattr(exporting, "check_parity", lambda content, *rest, **options: swept.append(opset_of(content)))
    made = export(run, tmp_path / "bundle", opset=20).bundle
    assert made.manifest.opset == opset_of(made.files["model.onnx"]) == 20
    assert swept == [22, 20]
