"""ONNX files as other programs write them: a small network, exported in many forms."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from ddcat.classes import Classes

CLASSES = Classes.with_voc_palette(("road", "car", "tree", "sky", "person", "sign"))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = (64, 96)


class Network(nn.Module):
    """Convolutions with batch norms, at a quarter of the image; `full` resizes its logits to it."""

    def __init__(self, *, full: bool = False) -> None:
        super().__init__()
        self.full = full
        layers: list[nn.Module] = [nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 16, 3, 2, 1)]
        layers += [
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 1, 2, 2),
            nn.ReLU(),
        ]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(16, len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.last(self.layers(images))
        return nn.functional.interpolate(logits, images.shape[2:], mode="bilinear") if self.full else logits


def network(*, full: bool = False) -> Network:
    """Random weights, with statistics of batches, and every class somewhere."""
    torch.manual_seed(0)
    made = Network(full=full)
    with torch.no_grad():
        for _ in range(20):
            made(torch.randn(4, 3, 64, 64))
    made.eval()
    spread(made, made.last, torch.randn(8, 3, 64, 64))
    return made.requires_grad_(False)


@torch.no_grad()
def spread(network: nn.Module, last: nn.Module, images: Tensor) -> None:
    """Scale and shift the last layer of a network, so that on these images each class has logits of mean 0 and deviation 1."""
    logits = network(images)  # (N, K, H, W)
    deviations = logits.std((0, 2, 3))
    last.weight /= deviations[:, None, None, None]
    last.bias.copy_((last.bias - logits.mean((0, 2, 3))) / deviations)


def written(
    path: Path, model: nn.Module, *, opset: int = 17, dynamo: bool = False, free: bool = True, batch: int | None = None
) -> Path:
    """Export a network by torch; `batch` fixes it."""
    images = torch.rand(batch or 2, 3, *SIZE)
    names = {0: "batch"} if batch is None else {}
    names |= {2: "height", 3: "width"} if free else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            shapes = {"images": dict.fromkeys(names, torch.export.Dim.DYNAMIC)}
            program = torch.onnx.export(
                model, (images,), dynamo=True, opset_version=opset, dynamic_shapes=shapes, external_data=False, verbose=False
            )
            assert program is not None
            program.save(path)
        else:
            axes = {"images": names} if names else None
            torch.onnx.export(
                model, (images,), str(path), dynamo=False, opset_version=opset, input_names=["images"],
                output_names=["logits"], dynamic_axes=axes,
            )  # fmt: skip
    return path


def changed(path: Path, source: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Write a file that differs from another."""
    model = copy.deepcopy(onnx.load(source))
    change(model)
    onnx.save(model, path)
    return path


def channels_last(model: onnx.ModelProto) -> None:
    """As converters from TensorFlow write it."""
    graph = model.graph
    images, logits = graph.input[0].name, graph.output[0].name
    for node in graph.node:
        node.input[:] = ["planes" if name == images else name for name in node.input]
        node.output[:] = ["maps" if name == logits else name for name in node.output]
        node.input[:] = ["maps" if name == logits else name for name in node.input]
    graph.node.insert(0, helper.make_node("Transpose", [images], ["planes"], perm=[0, 3, 1, 2]))
    graph.node.append(helper.make_node("Transpose", ["maps"], [logits], perm=[0, 2, 3, 1]))
    graph.input[0].CopyFrom(helper.make_tensor_value_info(images, TensorProto.FLOAT, ["n", "h", "w", 3]))
    graph.output[0].CopyFrom(helper.make_tensor_value_info(logits, TensorProto.FLOAT, None))
    del graph.value_info[:]


def ending(operator: str, kind: int = TensorProto.FLOAT, **attributes: object) -> Callable[[onnx.ModelProto], None]:
    """Put an operator behind the logits."""

    def change(model: onnx.ModelProto) -> None:
        graph = model.graph
        logits = graph.output[0].name
        graph.node.append(helper.make_node(operator, [logits], ["last"], **attributes))
        graph.output[0].CopyFrom(helper.make_tensor_value_info("last", kind, None))

    return change


def right(model: nn.Module, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """What PyTorch says of (N, H, W, 3) uint8: the network's logits, and labels at the size of the images."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    fed = (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        logits = model(fed)
    full = nn.functional.interpolate(logits, fed.shape[2:], mode="bilinear", align_corners=False)
    return logits, full.argmax(1)


def node_by_node(content: bytes, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and logits of ONNX Runtime without its optimisations, which sums in another order."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    labels, logits = session.run(["labels", "logits"], {"image": images})
    return labels, logits
