"""What an error means for the evidence: its outcome, its reason, the gap that it leaves."""

from __future__ import annotations

from pmforensics.errors import (
    AccessDenied,
    DeadlinePassed,
    EndpointRefused,
    NotSupported,
    NotThere,
    PmfError,
    TargetGone,
    ToolMissing,
    WouldHarm,
)
from pmforensics.model.capture import Gap, Outcome, Reason

_OUTCOMES: tuple[tuple[type[PmfError], Outcome], ...] = (
    (NotThere, Outcome.MISSING),
    (NotSupported, Outcome.MISSING),
    (ToolMissing, Outcome.MISSING),
    (TargetGone, Outcome.MISSING),
    (AccessDenied, Outcome.DENIED),
    (EndpointRefused, Outcome.DENIED),
    (DeadlinePassed, Outcome.LATE),
    (WouldHarm, Outcome.REFUSED),
)


def outcome_of(error: PmfError) -> Outcome:
    """What an error makes of the attempt that raised it."""
    return next((outcome for kind, outcome in _OUTCOMES if isinstance(error, kind)), Outcome.FAILED)


def reason_of(error: PmfError) -> Reason:
    """The same error as a reason that travels into the manifest."""
    return Reason(error.code, error.message, error.hint)


def gap_of(error: PmfError, wanted: str, question: str = "") -> Gap:
    """A gap for something that raised instead of arriving."""
    return Gap(wanted, outcome_of(error), reason_of(error), question)
