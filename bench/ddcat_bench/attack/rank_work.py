"""`ddcat attack`: what attacks leave of a checkpoint's main branch."""

import time
from collections.abc import Callable
from functools import partial

import torch

from ddcat_bench.attack.attacks import AttackBatch, Meter
from ddcat_bench.attack.job import AttackJob
from ddcat_bench.attack.probe import FORWARDS, run_probe
from ddcat_bench.attack.results import Probe
from ddcat_bench.attack.scoring import ScoreFn, score_whole_images
from ddcat_bench.attack.sliding_window import score_windows
from ddcat_bench.inputs import main_branch
from ddcat_bench.work_units import Units
from ddcat_train.data.loader import evaluation_plan, read_whole
from ddcat_train.seeds import derive_seed

__all__ = ["attack_rank_work", "probe_once"]


_PROBE_EPSILON = 8 / 255  # bound of the probe: the largest of the suites


def attack_rank_work(
    job: AttackJob,
    units: Units,
    *,
    rank: int = 0,
    ranks: int = 1,
    advance: Callable[[int], None] = lambda forwards: None,
) -> list[list[str]]:
    """
    Do what is not done yet of one process's share: whole units, so that rounding is the same for any number of processes.

    `advance` is called with the number of images that a network has just seen: over all processes, `AttackJob.forwards`.
    Returns the names of the images of each batch.
    """
    dataset, device, specs = job.dataset, job.device, job.specs
    meter = Meter(advance)
    target = meter.watch(main_branch(job.reference, device))
    sources = [meter.watch(main_branch(surrogate, device)) for surrogate in job.surrogates]
    place = {pair.name: index for index, pair in enumerate(dataset.pairs)}
    score: ScoreFn = (
        score_whole_images
        if job.protocol == "whole"
        else partial(score_windows, crop=job.crop, base=job.base, at_base=job.at_base)
    )
    pixels = job.class_pixels
    balance = None if pixels is None else torch.from_numpy(pixels.counts)
    batches: list[list[str]] = []
    plan_of = evaluation_plan(dataset, batch_size=job.batch_size, limit=job.max_images)
    for batch, indices in enumerate(plan_of):
        names = [dataset.pairs[index].name for index in indices]
        batches.append(names)
        victims: AttackBatch | None = None
        for index, spec in enumerate(specs):
            forwards = spec.forwards * len(names) * job.windows_per_image(*dataset.size(indices[0]))
            if (batch + index) % ranks != rank:  # shifted: each process has some of every plan
                continue
            if units.has(batch, index):
                advance(forwards)
                continue
            if victims is None:  # of the images that another process attacks the heads alone are read
                _, images, labels = read_whole(dataset, indices)
                victims = AttackBatch(
                    images.to(device, memory_format=torch.channels_last),
                    labels.to(device),
                    torch.tensor([derive_seed(job.seed, place[name]) for name in names]),
                    balance,
                )
            began = time.monotonic()
            meter.allot(forwards)
            source = target if spec.surrogate is None else sources[spec.surrogate]
            counts = score(source, target, spec, victims, len(dataset.classes))
            units.put(batch, index, counts, time.monotonic() - began)
            meter.allot(0)
    return batches


def probe_once(job: AttackJob, units: Units, *, advance: Callable[[int], None] = lambda forwards: None) -> Probe:
    """
    Look for masked gradients on a few images, where that is not done yet; always on whole images.

    `advance` is called with the number of images that a network has just seen: in all, `FORWARDS` for each probed one.
    """
    meter = Meter(advance)
    meter.allot(FORWARDS * job.probed)
    probe = units.once(
        "probe",
        Probe,
        lambda: run_probe(
            meter.watch(main_branch(job.reference, job.device)),
            job.dataset if job.base is None else job.dataset.with_long_side(job.base),
            epsilon=_PROBE_EPSILON,
            images=job.probed,
            seed=job.seed,
            batch_size=job.batch_size,
            device=job.device,
        ),
    )
    meter.allot(0)
    return probe
