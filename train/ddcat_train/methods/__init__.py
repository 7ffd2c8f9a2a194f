"""Methods: how a batch becomes updates."""

from ddcat_train.methods.base import Method, Portion, Step, Update
from ddcat_train.methods.clean import clean
from ddcat_train.methods.ddcat import ddcat
from ddcat_train.methods.ddcat_m import ddcat_m
from ddcat_train.methods.ddcat_n import ddcat_n
from ddcat_train.methods.pgd_at import pgd_at
from ddcat_train.methods.sat import sat
from ddcat_train.methods.segpgd_at import segpgd_at
from ddcat_train.methods.trades import trades
from ddcat_train.names import MethodName

__all__ = ["METHODS", "Method", "Portion", "Step", "Update"]

METHODS: dict[MethodName, Method] = {
    "clean": Method(clean, branches=("main",), attacks=False),
    "sat": Method(sat, branches=("main",), attacks=True),
    "ddcat": Method(ddcat, branches=("main", "auxiliary", "mask"), attacks=True),
    "ddcat-m": Method(ddcat_m, branches=("main", "auxiliary", "mask"), attacks=True),
    "ddcat-n": Method(ddcat_n, branches=("main", "auxiliary", "mask"), attacks=True),
    "pgd-at": Method(pgd_at, branches=("main",), attacks=True),
    "segpgd-at": Method(segpgd_at, branches=("main",), attacks=True),
    "trades": Method(trades, branches=("main",), attacks=True),
}
