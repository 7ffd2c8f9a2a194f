"""A server whose root cannot be written to, as the manifests for Kubernetes and `docker run --read-only` have it."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from ddcat.bundle import Bundle, write_bundle
from tests.bundles import small_graph
from tests.keys import write_keys
from tests.serve.payloads import as_labels, as_png
from tests.serve.processes import COMMAND, MEASURED, server

# in a mount namespace of its own; shared memory stays, which containers have
READ_ONLY = """
set -e
mount --make-rprivate /
for place in /tmp /var/tmp "$1"; do mount --bind $place $place; mount -o remount,bind,ro $place; done
mount -o remount,bind,ro /
cd /sys
unset TMPDIR
shift
"""
INSIDE = ["unshare", "--mount", "bash", "-c", READ_ONLY + 'exec "$@"', "bash"]
WITHOUT_SHARED_MEMORY = [*INSIDE[:-2], READ_ONLY + 'mount --bind /proc/self/task /dev/shm; exec "$@"', "bash"]


@pytest.fixture(autouse=True)
def allowed() -> None:
    done = subprocess.run([*INSIDE, "/tmp", "true"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


@pytest.mark.parametrize(("engine", "signed"), [("ort", True), ("openvino", False)])
def test_it_starts_and_answers_bodies_and_forms(
    engine: str, signed: bool, build: Callable[..., Bundle], oracle: Callable, picture: np.ndarray, tmp_path: Path,
) -> None:  # fmt: skip
    made, options = build(small_graph(), engine), []
    if signed:
        key, public = write_keys(tmp_path, "key")
        made = write_bundle(tmp_path / "signed", made.manifest, made.files, key=key)
        options = ["--require-signature", public]
    large = np.random.default_rng(0).integers(0, 256, (640, 640, 3), np.uint8)  # a form of so many bytes was put into a file
    with server(made.path, *options, inside=[*INSIDE, str(tmp_path)]) as (_, address):
        response = httpx.post(f"{address}/v1/segment", content=as_png(picture))
        np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])
        content = as_png(large)
        assert len(content) > 2**20
        response = httpx.post(f"{address}/v1/segment", files={"image": ("large.png", content)}, timeout=30)
        assert response.status_code == 200, response.text
        np.testing.assert_array_equal(as_labels(response.content), oracle(large[None])[0][0])


def test_where_nothing_at_all_can_be_written_it_says_so_in_one_line(bundle: Bundle, tmp_path: Path) -> None:
    line = [*WITHOUT_SHARED_MEMORY, tmp_path, COMMAND, "run", bundle.path, "--port", "0"]
    unmeasured = {name: value for name, value in os.environ.items() if name != MEASURED}  # coverage.py would want to write, too
    done = subprocess.run([*map(str, line)], capture_output=True, text=True, check=False, timeout=60, env=unmeasured)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == (  # a runtime may warn before of what it cannot write
        "error: no folder for temporary files is writable: set TMPDIR to one that is, or mount a tmpfs at /tmp"
    )
