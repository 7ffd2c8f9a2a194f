import functools
import gc
import signal
import sys

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

# A shell starts what it runs in the background with SIGINT ignored, and whoever is started then ignores it too: the commands
# that tests interrupt would. A signal that is handled here is back to its default in them.
signal.signal(signal.SIGINT, signal.default_int_handler)

gc.disable()  # until all is imported


TOGETHER = ("tests/export/", "tests/bench/gate/")  # what they share takes long to make
FIRST = (
    "tests/export/", "tests/train/test_distributed.py", "tests/bench/gate/", "tests/integration/test_line.py",
    "tests/train/test_distributed_runs.py", "tests/bench/test_work_units.py", "tests/train/test_methods.py",
)  # fmt: skip


class Scheduling(LoadFileScheduling):
    """Files stay whole; what takes longest is begun first."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return next((start for start in TOGETHER if file.startswith(start)), file)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if left := [scope for scope in FIRST if scope in self.workqueue]:
            self.workqueue.move_to_end(left[0], last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Leave out of every later collection of garbage what was imported: it is a million objects, and they stay."""
    gc.freeze()
    gc.enable()
    if "ddcat.provenance" in sys.modules:  # every run, export and measurement asks git three times
        provenance = sys.modules["ddcat.provenance"]
        provenance._git = functools.cache(provenance._git)
    if "torch" in sys.modules:
        from tests.exporter import remember  # noqa: PLC0415 -- it imports torch

        remember()
