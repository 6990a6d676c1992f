"""`pmf verify BUNDLE`: every dump of a bundle against the candidates, verdicts kept in the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from pmforensics.bundle.read import Bundle, read_bundle
from pmforensics.cli.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_NO
from pmforensics.cli.terminal import strong, wrap
from pmforensics.cli.verify import EXITS, Lookup, render, report_json
from pmforensics.errors import DumpUnreadable, FormatError
from pmforensics.verify.bundle_dumps import IMAGE_LIST, dumps_in, read_image_list
from pmforensics.verify.candidates import read_candidates
from pmforensics.verify.derived import write_derived
from pmforensics.verify.dumps import Dump, open_dump
from pmforensics.verify.integrity import Integrity, check_integrity
from pmforensics.verify.verdict import WORST_FIRST, IdentityReport, Verdict


def verify_bundle(
    folder: Path,
    candidates: Sequence[Path],
    *,
    lookup: Lookup,
    strict: bool,
    every: bool,
    as_json: bool,
) -> int:
    """
    Verify the dumps of a bundle; the exit code is the worst of them.

    The bundle itself is checked first: identities from altered evidence prove nothing.
    Errors: NotSealed, DumpUnreadable (no dump in the bundle).
    """
    bundle = read_bundle(folder)
    integrity = check_integrity(folder)
    if integrity.verdict is Integrity.ALTERED:
        click.echo(
            f"pmf: {folder} was altered after sealing: {integrity.alterations[0]} [bundle-altered]\n"
            f"hint: pmf check {folder} lists all of it; use another copy.",
            err=True,
        )
        return EXIT_NO
    given, unread = read_candidates(candidates)
    reports: list[tuple[str, IdentityReport]] = []
    trouble: list[str] = []
    for path in dumps_in(bundle):
        try:
            with _open(bundle, path) as dump:
                reports.append((path, lookup.verify(dump, given, unread, strict=strict)))
        except (DumpUnreadable, FormatError) as error:
            trouble.append(f"{path}: {error.message.removeprefix(f'{bundle.folder / path}: ')}")
    if not reports:
        raise DumpUnreadable(
            f"{folder} holds no dump that can be verified" + (f" ({trouble[0]})" if trouble else ""),
            hint="Capture with --core stacks (the default) or --core full.",
        )
    kept = _keep(bundle, reports)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "bundle": str(folder),
                    "seal": f"sha256:{integrity.seal}",
                    "verdict": _worst(reports).value,
                    "kept_as": kept,
                    "reports": {path: report_json(report) for path, report in reports},
                    "warnings": trouble,
                },
                indent=1,
            )
        )
    else:
        for path, report in reports:
            click.echo(strong(path))
            click.echo(render(report, every=every))
            click.echo()
        for sentence in trouble:
            click.echo(wrap(sentence, ""))
        click.echo(f"Kept as {kept}." if kept else "Not kept: the bundle cannot be written.")
    code = EXITS[_worst(reports)]
    return EXIT_INCOMPLETE if trouble and code == EXIT_DONE else code


@contextmanager
def _open(bundle: Bundle, path: str) -> Iterator[Dump]:
    if path.endswith(IMAGE_LIST):
        yield read_image_list(bundle, path)
        return
    with open_dump(bundle.folder / path) as dump:
        yield dump


def _worst(reports: Sequence[tuple[str, IdentityReport]]) -> Verdict:
    verdicts = {report.verdict for _, report in reports}
    return next(verdict for verdict in WORST_FIRST if verdict in verdicts)


def _keep(bundle: Bundle, reports: Sequence[tuple[str, IdentityReport]]) -> str | None:
    value = {"verdict": _worst(reports).value, "reports": {path: report_json(report) for path, report in reports}}
    try:
        path = write_derived(bundle, "verify", value, [path for path, _ in reports])  # type: ignore[arg-type] # JSON
    except OSError:
        return None
    return str(path.relative_to(bundle.folder))
