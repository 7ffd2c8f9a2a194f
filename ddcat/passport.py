"""
The passport: the gate's verdict on one bundle, beside its immutable manifest and bound to it by its SHA-256.

A bundle whose manifest is another one has none. Unless a passport is asked for, no verdict keeps a bundle from being loaded;
the lack of a signature that was asked for does.

Verdict and signature are one file, so that nobody ever reads one without the other. A signature says who judged the bundle,
and when; it cannot say that this is the latest verdict: whoever can write into the bundle can put an older one back.
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

__all__ = ["Finding", "Passport", "PassportStatus", "Verdict", "read_passport", "write_passport"]

Verdict = Literal["pass", "refuse", "inconclusive"]


class Finding(StrictModel):
    """One thing that was judged."""

    name: Text
    verdict: Verdict
    found: Text = Field(description="with its unit, and its interval where it has one")
    limit: Text
    reason: Text = Field(description="a sentence")


class Passport(StrictModel):
    """What the gate says of a bundle."""

    schema_version: Literal[1] = 1
    manifest_sha256: Sha256
    verdict: Verdict
    budget: Literal["default", "quick"]
    judged_at: str | None = Field(
        default=None, pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", description="when, in UTC; None: not known"
    )
    data: Text = Field(description="that it was judged on")
    images: Count = Field(ge=1)
    findings: tuple[Finding, ...] = Field(strict=False)
    not_judged: tuple[Name, ...] = Field((), strict=False, description="what the limits leave out: reported by the gate only")
    versions: dict[Name, Name]
    signature: dict[str, Any] | None = Field(
        default=None, description="of all the rest, as a Sigstore bundle: see `ddcat.signing`; None: not signed"
    )

    def to_bytes(self) -> bytes:
        """Write as JSON; what is signed are these bytes without the signature."""
        return self.model_dump_json(indent=2, exclude_none=True).encode() + b"\n"

    def without_signature(self) -> "Passport":
        """Give what is signed."""
        return self.model_copy(update={"signature": None})


class PassportStatus(NamedTuple):
    """A bundle's passport, or why it has none."""

    passport: Passport | None
    summary: str  # for a person

    @property
    def warning(self) -> str | None:
        """What must be said of a bundle that the gate refused, wherever it is served; None of any other."""
        if self.passport is None or self.passport.verdict != "refuse":
            return None
        refused = ", ".join(printable(f.name) for f in self.passport.findings if f.verdict == "refuse") or "no finding is named"
        return f"the gate refused this bundle ({refused}): do not rely on its answers"


def read_passport(bundle: Bundle, trust: TrustPolicy = NO_TRUST_POLICY) -> PassportStatus:
    """
    Read the passport that lies in a bundle.

    Parameters
    ----------
    bundle : Bundle
        As it was opened.
    trust : TrustPolicy, optional
        With a public key: the passport must be signed by its owner. Where it asks for a passport: there must be one, by which
        the bundle passed the gate with the default budget.

    Raises
    ------
    BundleError
        Where it is not signed by whom it should be, or does not let the bundle run where that is asked for.
    """
    found = _read(bundle, trust)
    if trust.passport:
        _check_passed(bundle, found)
    return found


def _read(bundle: Bundle, trust: TrustPolicy) -> PassportStatus:
    file = bundle.path / PASSPORT
    try:
        content = read_regular(file, most=MOST_BYTES, error=BundleError)
    except OSError:
        return PassportStatus(None, "none: the bundle has not been judged")
    try:
        signed = parse_model(Passport, content)
    except ValueError as cause:
        if trust.public_key is not None:
            raise BundleError(f"{file} is not signed in a form that this version reads ({cause})") from cause
        return PassportStatus(None, f"none: {file.name} is not one that this version reads ({cause})")
    passport = signed.without_signature()
    if trust.public_key is not None:
        if signed.signature is None:
            raise BundleError(f"{file} is not signed: ddcat gate --sign KEY signs")
        signing.verify(passport.to_bytes(), json.dumps(signed.signature).encode(), trust.public_key, where=str(file))
    if passport.manifest_sha256 != bundle.digest:
        return PassportStatus(
            None, f"none: {file.name} speaks of another bundle, {passport.manifest_sha256[:12]}...: judge this one"
        )
    named = [f"{printable(finding.name)}: {finding.verdict}" for finding in passport.findings]
    findings = ", ".join([*named, *(f"{printable(name)}: not judged" for name in passport.not_judged)])
    when = "" if passport.judged_at is None else f"judged {passport.judged_at}, "
    checked = "not checked" if trust.public_key is None else "checked"
    about = f"{passport.budget} budget, {passport.images} images, {when}signature {checked}"
    return PassportStatus(passport, f"{passport.verdict} ({about}; {findings})")


def _check_passed(bundle: Bundle, found: PassportStatus) -> None:
    if found.passport is None:
        raise BundleError(f"{bundle.path} has no passport ({found.summary}): ddcat gate judges it")
    if found.passport.verdict != "pass":
        raise BundleError(f"{bundle.path} did not pass the gate, its passport says {found.passport.verdict}: do not serve it")
    if found.passport.budget != "default":
        raise BundleError(
            f"{bundle.path} passed the gate with the {found.passport.budget} budget alone, which tries no strong attack: judge "
            f"it without --{found.passport.budget}"
        )


def write_passport(bundle: Bundle, passport: Passport, *, key: Path | None = None) -> None:
    """
    Put a passport into a bundle, in place of an older one: a reader sees the one or the other, whole and with its signature.

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
