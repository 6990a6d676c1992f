"""`pmf capture`: join collect and bundle with one loop."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pmforensics import __version__
from pmforensics.bundle.volume import check_volume, read_volume
from pmforensics.bundle.write import BundleWriter
from pmforensics.cli import STARTED
from pmforensics.cli.errors import EXIT_DONE, EXIT_INCOMPLETE, EXIT_INTERRUPTED
from pmforensics.collect import NAMES, OPT_IN, collectors
from pmforensics.collect.clock import read_clocks
from pmforensics.collect.pin import Pin, pin
from pmforensics.collect.run import reserve_s, run
from pmforensics.collect.worker import Stop
from pmforensics.model.capture import Ask, CollectorStarted, CoreKind, Fact, Json

if TYPE_CHECKING:
    from pmforensics.bundle.seal import Seal

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Seconds(click.ParamType[float]):
    """`25`, `25s`, `1.5m`, `2h`: a time span, as seconds."""

    name = "time"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h|d|)", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a time span; write 25s, 15m or 2h", param, ctx)
        return float(match[1]) * {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


SECONDS = Seconds()


def default_evidence() -> Path:
    """$PMF_EVIDENCE, else /var/lib/pmf/evidence for root, else the user's own state folder."""
    if named := os.environ.get("PMF_EVIDENCE"):
        return Path(named)
    if os.geteuid() == 0:
        return Path("/var/lib/pmf/evidence")
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "pmf" / "evidence"


@click.command("capture", short_help="Save the evidence of a process before it is restarted.")
@click.option("--pid", type=click.IntRange(min=1), required=True, help="The sick process.")
@click.option(
    "--evidence",
    type=click.Path(readable=False, path_type=Path),
    help="Folder on a volume that survives the restart.  [$PMF_EVIDENCE, else /var/lib/pmf/evidence]",
)
@click.option("--budget", type=SECONDS, default="25s", show_default=True, help="Wall time for everything.")
@click.option(
    "--allow-pause",
    type=SECONDS,
    default="1s",
    show_default=True,
    help="The longest standstill of the target that you accept.",
)
@click.option("--service", help="Name of the service.  [name of the process]")
@click.option("--incident", help="Incident or ticket that this belongs to.")
@click.option(
    "--log",
    "logs",
    type=click.Path(readable=False, path_type=Path),
    multiple=True,
    help="A log file to slice; repeatable.",
)
@click.option("--since", type=SECONDS, default="15m", show_default=True, help="How far back log slices reach.")
@click.option(
    "--core",
    type=click.Choice([kind.value for kind in CoreKind]),
    default=CoreKind.STACKS.value,
    show_default=True,
    help="Memory to keep: registers and stacks, or all of it.",
)
@click.option("--heap-dump", is_flag=True, help="All objects of the heap (JVM, Node), when it fits.")
@click.option("--pprof", metavar="URL", help="Go's pprof handlers, when they cannot be found.")
@click.option("--include", multiple=True, metavar="NAME", help=f"Add a collector: {', '.join(OPT_IN)}.")
@click.option("--exclude", multiple=True, metavar="NAME", help="Leave a collector out.")
@click.option("--force", is_flag=True, help="Capture to a place that does not survive the restart.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    pid: int,
    evidence: Path | None,
    budget: float,
    allow_pause: float,
    service: str | None,
    incident: str | None,
    logs: Sequence[Path],
    since: float,
    core: str,
    heap_dump: bool,
    pprof: str | None,
    include: Sequence[str],
    exclude: Sequence[str],
    force: bool,
    as_json: bool,
) -> int:
    """
    Save the evidence of a process before it is restarted.

    Most fleeting first, within the budget, without harming the process. Prints the bundle's path, what was saved,
    what was not and why, and the digest that seals it. Exit 0: all saved; 3: sealed with gaps.
    """
    for name in (*include, *exclude):
        if name not in NAMES:
            raise click.UsageError(f"there is no collector {name!r}; there are: {', '.join(NAMES)}")
    if budget < 1:
        raise click.UsageError("--budget must be at least 1s: sealing alone may need half of that")
    ask = Ask(
        pid=pid,
        budget_s=budget,
        allow_pause_s=allow_pause,
        service=_readable(service),
        incident=_readable(incident),
        logs=tuple(path.absolute() for path in logs),
        since_s=since,
        core=CoreKind(core),
        heap_dump=heap_dump,
        include=frozenset(include),
        exclude=frozenset(exclude),
        pprof_url=pprof,
    )
    stop = Stop()
    for signum in SIGNALS:
        signal.signal(signum, lambda number, _: stop.ask(signal.Signals(number).name))
    os.umask(0o077)
    with pin(pid) as held:
        sealed = capture(ask, held, evidence or default_evidence(), force=force, stop=stop)
    if as_json:
        import json

        click.echo(
            json.dumps(
                {"bundle": str(sealed.folder), "seal": f"sha256:{sealed.digest}", "evidence": sealed.evidence}, indent=1
            )
        )
    else:
        from pmforensics.cli.show import render_capture

        click.echo(render_capture(sealed))
    for signum in SIGNALS:  # all is done and said: the exit code should say so too, until the very end
        signal.signal(signum, signal.SIG_IGN)
    if stop.why == "SIGINT":
        return EXIT_INTERRUPTED
    return EXIT_DONE if sealed.evidence["completeness"] == "complete" else EXIT_INCOMPLETE


def capture(ask: Ask, held: Pin, evidence: Path, *, force: bool, stop: Stop) -> Seal:
    """
    Capture one held process into a new bundle under `evidence`, and seal it.

    Errors: VolumeError before any work, or when not even a journal line can be written any more.
    """
    volume = read_volume(evidence)
    check_volume(volume, force=force)
    if volume.fleeting:
        click.echo(f"pmf: {evidence} will not survive: {volume.fleeting} (--force)", err=True)
    capture_id = os.urandom(4).hex()
    host = os.uname().nodename
    service = ask.service or held.comm or "unknown"
    plan = [name for name in NAMES if name not in ask.exclude and (name not in OPT_IN or name in ask.include)]
    opening: dict[str, Json] = {
        "id": capture_id,
        "service": service,
        "incident": ask.incident,
        "host": {"name": host, "kernel": os.uname().release, "machine": os.uname().machine},
        "tool": {"name": "pmf", "version": __version__, "python": sys.version.split()[0]},
        "started_at": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "asked": _asked_json(ask),
        "forced": force and bool(volume.fleeting),
        "target": {"pid": held.pid, "start_ticks": held.start_ticks, "comm": held.comm, "state": held.state},
        "clock": read_clocks(),
        "volume": volume.json(),
        "plan": list(plan),
        "not_asked": [name for name in NAMES if name not in plan],
    }
    writer = BundleWriter.create(
        evidence,
        volume,
        service=service,
        host=host,
        capture_id=capture_id,
        at=datetime.now(UTC),
        opening=opening,
        hash_until=STARTED + ask.budget_s - reserve_s(ask.budget_s) / 2,
    )
    from pmforensics.cli.terminal import Progress

    progress = Progress()
    items = run(
        ask,
        collectors(ask),
        held,
        spool_root=writer.spool_root,
        floor_bytes=volume.floor_bytes,
        started=STARTED,
        stop=stop,
    )
    for item in items:
        if isinstance(item, CollectorStarted):
            progress.say(f"{time.monotonic() - STARTED:4.1f} s  {item.name}")
        writer.add(item)
    progress.say("sealing")
    if stop.why is not None:
        writer.add(Fact("interrupted", stop.why))
    writer.drop_spool()
    from pmforensics.bundle.seal import seal

    sealed = seal(
        writer.folder,
        writer.journal,
        ended_by=stop.why or "done",
        seconds=time.monotonic() - STARTED,
        clock=read_clocks(),
    )
    progress.done()
    return sealed


def _readable(text: str | None) -> str | None:
    """A word of the command line as text; bytes that are no UTF-8 appear as \\xNN."""
    return None if text is None else os.fsencode(text).decode("utf-8", "backslashreplace")


def _asked_json(ask: Ask) -> dict[str, Json]:
    pprof_url = None
    if ask.pprof_url is not None:
        from pmforensics.formats.argv import redact_url

        pprof_url = redact_url(ask.pprof_url)
    return {
        "budget_s": ask.budget_s,
        "allow_pause_s": ask.allow_pause_s,
        "logs": [str(path) for path in ask.logs],
        "since_s": ask.since_s,
        "core": ask.core.value,
        "heap_dump": ask.heap_dump,
        "pprof_url": pprof_url,
        "include": sorted(ask.include),
        "exclude": sorted(ask.exclude),
    }
