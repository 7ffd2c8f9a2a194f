import json
from collections.abc import Callable
from typing import Any

import pytest

from ddcat.bundle import entries
from ddcat.manifest import Manifest

FILES = {"model.onnx": b"graph", "golden.safetensors": b"pictures"}
SIDES = {axis: {"minimum": 1, "maximum": None} for axis in ("batch", "height", "width")}


def manifest(**changes: Any) -> Manifest:
    content: dict[str, Any] = {
        "name": "scenes-ddcat",
        "files": {name: entry.model_dump() for name, entry in entries(FILES).items()},
        "source": {
            "checkpoint": "runs/scenes-ddcat/best.safetensors",
            "sha256": "0" * 64,
            "git_commit": None,
            "method": "ddcat",
            "attack": {"epsilon": 0.03, "alpha": 0.01, "steps": 3, "start": "clean"},
            "architecture": "resnet10 + pyramid",
            "step": 100,
        },
        "main_branch_only": {"spare_parameters": 10, "bytes_unchanged": True, "multiply_adds": 1000, "size": [64, 64]},
        "data": {"name": "scenes", "root": "x", "split": "val", "list_sha256": "1" * 64, "images": 3},
        "classes": [{"name": "road", "colour": [1, 2, 3]}, {"name": "sky", "colour": [4, 5, 6]}],
        "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]},
        "shapes": SIDES,
        "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", "height", "width", 3]}],
        "outputs": [{"name": "labels", "dtype": "uint8", "shape": ["batch", "height", "width"]}],
        "opset": 20,
        "engine": {
            "name": "ort",
            "file": "model.onnx",
            "requested_precision": "fp32",
            "effective_precision": "fp32",
            "provider": "CPUExecutionProvider",
        },
        "versions": {"ddcat": "0.1.0"},
    }
    return Manifest.model_validate_json(json.dumps(content | changes))


@pytest.fixture
def files() -> dict[str, bytes]:
    return dict(FILES)


@pytest.fixture
def make_manifest() -> Callable[..., Manifest]:
    """Makes the manifest of `files`, with changes."""
    return manifest
