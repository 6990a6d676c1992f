"""One capture: what was asked, what came of it, and what is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeAlias

Json: TypeAlias = "None | bool | int | float | str | Sequence[Json] | Mapping[str, Json]"

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


class Outcome(Enum):
    """
    What came of one attempt. "Not there" is not "could not look", and neither is "would not look".

    collected  whole
    partial    some of it, the rest is known to be absent
    empty      looked, the thing exists and holds nothing
    missing    looked, the thing does not exist
    denied     the kernel, or the target, refused
    refused    pmf declined, to protect the target, the volume or the budget
    late       the deadline came first
    failed     tried and did not succeed
    """

    COLLECTED = "collected"
    PARTIAL = "partial"
    EMPTY = "empty"
    MISSING = "missing"
    DENIED = "denied"
    REFUSED = "refused"
    LATE = "late"
    FAILED = "failed"


class CoreKind(Enum):
    """How much memory of the live process goes into the core."""

    NONE = "none"
    STACKS = "stacks"
    FULL = "full"


class PauseBasis(Enum):
    """How a pause is known: by our own clock around the stop, or no longer than the call that caused it."""

    MEASURED = "measured"
    AT_MOST = "at-most"


@dataclass(frozen=True, slots=True)
class Pause:
    """How long the target stood still because of us, in seconds of the monotonic clock."""

    seconds: float
    basis: PauseBasis

    def json(self) -> dict[str, Json]:
        """As the wire, the journal and the manifest spell it."""
        return {"seconds": round(self.seconds, 6), "basis": self.basis.value}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is less than whole: a stable code, a sentence, and the next step ("" when there is none)."""

    code: str
    says: str
    next_step: str = ""

    def json(self) -> dict[str, Json]:
        """As the wire, the journal and the manifest spell it."""
        return {"code": self.code, "says": self.says, "next_step": self.next_step}


@dataclass(frozen=True, slots=True)
class Settlement:
    """What is known of an artifact once its last byte has gone by."""

    outcome: Outcome = Outcome.COLLECTED
    reason: Reason | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class Artifact:
    """
    One raw file of evidence, on its way to the bundle.

    path       inside the collector's folder; letters, digits, `._-` and `/` only
    body       the bytes, or chunks of them (at most 1 MiB each), or a file in the collector's spool folder
               on the evidence volume, which is moved in, not copied
    source     where the bytes come from, with secrets removed
    bulk       may be large: the space floor is asked first, and it may be compressed
    settle     called after the last byte; decides the outcome of a streamed body
    """

    path: str
    body: bytes | Iterable[bytes] | Path
    source: str
    media_type: str = "text/plain"
    outcome: Outcome = Outcome.COLLECTED
    reason: Reason | None = None
    facts: Mapping[str, Json] = field(default_factory=dict)
    pause: Pause | None = None
    bulk: bool = False
    settle: Callable[[], Settlement] | None = None

    def settled(self) -> Settlement:
        """The final word on this artifact; valid once `body` is exhausted."""
        if self.settle is not None:
            return self.settle()
        return Settlement(self.outcome, self.reason, self.facts, self.pause)


@dataclass(frozen=True, slots=True)
class Gap:
    """
    Evidence that was wanted and is not there, or not all there.

    wanted     what, in the words of the collector ("goroutines with waits and creators")
    question   the question of the post-mortem that this evidence would have answered
    """

    wanted: str
    outcome: Outcome
    reason: Reason
    question: str = ""


@dataclass(frozen=True, slots=True)
class Touch:
    """One thing that a collector did to the outside: custody by construction. `what` is already redacted."""

    verb: str
    what: str
    seconds: float
    result: str


@dataclass(frozen=True, slots=True)
class CollectorStarted:
    """A collector begins; everything up to the next `CollectorEnded` is its work."""

    name: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class CollectorEnded:
    """
    A collector is over.

    runs_again   None when it does not stop the target; else whether the target was seen running afterwards
    """

    name: str
    outcome: Outcome
    seconds: float
    runs_again: bool | None = None


@dataclass(frozen=True, slots=True)
class Fact:
    """Something learned about the capture as a whole: `target`, `clock`, `volume`, ... ; goes to the manifest."""

    name: str
    value: Json


Item: TypeAlias = Artifact | Gap | Touch | CollectorStarted | CollectorEnded | Fact


@dataclass(frozen=True, slots=True)
class Ask:
    """
    What was asked of one capture.

    budget_s       wall time for everything, sealing included
    allow_pause_s  longest predicted standstill of the target that is acceptable
    include        opt-in collectors to add; exclude: collectors to leave out
    pprof_url      base URL of the pprof handlers when they cannot be discovered
    """

    pid: int
    budget_s: float = 25.0
    allow_pause_s: float = 1.0
    service: str | None = None
    incident: str | None = None
    logs: tuple[Path, ...] = ()
    since_s: float = 900.0
    core: CoreKind = CoreKind.STACKS
    heap_dump: bool = False
    include: frozenset[str] = frozenset()
    exclude: frozenset[str] = frozenset()
    pprof_url: str | None = None
