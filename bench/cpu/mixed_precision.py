"""
What bf16 costs a trained model, all of it or with nodes in fp32: equal labels and time, in one run.

    python bench/cpu/mixed_precision.py docs/results/mixed-precision --runs runs/lite2-undefended --data-root /data/camvid

Of each run three bundles are made for OpenVINO by commands, each of which is printed before it runs; those that are there are
not made again. Beside them are timed, in turns: the fp32 graph in ONNX Runtime, the graph with all nodes cast to bf16 in
OpenVINO, and an fp32 graph with each rounding to bf16 as a pair of casts. Labels are compared with those of PyTorch, on clean
images, under training's PGD and under CosPGD of 20 steps at 8/255. The results are OUT.json and the tables of OUT.md.
"""

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddcat.atomic_files import write_text
from ddcat.bundle import Bundle, open_bundle
from ddcat.cli_support import run
from ddcat.engines import open_engine
from ddcat.engines.base import Images
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.engines.openvino import OpenVinoGraph
from ddcat.errors import DdcatError
from ddcat.progress import progress
from ddcat_bench.describe import describe_environment
from ddcat_bench.timing.interleave import interleave, times
from ddcat_bench.timing.pytorch_models import torch_labels
from ddcat_export.calibration import training_attack
from ddcat_export.data import ExportData
from ddcat_export.precision_cast import cast_graph, simulated
from ddcat_train.attacks import cospgd, pgd
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.pixels import to_8_bit, to_pixels, to_planes

_STRONG = {"epsilon": 8 / 255, "alpha": 0.01, "steps": 20}
KINDS = ("clean", "PGD", "CosPGD, n = 20")


def main() -> None:
    """Measure each run, and write what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="of the results, without a suffix")
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="trained runs, or checkpoints")
    parser.add_argument("--data-root", type=Path, required=True, help="where their data set lies")
    parser.add_argument("--size", default="180x240", help="of the images of the validation split (default: 180x240)")
    parser.add_argument("--max-drop", default="0.2", help="points (default: 0.2, the gate's margin)")
    parser.add_argument("--calibration-images", default="32", help="of each export (default: 32)")
    parser.add_argument("--work", type=Path, default=Path("mixed-work"), help="folder of bundles")
    parser.add_argument("--max-images", type=int, default=32, help="images, spread over the split (default: 32)")
    parser.add_argument("--repeats", type=int, default=30, help="timed calls of each contender (default: 30)")
    parser.add_argument("--threads", type=int, default=1, help="of each contender (default: 1)")
    arguments = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(arguments.threads)
    rows = [measure(path, arguments) for path in arguments.runs]
    environment = describe_environment(torch.device("cpu"), time.monotonic() - began).model_dump(mode="json")
    result = {"runs": rows, "threads": arguments.threads, "environment": environment}
    write_text(arguments.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(arguments.out.with_suffix(".md"), markdown(result))


def measure(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Export a run, and compare labels and times."""
    work = arguments.work / (path.stem if path.is_file() else path.name)
    options = ["--data-root", arguments.data_root, "--size", arguments.size]
    fp32 = exported(work / "fp32", path, "fp32", *options)
    hint = exported(work / "bf16", fp32.path, "bf16")
    kept = exported(
        work / "bf16-kept", path, "bf16", *options, "--max-drop", arguments.max_drop, "--calibration-images",
        arguments.calibration_images,
    )  # fmt: skip
    checkpoint = load_checkpoint(path)
    segmenter = checkpoint.segmenter().requires_grad_(requires_grad=False)
    samples = ExportData(checkpoint, root=arguments.data_root).val(arguments.max_images)
    graph = fp32.files["model.onnx"]
    cast = cast_graph(graph, "bf16")
    with contextlib.ExitStack() as stack:

        def opened(bundle: Bundle) -> Callable[[Images], Any]:
            return stack.enter_context(open_engine(bundle, threads=arguments.threads)).infer

        contenders: dict[str, Callable[[Images], Any]] = {
            "OpenVINO, fp32": opened(fp32),
            "OpenVINO, bf16 by the hint": opened(hint),
            "OpenVINO, bf16 with nodes in fp32": opened(kept),
            "OpenVINO, all nodes cast to bf16": stack.enter_context(
                OpenVinoGraph(cast, precision="bf16", threads=arguments.threads)
            ).run,
            "OpenVINO, fp32 with pairs of casts": stack.enter_context(
                OpenVinoGraph(simulated(cast), precision="fp32", threads=arguments.threads)
            ).run,
            "ONNX Runtime, fp32": stack.enter_context(OrtGraph(graph, threads=arguments.threads)).run,
            "ONNX Runtime, fp32 with pairs of casts": stack.enter_context(
                OrtGraph(simulated(cast), threads=arguments.threads)
            ).run,
        }
        differing = {name: dict.fromkeys(KINDS, 0) for name in contenders}
        pixels = 0
        attack = {key: value for key, value in training_attack(checkpoint).items() if key != "name"}
        with progress(f"comparing labels of {path.name}", len(samples)) as advance:
            for seed, sample in enumerate(samples):
                planes, labels = to_planes(sample.image), torch.from_numpy(sample.labels).long()
                seeds = torch.tensor([seed])
                shown = (
                    sample.image,
                    to_pixels(to_8_bit(pgd(segmenter, planes, labels, seeds=seeds, **attack), planes)),
                    to_pixels(to_8_bit(cospgd(segmenter, planes, labels, seeds=seeds, **_STRONG), planes)),
                )
                pixels += labels.numel()
                for kind, image in zip(KINDS, shown, strict=True):
                    expected = torch_labels(segmenter, image)
                    for name, answer in contenders.items():
                        differing[name][kind] += int(np.sum(answer(image).labels != expected))
                advance(1)
        images = [samples[turn % len(samples)].image for turn in range(arguments.repeats + 2)]
        turns = interleave(contenders, images)[2:]
    mixed = kept.manifest.mixed
    assert mixed is not None
    return {
        "run": path.name,
        "architecture": kept.manifest.source.architecture,
        "method": kept.manifest.source.method,
        "step": kept.manifest.source.step,
        "checkpoint": kept.manifest.source.sha256,
        "images": len(samples),
        "pixels": pixels,
        "attack": attack,
        "strong": _STRONG,
        "differing": differing,
        "times": {name: times([turn[name] for turn in turns]).model_dump() for name in contenders},
        "mixed": mixed.model_dump(mode="json"),
    }


def exported(out: Path, source: Path, precision: str, *options: object) -> Bundle:
    """Make a bundle of OpenVINO unless it is there."""
    if not out.exists():
        words = ["export", source, "--engine", "openvino", "--precision", precision, *options, "--out", out]
        print(f"$ ddcat {shlex.join(map(str, words))}", flush=True)
        done = subprocess.run([Path(sys.executable).with_name("ddcat"), *map(str, words)], check=False)
        if done.returncode:
            raise DdcatError(f"ddcat export ended with {done.returncode}")
    return open_bundle(out)


def markdown(result: dict[str, Any]) -> str:
    """Make the page."""
    environment = result["environment"]
    about = ", ".join(f"{name} {value}" for name, value in environment["machine"].items())
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("openvino", "onnxruntime", "torch"))
    lines = [
        "# bf16 with nodes in fp32",
        "",
        f"`python bench/cpu/mixed_precision.py docs/results/mixed-precision --runs ... --data-root DIR` with {versions} on "
        f"{environment['date']}: {about}. The engines were timed in turns, with batches of one and {result['threads']} thread. "
        "Other work ran on the machine, so only the ratios count.",
        "",
        'The columns "clean", "PGD" and "CosPGD" give the share of labels that are equal to PyTorch\'s: on clean images, under '
        "the PGD of training, and under CosPGD at 8/255.",
        "The gate asks for 99.8 % under all replayed attacks. The attacked images are made on the PyTorch model and rounded to "
        "8 bits. Every engine gets the same ones.",
        "",
    ]
    for row in result["runs"]:
        mixed = row["mixed"]
        base = row["times"]["OpenVINO, fp32"]["median"]
        lines += [
            f"## {row['run']}: {row['architecture']}, {row['method']}, step {row['step']}",
            "",
            f"{row['images']} images, {row['pixels']} pixels.",
            "",
            f"| engine | {' | '.join(KINDS)} | ms | share of fp32's time |",
            "|---|---:|---:|---:|---:|---:|",
            *(
                f"| {name} | "
                + " | ".join(f"{1 - counts[kind] / row['pixels']:.3%}" for kind in KINDS)
                + f" | {1000 * row['times'][name]['median']:.1f} | {row['times'][name]['median'] / base:.2f} |"
                for name, counts in row["differing"].items()
            ),
            "",
            f"{len(mixed['kept'])} of {mixed['typed_nodes'] + len(mixed['kept'])} nodes are kept in fp32. The first are "
            + ", ".join(f"`{node['name']}` ({node['reason']})" for node in mixed["kept"][:4])
            + f". The search used {mixed['drop']['images']} images. There {mixed['equal_labels']['clean']:.3%} of the labels "
            f"were equal on clean images and {mixed['equal_labels']['adversarial']:.3%} on attacked ones, and the mIoU fell by "
            f"{mixed['drop']['clean']:.2f} and {mixed['drop']['adversarial']:.2f} points.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
