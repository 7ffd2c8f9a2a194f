"""Pairs of keys, as openssl writes them."""

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def write_keys(
    folder: Path, name: str, private: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | None = None
) -> tuple[Path, Path]:
    """Write NAME.pem, which signs, and NAME.pub; a new pair on the curve P-256 by default."""
    key = private or ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    signs, verifies = folder / f"{name}.pem", folder / f"{name}.pub"
    signs.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    verifies.write_bytes(key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo))
    return signs, verifies
