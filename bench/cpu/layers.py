"""
Where the time of a network goes in OpenVINO, layer by layer, by the runtime's own counters.

    python bench/cpu/layers.py docs/results/layers voc-pspnet50-undefended:473x473 camvid-segformer_b0-undefended:473x473

Each network is given as PRESET:HEIGHTxWIDTH. Its weights are random, since the time does not depend on them. It is computed in
fp32 and in bf16 by the hint, in turns; the time of a layer is its median. The results are OUT.json, the tables of OUT.md and
the plot OUT.png.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import torch

from ddcat.atomic_files import write_text
from ddcat.classes import VOC
from ddcat.cli_support import parse_size, run
from ddcat.engines.base import memory_file
from ddcat_bench.describe import describe_environment
from ddcat_bench.markdown import table
from ddcat_export.onnx_export import build_graph
from ddcat_train.checkpoints import build_network
from ddcat_train.config import load_config

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
_SHOWN = 8  # layers of each table


def main() -> None:
    """Measure each network, and write what came."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="of the results, without a suffix")
    parser.add_argument("networks", nargs="+", metavar="PRESET:HEIGHTxWIDTH")
    parser.add_argument("--repeats", type=int, default=10, help="calls of each precision (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="of the runtime (default: 1)")
    arguments = parser.parse_args()
    began = time.monotonic()
    networks = {name: measure(name, arguments) for name in arguments.networks}
    environment = describe_environment(torch.device("cpu"), time.monotonic() - began).model_dump(mode="json")
    result = {"networks": networks, "threads": arguments.threads, "repeats": arguments.repeats, "environment": environment}
    write_text(arguments.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_text(arguments.out.with_suffix(".md"), markdown(result, arguments.out.name))
    draw(result, arguments.out.with_suffix(".png"))


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the layers of each precision, the slowest first."""
    preset, _, size = name.partition(":")
    height, width = parse_size(size)
    torch.manual_seed(0)
    graph = build_graph(
        build_network(load_config(preset), len(VOC)).eval(), sizes=((height, width),), logits=False, confidence=False
    )
    requests = {precision: compiled(graph, hint, arguments.threads) for precision, hint in PRECISIONS.items()}
    image = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
    layers: dict[str, dict[str, list[float]]] = {precision: defaultdict(list) for precision in PRECISIONS}
    kinds: dict[str, dict[str, str]] = {precision: {} for precision in PRECISIONS}
    for turn in range(arguments.repeats + 2):
        for precision, request in requests.items():
            request.infer({"image": image})
            for entry in request.profiling_info if turn >= 2 else ():
                layers[precision][entry.node_name].append(entry.real_time.total_seconds())
                kinds[precision][entry.node_name] = f"{entry.node_type}, {entry.exec_type}"
    return {
        precision: sorted(
            (
                {"layer": layer, "kind": kinds[precision][layer], "seconds": float(np.median(times))}
                for layer, times in found.items()
            ),
            key=lambda row: -row["seconds"],
        )
        for precision, found in layers.items()
    }


def compiled(graph: bytes, hint: str, threads: int) -> Any:
    """Compile a graph with counters; return a request."""
    core = ov.Core()
    with memory_file(graph) as file:
        model = core.read_model(file)
    settings = {"PERF_COUNT": True, "PERFORMANCE_HINT": "LATENCY"}
    settings |= {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    return core.compile_model(model, "CPU", settings).create_infer_request()


def by_type(layers: list[dict[str, Any]]) -> dict[str, float]:
    """Sum the seconds of each type of layer, the largest first."""
    sums: dict[str, float] = defaultdict(float)
    for row in layers:
        sums[row["kind"].partition(",")[0]] += row["seconds"]
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def markdown(result: dict[str, Any], name: str) -> str:
    """Write the tables."""
    about = result["environment"]
    on = about["machine"]
    machine = f"{on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB, {on['system']}"
    lines = [
        "# Where the time goes, layer by layer",
        f"`python bench/cpu/layers.py docs/results/{name} {' '.join(result['networks'])}` with openvino "
        f"{about['versions']['openvino']} on {about['date']}: {machine}. "
        f"{result['threads']} thread, random weights, medians of {result['repeats']} calls by the runtime's own counters. "
        "fp32 and bf16 took turns. Other work ran on the machine, so only the shares count.",
        f"![Time by type of layer]({name}.png)",
    ]
    for network, found in result["networks"].items():
        lines.append(f"## {network}")
        for precision, layers in found.items():
            total = sum(row["seconds"] for row in layers)
            rows = [[kind, f"{1000 * seconds:.1f}", f"{seconds / total:.1%}"] for kind, seconds in by_type(layers).items()]
            lines += [f"**{precision}**: {1000 * total:.0f} ms in all layers.", table(["type", "ms", "share"], rows[:_SHOWN])]
            rows = [
                [f"`{row['layer']}`", row["kind"], f"{1000 * row['seconds']:.1f}", f"{row['seconds'] / total:.1%}"]
                for row in layers
            ]
            lines.append(table(["layer", "kernel", "ms", "share"], rows[:_SHOWN]))
    return "\n\n".join(lines) + "\n"


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw a bar for each network and precision, divided by the type of layer."""
    import matplotlib as mpl  # noqa: PLC0415 -- slow to import

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    bars = [
        (f"{network.partition(':')[0]}\n{precision}", by_type(layers))
        for network, found in result["networks"].items()
        for precision, layers in found.items()
    ]
    kinds = list(dict.fromkeys(kind for _, sums in bars for kind in list(sums)[:4]))
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.8 * len(bars)))
    left = np.zeros(len(bars))
    for kind in [*kinds, "other"]:
        shares = []
        for _, sums in bars:
            total = sum(sums.values())
            part = sums.get(kind, 0.0) if kind != "other" else sum(value for key, value in sums.items() if key not in kinds)
            shares.append(100 * part / total)
        axes.barh([label for label, _ in bars], shares, left=left, label=kind)
        left += shares
    axes.set_xlabel("share of the time of all layers, %")
    axes.invert_yaxis()
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=5, fontsize="small")
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    run(main)
