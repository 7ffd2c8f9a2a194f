"""
Which form of an int8 graph a runtime is quicker with: signed activations, or unsigned ones.

    python bench/cpu/int8_signed_vs_unsigned.py FP32_BUNDLE INT8_BUNDLE --size 473x473

The fp32 graph and both forms are run in turns in one process, in ONNX Runtime and in OpenVINO, and the medians are printed as
shares of the fp32 graph's in the same runtime.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from ddcat.bundle import open_bundle
from ddcat.cli_support import parse_size, run
from ddcat.engines.base import LoadedGraph
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.engines.openvino import OpenVinoGraph

_FORMS = {"signed": "model.onnx", "unsigned": "model.cpu.onnx"}


def main() -> None:
    """Time the forms, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fp32", type=Path, help="bundle of the same network in fp32")
    parser.add_argument("int8", type=Path, help="bundle in int8")
    parser.add_argument("--size", default="473x473", help="HxW of the image")
    parser.add_argument("--repeats", type=int, default=11, help="timed calls of each (default: 11)")
    arguments = parser.parse_args()
    fp32, int8 = open_bundle(arguments.fp32), open_bundle(arguments.int8)
    image = np.random.default_rng(0).integers(0, 256, (1, *parse_size(arguments.size), 3), np.uint8)
    forms = {form: int8.files[file] for form, file in _FORMS.items()}
    graph = fp32.files["model.onnx"]
    opened: dict[str, dict[str, LoadedGraph]] = {
        "ort": {"fp32": OrtGraph(graph), **{form: OrtGraph(content) for form, content in forms.items()}},
        "openvino": {
            "fp32": OpenVinoGraph(graph, precision="fp32"),
            **{form: OpenVinoGraph(content, precision="int8") for form, content in forms.items()},
        },
    }
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(arguments.repeats + 1):
        for engine, graphs in opened.items():
            for form, ready in graphs.items():
                begun = time.perf_counter()
                ready.run(image)
                if turn:  # the first one warms up
                    seconds.setdefault((engine, form), []).append(time.perf_counter() - begun)
    for (engine, form), found in seconds.items():
        share = float(np.median(found) / np.median(seconds[engine, "fp32"]))
        print(f"{engine:9} {form:9} {1000 * np.median(found):8.1f} ms  {share:.2f} of fp32")


if __name__ == "__main__":
    run(main)
