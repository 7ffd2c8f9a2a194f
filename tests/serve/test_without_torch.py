import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
from unittest.mock import MagicMock
sys.modules["torch"] = None
for name in ("tensorrt", "ray", "ray.serve", "ray.serve.config"):  # of other extras; our uses of them are tested elsewhere
    sys.modules[name] = MagicMock()
import ddcat_serve
names = [module.name for module in pkgutil.walk_packages(ddcat_serve.__path__, "ddcat_serve.")]
for name in names:
    importlib.import_module(name)
assert not any(name.startswith(("torch.", "ddcat_train", "ddcat_export", "ddcat_bench")) for name in sys.modules)
print(len(names))
"""


def test_every_module_imports_where_torch_does_not() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 10
