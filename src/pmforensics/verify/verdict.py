"""What verification says: four verdicts, a row for each image, a report for each dump."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from pmforensics.model.image import DumpImage, ImageId, Reading
from pmforensics.verify.candidates import Candidate

NOT_WITH_THIS = "Do not read frames with this file."


class Verdict(Enum):
    """The four verdicts, never merged."""

    MATCH = "MATCH"
    MATCH_PREFIX = "MATCH-PREFIX"
    MISMATCH = "MISMATCH"
    UNVERIFIABLE = "UNVERIFIABLE"


WORST_FIRST = (Verdict.MISMATCH, Verdict.UNVERIFIABLE, Verdict.MATCH_PREFIX, Verdict.MATCH)
GOOD = (Verdict.MATCH, Verdict.MATCH_PREFIX)


@dataclass(frozen=True, slots=True)
class Row:
    """
    One image of the dump and what was held against it.

    code       why, in one stable word: "same-id", "other-id", "altered", "no-candidate", "page-not-dumped", ...
    says       the same as a sentence, both identities included where they differ
    next_step  what to do, "" for nothing; `command` is the command that does it, "" for none
    asked      somebody named a candidate for it; only such rows decide the exit code (all images, when strict)
    """

    image: DumpImage | None
    candidate: Candidate | None
    verdict: Verdict
    code: str
    says: str
    next_step: str = ""
    command: str = ""
    asked: bool = True
    reading: Reading | None = None
    theirs: ImageId | None = None


@dataclass(frozen=True, slots=True)
class IdentityReport:
    """All rows, those asked about first and of them the worst, and the sentences around them."""

    dump: Path
    format: str
    rows: tuple[Row, ...]
    lost: tuple[str, ...]
    conflicts: tuple[str, ...]
    warnings: tuple[str, ...]
    actual_bytes: int
    declared_bytes: int | None
    facts: dict[str, int | str] = field(default_factory=dict)

    @property
    def asked(self) -> tuple[Row, ...]:
        """The rows that decide."""
        return tuple(row for row in self.rows if row.asked)

    @property
    def verdict(self) -> Verdict:
        """The worst of the rows that decide: a mismatch, then the unprovable."""
        verdicts = {row.verdict for row in self.asked}
        return next((verdict for verdict in WORST_FIRST if verdict in verdicts), Verdict.UNVERIFIABLE)
