"""
How often `ddcat_drift_psi` gives false alarms on clean images, and how often it sees an attack, also one that knows of it:

    python bench/serving/drift_rates.py BUNDLE --out docs/results/drift/NAME.json

Windows of 20 images are drawn from the second half of the validation split; an alarm is a window whose largest PSI is above a
limit, of which 0.1 and 0.25 are the usual ones. The reference is what the server uses, the clean golden images, or, to see what
more of them would give, all clean images of the first half.

Attacks within epsilon, against the network's own labels: PGD away from them, and an adaptive one toward their mirror image, in
which every class has the area that it had, and boundaries are as long.
"""

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddcat.bundle import open_bundle
from ddcat.command import run
from ddcat.files import write_text
from ddcat.progress import progress
from ddcat.scores import count, miou
from ddcat_bench.pool import engine_labels
from ddcat_bench.subjects import checkpoint_of, describe_environment, main_branch, open_bundle_data
from ddcat_serve.engines import Outputs, open_engine
from ddcat_serve.golden import read_golden
from ddcat_serve.telemetry import Statistics, golden_statistics, psi, statistics_of
from ddcat_train.attacks.core import iterate
from ddcat_train.attacks.quantise import to_8_bit

STEPS, WINDOW, WINDOWS, LIMITS = 20, 20, 1000, (0.1, 0.25)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epsilon", type=int, default=8, help="of 255 (default: 8)")
    parser.add_argument("--data-root", type=Path)
    arguments = parser.parse_args()
    began = time.monotonic()
    bundle = open_bundle(arguments.bundle)
    classes, dataset = len(bundle.manifest.classes), open_bundle_data(bundle, data_root=arguments.data_root)
    network = main_branch(checkpoint_of(bundle), torch.device("cpu"))
    examples = read_golden(bundle)
    known = {example.image.tobytes() for example in examples}  # the reference is no sample
    samples = [sample for sample in map(dataset.read, range(len(dataset))) if sample.image.tobytes() not in known]
    found: dict[str, list[Statistics]] = {"clean": [], "attack": [], "adaptive": []}
    scored = {name: np.zeros((classes, 3), np.int64) for name in found}
    with open_engine(bundle) as engine, progress("attacking", len(samples), unit="images") as advance:
        golden = list(golden_statistics(bundle, engine, examples))
        for sample in samples:
            images = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))[None].float() / 255
            for name, sent in attacks(network, images, arguments.epsilon / 255).items():
                labels = engine_labels(engine, to_8_bit(sent, images))
                found[name] += statistics_of(Outputs(labels), classes)
                scored[name] += count(sample.labels, labels[0], classes)
            advance(1)
    half = len(samples) // 2
    result = {
        "bundle": {"name": bundle.manifest.name, "method": bundle.manifest.source.method, "sha256": bundle.digest},
        "data": {"name": dataset.name, "split": dataset.split, "images": len(samples)},
        "attacks": {"epsilon_255": arguments.epsilon, "steps": STEPS},
        "window": WINDOW,
        "windows": WINDOWS,
        "miou": {name: round(miou(counts), 3) for name, counts in scored.items()},
        "references": {
            f"{len(reference)} {what}": rates({name: sample[half:] for name, sample in found.items()}, reference)
            for what, reference in (("golden images", golden), ("clean images", found["clean"][:half]))
        },
        "environment": describe_environment(torch.device("cpu"), time.monotonic() - began).model_dump(mode="json"),
    }
    write_text(arguments.out, json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("miou", "references")}, indent=2))


def attacks(network: Any, images: torch.Tensor, epsilon: float) -> dict[str, torch.Tensor]:
    """Make the images of each kind."""
    with torch.no_grad():
        own = network(images).argmax(1)
    about: dict[str, Any] = {"epsilon": epsilon, "alpha": 2.5 * epsilon / STEPS, "steps": STEPS}
    return {
        "clean": images,
        "attack": last(iterate(network, images, own, **about)),
        "adaptive": last(iterate(network, images, own.flip(2), objective=lambda answer: -answer.loss, **about)),
    }


def last(steps: Iterable[tuple[int, torch.Tensor]]) -> torch.Tensor:
    """Give the images of the last step."""
    *_, (_, images) = steps
    return images


def rates(found: dict[str, list[Statistics]], reference: Sequence[Statistics]) -> dict[str, Any]:
    """Shares of windows above each limit, and the median PSI."""
    random, expected = np.random.default_rng(0), shares(reference)

    def largest(sample: Sequence[Statistics]) -> float:
        window = shares([sample[place] for place in random.choice(len(sample), WINDOW, replace=False)])
        return max(psi(expected[name], window[name]) for name in window)

    values = {name: np.array([largest(sample) for _ in range(WINDOWS)]) for name, sample in found.items()}
    return {
        name: {f"above {limit}": float((psis > limit).mean()) for limit in LIMITS}
        | {"median": round(float(np.median(psis)), 3)}
        for name, psis in values.items()
    }


def shares(sample: Sequence[Statistics]) -> dict[str, Any]:
    """Mean share of each bin, every image alike, as the monitor has it."""
    each = [answer.distributions() for answer in sample]
    return {name: np.mean([counts[name] / counts[name].sum() for counts in each], 0) for name in each[0]}


if __name__ == "__main__":
    run(main)
