"""
Where `torch.compile` pays: a training pass and a step of the attack, as they are and compiled, in turns.

    python bench/gpu/compiled.py voc-pspnet50-ddcat --device cuda --batch 16
    python bench/gpu/compiled.py voc-deeplabv3_50-ddcat --device cpu --batch 2 --crop 281

On a GPU the mode "reduce-overhead" replays CUDA graphs, so that it shows what those would give, too. Compiled code does not
take the faster convolutions that `ddcat_train` has for CPUs. What it finds is printed and written to OUT as JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.paper.contenders import Plan, draw_batch
from ddcat.atomic_files import write_text
from ddcat.cli_support import run
from ddcat_bench.describe import describe_environment
from ddcat_bench.timing.interleave import times
from ddcat_bench.timing.pytorch_models import torch_settings
from ddcat_train.attacks import bim
from ddcat_train.config import load_config
from ddcat_train.losses import pixel_cross_entropy
from ddcat_train.networks import build_segmenter

Task = Callable[[], object]

MODES = (None, "default", "reduce-overhead")  # None: as it is
WARM_UP = 2  # turns, in the first of which it is compiled


def main() -> None:
    """Time all modes, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, help="pixels a side (default: the preset's)")
    parser.add_argument("--width", type=int, help="channels of the network's first stage (default: the preset's)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("compiled.json"))
    arguments = parser.parse_args()
    changes = [f"train.batch_size={arguments.batch}"]
    changes += [f"augment.crop={arguments.crop}"] if arguments.crop else []
    changes += [f"model.width={arguments.width}"] if arguments.width else []
    plan = Plan(load_config(arguments.preset, changes), "fp32", arguments.device, torch.get_num_threads())
    began = time.monotonic()
    found: dict[str, dict[str, float]] = {}
    with torch_settings(plan.threads), torch.autocast(plan.device, torch.bfloat16, enabled=arguments.precision == "bf16"):
        for what, task in TASKS.items():
            contenders = [task(_network(plan, mode), plan) for mode in MODES]
            seconds: list[list[float]] = [[] for _ in contenders]
            for _ in range(WARM_UP + arguments.repeats):
                for contender, taken in zip(contenders, seconds, strict=True):
                    taken.append(_time(contender, plan.device))
            found[what] = {mode or "eager": times(each[WARM_UP:]).median for mode, each in zip(MODES, seconds, strict=True)}
            torch.compiler.reset()
    environment = describe_environment(torch.device(plan.device), time.monotonic() - began)
    result = {
        "preset": arguments.preset, "batch": arguments.batch, "crop": list(plan.config.augment.crop),
        "precision": arguments.precision, "repeats": arguments.repeats, "median_seconds": found,
        "environment": environment.model_dump(mode="json"),
    }  # fmt: skip
    write_text(arguments.out, json.dumps(result, indent=2) + "\n")
    for what, medians in found.items():
        told = ", ".join(
            f"{mode} {seconds:.4g} s ({medians['eager'] / seconds:.2f} times)" for mode, seconds in medians.items()
        )
        print(f"{what}: {told}")


def _training(network: nn.Module, plan: Plan) -> Task:
    images, labels = _batch(plan)
    network.train()

    def train() -> None:
        network.zero_grad()
        pixel_cross_entropy(network(images), labels).mean().backward()

    return train


def _attacking(network: nn.Module, plan: Plan) -> Task:
    images, labels = _batch(plan)
    network.eval().requires_grad_(False)
    return lambda: bim(network, images, labels, steps=1)


def _batch(plan: Plan) -> tuple[Tensor, Tensor]:
    batch = draw_batch(plan)
    return batch.images.to(plan.device, memory_format=torch.channels_last), batch.labels.to(plan.device)


def _network(plan: Plan, mode: str | None) -> nn.Module:
    torch.manual_seed(0)
    network = build_segmenter(plan.config.model, classes=len(plan.classes)).to(plan.device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network if mode is None else torch.compile(network, mode=mode)  # type: ignore[return-value]


def _time(task: Task, device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    task()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


TASKS = {"training pass": _training, "attack step": _attacking}

if __name__ == "__main__":
    run(main)
