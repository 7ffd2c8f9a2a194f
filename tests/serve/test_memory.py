"""Large blocks go back to the system: in a process of its own, since the C library remembers what it was told."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import numpy as np
from ddcat_serve.memory import give_back_large_blocks

def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS:"))

if sys.argv[1] == "told":
    assert give_back_large_blocks()
np.ones(24 * 2**20, np.uint8)  # one large image, which is done
before = resident()
kept = []
for _ in range(10):
    large = np.ones(12 * 2**20, np.uint8)
    kept.append(np.ones(900_000, np.uint8))  # something small that stays behind it
    del large
print(resident() - before - 10 * 900)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_what_is_freed_is_given_back() -> None:
    found = {
        how: int(subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True).stdout)
        for how in ("left alone", "told")
    }
    assert found["told"] < 2 * 1024  # KiB
    assert found["left alone"] > 8 * 1024  # else this shows nothing
