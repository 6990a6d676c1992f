"""`pmf check`: is a bundle what was sealed?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from pmforensics.cli.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_NO
from pmforensics.cli.terminal import Progress, paint, plain, size_text, strong, wrap
from pmforensics.verify.integrity import Integrity, IntegrityReport, check_integrity

EXITS = {Integrity.INTACT: EXIT_DONE, Integrity.INCOMPLETE: EXIT_INCOMPLETE, Integrity.ALTERED: EXIT_NO}


@click.command("check", short_help="Is a bundle what was sealed?")
@click.argument("bundle", type=click.Path(readable=False, path_type=Path))
@click.option("--seal", "expected", metavar="DIGEST", help="The digest that the capture printed.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(bundle: Path, expected: str | None, as_json: bool) -> int:
    """
    Is a bundle what was sealed?

    Three answers: intact (exit 0); incomplete as recorded, nothing changed and the bundle says what is missing
    (exit 3); altered (exit 1). With --seal also: is it the very bundle that the capture printed the digest of?
    """
    progress = Progress()
    report = check_integrity(
        bundle,
        expected_seal=expected,
        progress=lambda done, total: progress.say(f"{size_text(done)} of {size_text(total)}"),
    )
    progress.done()
    if as_json:
        click.echo(
            json.dumps(
                {
                    "bundle": str(bundle),
                    "verdict": report.verdict.value,
                    "seal": f"sha256:{report.seal}",
                    "files": report.files,
                    "bytes": report.bytes,
                    "gaps": report.gaps,
                    "alterations": list(report.alterations),
                },
                indent=1,
            )
        )
    else:
        click.echo(render(report, expected))
    return EXITS[report.verdict]


def render(report: IntegrityReport, expected: str | None) -> str:
    """The verdict first, then what it rests on."""
    word = report.verdict.name.lower()
    lines = [strong(paint(report.verdict.value.capitalize(), word))]
    counted = f"{report.files} files, {size_text(report.bytes)}"
    match report.verdict:
        case Integrity.INTACT:
            lines.append(f"{counted}: every byte is as sealed, and nothing was missing.")
        case Integrity.INCOMPLETE:
            many = "1 gap is" if report.gaps == 1 else f"{report.gaps} gaps are"
            lines.append(f"{counted}: every byte is as sealed; {many} recorded inside the seal.")
        case Integrity.ALTERED:
            lines += [f"  {plain(sentence)}" for sentence in report.alterations]
            lines.append("next: use another copy; what still matches its manifest line can be trusted no further.")
    lines.append(f"Seal sha256:{report.seal}")
    if expected is None and report.verdict is not Integrity.ALTERED:
        lines.append(wrap("Compare the seal with the digest that the capture printed, or give it as --seal.", ""))
    return "\n".join(lines)
