"""The command `ddcat export`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ddcat.choices import CalibrationKind, EngineName, Hardware, Precision
from ddcat.cli_support import ExpectDigest, RequireSignature, parse_size
from ddcat.extras import needing
from ddcat_export.confidence_options import Risk, TemperatureOption, parse_temperature
from ddcat_export.errors import ExportError
from ddcat_export.onnx_options import ClassesFile, FloatFile, Layout, Mean, Output, Scale, Std, onnx_options

if TYPE_CHECKING:
    from ddcat.manifest import Sizes

__all__ = ["app"]

app = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


@app.command()
def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT|FILE.onnx|BUNDLE", help="A checkpoint, a run directory, an ONNX file, or a bundle."),
    ],
    engine: Annotated[
        EngineName, typer.Option(help="Engine to build; ort: ONNX Runtime, trt: TensorRT, trt-rtx: TensorRT for RTX.")
    ] = "ort",
    precision: Annotated[
        Precision | None, typer.Option(help="Precision of the engine.", show_default="fp32, or the bundle's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Directory to write.", show_default="in the run directory, or beside the bundle"),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an earlier bundle. Without it an existing folder is refused.")
    ] = False,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HxW|dynamic",
            help="Size of the images that the engine accepts. Repeat the option for several sizes.",
            show_default="dynamic, or the bundle's",
        ),
    ] = None,
    max_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="Largest size of the images; smaller ones are accepted, too.", show_default="any"),
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Largest batch that the engine accepts.", show_default="any; for plans 8")
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Add the logits, at low resolution, to the outputs.")] = False,
    confidence: Annotated[
        bool, typer.Option("--confidence", help="Add the probability of each pixel's label to the outputs.")
    ] = False,
    temperature: TemperatureOption = None,
    risk: Risk = None,
    tiles: Annotated[
        int | None,
        typer.Option(
            min=64,
            max=2**14,
            metavar="SIDE",
            help="Cut larger images into tiles of SIDE x SIDE, which overlap by a quarter; this adds the logits.",
            show_default="images are not cut",
        ),
    ] = None,
    calibration: Annotated[
        CalibrationKind | None,
        typer.Option(help="Images for the calibration: clean ones, or mixed with attacked ones.", show_default="mixed"),
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Number of images for the calibration and, with --max-drop, for the evaluation of the precision.",
            show_default="32",
        ),
    ] = None,
    calibration_folder: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Images without labels to calibrate on.", show_default="the training split"),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="POINTS",
            help="Points of mIoU that int8, bf16 or fp16 may lose, on clean and on attacked images separately.",
            show_default="not measured",
        ),
    ] = None,
    finetune: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="UPDATES",
            help="Fine-tune the weights for int8 by this number of updates, under the attack of the training.",
            show_default="its weights as they are",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            min=17,
            max=22,
            metavar="N",
            help="ONNX opset of the graph, 17 to 22. Older runtimes need a lower one.",
            show_default="22",
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The data set's folder.", show_default="where it was in training")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="GPUS",
            help="GPUs that a plan of trt-rtx is for: a compute capability such as sm89, or current. Repeatable.",
            show_default="sm80, sm86, sm89, sm120",
        ),
    ] = None,
    hardware: Annotated[Hardware | None, typer.Option(help="GPUs that a plan of trt must run on.", show_default="this")] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Build a plan of trt that later minor versions of TensorRT can run.")
    ] = False,
    from_timing_cache: Annotated[
        bool,
        typer.Option("--from-timing-cache", help="Choose the same kernels as in a BUNDLE of trt, only from its timing cache."),
    ] = False,
    check: Annotated[
        Literal["trt"] | None,
        typer.Option(help="List the nodes of an ONNX file that TensorRT does not accept, and write nothing."),
    ] = None,
    compare_layers: Annotated[
        bool, typer.Option("--compare-layers", help="Compare each layer of the graph with PyTorch and write nothing.")
    ] = False,
    classes: ClassesFile = None,
    mean: Mean = None,
    std: Std = None,
    scale: Scale = None,
    output: Output = None,
    layout: Layout = None,
    reference: FloatFile = None,
    sign: Annotated[Path | None, typer.Option(metavar="KEY", help="Sign with this private key (PEM, elliptic curve).")] = None,
    require_signature: RequireSignature = None,
    expect_digest: ExpectDigest = None,
) -> None:
    """
    Export the main branch of a trained network into a bundle, proven to be that network; or rebuild a bundle.

    The graph takes uint8 RGB images (N, H, W, 3) and returns uint8 labels (N, H, W). Normalisation and argmax are inside. A
    graph is written only if it passes these checks: it has the requested opset and types; its bytes are the same without the
    other heads, and when traced at another size; ONNX Runtime computes the same with it as PyTorch, on images of many shapes.
    The engine must give a few images, clean and attacked, the same labels as PyTorch. These images and labels stay in the
    bundle.

    int8 is calibrated on images of the training split. With --max-drop the sensitivity of every layer is measured. The worst
    layers stay in float, until int8 loses at most that many points of mIoU, on clean and on attacked images of the validation
    split. With bf16 or fp16, nodes of dangerous ranges and the most sensitive nodes are kept in fp32, until 99.85 % of the
    labels are the same, too, under the attack of training and under CosPGD at 8/255.

    With --finetune UPDATES the weights are trained through the rounding of int8 to answer as the fp32 network does: on the
    training split, under the attack of training.

    A FILE.onnx of another program must take float images and return logits. Normalisation, the resizing of the logits and
    argmax are put around its graph, and the whole is compared with the file in ONNX Runtime. A quantised file becomes a bundle
    as it is, beside the float file that --reference names.

    From a BUNDLE, another engine is built from the graph inside, without torch and without the checkpoint.

    For example:

    - `ddcat export runs/camvid-ddcat` takes the run's best checkpoint and images of any size from 33x33 on.

    - `ddcat export runs/camvid-ddcat/last.safetensors --engine ort --size 180x240 --logits --out bundles/camvid`

    - `ddcat export runs/camvid-ddcat --engine openvino --precision bf16 --size 180x240 --size 360x480 --sign key.pem`

    - `ddcat export runs/camvid-ddcat --engine openvino --precision int8 --calibration mixed --max-drop 1`

    - `ddcat export runs/camvid-ddcat --engine openvino --precision bf16 --max-drop 0.2` keeps nodes in fp32.

    - `ddcat export runs/camvid-ddcat --engine ort --compare-layers` compares each layer with PyTorch after a refused export.

    - `ddcat export unet.onnx --classes classes.yaml --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 --data-root /data/roads`

    - `ddcat export bundles/camvid --engine trt --size 180x240` builds an engine on the machine with the GPU, without torch.

    - `ddcat export model.onnx --check trt` asks NVIDIA's parser, on any machine, whether it takes all nodes.

    - `ddcat export bundles/camvid --engine trt-rtx --for sm89 --size 180x240` builds one for L4 and L40S GPUs on any machine.
    """
    from ddcat.atomic_files import replacing
    from ddcat.bundle import MANIFEST, TrustPolicy, open_bundle
    from ddcat.engines import extra_of
    from ddcat_export.summary import summarise
    from ddcat_train.checkpoint_files import check_checkpoint

    if check is not None:
        _check_trt(source)
        return
    runtime = extra_of(engine)
    sizes = _sizes(size or [])
    of_images: dict[str, object] = {
        "--calibration": calibration,
        "--calibration-images": calibration_images,
        "--calibration-folder": calibration_folder,
    }
    limit: dict[str, object] = {"--max-drop": max_drop is not None}
    of_plans: dict[str, object] = {
        "--hardware": hardware,
        "--version-compatible": version_compatible,
        "--from-timing-cache": from_timing_cache,
    }
    options = _options(engine, of_plans, targets)
    largest = None if max_size is None else parse_size(max_size, option="--max-size")
    of_files: dict[str, Any] = {
        "classes": classes, "mean": mean, "std": std, "scale": scale, "output": output, "layout": layout,
        "reference": reference,
    }  # fmt: skip
    if (source / MANIFEST).is_file():
        given = {
            "--logits": logits,
            "--confidence": confidence,
            "--temperature": temperature,
            "--risk": risk is not None,
            "--tiles": tiles,
            "--data-root": data_root,
            "--compare-layers": compare_layers,
            **of_images,
            **limit,
            "--finetune": finetune,
            **{f"--{name}": value for name, value in of_files.items()},
        }
        _refuse(given, f"{source} is a bundle")
        place = source.resolve()  # "." has another parent
        folder = out or place.parent / "-".join(filter(None, (place.name, engine, precision)))
        trust = TrustPolicy.from_options(require_signature, expect_digest)
        with _status() as progress, replacing(folder, MANIFEST, force=force) as place:
            before = open_bundle(source, trust).manifest
            with needing(f"export,cpu,{runtime}" if engine == "trt-rtx" else f"export,{runtime}", ExportError):
                from ddcat_export.rebuild import rebuild

                made, replay = rebuild(
                    source, place, engine=engine, precision=precision, sizes=sizes, max_size=largest, max_batch=max_batch,
                    opset=opset, key=sign, options=options, from_timing_cache=from_timing_cache, trust=trust, progress=progress,
                )  # fmt: skip
        typer.echo(summarise(dataclasses.replace(made, path=folder), "the bundle", replay, rebuilt=before))
        return
    _refuse(
        {"--require-signature": require_signature, "--expect-digest": expect_digest, "--from-timing-cache": from_timing_cache},
        f"{source} is not a bundle",
    )
    chosen = precision or "fp32"
    foreign = source.suffix.lower() == ".onnx"
    _refuse_by_precision(chosen, of_images, limit, {"--finetune": finetune})
    if not foreign:
        check_checkpoint(source)
    beside = source if source.is_dir() else source.parent
    folder = out or beside / f"{source.stem if foreign else 'bundle'}-{engine}-{chosen}"
    # the graph is compared with PyTorch in ONNX Runtime
    runtimes = f"cpu,{runtime}" if engine in ("openvino", "trt-rtx") else runtime
    if compare_layers:
        _refuse({"--compare-layers": foreign}, f"{source} holds no layers of PyTorch")
        writes = {
            "--out": out,
            "--sign": sign,
            "--max-size": max_size,
            "--max-batch": max_batch,
            "--opset": opset,
            "--logits": logits,
            "--confidence": confidence,
            "--temperature": temperature,
            "--risk": risk is not None,
            "--tiles": tiles,
        }
        _refuse({**writes, "--data-root": data_root, "--for": targets, **of_plans}, "--compare-layers writes nothing")
        with needing(f"train,export,{runtimes}", ExportError):
            _compare_layers(source, chosen, sizes)
        return
    with (
        _status() as progress,
        replacing(folder, MANIFEST, force=force) as place,
        needing(f"train,export,{runtimes}", ExportError),
    ):
        from ddcat_export import exporting
        from ddcat_export.graph_checks import OPSET

        done = exporting.export(
            source, place, engine=engine, precision=chosen, sizes=sizes, max_size=largest, max_batch=max_batch, logits=logits,
            confidence=confidence, temperature=parse_temperature(temperature), risk=risk, tiles=tiles,
            calibration=calibration or "mixed", calibration_images=calibration_images or 32,
            calibration_folder=calibration_folder,
            max_drop=max_drop, finetune=finetune, data_root=data_root, options=options, key=sign, progress=progress,
            opset=opset or OPSET,
            **onnx_options(**of_files)._asdict(),
        )  # fmt: skip
    typer.echo(summarise(dataclasses.replace(done.bundle, path=folder), done.author, done.replay, done.parity, done.layers))


def _check_trt(file: Path) -> None:
    try:
        content = file.read_bytes()
    except OSError as cause:
        raise ExportError(f"{file} cannot be read ({cause.strerror}): give an ONNX file") from cause
    with needing("export,rtx", ExportError):
        from ddcat_export.engines.tensorrt.parser_check import check_nodes

        verdict = check_nodes(content)
    for line in verdict.refused:
        typer.echo(line)
    if verdict.refused:
        raise ExportError(f"{file}: {verdict.title} does not accept {len(verdict.refused)} of its {verdict.nodes} nodes")
    typer.echo(f"{file}: {verdict.title} accepts all of its {verdict.nodes} nodes")


def _compare_layers(checkpoint: Path, precision: Precision, sizes: "Sizes | None") -> None:
    from ddcat_export import exporting
    from ddcat_export.layer_diff import first_different
    from ddcat_export.parity import FP16_TOLERANCE, LOGIT_TOLERANCE

    with _status() as progress:
        layers = exporting.diff_layers(checkpoint, precision=precision, sizes=sizes, progress=progress)
    typer.echo("largest difference from PyTorch, in standard deviations of the layer's output")
    for layer in layers:
        typer.echo(f"{layer.error:8.1e}  {layer.name}  {'x'.join(map(str, layer.shape))}")
    tolerance = FP16_TOLERANCE if precision == "fp16" else LOGIT_TOLERANCE
    different = first_different(layers, tolerance)
    if different is not None:
        raise ExportError(f"the first layer that differs by more than {tolerance:g} is {different.name}")


def _options(engine: str, of_plans: Mapping[str, object], targets: list[str] | None) -> dict[str, object]:
    """Keyword arguments of the engine's `build`."""
    if engine != "trt":
        _refuse(of_plans, "this is not trt")
    if engine != "trt-rtx":
        _refuse({"--for": targets}, "this is not trt-rtx")
    options: dict[str, object] = {"targets": tuple(targets)} if targets else {}
    if of_plans["--hardware"]:
        options["hardware"] = of_plans["--hardware"]
    if of_plans["--version-compatible"]:
        options["version_compatible"] = True
    return options


def _refuse_by_precision(
    precision: Precision, of_images: Mapping[str, object], limit: Mapping[str, object], of_int8: Mapping[str, object]
) -> None:
    if precision != "int8":
        _refuse(of_int8, f"the precision is {precision}")
    if precision == "fp32":
        _refuse({**of_images, **limit}, "the precision is fp32")
    elif precision != "int8" and not any(limit.values()):
        _refuse(of_images, f"--max-drop is not given and the precision is {precision}")


def _sizes(texts: list[str]) -> "Sizes | None":
    if texts in ([], ["dynamic"]):
        return None
    return tuple(parse_size(text, otherwise=" or dynamic alone") for text in texts)


def _refuse(given: Mapping[str, object], because: str) -> None:
    for option, value in given.items():
        if value:
            raise ExportError(f"{option} has no effect here, because {because}: leave it out")


@contextmanager
def _status() -> Iterator[Callable[[str], None]]:
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda stage: None
        return
    with console.status("") as status:
        yield lambda stage: status.update(f"{stage} ...")
