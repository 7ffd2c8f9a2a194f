"""
What TensorRT for RTX builds on a machine without a GPU: the plans' sizes, the time of their builds, and what its parser takes.

    python bench/cpu/tensorrt_plans.py docs/results/tensorrt-rtx

Networks of presets, with random weights, are exported for one size, two sizes and free sizes, in fp32, fp16, bf16 and int8, and
built for several compute capabilities. Neither layers nor sizes depend on the values of weights, nor on the ranges of int8,
which are the same number for all tensors here. Then the parser is given the official node cases of the ONNX that is installed.
The results are OUT.json and the tables of OUT.md.
"""

import argparse
import json
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.test.loader import load_model_tests

from ddcat.atomic_files import write_text
from ddcat.choices import Precision
from ddcat.cli_support import run
from ddcat.engines.errors import EngineError
from ddcat.engines.tensorrt.plan import profiles_of
from ddcat.engines.tensorrt.trt_rtx import api
from ddcat.manifest import Sizes
from ddcat_bench.describe import describe_environment
from ddcat_export.bundle_builder import shapes_of_engine
from ddcat_export.engines.tensorrt.graph import adapt
from ddcat_export.engines.tensorrt.parser_check import check_nodes
from ddcat_export.engines.tensorrt.plan_builder import build_plan
from ddcat_export.engines.tensorrt.trt_rtx import compute_for
from ddcat_export.onnx_export import MINIMUM_SIZE, build_graph
from ddcat_export.precision_cast import cast_graph
from ddcat_export.quantise import quantise, quantised_tensors
from ddcat_train.config import load_config
from ddcat_train.networks import build_segmenter

NETWORKS = {  # preset, its classes, two sizes of images
    "MobileNetV2 + pyramid": ("camvid-ddcat", 11, ((180, 240), (360, 480))),
    "PSPNet-50": ("voc-pspnet50-ddcat", 21, ((321, 321), (473, 473))),
    "DeepLabv3-50": ("voc-deeplabv3_50-ddcat", 21, ((321, 321), (473, 473))),
}
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
ONE, SEVERAL, TURING = ("sm89",), ("sm80", "sm86", "sm89", "sm120"), ("sm75",)
BUILDS = (("one", ONE), ("one", SEVERAL), ("one", TURING), ("two", SEVERAL), ("free", SEVERAL))
RANGE = 4.0  # of every tensor in int8


def main() -> None:
    """Build all plans, parse all cases, and write what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="of the results, without a suffix")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="build this one (default: all)")
    arguments = parser.parse_args()
    began = time.monotonic()
    plans = [row for name in arguments.network or NETWORKS for row in plans_of(name)]
    result = {"runtime": api.runtime, "plans": plans, "cases": official_cases()}
    environment = describe_environment(torch.device("cpu"), time.monotonic() - began).model_dump(mode="json")
    write_text(arguments.out.with_suffix(".json"), json.dumps({**result, "environment": environment}, indent=1) + "\n")
    write_text(arguments.out.with_suffix(".md"), markdown({**result, "environment": environment}))


def plans_of(name: str) -> list[dict[str, Any]]:
    """Export a network for each kind of sizes, and build it in each precision for each group of capabilities."""
    preset, classes, (small, large) = NETWORKS[name]
    torch.manual_seed(0)
    segmenter = build_segmenter(load_config(preset).model, classes=classes).eval()
    rows = []
    for kind in ("one", "two", "free"):
        sizes: Sizes | None = {"one": (small,), "two": (small, large), "free": None}[kind]
        fp32 = build_graph(segmenter, sizes=sizes, logits=True, confidence=False)
        max_size = large if sizes is None else None
        shapes = shapes_of_engine("trt-rtx", sizes, minimum=MINIMUM_SIZE, max_size=max_size, max_batch=1)
        for precision in PRECISIONS:
            graph = adapt(typed(fp32, precision), api.title, onnx.defs.onnx_opset_version(), int8=precision == "int8")
            for targets in [targets for of, targets in BUILDS if of == kind]:
                row = {"network": name, "precision": precision, "sizes": kind, "of": [small, large], "for": targets}
                start = time.monotonic()
                try:
                    plan = build_plan(api, graph, profiles_of(shapes), compute_for(targets))
                    row |= {"layers": plan.layers, "plan_bytes": len(plan.content), "seconds": time.monotonic() - start}
                except EngineError as refusal:
                    row["refused"] = str(refusal)
                print(row, flush=True)
                rows.append({**row, "graph_bytes": len(graph)})
    return rows


def typed(graph: bytes, precision: Precision) -> bytes:
    """Write an fp32 graph in a precision."""
    if precision == "int8":
        return quantise(graph, dict.fromkeys(quantised_tensors(graph), RANGE))
    return graph if precision == "fp32" else cast_graph(graph, precision)


def official_cases() -> dict[str, Any]:
    """Give the parser each official node case, and count by operator what it takes."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = load_model_tests(kind="node")
    for case in cases:
        nodes = case.model.graph.node
        if len(nodes) == 1 and not nodes[0].domain:
            verdict = check_nodes(case.model.SerializeToString())
            found[nodes[0].op_type][0] += not verdict.refused
            found[nodes[0].op_type][1] += 1
    return {"onnx": onnx.__version__, "operators": {name: found[name] for name in sorted(found)}}


def markdown(result: dict[str, Any]) -> str:
    """Make the page."""
    operators = result["cases"]["operators"]
    taken, cases = (sum(counts[index] for counts in operators.values()) for index in (0, 1))
    every = [name for name, (good, total) in operators.items() if good == total]
    some = [f"{name} ({good} of {total})" for name, (good, total) in operators.items() if 0 < good < total]
    none = [name for name, (good, _) in operators.items() if good == 0]
    environment = result["environment"]
    about = ", ".join(f"{name} {value}" for name, value in environment["machine"].items())
    lines = [
        "# Plans of TensorRT for RTX, built without a GPU",
        "",
        f"`python bench/cpu/tensorrt_plans.py docs/results/tensorrt-rtx` with {result['runtime']} on {environment['date']}: "
        f"{about}. Other work ran on the machine, so the times are upper bounds.",
        "",
        "The plans were built, but not run. Their speed and their labels on a GPU were not measured. `layers` is the number of",
        "layers that NVIDIA's parser makes of the graph. A plan for two sizes has two profiles. Free sizes go from 33 x 33 to",
        "the larger size.",
        "",
    ]
    for name in dict.fromkeys(row["network"] for row in result["plans"]):
        rows = [row for row in result["plans"] if row["network"] == name]
        small, large = ("x".join(map(str, size)) for size in rows[0]["of"])
        lines += [
            f"## {name}, {small} and {large}",
            "",
            "| sizes | precision | for | graph, MB | layers | plan, MB | build, s |",
            "|---|---|---|---:|---:|---:|---:|",
            *(
                f"| {row['sizes']} | {row['precision']} | {', '.join(row['for'])} | {row['graph_bytes'] / 1e6:.1f} | "
                + (
                    "refused |||"
                    if "refused" in row
                    else f"{row['layers']} | {row['plan_bytes'] / 1e6:.1f} | {row['seconds']:.1f} |"
                )
                for row in rows
            ),
            "",
        ]
    seconds = np.array([row["seconds"] for row in result["plans"] if "refused" not in row])
    refusals = [row for row in result["plans"] if "refused" in row]
    told = [f"- {row['network']}, {row['precision']} for {', '.join(row['for'])}: {row['refused']}" for row in refusals]
    return "\n".join(
        [
            *lines,
            f"{len(seconds)} plans; the median build took {np.median(seconds):.1f} s, the longest {seconds.max():.1f} s.",
            "",
            *(["The builder refused these:", "", *told, ""] if told else []),
            "## Operators that the parser accepts",
            "",
            f"ONNX {result['cases']['onnx']} has {cases} official test cases with a single node. The parser accepts {taken} of "
            "them with the types that they have. A case passes all inputs at run time, and the parser often wants shapes, axes "
            "or scales as constants; with constants it accepts more. To check your own file, run "
            "`ddcat export FILE.onnx --check trt`.",
            "",
            f"- all cases accepted ({len(every)} operators): {', '.join(every)}",
            f"- some cases accepted ({len(some)}): {', '.join(some)}",
            f"- no case accepted ({len(none)}): {', '.join(none)}",
            "",
        ]
    )


if __name__ == "__main__":
    run(main)
