"""
Files that belong to a program and that the dump knows nothing of: found through the program that names them.

    .gnu_debuglink      the CRC-32 of a debug file; counts only where there is no build ID to compare
    .gnu_debugaltlink   the build ID of the file that dwz moved shared parts to
    .dwo, .dwp          split debug information: the IDs of compilation units, which the program has too

Such a file is as proven as the program that names it, and no further.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from pmforensics.formats.debuglink import AltLink, DebugLinks, crc32_of, iter_chunks
from pmforensics.model.image import IdKind
from pmforensics.verify.candidates import Candidate, CandidateKind, open_regular
from pmforensics.verify.dumps import Dump
from pmforensics.verify.verdict import GOOD, NOT_WITH_THIS, Row, Verdict


def judged_by_link(dump: Dump, rows: Sequence[Row]) -> list[Row]:
    """The rows of one image, those of debug files without an ID judged by the CRC that a program states of them."""
    programs = [(str(one), one.links, True) for one in dump.binaries]
    programs += [
        (str(row.candidate), row.candidate.links, row.verdict in GOOD)
        for row in rows
        if row.candidate is not None and row.candidate.kind is CandidateKind.PROGRAM
    ]
    return [_by_crc(row, programs) for row in rows]


def _by_crc(row: Row, programs: Sequence[tuple[str, DebugLinks | None, bool]]) -> Row:
    candidate = row.candidate
    is_open = row.verdict is Verdict.UNVERIFIABLE and row.theirs is None
    if candidate is None or candidate.kind is not CandidateKind.DEBUG_FILE or not is_open:
        return row
    crc: int | None = None
    for program, links, proven in programs:
        link = links.debuglink if links else None
        if link is None:
            continue
        crc = _crc32(candidate) if crc is None else crc
        if crc == link.crc32 and proven:
            return replace(
                row, verdict=Verdict.MATCH, code="same-crc",
                says=f"the debug file that {program} names by its CRC-32, {crc:08x}", next_step="", command="",
            )  # fmt: skip
        if crc == link.crc32:
            return replace(
                row, code="same-crc-unproven",
                says=f"the debug file that {program} names by its CRC-32, {crc:08x}; that file itself is not proven",
            )  # fmt: skip
        if link.name == candidate.path.name:
            return replace(
                row, verdict=Verdict.MISMATCH, code="other-crc",
                says=f"not the debug file that {program} names: its CRC-32 is {crc:08x}, not {link.crc32:08x}",
                next_step=f"{NOT_WITH_THIS} It has the right name and is of another build, or was changed since.",
            )  # fmt: skip
    return row


def _crc32(candidate: Candidate) -> int:
    file = open_regular(candidate.path)
    try:
        return crc32_of(iter_chunks(file.read, file.size))
    finally:
        file.close()


def companion_rows(dump: Dump, rows: Sequence[Row], left: Sequence[Candidate]) -> list[Row]:
    """A row for each of the remaining candidates that a program in `rows`, or the dump itself, names."""
    owners = [
        Row(image, one, Verdict.MATCH, "", "") for image, one in zip(dump.images.images, dump.binaries, strict=False)
    ]
    owners += [row for row in rows if row.candidate is not None and row.verdict is not Verdict.MISMATCH]
    found = (_row(owners, candidate) for candidate in left)
    return [row for row in found if row is not None]


def _row(owners: Sequence[Row], candidate: Candidate) -> Row | None:
    for owner, alt in _alt_links(owners):
        if any(one.kind is IdKind.GNU and one.value == alt.build_id for one in candidate.ids):
            return _belongs(
                owner, candidate, "same-altlink", f"the file that dwz took shared parts of {owner.candidate} to"
            )
        if candidate.explicit and candidate.path.name == alt.name.rsplit("/", 1)[-1]:
            theirs = next((one for one in candidate.ids if one.kind is IdKind.GNU), None)
            return Row(
                owner.image, candidate, Verdict.MISMATCH, "other-altlink",
                f"not the file that {owner.candidate} names: that has the ID {alt.build_id}, this has "
                + (theirs.value if theirs else "none"),
                NOT_WITH_THIS, theirs=theirs,
            )  # fmt: skip
    units = set(candidate.debug.dwo_ids) if candidate.debug and candidate.kind is CandidateKind.DEBUG_FILE else set()
    for owner in owners:
        named = set(owner.candidate.debug.dwo_ids) if owner.candidate and owner.candidate.debug else set()
        if units & named:
            says = f"has {len(units & named)} of the {len(named)} split units of {owner.candidate}"
            return _belongs(owner, candidate, "same-dwo-id", says)
    if units:
        return Row(
            None, candidate, Verdict.UNVERIFIABLE, "no-skeleton",
            "split debug information has no build ID, and no program here names its units",
            "Give the executable or library too.",
        )  # fmt: skip
    return None


def _alt_links(owners: Sequence[Row]) -> Iterator[tuple[Row, AltLink]]:
    for owner in owners:
        links = owner.candidate.links if owner.candidate else None
        if links is not None and links.altlink is not None:
            yield owner, links.altlink


def _belongs(owner: Row, candidate: Candidate, code: str, says: str) -> Row:
    proven = owner.verdict in GOOD
    return Row(
        owner.image,
        candidate,
        Verdict.MATCH if proven else Verdict.UNVERIFIABLE,
        code,
        says if proven else f"{says}; that file itself is not proven",
        reading=owner.reading,
    )
