"""
Detached signatures of a bundle's manifest, which stands for the whole bundle by the hashes in it.

The format is that of OpenSSF Model Signing, with a key pair and without a network: its own command verifies it, too.
"""

import importlib
from pathlib import Path
from typing import Any

from ddcat.error_text import first_line
from ddcat.errors import BundleError
from ddcat.extras import install
from ddcat.temporary import temporary_directory

__all__ = ["check_key", "sign", "verify"]

_KEYS = "use a PEM file with a key on the curve P-256, P-384 or P-521, without a password"


def check_key(key: Path) -> None:
    """Refuse a private key that cannot sign, before the long work."""
    sign(b"", key, name="check")


def sign(manifest: bytes, key: Path, *, name: str) -> bytes:
    """
    Sign a manifest.

    Parameters
    ----------
    manifest : bytes
    key : Path
        Private key in PEM, of an elliptic curve, without a password.
    name : str
        Name of the model in the signature.

    Returns
    -------
    bytes
        A Sigstore bundle in JSON.

    Raises
    ------
    BundleError
        Where the library is not installed, or the key cannot be read or is of another kind.
    """
    signing = _library().signing
    with temporary_directory() as folder:
        signature = folder / ".signature"  # as no model is called
        model = _as_model(manifest, folder / name)
        try:
            signing.Config().use_elliptic_key_signer(private_key=key).sign(model, signature)
        except Exception as cause:  # its exceptions share no base
            raise BundleError(f"cannot sign with {key} ({first_line(cause)}): {_KEYS}") from cause
        return signature.read_bytes()


def verify(manifest: bytes, signature: bytes, public_key: Path, *, where: str) -> None:
    """
    Refuse a manifest that the owner of a key did not sign.

    Parameters
    ----------
    manifest, signature : bytes
        The bytes that were read, which are also the bytes that are used.
    public_key : Path
        In PEM.
    where : str
        Begins the error message.

    Raises
    ------
    BundleError
    """
    verifying = _library().verifying
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception as cause:
        raise BundleError(f"cannot verify with {public_key} ({first_line(cause)}): {_KEYS}") from cause
    with temporary_directory() as folder:
        beside = folder / ".signature"
        beside.write_bytes(signature)
        try:
            config.verify(_as_model(manifest, folder / "model"), beside)
        except Exception as cause:
            reason = first_line(cause).partition(":")[0]  # what follows is hashes as raw bytes
            raise BundleError(
                f"{where} is not signed by the owner of {public_key} ({reason}): do not run it, and find out who wrote it"
            ) from cause


def _as_model(manifest: bytes, folder: Path) -> Path:
    # the library hashes files: it gets the very bytes that were read, not their path
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest)
    return folder


def _library() -> Any:
    try:
        return importlib.import_module("model_signing")  # an extra, and slow to import
    except ImportError as cause:
        raise BundleError(f"signatures need a library that is not installed ({cause}): {install('sign')}") from cause
