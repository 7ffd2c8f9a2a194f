"""
What only a GPU can show of engines: TensorRT and ONNX Runtime with CUDA beside PyTorch, and what building again changes.

On a machine with a GPU, and ddcat installed with the extras `bench`, `export` and `gpu`:

    python bench/gpu/engines.py CHECKPOINT --size 473x473 --data-root DIR

CHECKPOINT is a run directory or a file: for PSPNet-50 a trained one, or that of
`bench/cpu/random_checkpoint.py voc-pspnet50-undefended`.
Each engine is exported by `ddcat export` (what is there already is not done again), labels the same images as PyTorch in true
fp32, and is timed with it in turns, from an array to labels in the host's memory. TensorRT then builds each plan several times
more: without its timing cache, and once from it. Combinations that are refused stand in the table with the reason. The results
are OUT/ENGINE-PRECISION.json for each, which is not measured again, and OUT/engines.md of all that are there. `--rehearse` goes
through all of it on a CPU, with the engines that run there.
"""

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ddcat.atomic_files import write_text
from ddcat.bundle import Bundle, entries, open_bundle
from ddcat.cli_support import run
from ddcat.engines import Engine, open_engine
from ddcat.errors import DdcatError
from ddcat_bench.describe import describe_environment
from ddcat_bench.inputs import main_branch, open_bundle_data, reference_of
from ddcat_bench.timing.interleave import interleave, ratio, timing
from ddcat_bench.timing.pytorch_models import torch_labels
from ddcat_bench.timing.speed import draw_inputs
from ddcat_export.engines import build_engine
from ddcat_export.engines.tensorrt.flags import TIMINGS
from ddcat_train.networks import Segmenter
from ddcat_train.pixels import to_planes
from ddcat_train.tf32 import forbid_tf32

COMBINATIONS = {
    "cuda": [("trt", "fp32"), ("trt", "fp16"), ("trt", "int8"), ("trt-rtx", "fp32"), ("trt-rtx", "fp16"), ("ort", "fp32"),
             ("ort", "fp16")],
    "cpu": [("ort", "fp32"), ("openvino", "fp32"), ("trt", "fp32"), ("trt-rtx", "fp32")],
}  # fmt: skip
WARM_UP = 3

Images = npt.NDArray[np.uint8]


def main() -> None:
    """Export, compare, time and rebuild; write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--size", default="473x473", help="height and width of the images (default: 473x473)")
    parser.add_argument("--data-root", type=Path, help="the data set's folder (default: where it was in training)")
    parser.add_argument("--repeats", type=int, default=100, help="images that are compared and timed (default: 100)")
    parser.add_argument("--rebuilds", type=int, default=5)
    parser.add_argument("--only", metavar="ENGINE-PRECISION", help="measure this one, such as trt-fp16 (default: all)")
    parser.add_argument("--out", type=Path, default=Path("gpu/engines"))
    parser.add_argument("--rehearse", action="store_true", help="go through all of it on a CPU")
    arguments = parser.parse_args()
    device = torch.device("cpu" if arguments.rehearse else "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DdcatError("no GPU is here that PyTorch can use: --rehearse goes through it on a CPU")
    forbid_tf32()
    wanted = [pair for pair in COMBINATIONS[device.type] if arguments.only in (None, "-".join(pair))]
    if not wanted:
        raise DdcatError(f"--only {arguments.only}: use {', '.join('-'.join(pair) for pair in COMBINATIONS[device.type])}")
    for engine, precision in wanted:
        file = arguments.out / f"{engine}-{precision}.json"
        if file.exists():
            continue
        began = time.monotonic()
        row = examine(engine, precision, arguments, device)
        environment = describe_environment(device, time.monotonic() - began)
        about = {"checkpoint": str(arguments.checkpoint), "size": arguments.size, "rehearsal": arguments.rehearse}
        write_text(file, json.dumps({**about, **row, "environment": environment.model_dump(mode="json")}, indent=2) + "\n")
    found = [arguments.out / f"{'-'.join(pair)}.json" for pair in COMBINATIONS[device.type]]
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in found if file.exists()]
    write_text(arguments.out / "engines.md", markdown(rows))
    print(f"{arguments.out}: engines.md")


def examine(engine: str, precision: str, arguments: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Export one engine and measure it; or say why it is refused."""
    row: dict[str, Any] = {"engine": engine, "precision": precision}
    folder = arguments.out / f"{engine}-{precision}"
    refused = export(folder, arguments, engine, precision)
    if refused:
        return {**row, "refused": refused}
    bundle = open_bundle(folder)
    network = main_branch(reference_of(bundle, arguments.checkpoint), device)
    try:
        dataset = open_bundle_data(bundle, data_root=arguments.data_root)
    except DdcatError:
        dataset = None
    inputs = draw_inputs(bundle, dataset, repeats=arguments.repeats, batch=1, size=None)
    try:
        opened = open_engine(bundle)
    except DdcatError as refusal:  # a plan for GPUs that are not here
        return {**row, "refused": str(refusal)}
    with opened:
        row |= {"description": dict(opened.description), "inputs": inputs.description}
        row |= agreement(opened, network, inputs.batches[WARM_UP:], device)
        row |= speed(opened, network, inputs.batches, device)
    row["rebuilds"] = rebuild(bundle, inputs.batches[: 8 + WARM_UP], arguments.rebuilds)
    return row


def export(folder: Path, arguments: argparse.Namespace, engine: str, precision: str) -> str | None:
    """Export by the console command, unless it is done; gives the line that refuses, if one does."""
    if folder.exists():
        print(f"{folder} is there")
        return None
    words = ["ddcat", "export", str(arguments.checkpoint), "--engine", engine, "--precision", precision, "--size",
             arguments.size, "--logits", "--out", str(folder)]  # fmt: skip
    if engine == "trt-rtx" and not arguments.rehearse:
        words += ["--for", "current"]
    if arguments.data_root:
        words += ["--data-root", str(arguments.data_root)]
    print(f"$ {shlex.join(words)}", flush=True)
    command = [str(Path(sys.executable).with_name(words[0])), *words[1:]]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode not in (0, 2):
        raise DdcatError(f"ddcat export ended with {done.returncode}: {done.stderr.strip()}")
    return done.stderr.strip() if done.returncode else None


def agreement(engine: Engine, network: Segmenter, batches: list[Images], device: torch.device) -> dict[str, float]:
    """Compare labels, and logits by the 99.9th percentile of their errors, in standard deviations of PyTorch's."""
    equal, errors, squares, sums, count = 0, [], 0.0, 0.0, 0
    for images in batches:
        outputs = engine.infer(images)
        equal += int((outputs.labels == torch_labels(network, images, device)).sum())
        planes = to_planes(images, device)
        with torch.inference_mode():
            wanted = network.low_resolution_logits("main", network.features(planes)).cpu().numpy()
        assert outputs.logits is not None  # they were asked for in the export
        errors.append(np.abs(outputs.logits - wanted).ravel())
        squares, sums, count = squares + float((wanted**2).sum()), sums + float(wanted.sum()), count + wanted.size
    deviation = float(np.sqrt(squares / count - (sums / count) ** 2))
    pixels = sum(images.size // 3 for images in batches)
    return {"label_agreement": equal / pixels, "logit_error": float(np.quantile(np.concatenate(errors), 0.999)) / deviation}


def speed(engine: Engine, network: Segmenter, batches: list[Images], device: torch.device) -> dict[str, Any]:
    """Time the engine and PyTorch in turns."""
    turns = interleave(
        {"engine": lambda images: engine.infer(images).labels, "pytorch": lambda i: torch_labels(network, i, device)}, batches
    )[WARM_UP:]
    ours, theirs = ([turn[name] for turn in turns] for name in ("engine", "pytorch"))
    return {
        "engine_seconds": timing(ours).model_dump(),
        "pytorch_seconds": timing(theirs).model_dump(),
        "times_as_fast": ratio(theirs, ours).model_dump(),
    }


def rebuild(bundle: Bundle, batches: list[Images], times: int) -> list[dict[str, Any]]:
    """Build the engine again from the graph inside, and count the labels that change."""
    first, found = labels_of(bundle, batches), []
    for from_timings in [False] * times + [True] * (TIMINGS in bundle.files):
        began = time.monotonic()
        options: dict[str, Any] = {"timings": bundle.files[TIMINGS]} if from_timings else {}
        if bundle.manifest.engine.name == "trt-rtx":
            options["targets"] = ("current",)
        again = built_again(bundle, options)
        seconds = time.monotonic() - began
        labels = labels_of(again, batches)
        churn = float(np.mean([(a != b).mean() for a, b in zip(first, labels, strict=True)]))
        file = bundle.manifest.engine.file
        same = again.files[file] == bundle.files[file]
        found.append({"from_timings": from_timings, "seconds": seconds, "changed_labels": churn, "same_bytes": same})
    return found


def built_again(bundle: Bundle, options: dict[str, Any]) -> Bundle:
    """Give the bundle with an engine that is built anew; on no disk."""
    manifest = bundle.manifest
    engine, graph = manifest.engine, bundle.files[manifest.engine.graph]
    built = build_engine(
        engine.name, graph, file=engine.graph, precision=engine.requested_precision, shapes=manifest.shapes, **options
    )
    files = {**bundle.files, **built.files}
    return dataclasses.replace(
        bundle, files=files, manifest=manifest.model_copy(update={"engine": built.entry, "files": entries(files)})
    )


def labels_of(bundle: Bundle, batches: list[Images]) -> list[Images]:
    """Label images with a bundle's engine."""
    with open_engine(bundle) as engine:
        return [engine.infer(images).labels for images in batches]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Make the table."""
    result = rows[0]
    environment = result["environment"]
    lines = [
        f"# Engines on {environment['device']}",
        "",
        f"{result['checkpoint']} at {result['size']}, batch 1, beside the main branch in PyTorch, eager, true fp32."
        + (" A rehearsal: these figures say nothing." if result["rehearsal"] else ""),
        "",
        "| engine | precision | labels that agree | logit error, p99.9 / deviation | times as fast | labels changed by "
        "rebuilding, highest | from its timings | builds, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "refused" in row:
            lines.append(f"| {row['engine']} | {row['precision']} | refused: {row['refused']} ||||||")
            continue
        fresh = [one for one in row["rebuilds"] if not one["from_timings"]]
        repeated = [f"{one['changed_labels']:.4%}" for one in row["rebuilds"] if one["from_timings"]]
        lines.append(
            f"| {row['engine']} | {row['precision']} | {row['label_agreement']:.4%} | {row['logit_error']:.2g} | "
            f"{row['times_as_fast']['median']:.2f} | {max((one['changed_labels'] for one in fresh), default=0):.4%} | "
            f"{repeated[0] if repeated else 'has none'} | {np.median([one['seconds'] for one in row['rebuilds']]):.3g} s |"
        )
    about = ", ".join(f"{name} {value}" for name, value in {**environment["machine"], **environment["versions"]}.items())
    return "\n".join([*lines, "", f"Measured on: {environment['device']}; {about}.", ""])


if __name__ == "__main__":
    run(main)
