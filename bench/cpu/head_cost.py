"""
What the factorised head gains over the plain one, and that both are equal: in eager PyTorch, ONNX Runtime and OpenVINO.

    python bench/cpu/head_cost.py BUNDLE --out heads.json

The plain network (`bench.paper.reference_networks`) concatenates the upsampled context and convolves all of it. BUNDLE
holds the graph of the factorised one for one size, with its logits, in fp32.
"""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.paper.reference_networks import PlainSegmenter, plain_network
from ddcat.atomic_files import write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.engines.cores import physical_cores
from ddcat.engines.onnxruntime import OrtGraph
from ddcat.engines.openvino import OpenVinoGraph
from ddcat_bench.describe import describe_environment
from ddcat_bench.inputs import main_branch, reference_of
from ddcat_bench.timing.interleave import interleave, ratio, times
from ddcat_bench.timing.speed import draw_inputs
from ddcat_train.networks import Segmenter

WARM_UP = 3

Images = npt.NDArray[np.uint8]
Answer = Callable[[Images], npt.NDArray[np.float32]]


class Answering(nn.Module):
    """Images to labels and logits, as the graph of a bundle has them, by a network of plain layers or by ours."""

    def __init__(self, network: PlainSegmenter | Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, H, W, 3) uint8 to (N, H, W) uint8 and (N, K, h, w) float32."""
        planes = (image.to(torch.float32) / 255).permute(0, 3, 1, 2)
        network = self.network
        if isinstance(network, Segmenter):
            logits = network.low_resolution_logits("main", network.features(planes))
        else:
            _, last = network.backbone(network.normalise(planes.contiguous()))
            logits = network.heads["main"](network.context(last))
        full = F.interpolate(logits, size=(image.shape[1], image.shape[2]), mode="bilinear", align_corners=True)
        return full.argmax(1).to(torch.float32).to(torch.uint8), logits


def main() -> None:
    """Time both in turns, in each runtime, and compare their logits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bundle, cpu, threads = open_bundle(arguments.bundle), torch.device("cpu"), physical_cores()
    torch.set_num_threads(threads)
    checkpoint = reference_of(bundle)
    inputs = draw_inputs(bundle, None, repeats=arguments.repeats, batch=1)
    networks = {
        "plain": plain_network(checkpoint, cpu).requires_grad_(False),
        "factorised": main_branch(checkpoint, cpu),
    }
    graphs = {"plain": exported(networks["plain"], inputs.batches[0]), "factorised": bundle.files[bundle.manifest.engine.graph]}
    load_before = os.getloadavg()[0]
    runtimes: dict[str, dict[str, Answer]] = {
        "PyTorch, eager": {name: eager(network) for name, network in networks.items()},
        "ONNX Runtime": {name: answer(OrtGraph(graph, threads=threads)) for name, graph in graphs.items()},
        "OpenVINO": {name: answer(OpenVinoGraph(graph, precision="fp32", threads=threads)) for name, graph in graphs.items()},
    }
    found = {name: measure(pair, inputs.batches) for name, pair in runtimes.items()}
    result = {
        "architecture": checkpoint.description.architecture,
        "size": list(inputs.batches[0].shape[1:3]),
        "threads": threads,
        "runtimes": found,
        "load_before": load_before,
        "environment": describe_environment(cpu, 0).model_dump(mode="json"),
    }
    write_text(arguments.out, json.dumps(result, indent=2) + "\n")


def measure(pair: dict[str, Answer], batches: list[Images]) -> dict[str, Any]:
    """Compare the logits on one batch, then time both on all."""
    plain, factorised = (pair[name](batches[0]) for name in ("plain", "factorised"))
    turns = interleave(pair, batches)[WARM_UP:]
    seconds = {name: [turn[name] for turn in turns] for name in pair}
    return {
        "logit_difference_max": float(np.abs(plain - factorised).max() / plain.std()),
        "seconds": {name: times(values).model_dump() for name, values in seconds.items()},
        "faster": ratio(seconds["plain"], seconds["factorised"]).model_dump(),
    }


def eager(network: PlainSegmenter | Segmenter) -> Answer:
    """Let PyTorch answer."""
    answering = Answering(network)

    def logits(images: Images) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            found: npt.NDArray[np.float32] = answering(torch.from_numpy(images))[1].numpy()
        return found

    return logits


def answer(graph: Any) -> Answer:
    """Let a runtime answer."""
    return lambda images: graph.run(images).logits  # type: ignore[no-any-return]


def exported(network: nn.Module, images: Images) -> bytes:
    """Export for the one size."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Answering(network).eval(), (torch.from_numpy(images),), dynamo=True, opset_version=20, input_names=["image"],
            output_names=["labels", "logits"], external_data=False, verbose=False,
        )  # fmt: skip
    logging.disable(logging.NOTSET)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


if __name__ == "__main__":
    run(main)
