"""
The released DDC-AT code, which is not ours to keep here.

To run the tests that need it, name a checkout of github.com/dvlab-research/Robust-Semantic-Segmentation:
DDCAT_RELEASED_CODE=FOLDER pytest -m slow tests/train/test_released_step.py tests/bench/attack/test_released_windows.py
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import pytest
import torch

from ddcat_train import imagenet

_FOLDER = os.environ.get("DDCAT_RELEASED_CODE")
_NOT_NEEDED = (
    "apex", "tensorboardX", "lib", "lib.sync_bn", "lib.sync_bn.modules", "util.dataset", "util.transform", "util.config",
)  # fmt: skip

needs_released_code = [
    pytest.mark.slow,
    pytest.mark.skipif(not _FOLDER, reason="DDCAT_RELEASED_CODE names no checkout of the released code"),
]


@contextmanager
def released(script: str) -> Iterator[ModuleType]:
    """
    Import a released script, such as tool_train/train_ddcat_psp.py; what it imports and does not need on a CPU is made up.

    Its `args` are left to the test, as is all else that its main() sets, but for the logs, mean and standard deviation.
    """
    folder = Path(str(_FOLDER))
    if not (folder / script).is_file():
        pytest.skip(f"{script} is not in the folder")
    with pytest.MonkeyPatch.context() as patch:
        for name in _NOT_NEEDED:
            patch.setitem(sys.modules, name, MagicMock())
        patch.syspath_prepend(str(folder))
        patch.setattr(torch.Tensor, "cuda", lambda tensor, **_: tensor)
        spec = importlib.util.spec_from_file_location("released_script", folder / script)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
            module.writer, module.logger = MagicMock(), MagicMock()  # type: ignore[attr-defined]
            module.mean_origin, module.std_origin = list(imagenet.MEAN), list(imagenet.STD)  # type: ignore[attr-defined]
            yield module
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] in ("model", "util")]:
                patch.delitem(sys.modules, name)  # theirs have names that others may have, too
