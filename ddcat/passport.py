"""
The passport: the gate's verdict on one bundle, beside its immutable manifest and bound to it by its SHA-256.

A passport of another manifest does not count. A verdict keeps a bundle from being loaded only where a passport is required; a
required signature that is missing always does.

Verdict and signature are one file, so that nobody reads one without the other. A signature proves who ran the gate, and when.
It cannot prove that this is the latest verdict: whoever can write into the bundle can put an older one back.
"""

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field

from ddcat import signing
from ddcat.atomic_files import write_in_turn
from ddcat.bundle import MOST_BYTES, NO_TRUST_POLICY, PASSPORT, Bundle, TrustPolicy
from ddcat.errors import BundleError
from ddcat.json_text import parse_model
from ddcat.regular_files import read_regular
from ddcat.schema import Count, Name, Sha256, StrictModel, Text
from ddcat.text import printable
from ddcat.tiles import Tiles

__all__ = ["Finding", "Passport", "PassportStatus", "Verdict", "read_passport", "write_passport"]

Verdict = Literal["pass", "refuse", "inconclusive"]


class Finding(StrictModel):
    """One criterion of the gate."""

    name: Text
    verdict: Verdict
    found: Text = Field(description="The measured value with its unit, and its interval where it has one.")
    limit: Text
    reason: Text = Field(description="The reason, in a sentence.")


class Passport(StrictModel):
    """The gate's verdict on a bundle."""

    schema_version: Literal[1] = 1
    manifest_sha256: Sha256
    verdict: Verdict
    budget: Literal["default", "quick"]
    judged_at: str | None = Field(
        default=None, pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="Time of the gate, in UTC; None: not known."
    )
    data: Text = Field(description="Data set of the gate.")
    images: Count = Field(ge=1)
    tiles: Tiles | None = Field(
        default=None, description="The rule by which the engine cut images of the gate; None: none was larger than a tile."
    )
    findings: tuple[Finding, ...] = Field(strict=False)
    not_judged: tuple[Name, ...] = Field((), strict=False, description="Criteria without a limit, which the gate only reports.")
    versions: dict[Name, Name]
    signature: dict[str, Any] | None = Field(
        default=None, description="Signature of all the rest, as a Sigstore bundle: see `ddcat.signing`; None: not signed."
    )

    def to_bytes(self) -> bytes:
        """Return the passport as JSON; without its signature, these are the signed bytes."""
        return self.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"

    def without_signature(self) -> "Passport":
        """Return the part that is signed."""
        return self.model_copy(update={"signature": None})


class PassportStatus(NamedTuple):
    """A bundle's passport, or the reason why it has none."""

    passport: Passport | None
    summary: str  # for a person

    @property
    def warning(self) -> str | None:
        """Warning for every place that serves a bundle which the gate refused; None for other bundles."""
        if self.passport is None or self.passport.verdict != "refuse":
            return None
        refused = ", ".join(printable(f.name) for f in self.passport.findings if f.verdict == "refuse") or "no finding is named"
        return f"the gate refused this bundle ({refused}): do not rely on its answers"


def read_passport(bundle: Bundle, trust: TrustPolicy = NO_TRUST_POLICY) -> PassportStatus:
    """
    Read the passport of a bundle.

    Parameters
    ----------
    bundle : Bundle
        The opened bundle.
    trust : TrustPolicy, optional
        With a public key, the passport must be signed by its owner. With `passport`, the bundle must have passed the gate with
        the default budget.

    Raises
    ------
    BundleError
        Where a required signature is missing or wrong, or a required passport is missing or no pass.
    """
    status = _read(bundle, trust)
    if trust.passport:
        _check_passed(bundle, status)
    return status


def _read(bundle: Bundle, trust: TrustPolicy) -> PassportStatus:
    file = bundle.path / PASSPORT
    try:
        content = read_regular(file, most=MOST_BYTES, error=BundleError)
    except OSError:
        return PassportStatus(None, "none: the gate has not tested this bundle")
    try:
        signed = parse_model(Passport, content)
    except ValueError as cause:
        if trust.public_key is not None:
            raise BundleError(f"{file} is not signed in a form that this version reads ({cause})") from cause
        return PassportStatus(None, f"none: {file.name} is not one that this version reads ({cause})")
    passport = signed.without_signature()
    if trust.public_key is not None:
        if signed.signature is None:
            raise BundleError(f"{file} is not signed: use ddcat gate --sign KEY")
        signing.verify(passport.to_bytes(), json.dumps(signed.signature).encode(), trust.public_key, where=str(file))
    if passport.manifest_sha256 != bundle.digest:
        return PassportStatus(
            None, f"none: {file.name} is of another bundle, {passport.manifest_sha256[:12]}...: run ddcat gate on this one"
        )
    named = [f"{printable(finding.name)}: {finding.verdict}" for finding in passport.findings]
    findings = ", ".join([*named, *(f"{printable(name)}: not judged" for name in passport.not_judged)])
    when = "" if passport.judged_at is None else f"judged {passport.judged_at}, "
    checked = "not checked" if trust.public_key is None else "checked"
    about = f"{passport.budget} budget, {passport.images} images, {when}signature {checked}"
    return PassportStatus(passport, f"{passport.verdict} ({about}; {findings})")


def _check_passed(bundle: Bundle, status: PassportStatus) -> None:
    if status.passport is None:
        raise BundleError(f"{bundle.path} has no passport ({status.summary}): run ddcat gate")
    if status.passport.verdict != "pass":
        raise BundleError(f"{bundle.path} did not pass the gate, its passport says {status.passport.verdict}: do not serve it")
    if status.passport.budget != "default":
        raise BundleError(
            f"{bundle.path} passed the gate with the {status.passport.budget} budget alone, which tries no strong attack: run "
            f"ddcat gate without --{status.passport.budget}"
        )


def write_passport(bundle: Bundle, passport: Passport, *, key: Path | None = None) -> None:
    """
    Write a passport into a bundle, in place of an older one: a reader sees one of the two, whole and with its signature.

    Raises
    ------
    BundleError
        Where it cannot be signed.
    WriteError
    """
    if key is not None:
        signature = signing.sign(passport.without_signature().to_bytes(), key, name=bundle.manifest.name)
        passport = passport.model_copy(update={"signature": json.loads(signature)})
    write_in_turn(bundle.path / PASSPORT, passport.to_bytes())
