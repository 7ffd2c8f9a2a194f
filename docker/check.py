"""
Do what a Dockerfile does, where there is no Docker: each RUN line, in a clean virtual environment for each stage.

    python docker/check.py docker/Dockerfile.cpu [BUNDLE]

COPY copies into a folder that stands for the root; absolute paths of the image lie in it. What needs another system (apt-get,
users) is told and left out. With a bundle, the image's own command serves it, and its health check must find it ready.
"""

import json
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
    file, *bundle = map(Path, sys.argv[1:])
    context = file.resolve().parents[1]
    words: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        stages: dict[str, Path] = {}
        root = Path(folder)
        for instruction, given in instructions(file):
            words[instruction] = given
            if instruction == "FROM":
                name = given.partition(" AS ")[2].strip() or "last"
                root = stages[name] = Path(folder) / name
                venv.create(root / "venv", with_pip=True)
            elif instruction == "COPY":
                source, target = given.split()[-2:]
                stage = re.match(r"--from=(\w+)", given)
                origin = stages[stage[1]] / source.lstrip("/") if stage else context / source
                shutil.copytree(origin, root / target.lstrip("/"), ignore=IGNORED, dirs_exist_ok=True)
            elif instruction == "RUN":
                execute(given, root)
        if bundle:
            serve(words, root, bundle[0])


def instructions(file: Path) -> list[tuple[str, str]]:
    """Give the instructions of a Dockerfile, comments left out and continued lines joined."""
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in joined]


def serve(words: dict[str, str], root: Path, bundle: Path) -> None:
    """Start what the image starts, until its health check is content."""
    command = [*json.loads(words["ENTRYPOINT"]), *json.loads(words["CMD"])]
    line = [str(bundle.resolve()) if word == "/bundle" else word for word in command]
    healthy = json.loads(words["HEALTHCHECK"].partition("CMD ")[2])
    about = {"env": {"PATH": f"{root / 'venv/bin'}:/usr/bin:/bin", "HOME": str(root)}, "cwd": root}
    with subprocess.Popen(line, executable=root / "venv/bin" / line[0], stdout=subprocess.DEVNULL, **about) as process:
        began = time.monotonic()
        asked = {"executable": root / "venv/bin" / healthy[0], "stderr": subprocess.DEVNULL, **about}
        while subprocess.run(healthy, check=False, **asked).returncode:
            if process.poll() is not None or time.monotonic() - began > 60:
                process.kill()
                sys.exit(f"error: {' '.join(command)} is not ready")
            time.sleep(0.5)
        process.terminate()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with exit status {process.returncode}")
    print(f"{time.monotonic() - began:6.1f} s  {' '.join(command)}: ready, and stopped by SIGTERM")


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
