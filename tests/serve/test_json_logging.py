"""The log of a server is JSON, whoever writes into it."""

import json
import subprocess
import sys


def test_a_warning_of_a_library_is_a_line_of_json() -> None:
    module = "ddcat_serve.observe.json_logging"
    program = f"import warnings; from {module} import log_as_json; log_as_json(); warnings.warn('of two\\nlines')"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    (line,) = found.stderr.splitlines()
    about = json.loads(line)
    assert about["level"] == "warning"
    assert "of two\nlines" in about["message"]
