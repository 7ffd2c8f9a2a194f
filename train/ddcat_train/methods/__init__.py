"""Methods: how a batch becomes updates of the weights."""

from functools import partial

from ddcat_train.choices import MethodName
from ddcat_train.methods.adversarial import ADVERSARIAL
from ddcat_train.methods.base import Method, MicroBatch, OptimizerStep, TrainingStep
from ddcat_train.methods.ddcat import ddcat
from ddcat_train.methods.gaussian import gaussian
from ddcat_train.methods.trades import trades

__all__ = ["METHODS", "Method", "MicroBatch", "OptimizerStep", "TrainingStep"]

METHODS: dict[MethodName, Method] = ADVERSARIAL | {
    "ddcat": Method(ddcat, branches=("main", "auxiliary", "mask"), attacks=True),
    "ddcat-m": Method(partial(ddcat, mark_adversarial=True), branches=("main", "auxiliary", "mask"), attacks=True),
    "ddcat-n": Method(
        partial(ddcat, mark_clean=False, mark_adversarial=True), branches=("main", "auxiliary", "mask"), attacks=True
    ),
    "gaussian": Method(gaussian, branches=("main",), attacks=False),
    "trades": Method(trades, branches=("main",), attacks=True),
}
