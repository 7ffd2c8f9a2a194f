import signal

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

# A shell starts what it runs in the background with SIGINT ignored, and whoever is started then ignores it too: the commands
# that tests interrupt would. A signal that is handled here is back to its default in them.
signal.signal(signal.SIGINT, signal.default_int_handler)


class Scheduling(LoadFileScheduling):
    """Files stay whole, and those of tests/export stay together: they share a bundle that takes long to export."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "tests/export" if file.startswith("tests/export/") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    return Scheduling(config, log)
