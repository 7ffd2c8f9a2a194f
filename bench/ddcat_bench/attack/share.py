"""`ddcat attack`: what attacks leave of a checkpoint's main branch."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial

import torch

from ddcat_bench.attack.evaluation import Evaluation
from ddcat_bench.attack.judging import Judge, judge_whole
from ddcat_bench.attack.passes import Meter, Victims
from ddcat_bench.attack.probe import FORWARDS, run_probe
from ddcat_bench.attack.probe_results import Probe
from ddcat_bench.attack.windows import judge_windows
from ddcat_bench.subjects import main_branch
from ddcat_bench.units import Units
from ddcat_train.attacks.seeds import seed_from
from ddcat_train.data.loader import evaluation_plan, read_whole

__all__ = ["attack_share", "probe_once"]


_PROBE_EPSILON = 8 / 255  # bound of the probe: the largest of the suites


def attack_share(
    evaluation: Evaluation,
    units: Units,
    *,
    rank: int = 0,
    ranks: int = 1,
    advance: Callable[[int], None] = lambda forwards: None,
) -> list[list[str]]:
    """
    Do what is not done yet of one process's share: whole units, so that rounding is the same for any number of processes.

    Parameters
    ----------
    evaluation : Evaluation
    units : Units
        Shared by all processes.
    rank, ranks : int
        Place of this process, and number of all.
    advance : callable, optional
        Is told how many images a network has just seen; over all processes, `Evaluation.forwards`.

    Returns
    -------
    list of list of str
        Names of the images of each batch.
    """
    dataset, device, plans = evaluation.dataset, evaluation.device, evaluation.plans
    meter = Meter(advance)
    judged = meter.watch(main_branch(evaluation.checkpoint, device))
    makers = [meter.watch(main_branch(substitute, device)) for substitute in evaluation.substitutes]
    place = {pair.name: index for index, pair in enumerate(dataset.pairs)}
    judge: Judge = (
        judge_whole
        if evaluation.protocol == "whole"
        else partial(judge_windows, crop=evaluation.crop, base=evaluation.base, at_base=evaluation.at_base)
    )
    pixels = evaluation.class_pixels
    balance = None if pixels is None else torch.from_numpy(pixels.counts)
    batches: list[list[str]] = []
    plan_of = evaluation_plan(dataset, batch_size=evaluation.batch_size, limit=evaluation.limit)
    for batch, indices in enumerate(plan_of):
        names = [dataset.pairs[index].name for index in indices]
        batches.append(names)
        victims: Victims | None = None
        for index, plan in enumerate(plans):
            forwards = plan.forwards * len(names) * evaluation.passes(*dataset.size(indices[0]))
            if (batch + index) % ranks != rank:  # shifted: each process has some of every plan
                continue
            if units.has(batch, index):
                advance(forwards)
                continue
            if victims is None:  # of the images that another process attacks the heads alone are read
                _, images, labels = read_whole(dataset, indices)
                victims = Victims(
                    images.to(device, memory_format=torch.channels_last),
                    labels.to(device),
                    torch.tensor([seed_from(evaluation.seed, place[name]) for name in names]),
                    balance,
                )
            began = time.monotonic()
            meter.allot(forwards)
            maker = judged if plan.substitute is None else makers[plan.substitute]
            counts = judge(maker, judged, plan, victims, len(dataset.classes))
            units.put(batch, index, counts, time.monotonic() - began)
            meter.allot(0)
    return batches


def probe_once(evaluation: Evaluation, units: Units, *, advance: Callable[[int], None] = lambda forwards: None) -> Probe:
    """
    Look for masked gradients on a few images, where that is not done yet; always on whole images.

    Parameters
    ----------
    evaluation : Evaluation
    units : Units
    advance : callable, optional
        Is told how many images a network has just seen; over all, `FORWARDS` for each probed one.
    """
    found = units.kept("probe", Probe)
    meter = Meter(advance)
    meter.allot(FORWARDS * evaluation.probed)
    if found is None:
        found = run_probe(
            meter.watch(main_branch(evaluation.checkpoint, evaluation.device)),
            dataclasses.replace(evaluation.dataset, long_side=evaluation.base or evaluation.dataset.long_side),
            epsilon=_PROBE_EPSILON,
            images=evaluation.probed,
            seed=evaluation.seed,
            batch_size=evaluation.batch_size,
            device=evaluation.device,
        )
        units.keep("probe", found)
    meter.allot(0)
    return found
