"""
Print how much room the extras of ddcat take in this environment, with all that they need.

    python bench/cpu/extras_size.py serve,cpu train,export,serve,bench,cpu

Each argument is a list of extras. The sizes are those of the files that pip recorded: nothing is downloaded or installed.
"""

import importlib.metadata
import sys
from pathlib import Path

from packaging.requirements import Requirement


def distributions(requirement: Requirement, found: dict[str, importlib.metadata.Distribution]) -> None:
    """Add the distributions that a requirement installs to those that are found; one that is not installed is an error."""
    distribution = importlib.metadata.distribution(requirement.name)
    found[distribution.name.lower()] = distribution
    for line in distribution.requires or ():
        needed = Requirement(line)
        wanted = not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in requirement.extras or {""})
        if wanted and (needed.name.lower() not in found or needed.extras):
            distributions(needed, found)


def size(distribution: importlib.metadata.Distribution) -> int:
    """Return the bytes of the files of a distribution."""
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def main() -> None:
    """Print a line for each list of extras."""
    for extras in sys.argv[1:]:
        found: dict[str, importlib.metadata.Distribution] = {}
        distributions(Requirement(f"ddcat[{extras}]"), found)
        sizes = {name: size(distribution) for name, distribution in found.items()}
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        print(f"{extras}: {len(found)} packages, {sum(sizes.values()) / 2**20:.0f} MiB, the largest {', '.join(largest)}")


if __name__ == "__main__":
    main()
