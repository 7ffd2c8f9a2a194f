"""
The passport: the gate's verdict on one bundle, beside its immutable manifest and bound to it by its SHA-256.

A bundle whose manifest is another one has none. No verdict keeps a bundle from being loaded; the lack of a signature that was
asked for does.
"""

from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

from ddcat import signing
from ddcat.bundle import ANYONE, PASSPORT, PASSPORT_SIGNATURE, Bundle, Trust
from ddcat.errors import BundleError
from ddcat.faults import first_fault
from ddcat.files import write_bytes, writing
from ddcat.schema import Sha256, Strict

__all__ = ["Finding", "Found", "Passport", "Verdict", "read_passport", "write_passport"]

Verdict = Literal["pass", "refuse", "inconclusive"]


class Finding(Strict):
    """One thing that was judged."""

    name: str
    verdict: Verdict
    found: str = Field(description="with its unit, and its interval where it has one")
    limit: str
    reason: str = Field(description="a sentence")


class Passport(Strict):
    """What the gate says of a bundle."""

    schema_version: Literal[1] = 1
    manifest_sha256: Sha256
    verdict: Verdict
    budget: Literal["default", "quick"]
    data: str = Field(description="that it was judged on")
    images: int = Field(ge=1)
    findings: tuple[Finding, ...] = Field(strict=False)
    not_judged: tuple[str, ...] = Field((), strict=False, description="what the limits leave out: reported by the gate only")
    versions: dict[str, str]

    def to_bytes(self) -> bytes:
        """Write as JSON."""
        return self.model_dump_json(indent=2).encode() + b"\n"


class Found(NamedTuple):
    """A bundle's passport, or why it has none."""

    passport: Passport | None
    known: str  # for a person


def read_passport(bundle: Bundle, trust: Trust = ANYONE) -> Found:
    """
    Read the passport that lies in a bundle.

    Parameters
    ----------
    bundle : Bundle
        As it was opened.
    trust : Trust, optional
        With a public key: the passport must be signed by its owner.

    Raises
    ------
    BundleError
        Where it is not signed by whom it should be.
    """
    file = bundle.path / PASSPORT
    try:
        content = file.read_bytes()
    except OSError:
        return Found(None, "none: the bundle has not been judged")
    if trust.public_key is not None:
        try:
            signature = (bundle.path / PASSPORT_SIGNATURE).read_bytes()
        except OSError as cause:
            raise BundleError(f"{file} is not signed: ddcat-bench gate --sign KEY signs") from cause
        signing.verify(content, signature, trust.public_key, where=str(file))
    try:
        passport = Passport.model_validate_json(content)
    except ValidationError as cause:
        return Found(None, f"none: {file.name} is not one that this version reads ({first_fault(cause)})")
    if passport.manifest_sha256 != bundle.digest:
        return Found(None, f"none: {file.name} speaks of another bundle, {passport.manifest_sha256[:12]}...: judge this one")
    named = [f"{finding.name}: {finding.verdict}" for finding in passport.findings]
    findings = ", ".join([*named, *(f"{name}: not judged" for name in passport.not_judged)])
    checked = "not checked" if trust.public_key is None else "checked"
    about = f"{passport.budget} budget, {passport.images} images, signature {checked}"
    return Found(passport, f"{passport.verdict} ({about}; {findings})")


def write_passport(bundle: Bundle, passport: Passport, *, key: Path | None = None) -> None:
    """
    Put a passport into a bundle, in place of an older one.

    Raises
    ------
    BundleError
        Where it cannot be signed.
    WriteError
    """
    content = passport.to_bytes()
    signature = None if key is None else signing.sign(content, key, name=bundle.manifest.name)
    with writing(bundle.path):
        (bundle.path / PASSPORT_SIGNATURE).unlink(missing_ok=True)
    write_bytes(bundle.path / PASSPORT, content)
    if signature is not None:
        write_bytes(bundle.path / PASSPORT_SIGNATURE, signature)
