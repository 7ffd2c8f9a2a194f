"""SHA-256 of bytes and of files, in hexadecimal."""

import hashlib
from pathlib import Path

__all__ = ["sha256_of_bytes", "sha256_of_file"]


def sha256_of_bytes(content: bytes) -> str:
    """Hash bytes."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: Path) -> str:
    """Hash a file without holding it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
