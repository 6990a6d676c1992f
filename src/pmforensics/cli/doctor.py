"""`pmf doctor`: what can be captured here, what not, and how to fix it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from pmforensics.bundle.volume import read_volume
from pmforensics.cli.capture import default_evidence
from pmforensics.cli.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_NO
from pmforensics.cli.terminal import paint, plain, size_text, strong, wrap
from pmforensics.collect.pin import pin
from pmforensics.collect.readiness import Check, Ready, iter_host_checks, iter_target_checks
from pmforensics.errors import VolumeError


@click.command("doctor", short_help="What can be captured here, what not, and how to fix it.")
@click.option("--pid", type=click.IntRange(min=1), help="Also look at what may be done to this process.")
@click.option("--evidence", type=click.Path(path_type=Path), help="The folder where evidence would go.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(pid: int | None, evidence: Path | None, as_json: bool) -> int:
    """
    What can be captured here, what not, and how to fix it.

    Touches nothing: no attach, no signal, no file written. Exit 0: everything; 3: some of it; 1: nothing can be
    kept or the process cannot be looked into.
    """
    sections: dict[str, list[Check]] = {"This machine": list(iter_host_checks())}
    sections["Evidence volume"] = [_volume_check(evidence or default_evidence())]
    if pid is not None:
        with pin(pid) as held:
            sections[f"Process {pid}"] = [*iter_target_checks(held), _use_check(pid)]
    checks = [check for section in sections.values() for check in section]
    worst = {check.ready for check in checks}
    if as_json:
        rows = {
            title: [{"name": c.name, "ready": c.ready.value, "says": c.says, "fix": c.fix} for c in section]
            for title, section in sections.items()
        }
        click.echo(json.dumps(rows, indent=1))
    else:
        click.echo(strong(_answer(checks)))
        for title, section in sections.items():
            click.echo()
            click.echo(strong(title))
            for check in section:
                click.echo(_line(check))
    return EXIT_NO if Ready.NO in worst else EXIT_INCOMPLETE if Ready.LIMITED in worst else EXIT_DONE


def _answer(checks: list[Check]) -> str:
    refused = sum(check.ready is Ready.NO for check in checks)
    limited = sum(check.ready is Ready.LIMITED for check in checks)
    if not refused and not limited:
        return "Everything can be captured here."
    words = [f"{refused} refused"] * bool(refused) + [f"{limited} limited"] * bool(limited)
    return f"Not everything can be captured here: {', '.join(words)}."


def _line(check: Check) -> str:
    word = check.ready.value
    lines = [
        f"  {paint(word.ljust(7), word)}  {plain(check.name).ljust(14)}  {wrap(check.says, ' ' * 27).lstrip()}".rstrip()
    ]
    if check.fix:
        lines.append(wrap("fix: " + check.fix, " " * 27))
    return "\n".join(lines)


def _volume_check(folder: Path) -> Check:
    try:
        volume = read_volume(folder)
    except VolumeError as error:
        return Check("volume", Ready.NO, error.message, error.hint)
    where = f"{folder} ({volume.fs_type}, {size_text(volume.free_bytes)} free)"
    if volume.read_only:
        return Check("volume", Ready.NO, f"{where}: read-only", "Give a writable folder with --evidence.")
    if volume.free_bytes < volume.floor_bytes:
        return Check("volume", Ready.NO, f"{where}: less than the {size_text(volume.floor_bytes)} that stay free")
    if volume.fleeting:
        return Check(
            "volume",
            Ready.NO,
            f"{where}: {volume.fleeting}",
            "Give a volume that survives the restart with --evidence (or --force).",
        )
    return Check("volume", Ready.OK, f"{where} survives the restart")


def _use_check(pid: int) -> Check:
    """Memory and threads in a glance, so that a person sees what a core or heap dump would mean."""
    import psutil

    try:
        process = psutil.Process(pid)
        with process.oneshot():
            resident = process.memory_info().rss
            return Check(
                "size",
                Ready.OK,
                f"{size_text(resident)} resident (a full core is at most about that),"
                f" {process.num_threads()} threads, up {_age(process.create_time())}",
            )
    except psutil.Error as error:
        return Check("size", Ready.LIMITED, f"unknown ({type(error).__name__})")


def _age(created: float) -> str:
    import time

    seconds = max(0, int(time.time() - created))
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
