"""The last 15 minutes of a 4 GB log, against awk comparing every line with the first stamp that is wanted."""

from __future__ import annotations

import argparse
import compileall
import hashlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pmforensics
from benchmarks.timing import PYTHON, in_turn, row
from pmforensics.collect.host import LocalHost
from pmforensics.collect.log_slice import LogFile, LogSlicer, Origin
from pmforensics.collect.pin import pin
from pmforensics.model.capture import GIB, Artifact
from pmforensics.model.process import Target

WINDOW_S = 900
SPAN_S = 7 * 86_400  # rotated weekly, as logrotate does unless told otherwise
END = datetime(2026, 11, 20, 13, 15, tzinfo=UTC)
STAMP = "%Y-%m-%dT%H:%M:%S"

# A whole process from nothing, as awk is one: find the window, send it to stdout.
BISECT = """
import os, sys
from datetime import UTC, datetime
from pmforensics.formats.log_lines import find_first_at_or_after

fd = os.open(sys.argv[1], os.O_RDONLY)
now, since = (datetime.fromisoformat(word) for word in sys.argv[2:])
size = os.fstat(fd).st_size
search = find_first_at_or_after(lambda at, length: os.pread(fd, length, at), size, since, now=now, zone=UTC)
at = search.start
while at < size:
    at += os.sendfile(1, fd, at, size - at)
"""


def run(size_mb: int = 4096, runs: int = 7, folder: Path | None = None) -> None:
    """All read from a warm page cache and write to a file. A log in `folder` is made once and stays there."""
    if folder is None:
        with tempfile.TemporaryDirectory(dir=Path.cwd() / ".cache") as passing:
            run(size_mb, runs, Path(passing))
        return
    compileall.compile_dir(Path(pmforensics.__file__).parent, quiet=2)  # as in an installed pmf
    log = folder / f"log-slice-{size_mb}.log"
    if not log.exists():
        _write_log(log, size_mb << 20)
    since = END - timedelta(seconds=WINDOW_S)
    bisect = [PYTHON, "-c", BISECT, str(log), END.isoformat(), since.isoformat()]
    awk = ["awk", f'$0 >= "{since.strftime(STAMP)}"', str(log)]
    outputs = {name: folder / f"by-{name}.log" for name in ("bisection", "collector", "awk")}
    try:
        process_s, collector_s, awk_s = in_turn(
            runs,
            lambda: _seconds(bisect, outputs["bisection"]),
            lambda: _slice(log, outputs["collector"]),
            lambda: _seconds(awk, outputs["awk"]),
        )
        digests = {hashlib.sha256(output.read_bytes()).hexdigest() for output in outputs.values()}
        slice_bytes = outputs["awk"].stat().st_size
        assert len(digests) == 1, "pmf and awk differ"
        assert slice_bytes > 0
    finally:
        for output in outputs.values():
            output.unlink(missing_ok=True)
    what = f"15 minutes ({slice_bytes / 1e6:.0f} MB) out of a log of {log.stat().st_size / 1e9:.1f} GB"
    for name, our_s, asked in (
        (f"{what}, same bytes, a process from nothing", process_s, ">= 50"),
        ("the same inside a running pmf", collector_s, "-"),
    ):
        row(name, f"{our_s * 1e3:.0f} ms", f"{_awk_name()} {awk_s:.2f} s", f"{awk_s / our_s:.0f} times faster", asked)


def _seconds(argv: Sequence[str], output: Path) -> float:
    """Wall time of a process that writes to a fresh file."""
    output.unlink(missing_ok=True)
    with output.open("wb") as out:
        began = time.monotonic()
        subprocess.run(argv, stdout=out, env={**os.environ, "LC_ALL": "C"}, check=True)
        return time.monotonic() - began


def _slice(log: Path, output: Path) -> float:
    """The slice as the logs collector cuts it."""
    output.unlink(missing_ok=True)
    with output.open("wb", buffering=0) as out, pin(os.getppid()) as held:
        began = time.monotonic()
        host = LocalHost(
            held,
            Target(held.pid, held.start_ticks),
            deadline=began + 60,
            spool=output.parent,
            floor_bytes=0,
            log=lambda _verb, _what, _seconds, _result: None,
        )
        slicer = LogSlicer(host, now_s=END.timestamp(), since_s=WINDOW_S, max_bytes=GIB, all_bytes=GIB, question="")
        fd = os.open(log, os.O_RDONLY)
        item = next(slicer.cut(fd, LogFile(str(log), Origin.GIVEN, insist=True), None))
        assert isinstance(item, Artifact)
        assert not isinstance(item.body, bytes | Path)
        for chunk in item.body:
            out.write(chunk)
        os.close(fd)
        return time.monotonic() - began


def _write_log(log: Path, size_bytes: int) -> None:
    """Lines of a web service with rising stamps; the last line is of END."""
    rng = random.Random(1)
    seconds = [_second(rng, size_bytes / SPAN_S) for _ in range(64)]
    unfinished = log.with_suffix(".partial")
    with unfinished.open("wb", buffering=8 << 20) as out:
        for ago_s in range(SPAN_S, 0, -1):
            stamp = (END - timedelta(seconds=ago_s)).strftime(STAMP).encode()
            out.write(rng.choice(seconds).replace(b"@", stamp))
        out.write(END.strftime(STAMP).encode() + b".000Z INFO  [main] the last line\n")
    unfinished.rename(log)


def _second(rng: random.Random, size_bytes: float) -> bytes:
    """All lines of one second; @ stands for its stamp."""
    lines: list[str] = []
    length = 0
    while length < size_bytes:
        lines.append(
            f"{rng.choice(('INFO ', 'INFO ', 'INFO ', 'DEBUG', 'WARN '))} [worker-{rng.randrange(64)}]"
            f" {rng.choice(('GET', 'POST', 'PUT'))} /api/v2/orders/{rng.randrange(10**9)}?page={rng.randrange(99)}"
            f" status={rng.choice((200, 200, 200, 404, 500))} duration_ms={rng.expovariate(0.02):.1f}"
            f" trace={rng.randbytes(8).hex()}"
        )
        length += len(lines[-1]) + 26
    return "".join(f"@.{n * 1000 // len(lines):03d}Z {line}\n" for n, line in enumerate(lines)).encode()


def _awk_name() -> str:
    """Which awk: there is a factor of three between them."""
    command = ["sh", "-c", "readlink -f $(command -v awk)"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()).name


def main() -> None:
    """`python -m benchmarks.log_slice [--size MB] [--runs N] [--folder DIR]`."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=4096, metavar="MB", help="of the log")
    options.add_argument("--runs", type=int, default=7)
    options.add_argument("--folder", type=Path, help="where the log is kept for the next time; removed otherwise")
    asked = options.parse_args()
    (Path.cwd() / ".cache").mkdir(exist_ok=True)
    run(asked.size, asked.runs, asked.folder)


if __name__ == "__main__":
    main()
