"""KServe's own clients, in an environment of their own."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ddcat.bundle import Bundle
from tests.serve.processes import free_port, server


@pytest.mark.slow
def test_they_get_their_masks_over_rest_and_grpc(kserve: Path, bundle: Bundle, oracle: Callable, tmp_path: Path) -> None:
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with server(bundle.path, "--grpc-port", port) as (_, address):
        line = [kserve, Path(__file__).with_name("kserve_client.py"), address, f"127.0.0.1:{port}"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    image = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(1, 16, 24, 3)
    answer = ["7", "labels", oracle(image)[0].tolist()]
    assert found == {
        "rest ready": True, "grpc ready": True,
        "rest json": answer, "rest binary": answer, "grpc json": answer, "grpc binary": answer,
    }  # fmt: skip
