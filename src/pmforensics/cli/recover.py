"""`pmf recover`: finish a bundle whose capture was killed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from pmforensics.bundle.recover import recover
from pmforensics.cli.errors import EXIT_DONE, EXIT_INCOMPLETE
from pmforensics.cli.show import render_capture
from pmforensics.cli.terminal import Progress


@click.command("recover", short_help="Finish a bundle whose capture was killed.")
@click.argument("bundle", type=click.Path(readable=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(bundle: Path, as_json: bool) -> int:
    """
    Finish a bundle whose capture was killed.

    Checks what was saved, keeps the file that was being written as far as it got, records what is missing, and
    seals. A sealed bundle is left as it is.
    """
    os.umask(0o077)
    progress = Progress()
    sealed, worked = recover(bundle, progress.say)
    progress.done()
    if as_json:
        click.echo(
            json.dumps(
                {
                    "bundle": str(sealed.folder),
                    "seal": f"sha256:{sealed.digest}",
                    "recovered": worked,
                    "evidence": sealed.evidence,
                },
                indent=1,
            )
        )
    elif worked:
        click.echo(render_capture(sealed))
    else:
        click.echo(f"Already sealed; nothing to do.\nSeal sha256:{sealed.digest}")
    return EXIT_DONE if sealed.evidence["completeness"] == "complete" else EXIT_INCOMPLETE
