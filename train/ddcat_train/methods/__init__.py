"""Methods: how a batch becomes updates."""

from ddcat_train.methods.base import AttackSettings, Method, Step, Update
from ddcat_train.methods.clean import clean
from ddcat_train.methods.ddcat import ddcat
from ddcat_train.methods.sat import sat
from ddcat_train.names import MethodName

__all__ = ["METHODS", "AttackSettings", "Method", "Step", "Update"]

METHODS: dict[MethodName, Method] = {
    "clean": Method(clean, heads=("main",), attacks=False),
    "sat": Method(sat, heads=("main",), attacks=True),
    "ddcat": Method(ddcat, heads=("main", "auxiliary", "mask"), attacks=True),
}
