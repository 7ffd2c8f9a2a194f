"""
What a process that serves one model keeps resident at most.

Run as a program it is such a process; it imports PyTorch only where it serves a PyTorch model.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ddcat.engines.base import Images
from ddcat.manifest import Manifest, parse_manifest
from ddcat_bench.errors import BenchError
from ddcat_serve.inference.model_registry import load_models
from ddcat_serve.settings import Settings

__all__ = ["MEMORY", "Serving", "resident", "serving_peak"]

MEMORY = (
    "Peak memory is the most that stayed resident (VmHWM) in a process of its own. It loads the model as a server does, from "
    "the bundle or from the checkpoint, and answers three batches. The interpreter and the libraries are included."
)
_CALLS = 3

ServedName = Literal["engine", "original", "main branch", "compiled"]


class Serving(NamedTuple):
    """The model that a process serves, and its input."""

    name: ServedName
    path: str  # of the bundle, or of what it was made from
    device: str  # of PyTorch
    threads: int
    shape: tuple[int, int, int]  # batch, height, width
    manifest: str = ""  # of the bundle: it says how what it was made from is read


def serving_peak(serving: Serving) -> int | None:
    """
    Let a fresh process serve.

    Returns int or None: bytes; None where the system does not tell. Raises BenchError if the process fails.
    """
    line = [sys.executable, "-m", "ddcat_bench.timing.serving_memory", json.dumps(serving)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise BenchError(f"the process that serves {serving.path} alone died ({done.returncode}): {lines[-1] if lines else ''}")
    peak: int | None = json.loads(done.stdout.splitlines()[-1])
    return peak


def resident(key: str) -> int | None:
    """Bytes that Linux says of this process; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def _serve(serving: Serving) -> None:
    if serving.name == "engine":
        with load_models([Path(serving.path)], settings=Settings(), threads=serving.threads) as models:
            ((model,),) = (versions.values() for versions in models.values())
            images = _images(serving, model.bundle.manifest)
            for _ in range(_CALLS):
                model.engine.infer(images)
        return
    import torch  # noqa: PLC0415 -- an engine's process has none

    from ddcat_bench.inputs import open_reference  # noqa: PLC0415
    from ddcat_bench.timing.pytorch_models import EAGER, torch_labels, torch_settings  # noqa: PLC0415

    device = torch.device(serving.device)
    with torch_settings(serving.threads):
        manifest = parse_manifest(Path(serving.manifest).read_bytes(), serving.manifest)
        network = EAGER[serving.name](open_reference(manifest, Path(serving.path)), device)
        images = _images(serving, manifest)
        for _ in range(_CALLS):
            torch_labels(network, images, device)


def _images(serving: Serving, manifest: Manifest) -> Images:
    shape = (*serving.shape, manifest.preprocessing.channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


if __name__ == "__main__":
    name, path, device, threads, shape, manifest = json.loads(sys.argv[1])
    _serve(Serving(name, path, device, threads, tuple(shape), manifest))
    print(json.dumps(resident("VmHWM")))
