"""
Dump, binary, symbols: are they of one build?

Four verdicts, never merged. MATCH and MATCH-PREFIX rest on identities that were read from both sides; MISMATCH on
identities that differ or on a contradiction in the bytes; everything else is UNVERIFIABLE, with the reason. A name
never makes a match: it only says which image a candidate was meant for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from pmforensics.errors import FormatError, VerifyError
from pmforensics.model.image import DumpImage, IdKind, ImageId, Reading, Unread
from pmforensics.verify.candidates import Candidate, CandidateKind, open_regular
from pmforensics.verify.companions import companion_rows, judged_by_link
from pmforensics.verify.dumps import BINARY, Dump
from pmforensics.verify.layout import Comparison, compare_layout
from pmforensics.verify.verdict import GOOD, NOT_WITH_THIS, WORST_FIRST, IdentityReport, Row, Verdict

PREFIX_HEX_DIGITS = 16 * 2  # minidumps and .sym files keep the first 16 bytes of longer IDs
MAX_NAMESAKES = 10  # warnings about files of the right name and the wrong build
_DELETED = " (deleted)"


def verify_identity(
    dump: Dump, candidates: Sequence[Candidate], *, strict: bool = False, trouble: Sequence[str] = ()
) -> IdentityReport:
    """
    Hold every candidate against every image that it may be meant for.

    `strict` makes every image that runs in the dump one that was asked about; `trouble` are sentences to put before
    all others.
    """
    choice = _Choice(dump, candidates)
    rows: list[Row] = []
    for number, (image, chosen) in enumerate(zip(dump.images.images, choice.chosen, strict=True)):
        judged = [_judge(dump, number, image, candidate) for candidate in chosen]
        rows += judged_by_link(dump, judged)
        if not chosen:
            whole = dump.images.format == BINARY and bool(candidates)  # each slice of a binary is asked about
            rows.append(_alone(image, asked=whole or (strict and _runs(image))))
    used = {id(row.candidate) for row in rows}
    left = [candidate for candidate in candidates if id(candidate) not in used]
    companions = companion_rows(dump, rows, left)
    rows += companions
    # Of a file with several architectures, those that the dump does not speak of are nobody's question.
    used_paths = {row.candidate.path for row in rows if row.candidate is not None}
    rows += (_stray(dump, candidate) for candidate in left if candidate.explicit and candidate.path not in used_paths)
    rows.sort(key=lambda row: (not row.asked, WORST_FIRST.index(row.verdict)))
    return IdentityReport(
        dump.path,
        dump.images.format,
        tuple(rows),
        dump.images.lost,
        dump.images.conflicts,
        (*trouble, *dump.warnings, *choice.namesakes),
        dump.images.actual_bytes,
        dump.images.declared_bytes,
        dict(dump.images.facts),
    )


def _runs(image: DumpImage) -> bool:
    """Whether frames can be in it: not the kernel's own image, and not a file that was mapped to be read."""
    return not image.is_vdso and "loaded" not in image.says


# -- who is meant -----------------------------------------------------------------------------------------------------


class _Choice:
    """Which candidates are held against which image: by identity; else by name; else, for the executable, the rest."""

    def __init__(self, dump: Dump, candidates: Sequence[Candidate]) -> None:
        self._images = dump.images.images
        self._is_binary = dump.images.format == BINARY
        self._candidates = candidates
        self.namesakes: list[str] = []
        self._by_key: dict[tuple[str, str], list[Candidate]] = {}
        self._by_name: dict[str, list[Candidate]] = {}
        for one in candidates:
            for key in dict.fromkeys(_key(own) for own in one.ids):
                self._by_key.setdefault(key, []).append(one)
            if one.meant_for:
                self._by_key.setdefault(("meant", one.meant_for), []).append(one)
            self._by_name.setdefault(one.name, []).append(one)
        near = [self._near(image) for image in self._images]
        by_id = [
            [one for one in ones if compare_ids(image, one).verdict in GOOD]
            for image, ones in zip(self._images, near, strict=True)
        ]
        self._taken = {id(one) for ones in by_id for one in ones}
        self.chosen = [self._choose(image, *ones) for image, *ones in zip(self._images, by_id, near, strict=True)]
        self._choose_rest()

    def _near(self, image: DumpImage) -> list[Candidate]:
        """Those that share an identity or the telling part of one, or that a store had under it."""
        found: dict[int, Candidate] = {}
        for reading in image.readings:
            for key in (_key(reading.id), ("meant", reading.id.value)):
                found.update((id(one), one) for one in self._by_key.get(key, ()))
        return list(found.values())

    def _choose(self, image: DumpImage, by_id: list[Candidate], near: list[Candidate]) -> list[Candidate]:
        chosen = {id(one): one for one in by_id}
        named = [one for name in sorted(_names(image)) for one in self._by_name.get(name, ())]
        other = [
            one
            for one in (*near, *named)
            if id(one) not in self._taken and one.kind is not CandidateKind.JAR and self._fits(image, one)
        ]
        for one in other:
            if not by_id or one.explicit:
                chosen[id(one)] = one
            elif compare_ids(image, one).verdict is Verdict.MISMATCH:
                self._tell_namesake(image, one)
        return list(chosen.values())

    def _fits(self, image: DumpImage, one: Candidate) -> bool:
        """Of a file with several architectures, only the image's own is meant, if it is there."""
        return _same_family(image, one) or not any(
            _same_family(image, other) for other in self._candidates if other.path == one.path
        )

    def _tell_namesake(self, image: DumpImage, one: Candidate) -> None:
        says = f"{one} is named like {image.name} and is another build: a debugger that goes by names would take it."
        if len(self.namesakes) < MAX_NAMESAKES and says not in self.namesakes:
            self.namesakes.append(says)

    def _choose_rest(self) -> None:
        """A program under another name is meant for the executable; with a binary in the dump's place, any file is."""
        used = self._taken | {id(one) for chosen in self.chosen for one in chosen}
        rest = [one for one in self._candidates if one.explicit and id(one) not in used]
        if not self._is_binary:
            rest = [one for one in rest if one.is_main]
            if len(rest) != 1:
                return
        for number, image in enumerate(self._images):
            if image.is_main and not self.chosen[number]:
                self.chosen[number] = [one for one in rest if self._fits(image, one)]


def _key(one: ImageId) -> tuple[str, str]:
    """What two identities have in common that may be of one build: all of it, or the part before the age."""
    if one.kind is IdKind.GNU:
        return "gnu", one.value[:PREFIX_HEX_DIGITS]
    if one.kind in (IdKind.PDB, IdKind.PORTABLE_PDB):
        return "guid", one.value.partition("-")[0]
    return one.kind.value, one.value


_FAMILIES = {"amd64": "x86_64", "x86_64h": "x86_64", "x86": "i386", "arm64e": "arm64"}


def _same_family(image: DumpImage, candidate: Candidate) -> bool:
    """Whether a part of a Mach-O file can be what ran; the UUID tells members of a family apart."""
    if candidate.kind not in (CandidateKind.MACHO, CandidateKind.DSYM) or not image.machine:
        return True
    ours, theirs = (_FAMILIES.get(one, one) for one in (image.machine, candidate.slice))
    return ours == theirs or (ours == "arm" and theirs.startswith("armv"))


def _names(image: DumpImage) -> set[str]:
    names = {image.name.removesuffix(_DELETED), image.says.get("linker_name", ""), image.says.get("install_name", "")}
    # A Windows path in a dump that is read on Linux.
    last = {PurePosixPath(name.replace("\\", "/")).name for name in names if name}
    return last | {name.rsplit(".", 1)[0] for name in last if name.lower().endswith((".exe", ".dll"))}


# -- identities -------------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """A verdict on identities alone, and the two that it rests on."""

    verdict: Verdict
    code: str
    reading: Reading | None = None
    theirs: ImageId | None = None


def compare_ids(image: DumpImage, candidate: Candidate) -> Compared:
    """GNU before Go, PDB before code IDs; one identity that matches is enough, where an image may have several."""
    best = Compared(Verdict.UNVERIFIABLE, "no-common-id")
    for kind in IdKind:
        readings = [one for one in image.readings if one.id.kind is kind]
        for reading in readings:
            for theirs in (one for one in candidate.ids if one.kind is kind):
                verdict, code = _compare(reading.id, theirs, candidate)
                if verdict in GOOD and _disagree(readings):
                    return Compared(Verdict.UNVERIFIABLE, "ids-conflict", reading, theirs)
                if verdict in GOOD:
                    return Compared(verdict, code, reading, theirs)
                if best.verdict is not Verdict.MISMATCH and (
                    verdict is Verdict.MISMATCH or best.code == "no-common-id"
                ):
                    best = Compared(verdict, code, reading, theirs)
        if best.verdict is Verdict.MISMATCH and kind is not IdKind.CODE:
            return best
    if best.code in ("no-common-id", "only-code-id"):
        by_guid = _compare_guids(image, candidate)
        return by_guid if by_guid.code != "no-common-id" else best
    return best


def _disagree(readings: Sequence[Reading]) -> bool:
    """Whether several rules read different identities of one image; a PE image may name several debug files."""
    if readings[0].id.kind in (IdKind.PDB, IdKind.PORTABLE_PDB, IdKind.PDB20):
        return False
    longest = max((one.id.value for one in readings), key=len)
    return not all(longest.startswith(one.id.value) for one in readings)


def _compare(dumped: ImageId, theirs: ImageId, candidate: Candidate) -> tuple[Verdict, str]:
    weak = bool(dumped.weak or theirs.weak)
    if dumped.kind is IdKind.CODE:
        # Time stamp and size: the same for builds that are made reproducible on purpose.
        same = dumped.value == theirs.value
        return (Verdict.UNVERIFIABLE, "only-code-id") if same or weak else (Verdict.MISMATCH, "other-id")
    if dumped.value == theirs.value:
        return (Verdict.UNVERIFIABLE, "weak-id") if weak else (Verdict.MATCH, "same-id")
    if _is_nothing(dumped) or _is_nothing(theirs):
        return Verdict.UNVERIFIABLE, "weak-id"
    if dumped.kind is IdKind.PDB:
        return _compare_ages(dumped, theirs, candidate)
    if dumped.kind is IdKind.GNU:
        shorter, longer = sorted((dumped, theirs), key=lambda one: len(one.value))
        if len(shorter.value) == PREFIX_HEX_DIGITS < len(longer.value) and not longer.weak:
            # Whole, or the first 16 bytes of the other: what is neither is another build.
            same = longer.value.startswith(shorter.value)
            return (Verdict.MATCH_PREFIX, "same-start-of-id") if same else (Verdict.MISMATCH, "other-id")
        if weak and (len(shorter.value) != len(longer.value) or candidate.kind is CandidateKind.SYM):
            return Verdict.UNVERIFIABLE, "weak-id"  # a checksum of the file or its text in place of an ID
    return Verdict.MISMATCH, "other-id"


def _is_nothing(one: ImageId) -> bool:
    """Zeros, and the word that breakpad prints for them."""
    digits = one.value.partition("-")[0]
    return not digits.strip("0") or (one.value == "id" and one.kind is not IdKind.GO)


def _compare_ages(dumped: ImageId, theirs: ImageId, candidate: Candidate) -> tuple[Verdict, str]:
    guid, _, age = dumped.value.partition("-")
    if guid != theirs.value.partition("-")[0]:
        return Verdict.MISMATCH, "other-id"
    info_age = candidate.pdb.info_age if candidate.pdb else None
    if info_age is not None and age == f"{info_age:x}":
        return Verdict.UNVERIFIABLE, "info-age-only"
    return Verdict.MISMATCH, "other-age"


def _compare_guids(image: DumpImage, candidate: Candidate) -> Compared:
    """A Portable PDB against the record in a minidump, which holds its GUID and not its stamp."""
    nothing = Compared(Verdict.UNVERIFIABLE, "no-common-id")
    theirs = next((one for one in candidate.ids if one.kind is IdKind.PORTABLE_PDB), None)
    readings = [one for one in image.readings if one.id.kind is IdKind.PDB]
    if candidate.kind is not CandidateKind.PDB or theirs is None or theirs.weak or not readings:
        return nothing
    for reading in readings:
        if reading.id.value.partition("-")[0] == theirs.value.partition("-")[0] and not reading.id.weak:
            return Compared(Verdict.MATCH_PREFIX, "same-guid", reading, theirs)
    if image.says.get("debug_file", "").lower().endswith(".ni.pdb"):
        return nothing  # the dump names the image's other debug file, that of its native code
    return Compared(Verdict.MISMATCH, "other-id", readings[0], theirs)


# -- verdicts ---------------------------------------------------------------------------------------------------------

_UNREAD = {
    Unread.NO_ID: "the dump holds its headers, and they hold no build ID",
    Unread.NOT_DUMPED: "the page that holds its identity was not dumped",
    Unread.TRUNCATED: "the dump is cut before the place where its identity would be",
    Unread.FILTERED: "coredump_filter left all header pages of files out of the dump",
    Unread.BROKEN: "its headers in the dump make no sense",
}
_KINDS = {
    CandidateKind.DEBUG_FILE: "the debug file of the same build",
    CandidateKind.DSYM: "the dSYM of the same build",
    CandidateKind.PDB: "the PDB of the same build",
    CandidateKind.SYM: "the symbols of the same build",
}
FILTER_NEXT = "For the next core: let pmf capture take it, or set the filter before:"
FILTER_COMMAND = "echo 0x33 > /proc/PID/coredump_filter"


def _judge(dump: Dump, number: int, image: DumpImage, candidate: Candidate) -> Row:
    compared = compare_ids(image, candidate)
    if compared.verdict not in GOOD and not _same_family(image, candidate):
        return Row(
            image,
            candidate,
            Verdict.MISMATCH,
            "other-slice",
            f"the dump used the {image.machine} part of it, and the file has {candidate.slice}",
            f"{NOT_WITH_THIS} Find the one with {image.machine} in it.",
            reading=compared.reading or next(iter(image.readings), None),
        )
    if compared.verdict is Verdict.MISMATCH:
        return _other(image, candidate, compared)
    comparison = _compare_bytes(dump, number, image, candidate)
    if comparison is not None and comparison.contradictions:
        return _contradicted(image, candidate, compared, comparison)
    if compared.verdict in GOOD:
        return _matched(image, candidate, compared, comparison)
    return _unproven(image, candidate, compared, comparison)


def _other(image: DumpImage, candidate: Candidate, compared: Compared) -> Row:
    assert compared.reading is not None
    assert compared.theirs is not None
    dumped, theirs = compared.reading.id, compared.theirs
    what = "another build"
    if compared.code == "other-age":
        what = "another link of the same project: the GUID is the same, the age is not"
    if candidate.meant_for:
        what += f", which lies in the store under {candidate.meant_for}"
    next_step, command = _where_to_find(dumped)
    return Row(
        image,
        candidate,
        Verdict.MISMATCH,
        compared.code,
        f"{what}: the dump has {dumped.value}, the file has {theirs.value}",
        f"{NOT_WITH_THIS} {next_step}",
        command,
        reading=compared.reading,
        theirs=theirs,
    )


def _where_to_find(wanted: ImageId) -> tuple[str, str]:
    """How to get at the build that the dump has: a sentence, and a command where there is one."""
    if wanted.kind is IdKind.GNU:
        return "Find the build of the dump's ID:", f"pmf symbols find STORE {wanted.value}"
    if wanted.kind is IdKind.UUID:
        digits = wanted.value.upper()
        text = "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
        return "Find the dSYM of the dump's UUID, on a Mac:", f"mdfind 'com_apple_xcode_dsym_uuids == {text}'"
    if wanted.kind in (IdKind.PDB, IdKind.PDB20):
        return f"Symbol servers file the dump's PDB under {wanted.value.replace('-', '').upper()}.", ""
    return f"Find the build whose ID is {wanted.value}.", ""


def _contradicted(image: DumpImage, candidate: Candidate, compared: Compared, comparison: Comparison) -> Row:
    details = "; ".join(comparison.contradictions[:3])
    if compared.verdict in GOOD:
        return Row(
            image,
            candidate,
            Verdict.MISMATCH,
            "altered",
            f"same ID, altered file: {details}",
            "Its bytes were changed and its ID was kept (patchelf, signing, an edit), or a linker gave two programs one"
            " ID. Find the file as it was deployed.",
            reading=compared.reading,
            theirs=compared.theirs,
        )
    return Row(
        image,
        candidate,
        Verdict.MISMATCH,
        "other-bytes",
        f"not this file: {details}",
        f"{NOT_WITH_THIS} Find the file as it was deployed.",
        reading=compared.reading,
    )


def _matched(image: DumpImage, candidate: Candidate, compared: Compared, comparison: Comparison | None) -> Row:
    says = _KINDS.get(candidate.kind, "the same build")
    if compared.code == "same-start-of-id":
        says += " as far as 16 bytes tell: one side has no more of the ID"
    elif compared.code == "same-guid":
        says += " as far as the GUID tells: the dump does not hold the stamp behind it"
    if comparison is not None and comparison.compared_bytes:
        says += f" (ID, and {comparison.compared_bytes:,} bytes of it in the dump)"
    if candidate.lacks:
        says += f"; {candidate.lacks}"
    return Row(
        image, candidate, compared.verdict, compared.code, says, reading=compared.reading, theirs=compared.theirs
    )


def _unproven(image: DumpImage, candidate: Candidate, compared: Compared, comparison: Comparison | None) -> Row:
    code, reading, theirs = compared.code, compared.reading, compared.theirs
    next_step = command = ""
    if code == "weak-id" and reading is not None and theirs is not None:
        shown = "both have" if reading.id.value == theirs.value else f"the file has {theirs.value}, the dump"
        says = f"{shown} {reading.id.value}, which proves nothing: {reading.id.weak or theirs.weak}"
        next_step = "Build with an ID that tells builds apart (-Wl,--build-id=sha1; Go: leave -buildid alone)."
    elif code == "ids-conflict" and reading is not None:
        says = f"the file has the ID {reading.id.value}, and the dump holds another one for the same image too"
    elif code == "info-age-only":
        says = "the GUID is the same; the age in the dump is the PDB's info age and not that of its DBI stream"
        next_step = "A tool changed the PDB after linking (source indexing): use the PDB as the linker wrote it."
    elif code == "only-code-id":
        says = "only time stamp and size are there to compare, and they are the same"
    elif image.unread is not None and not image.readings:
        code = image.unread.value
        says = _UNREAD[image.unread]
        if image.unread is Unread.FILTERED:
            next_step, command = FILTER_NEXT, FILTER_COMMAND
    elif not candidate.ids:
        code = "candidate-has-no-id"
        says = "the file holds no identity" + (
            f"; the dump's is {reading_text(image.readings[0])}" if image.readings else ""
        )
        next_step = "A file without an ID cannot be proven: keep builds with one (-Wl,--build-id)."
    elif not image.readings:
        code = "no-id"
        says = "it has no identity to compare"
    else:
        says = "dump and file hold identities of different kinds"
    if comparison is not None and comparison.agreements:
        says += f". Consistent, which is no proof: {', '.join(comparison.agreements)} agree"
        code = f"{code}-consistent"
    return Row(image, candidate, Verdict.UNVERIFIABLE, code, says, next_step, command, reading=reading, theirs=theirs)


def _alone(image: DumpImage, *, asked: bool) -> Row:
    """An image for which no candidate was given."""
    reading = image.readings[0] if image.readings else None
    if image.is_vdso:
        return Row(image, None, Verdict.UNVERIFIABLE, "vdso", "provided by the kernel", asked=False, reading=reading)
    if reading is None:
        unread = image.unread or Unread.NO_ID
        return Row(image, None, Verdict.UNVERIFIABLE, unread.value, _UNREAD[unread], asked=asked)
    return Row(
        image, None, Verdict.UNVERIFIABLE, "no-candidate", "no file was given for it", asked=asked, reading=reading
    )


def _stray(dump: Dump, candidate: Candidate) -> Row:
    """A file that somebody named and that is no image of the dump."""
    if candidate.kind is CandidateKind.JAR:
        return Row(
            None,
            candidate,
            Verdict.UNVERIFIABLE,
            "not-for-this-dump",
            "jars are held against heap dumps (.hprof) only",
        )
    images = [image for image in dump.images.images if not image.is_vdso]
    kinds = {one.kind for one in candidate.ids if not one.weak}
    blind = [image for image in images if not any(one.id.kind in kinds and not one.id.weak for one in image.readings)]
    strong = next((one for one in candidate.ids if not one.weak), None)
    if images and not blind and strong is not None and not dump.images.lost:
        main = next((image.readings[0].id.value for image in images if image.is_main), "")
        return Row(
            None,
            candidate,
            Verdict.MISMATCH,
            "not-in-dump",
            f"not in the dump: none of its {len(images)} images has the file's ID {strong.value}"
            + (f"; the executable's is {main}" if main else ""),
            f"{NOT_WITH_THIS} It is another program, another build, or a library that was not loaded.",
            theirs=strong,
        )
    return Row(
        None,
        candidate,
        Verdict.UNVERIFIABLE,
        "not-found-in-dump",
        f"no image in the dump has its ID or name; {len(blind)} of {len(images)} images have no ID to compare with"
        if strong is not None
        else "the file has no ID that tells builds apart, and no image in the dump has its name",
        theirs=strong,
    )


def reading_text(reading: Reading) -> str:
    """An identity with the place where the dump holds it."""
    return f"{reading.id.value} (byte {reading.offset:#x}, {reading.rule})"


def build_text(says: dict[str, str]) -> str:
    """Which build an image or a file says it is; "" when it does not say."""
    known = [
        f"{name} {_package(says[key]) if key == 'package' else says[key]}".strip()
        for key, name in (
            ("package", "package"),
            ("go_module", "module"),
            ("version", "version"),
            ("dylib_version", "version"),
            ("source_version", "source"),
            ("vcs_revision", "revision"),
            ("vcs_time", "of"),
            ("go_version", "built with"),
        )
        if says.get(key)
    ]
    if says.get("vcs_modified") == "true":
        known.append("with changes that were not committed")
    return ", ".join(known)


def _package(note: str) -> str:
    """The package note is JSON: name, version and distribution of it, or the text as it stands."""
    try:
        read = json.loads(note)
        words = [str(read[key]) for key in ("name", "version", "architecture", "os") if read.get(key)]
    except (ValueError, TypeError, AttributeError, RecursionError):
        words = []
    return " ".join(words) or note


def _compare_bytes(dump: Dump, number: int, image: DumpImage, candidate: Candidate) -> Comparison | None:
    """Only for ELF cores and programs: a debug file's own headers do not describe what was loaded."""
    if dump.core is None or candidate.kind is not CandidateKind.PROGRAM:
        return None
    try:
        file = open_regular(candidate.path)
    except VerifyError:
        return None
    try:
        return compare_layout(dump.core, image, dump.core.headers[number], file)
    except (FormatError, OSError):
        return None
    finally:
        file.close()
