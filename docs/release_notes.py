"""
Print what the changelog says of a version, for the notes of its release.

    python docs/release_notes.py v0.2.0
"""

import argparse
import re
import sys
from pathlib import Path

CHANGELOG = Path(__file__).parents[1] / "CHANGELOG.md"


def main() -> None:
    """Print the notes, or fail where the changelog has none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", help="such as v0.2.0")
    version = parser.parse_args().version.removeprefix("v")
    notes = notes_of(version)
    if notes is None:
        sys.exit(f"error: CHANGELOG.md has no section for {version}; add '## {version} (YYYY-MM-DD)'")
    print(notes)


def notes_of(version: str) -> str | None:
    """Return the section of a version, without its heading; None where there is none."""
    text = CHANGELOG.read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(version)} \([\d-]+\)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else None


if __name__ == "__main__":
    main()
