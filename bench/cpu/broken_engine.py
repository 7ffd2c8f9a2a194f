"""
A deliberately bad engine, which the gate must refuse: the activation scales of an int8 bundle, wrong by a factor.

    python bench/cpu/broken_engine.py BUNDLE OUT --factor 0.5

It loads and answers as any other; its hashes are right, and so is everything that the manifest says but the numbers.
"""

import argparse
from pathlib import Path

import onnx
from onnx import numpy_helper

from ddcat.bundle import entries, open_bundle, write_bundle
from ddcat.cli_support import run
from ddcat.errors import DdcatError


def main() -> None:
    """Spoil a bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--factor", type=float, default=0.5, help="of each scale of an activation; below 1 it saturates")
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    file = bundle.manifest.engine.file
    if bundle.manifest.engine.effective_precision != "int8" or not file.endswith(".onnx"):
        raise DdcatError(f"{arguments.bundle} is no int8 bundle of an ONNX file: use --engine ort --precision int8")
    files = {**bundle.files, file: spoil(bundle.files[file], arguments.factor)}
    manifest = bundle.manifest.model_copy(update={"files": entries(files), "name": f"{bundle.manifest.name}-bad"})
    write_bundle(arguments.out, manifest, files)
    print(arguments.out)


def spoil(content: bytes, factor: float) -> bytes:
    """Multiply the scale of every quantised activation by a factor, in quantising and back alike."""
    model = onnx.load_model_from_string(content)
    scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    for tensor in model.graph.initializer:
        if tensor.name in scales:
            values = (numpy_helper.to_array(tensor) * factor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    wrong: bytes = model.SerializeToString()
    return wrong


if __name__ == "__main__":
    run(main)
