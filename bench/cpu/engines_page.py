"""The page of `bench/cpu/engines.py`, from its files."""

import json
from pathlib import Path
from typing import Any

from ddcat_bench.fidelity.compare import FidelityResult
from ddcat_bench.markdown import environment_lines, table
from ddcat_bench.result_io import read_result
from ddcat_bench.timing.results import SpeedResult

__all__ = ["COMBINATIONS", "NETWORKS", "SHAPES", "page"]

NETWORKS = {"pspnet50": "PSPNet-50", "deeplabv3_50": "DeepLabv3-50"}
COMBINATIONS = [("ort", "fp32"), ("ort", "int8"), ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8")]
RUNTIMES = {"ort": "ONNX Runtime", "openvino": "OpenVINO"}
SHAPES = ["1x33x33", "2x33x65", "1x65x34", "3x40x72", "2x97x129", "1x50x161", "1x180x240"]  # corners, odd, flat, off the grid

SPEED_HEAD = [
    "engine", "precision", "ms", "faster than the original graph", "faster than our main branch, eager", "logit error",
    "equal labels", "file, MiB", "share of fp32", "peak MiB: engine", "original", "main branch",
]  # fmt: skip
SPEED_NOTE = """\
- **faster than**: time of eager fp32 PyTorch divided by that of the engine in the same turn, median and quartiles
  (`ddcat speed`). The *original graph* computes what the paper's code computes: plain layers, and a concatenated pyramid. *Our
  main branch* computes the same numbers faster.
- **logit error**: the 99.9th percentile, in standard deviations of PyTorch's logits.
- **equal labels**: with untrained weights the two best classes of many pixels are nearly equal. So the labels of bf16 and int8
  agree less here than those of a trained network. int8 is calibrated on two images of VOC.
- **share of fp32**: size of the file divided by that of the main branch's fp32 parameters.
- **peak MiB**: the largest resident memory of a process that loads the model as the server does, and labels images.
"""
SHAPE_HEAD = ["network", "engine", "precision", "shapes", "worst logit error", "at shape", "equal labels"]
SHAPE_NOTE = (
    "Each engine was exported for all sizes, and compared with PyTorch on noise and on smooth colours. The shapes (images x "
    f"height x width) are {', '.join(SHAPES)}. The error is that of the worst shape, in the unit of the first tables.\n"
)
HEAD_HEAD = ["network", "runtime", "plain, ms", "factorised, ms", "plain / factorised", "largest difference of a logit"]
HEAD_NOTE = (
    "Both heads run at 473 x 473 in fp32. The difference is in standard deviations of the logits. When this was measured, "
    "ddcat rewrote OpenVINO's graph at load, and the 3x3 convolution of both heads took a third fewer products. It does so no "
    "longer.\n"
)
FIDELITY_HEAD = [
    "run", "engine", "precision", "equal labels: clean", "n = 3", "n = 7", "mIoU: clean", "n = 3", "n = 7",
    "PyTorch: clean", "n = 3", "n = 7",
]  # fmt: skip
FIDELITY_NOTE = (
    "The images are spread evenly over the validation split; each file states their number. The columns n = 3 and n = 7 are "
    "BIM with so many steps, made on the PyTorch model and rounded to 8-bit images (`ddcat fidelity`).\n"
)


def page(out: Path) -> str:
    """Make the page from the files."""
    speeds = {name: found for name in NETWORKS if (found := speed_rows(out, name))}
    environments = [read_result(file, SpeedResult).environment for file in sorted(out.glob("*-speed.json"))]
    parts = [
        "# Engines on a CPU\n\nThis page compares engines with eager fp32 PyTorch: speed, error, file size and memory. It was "
        "made by `python bench/cpu/engines.py\n--voc-root /data/voc --runs runs/* --data-root /data/camvid`. The files are in "
        "`engines-cpu/`.\n"
    ]
    for name, rows in speeds.items():
        parts.append(f"## {NETWORKS[name]} at 473 x 473, batch 1, random weights\n\n{table(SPEED_HEAD, rows, texts=2)}")
    parts.append(SPEED_NOTE)
    shapes = [row for name in NETWORKS for row in shape_rows(out, name)]
    parts.append(f"## Many shapes\n\n{table(SHAPE_HEAD, shapes, texts=3)}\n{SHAPE_NOTE}")
    parts.append(f"## The plain and the factorised head\n\n{table(HEAD_HEAD, head_rows(out), texts=2)}\n{HEAD_NOTE}")
    if rows := fidelity_rows(out):
        parts.append(f"## CamVid, trained networks\n\n{table(FIDELITY_HEAD, rows, texts=3)}\n{FIDELITY_NOTE}")
    seconds = sum(environment.seconds for environment in environments)
    where = dict.fromkeys(environment_lines(e.model_copy(update={"seconds": seconds})) for e in environments)
    return "\n".join([*parts, "".join(where)])


def speed_rows(out: Path, network: str) -> list[list[str]]:
    """Rows of one network."""
    rows = []
    for engine, precision in COMBINATIONS:
        file = out / f"{network}-{engine}-{precision}-speed.json"
        if not file.exists():
            continue
        result = read_result(file, SpeedResult)
        (shape,) = agreement(out / f"{network}-{engine}-{precision}-agreement-size.json").values()
        faster = [f"{r.median:.2f} ({r.lower_quartile:.2f} to {r.upper_quartile:.2f})" for r in result.ratios]
        peaks = (result.find(name).peak_memory for name in ("engine", "original", "main branch"))
        rows.append([
            RUNTIMES[engine], precision, f"{1000 * result.find('engine').times.median:.0f}", f"**{faster[0]}**", faster[1],
            f"{shape['logit_error_p999']:.1e}", f"{shape['equal_labels'] / shape['pixels']:.3%}",
            f"{result.engine_bytes / 2**20:.1f}", f"{result.engine_bytes / result.parameter_bytes:.3f}",
            *("-" if peak is None else f"{peak / 2**20:.0f}" for peak in peaks),
        ])  # fmt: skip
    return rows


def shape_rows(out: Path, network: str) -> list[list[str]]:
    """The worst of all shapes of one network's engines."""
    rows = []
    for engine, precision in COMBINATIONS:
        file = out / f"{network}-{engine}-{precision}-agreement-dynamic.json"
        if not file.exists():
            continue
        shapes = agreement(file)
        worst = max(shapes, key=lambda shape: shapes[shape]["logit_error_p999"])
        equal, pixels = (sum(shape[key] for shape in shapes.values()) for key in ("equal_labels", "pixels"))
        rows.append([
            NETWORKS[network], RUNTIMES[engine], precision, f"{len(shapes)}", f"{shapes[worst]['logit_error_p999']:.1e}", worst,
            f"{equal / pixels:.3%}",
        ])  # fmt: skip
    return rows


def head_rows(out: Path) -> list[list[str]]:
    """Both heads in each runtime."""
    rows = []
    for network, title in NETWORKS.items():
        file = out / f"{network}-heads.json"
        for runtime, found in json.loads(file.read_text(encoding="utf-8"))["runtimes"].items() if file.exists() else ():
            faster = found["faster"]
            rows.append([
                title, runtime, *(f"{1000 * found['seconds'][name]['median']:.0f}" for name in ("plain", "factorised")),
                f"**{faster['median']:.2f}** ({faster['lower_quartile']:.2f} to {faster['upper_quartile']:.2f})",
                f"{found['logit_difference_max']:.1e}",
            ])  # fmt: skip
    return rows


def fidelity_rows(out: Path) -> list[list[str]]:
    """Each engine of each trained network."""
    rows = []
    for file in sorted(out.glob("camvid-*-fidelity.json")):
        result = read_result(file, FidelityResult)
        run_name, engine, precision = file.stem.removeprefix("camvid-").removesuffix("-fidelity").rsplit("-", 2)
        rows.append([
            run_name, RUNTIMES[engine], precision, *(f"{row.agreement:.3%}" for row in result.rows),
            *(f"{row.engine.miou:.4f}" for row in result.rows), *(f"{row.pytorch.miou:.4f}" for row in result.rows),
        ])  # fmt: skip
    return rows


def agreement(file: Path) -> dict[str, dict[str, Any]]:
    """Read what agreement.py found of each shape."""
    shapes: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))["shapes"]
    return shapes
