"""
Do what a Dockerfile does, where there is no Docker: each RUN line, in a clean virtual environment for each stage.

    python docker/check.py docker/Dockerfile.cpu

COPY copies into a folder that stands for the root; absolute paths of the image lie in it. What needs another system (apt-get,
users) is told and left out.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

SYSTEM = ("apt-get", "useradd")  # of the image's own system
IGNORED = shutil.ignore_patterns(".git", ".venv", "demo", "runs", "build", "*.egg-info", "__pycache__", ".mypy_cache")


def main() -> None:
    """Read the file and do as it says."""
    file = Path(sys.argv[1])
    context = file.resolve().parents[1]
    with tempfile.TemporaryDirectory() as folder:
        stages: dict[str, Path] = {}
        root = Path(folder)
        for instruction, words in instructions(file):
            if instruction == "FROM":
                name = words.partition(" AS ")[2].strip() or "last"
                root = stages[name] = Path(folder) / name
                venv.create(root / "venv", with_pip=True)
            elif instruction == "COPY":
                source, target = words.split()[-2:]
                stage = re.match(r"--from=(\w+)", words)
                origin = stages[stage[1]] / source.lstrip("/") if stage else context / source
                shutil.copytree(origin, root / target.lstrip("/"), ignore=IGNORED, dirs_exist_ok=True)
            elif instruction == "RUN":
                execute(words, root)


def instructions(file: Path) -> list[tuple[str, str]]:
    """Give the instructions of a Dockerfile, comments left out and continued lines joined."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined]


def execute(command: str, root: Path) -> None:
    """Run a line with the stage's own Python."""
    if any(word in command for word in SYSTEM) or "-m venv" in command:
        print(f"left out, of the image's system: {command}", flush=True)
        return
    there = re.sub(r"(?<![\w.])/(dist|src)\b", lambda match: str(root / match[1]), command)
    path = f"{root / 'venv/bin'}:/usr/bin:/bin"
    began = time.monotonic()
    subprocess.run(["sh", "-c", there], check=True, env={"PATH": path, "HOME": str(root)}, cwd=root, stdout=subprocess.DEVNULL)
    print(f"{time.monotonic() - began:6.1f} s  {command}", flush=True)


if __name__ == "__main__":
    main()
