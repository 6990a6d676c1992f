"""Check a dump's structure while it streams past: no second read, no trust in "the file exists"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from pmforensics.formats.structure import Shape, Structure, StructureCheck
from pmforensics.model.capture import Json, Outcome, Pause, Reason, Settlement


def checked(chunks: Iterable[bytes], check: StructureCheck) -> Iterator[bytes]:
    """The same chunks, each shown to `check` on its way."""
    for chunk in chunks:
        check.feed(chunk)
        yield chunk


def settlement_of(
    structure: Structure, facts: Mapping[str, Json] | None = None, pause: Pause | None = None
) -> Settlement:
    """Whole is collected; cut and unreadable are partial, with the checker's sentence as the reason."""
    all_facts: dict[str, Json] = {"structure": structure.shape.value, **structure.facts, **(facts or {})}
    if structure.shape is Shape.WHOLE:
        return Settlement(Outcome.COLLECTED, None, all_facts, pause)
    if structure.expected_bytes is not None:
        all_facts["expected_bytes"] = structure.expected_bytes
    code = "cut" if structure.shape is Shape.CUT else "unreadable"
    return Settlement(Outcome.PARTIAL, Reason(code, structure.says), all_facts, pause)
