"""`pmf verify`: do dump, binary and symbols belong together?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from pmforensics.bundle.layout import JOURNAL, TAG_MANIFEST
from pmforensics.cli.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_NO
from pmforensics.cli.terminal import paint, plain, render_table, strong, wrap
from pmforensics.verify.candidates import Candidate, read_candidates
from pmforensics.verify.dumps import BINARY, Dump, open_dump
from pmforensics.verify.identity import build_text, verify_identity
from pmforensics.verify.verdict import GOOD, IdentityReport, Row, Verdict

EXITS = {
    Verdict.MATCH: EXIT_DONE,
    Verdict.MATCH_PREFIX: EXIT_DONE,
    Verdict.MISMATCH: EXIT_NO,
    Verdict.UNVERIFIABLE: EXIT_INCOMPLETE,
}
QUIET_ROWS = 12  # images nobody asked about that are listed before they are only counted


@click.command("verify", short_help="Does this dump belong to this binary?")
@click.argument("dump", type=click.Path(path_type=Path))
@click.argument("candidates", type=click.Path(path_type=Path, exists=True), nargs=-1)
@click.option("--symbols", type=click.Path(path_type=Path, exists=True, file_okay=False), multiple=True,
              help="A store of pmf symbols to look identities up in; repeatable.")  # fmt: skip
@click.option("--debuginfod", is_flag=True, help="Ask $DEBUGINFOD_URLS for what is missing (sends build IDs out).")
@click.option("--local-paths", is_flag=True, help="Also open the paths that the dump names, on this machine.")
@click.option("--strict", is_flag=True, help="Every image of the dump must match, not only those asked about.")
@click.option("--all", "every", is_flag=True, help="List every image of the dump.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    dump: Path,
    candidates: Sequence[Path],
    symbols: Sequence[Path],
    debuginfod: bool,
    local_paths: bool,
    strict: bool,
    every: bool,
    as_json: bool,
) -> int:
    """
    Does this dump belong to this binary?

    DUMP is an ELF core (plain, gz, zst), a minidump, a Mach-O core, a macOS crash report, an .hprof, or a bundle of
    pmf; or a binary, to hold its debug file or dSYM against. CANDIDATES are executables, libraries, debug files,
    dSYM folders, PDBs, .sym files, jars, or folders of them; with none, the images of the dump are listed.

    Nothing else is opened and nothing is fetched, unless an option below says so.

    Exit 0: every image asked about matches; 1: a mismatch; 3: nothing wrong, but not all provable.
    """
    lookup = Lookup(symbols, debuginfod, local_paths)
    if dump.is_dir() and ((dump / TAG_MANIFEST).exists() or (dump / JOURNAL).exists()):
        from pmforensics.cli.verify_bundle import verify_bundle

        return verify_bundle(dump, candidates, lookup=lookup, strict=strict, every=every, as_json=as_json)
    from pmforensics.verify.dumps import is_heap_dump

    if is_heap_dump(dump):
        from pmforensics.cli.verify_heap import verify_heap

        return verify_heap(dump, candidates, as_json=as_json)
    given, unread = read_candidates(candidates)
    with open_dump(dump) as opened:
        report = lookup.verify(opened, given, unread, strict=strict)
    click.echo(json.dumps(report_json(report), indent=1) if as_json else render(report, every=every))
    return EXITS[report.verdict]


class Lookup:
    """Where else candidates may come from: only what options name."""

    def __init__(self, stores: Sequence[Path], debuginfod: bool, local_paths: bool) -> None:
        self._stores = stores
        self._debuginfod = debuginfod
        self._local_paths = local_paths

    def verify(
        self, dump: Dump, candidates: Sequence[Candidate], unread: Sequence[str], *, strict: bool
    ) -> IdentityReport:
        """
        Look up more candidates, hold all against the dump; the report says what was looked up.

        `unread` are sentences about candidates that could not be read.
        """
        given, trouble, said = list(candidates), list(unread), list[str]()
        if self._stores or self._local_paths:
            from pmforensics.verify.lookup import from_local_paths, from_stores

            stored, broken = from_stores(dump, self._stores)
            given += stored
            trouble += broken
            if self._local_paths:
                local, sentence = from_local_paths(dump, given)
                given += local
                said.append(sentence)
        if self._debuginfod:
            from pmforensics.verify.debuginfod import fetch_missing

            fetched = fetch_missing(dump, given)
            given += fetched.candidates
            said.append(fetched.sentence())
            trouble += fetched.trouble
        return verify_identity(dump, given, strict=strict, trouble=[*said, *trouble])


def report_json(report: IdentityReport) -> dict[str, object]:
    """The report, for a pipeline: deterministic, every row."""
    return {
        "dump": str(report.dump),
        "format": report.format,
        "verdict": report.verdict.value,
        "trustworthy": report.verdict in GOOD,
        "coverage": coverage(report),
        "actual_bytes": report.actual_bytes,
        "declared_bytes": report.declared_bytes,
        "images": [_row_json(row) for row in report.rows],
        "lost": list(report.lost),
        "conflicts": list(report.conflicts),
        "warnings": list(report.warnings),
        "facts": report.facts,
    }


def _row_json(row: Row) -> dict[str, object]:
    reading, image, candidate = row.reading, row.image, row.candidate
    return {
        "name": image.name if image else None,
        "address": f"{image.base:#x}" if image and image.base is not None else None,
        "start": f"{image.mapped[0].start:#x}" if image and image.mapped else None,
        "machine": image.machine if image else None,
        "id": reading.id.value if reading else None,
        "id_kind": reading.id.kind.value if reading else None,
        "id_weak": reading.id.weak if reading else None,
        "id_offset": reading.offset if reading else None,
        "id_rule": reading.rule if reading else None,
        "readings": [[one.id.kind.value, one.id.value, one.offset, one.rule] for one in image.readings]
        if image
        else [],
        "candidate": str(candidate) if candidate else None,
        "candidate_ids": [one.value for one in candidate.ids] if candidate else [],
        "dump_build": build_text(image.says) if image else "",
        "candidate_build": build_text(candidate.says) if candidate else "",
        "verdict": row.verdict.value,
        "code": row.code,
        "says": row.says,
        "next_step": row.next_step,
        "command": row.command,
        "asked": row.asked,
    }


def coverage(report: IdentityReport) -> str:
    """n of m verified, where the dump is cut, and why. The kernel's own image does not count: nobody has its file."""
    images = {id(row.image): row.image for row in report.rows if row.image is not None and not row.image.is_vdso}
    proven = {id(row.image) for row in report.rows if row.verdict in GOOD} & images.keys()
    readable = sum(bool(image.readings) for image in images.values())
    text = f"{len(proven)} of {len(images)} images verified, {readable} of {len(images)} have an ID in the dump"
    if report.declared_bytes is not None and report.declared_bytes > report.actual_bytes:
        share = 100 * report.actual_bytes // report.declared_bytes
        text += f"; the dump is cut at {share} % ({report.actual_bytes:,} of {report.declared_bytes:,} bytes)"
    return text


def trust(report: IdentityReport) -> str:
    """The one sentence that everything is for."""
    if report.format == BINARY:
        return _trust_binary(report)
    cut = report.declared_bytes is not None and report.declared_bytes > report.actual_bytes
    as_far = ", as far as the cut dump holds them" if cut else ""
    if not report.asked:
        return "No frame is trustworthy yet: no file was given. These are the images of the dump."
    match report.verdict:
        case Verdict.MATCH:
            return f"Frames in the verified images may be trusted{as_far}."
        case Verdict.MATCH_PREFIX:
            return f"Frames may be trusted as far as the first 16 bytes of an ID prove it{as_far}."
        case Verdict.MISMATCH:
            return "DO NOT TRUST ANY FRAME read with the mismatched files: they would look right and be wrong."
    return "Nothing is wrong, and not everything is proven: do not trust frames of the unproven images."


def _trust_binary(report: IdentityReport) -> str:
    if not report.asked:
        return "This is a binary, and nothing was given to hold against it."
    match report.verdict:
        case Verdict.MATCH | Verdict.MATCH_PREFIX:
            return "The files belong together."
        case Verdict.MISMATCH:
            return "THE FILES DO NOT BELONG TOGETHER: names and lines read with them would look right and be wrong."
    return "Nothing is wrong, and nothing proves that the files belong together."


def render(report: IdentityReport, *, every: bool) -> str:
    """Verdict first, mismatches in full, then one row per image, then what was held against what."""
    word = {Verdict.MISMATCH: "no", Verdict.UNVERIFIABLE: "limited"}.get(report.verdict, "ok")
    head = report.verdict.value if report.asked else "NOTHING ASKED"
    parts = [strong(paint(head, word)), wrap(trust(report), ""), ""]
    asked = report.asked
    for row in asked:
        if row.verdict is Verdict.MISMATCH:
            parts += [_mismatch(row, report.format), ""]
    rest = [row for row in report.rows if not row.asked]
    hidden = 0 if every or not asked or len(rest) <= QUIET_ROWS else len(rest)
    rows = [row for row in (*asked, *(() if hidden else rest)) if row.image is not None]
    if rows:
        titles = ("IMAGE", "ADDRESS", "DUMP'S ID", "READ BY, AT BYTE", "VERDICT")
        parts += [render_table(titles, [_table_row(row, report.format) for row in rows], right=frozenset({1})), ""]
    said = [_held(row) for row in asked if row.verdict is not Verdict.MISMATCH]
    if hidden:
        said.append(f"{hidden} more images were not asked about; --all lists them, --strict asks about all.")
    said += [wrap(sentence, "") for sentence in (*report.warnings, *report.conflicts, *report.lost)]
    said.append(wrap(f"Coverage: {coverage(report)}.", ""))
    return "\n".join(parts + said)


def _mismatch(row: Row, form: str) -> str:
    """Both identities, one above the other, and which build each is."""
    what, _, details = row.says.partition(": ")
    lines = [strong(paint(wrap(f"MISMATCH  {_short_name(row, form)}: {what}", ""), "no"))]
    image, candidate = row.image, row.candidate
    if row.reading is not None and row.theirs is not None and row.code != "altered":
        lines.append(f"  dump  {plain(row.reading.id.value)}")
        if image is not None:
            lines.append(wrap(image.name or "an unnamed image", " " * 8))
            if form != BINARY:
                lines.append(wrap(f"{row.reading.rule}, byte {row.reading.offset:#x}", " " * 8))
            lines += [wrap(build_text(image.says), " " * 8)] * bool(build_text(image.says))
        lines += [f"  file  {plain(row.theirs.value)}", wrap(str(candidate), " " * 8)]
    else:
        lines.append(wrap(f"file  {candidate}", "  "))
        lines += [wrap(details, " " * 8)] * bool(details)
    if candidate is not None:
        lines += [wrap(build_text(candidate.says), " " * 8)] * bool(build_text(candidate.says))
    return "\n".join([*lines, *_next(row)])


def _next(row: Row) -> list[str]:
    """What to do; a command has a line of its own, to be copied."""
    lines = [wrap(f"next: {row.next_step}", "  ")] if row.next_step else []
    return [*lines, f"    {row.command}"] if row.command else lines


def _held(row: Row) -> str:
    """One file that was held against an image: a line for a match, more where something is unproven."""
    what = str(row.candidate) if row.candidate else row.image.name if row.image else "?"
    return "\n".join([wrap(f"{what}: {row.says}.", ""), *_next(row)])


def _short_name(row: Row, form: str) -> str:
    """The last part of the image's path, which may be one of Windows; of the file's, where there is no image."""
    if row.image is None:
        return plain(row.candidate.path.name) if row.candidate else "?"
    part = f" ({row.image.machine})" if form == BINARY and row.image.machine else ""
    return plain(row.image.name.replace("\\", "/").rsplit("/", 1)[-1] or "unnamed image") + part


def _table_row(row: Row, form: str) -> tuple[str, str, str, str, str]:
    image = row.image
    assert image is not None
    reading = row.reading or (image.readings[0] if image.readings else None)
    start = image.mapped[0].start if image.mapped else image.base
    read_by = "-"
    if reading is not None:
        read_by = reading.rule if form == BINARY else f"{reading.rule} {reading.offset:#x}"
    elif image.unread is not None:
        read_by = image.unread.value
    return (
        _short_name(row, form),
        f"{start:x}" if start is not None else "-",
        plain(reading.id.value)[:12] if reading else "-",
        plain(read_by),
        row.verdict.value if row.asked else "not asked",
    )
