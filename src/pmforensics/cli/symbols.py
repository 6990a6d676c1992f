"""`pmf symbols`: keep executables and debug files where debuggers find them by build ID."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

import click

from pmforensics.cli.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_NO
from pmforensics.cli.terminal import plain, render_table, size_text, wrap
from pmforensics.errors import VerifyError
from pmforensics.verify.symbols import Stored, SymbolStore, add_all

STORE = click.argument("store", type=click.Path(path_type=Path, file_okay=False))
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group("symbols", short_help="Keep binaries and debug files, found by build ID.")
def command() -> None:
    """
    Keep executables and debug files of every release, found by build ID.

    The store is the `.build-id/xx/yyyy` tree that gdb, lldb and debuginfod know. pmf verify --symbols STORE looks
    identities up in it.
    """


@command.command("add")
@STORE
@click.argument("paths", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True)
@AS_JSON
def add(store: Path, paths: Sequence[Path], as_json: bool) -> int:
    """Copy ELF files, or all ELF files under folders, into STORE."""
    added, trouble = add_all(SymbolStore(store), paths)
    if as_json:
        rows = [{**_row(stored), "new": new} for stored, new in added]
        click.echo(json.dumps({"stored": rows, "refused": trouble}, indent=1))
    else:
        new = sum(is_new for _, is_new in added)
        click.echo(f"{new} added, {len(added) - new} already there, {len(trouble)} refused.")
        for stored, is_new in added:
            click.echo(f"  {'new' if is_new else 'had'}  {stored.build_id}  {plain(stored.name)}")
        for sentence in trouble:
            click.echo(wrap(sentence, "  "))
    return EXIT_INCOMPLETE if trouble else EXIT_DONE


@command.command("find")
@STORE
@click.argument("build_id")
@AS_JSON
def find(store: Path, build_id: str, as_json: bool) -> int:
    """Print the files stored under BUILD_ID, or under every ID that begins with it. Exit 1: none."""
    found = SymbolStore(store).find(build_id)
    if as_json:
        click.echo(json.dumps([_row(stored) for stored in found], indent=1))
    else:
        for stored in found:
            click.echo(stored.path)
    if not found and not as_json:
        click.echo(f"pmf: nothing is stored under {build_id}", err=True)
    return EXIT_DONE if found else EXIT_NO


@command.command("list")
@STORE
@click.option(
    "--missing-from",
    type=click.File("r"),
    help="A list of IDs, the JSON of pmf verify, or a bundle's images.json: print those that are not stored. "
    "Exit 1: some are missing.",
)
@AS_JSON
def list_store(store: Path, missing_from: TextIO | None, as_json: bool) -> int:
    """What is in STORE, or what is missing from it."""
    symbols = SymbolStore(store)
    if missing_from is not None:
        wanted = _ids_in(missing_from.read(64 << 20))
        missing = symbols.missing(wanted)
        if as_json:
            click.echo(json.dumps({"wanted": wanted, "missing": missing}, indent=1))
        else:
            click.echo(f"{len(missing)} of {len(wanted)} IDs are not stored.")
            for build_id in missing:
                click.echo(f"  {build_id}")
        return EXIT_NO if missing else EXIT_DONE
    stored = list(symbols.iter_all())
    if as_json:
        click.echo(json.dumps([_row(one) for one in stored], indent=1))
        return EXIT_DONE
    if not stored:
        click.echo("The store is empty.")
        return EXIT_DONE
    rows = [
        (plain(one.name), "debug" if one.is_debug else "program", size_text(one.path.stat().st_size), one.build_id)
        for one in stored
    ]
    click.echo(render_table(("NAME", "KIND", "SIZE", "BUILD ID"), rows, right=frozenset({2})))
    return EXIT_DONE


@command.command("serve-layout")
@STORE
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@AS_JSON
def serve_layout(store: Path, out: Path, as_json: bool) -> None:
    """Make OUT/buildid/ID/{executable,debuginfo} links, so that any web server over OUT is a debuginfod."""
    count = SymbolStore(store).serve_layout(out)
    if as_json:
        click.echo(json.dumps({"out": str(out), "new_links": count}, indent=1))
        return
    click.echo(f"{count} new links under {out}/buildid.")
    click.echo(f"Serve it, for example:  python3 -m http.server --directory {out} 8002")
    click.echo("Use it:                  export DEBUGINFOD_URLS=http://HOST:8002")


def _row(stored: Stored) -> dict[str, object]:
    return {
        "build_id": stored.build_id,
        "path": str(stored.path),
        "is_debug": stored.is_debug,
        "name": stored.name,
        "sha256": stored.sha256,
        "version": stored.version,
        "added_at": stored.added_at,
    }


def _ids_in(text: str) -> list[str]:
    """
    Build IDs from a plain list (the first word of each line), from the JSON of `pmf verify`, or from an images.json.

    Errors: VerifyError when there is none, or something else.
    """
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        ids = [line.split()[0].lower() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    else:
        ids = list(_ids_of(report))
    wrong = [one for one in ids if not re.fullmatch(r"[0-9a-f]{4,128}", str(one))]
    if wrong or not ids:
        what = f"{wrong[0]!r} is no build ID" if wrong else "there are no build IDs in it"
        raise VerifyError(what, hint="One ID in hex per line, the JSON of pmf verify, or a bundle's images.json.")
    return list(dict.fromkeys(ids))


def _ids_of(report: object) -> Iterator[str]:
    """Of a report on one dump, on a bundle's dumps, or of captured images; those of the kernel's own image left out."""
    if not isinstance(report, dict):
        return
    reports = report.get("reports")
    for one in reports.values() if isinstance(reports, dict) else [report]:
        images = one.get("images") if isinstance(one, dict) else None
        for row in images if isinstance(images, list) else []:
            if isinstance(row, dict) and row.get("code") != "vdso" and row.get("path") != "[vdso]":
                value = row.get("gnu_build_id") or (row.get("id") if row.get("id_kind") == "gnu" else None)
                if value and not row.get("id_weak"):
                    yield str(value)
