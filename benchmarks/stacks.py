"""How long the target stands still while its stacks or its memory are saved: pmf against gdb and gcore."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path

from tests import zoo

from benchmarks.timing import PMF, row, timed

BEAT_MS = 20  # the zoo's heartbeat: nothing shorter can be seen


def run() -> None:
    """Standstills as the target's own heartbeat sees them, less one beat."""
    for count in (20, 300):
        _stacks(count)
    _full_core(512)


def _standstill_ms(sick: zoo.Sick, argv: list[str]) -> float:
    since_ns = time.monotonic_ns()
    timed(argv)
    return max(0.0, sick.longest_pause_ns(since_ns) / 1e6 - BEAT_MS)


def _stacks(count: int) -> None:
    """eu-stack holds one thread at a time, so its stacks are of no common moment: no peer in this row."""
    folder = Path(tempfile.mkdtemp(dir=Path.cwd() / ".cache"))
    with zoo.start("c", "threads", count) as sick:
        pid = str(sick.pid)
        ours = _standstill_ms(sick, [PMF, "capture", "--pid", pid, "--evidence", str(folder), "--force"])
        evidence = json.loads(next(folder.glob("*/*/evidence.json")).read_text())
        pause_ms = max(row["pause"]["seconds"] for row in evidence["artifacts"] if row["pause"]) * 1e3
        theirs = _standstill_ms(sick, ["gdb", "-p", pid, "-batch", "-nx", "-ex", "thread apply all bt"])
    shutil.rmtree(folder)
    row(
        f"stacks of {count} threads: standstill",
        f"{ours:.0f} ms by the heartbeat, {pause_ms:.1f} ms as recorded",
        f"gdb {theirs:.0f} ms",
        f"{theirs / max(ours, 1.0):.0f} times shorter",
        "-",
    )


def _full_core(size_mb: int) -> None:
    folder = Path(tempfile.mkdtemp(dir=Path.cwd() / ".cache"))
    with zoo.start("c", "big", size_mb) as sick:
        pid = str(sick.pid)
        options = ["--core", "full", "--allow-pause", "60", "--budget", "120s", "--force", "--evidence", str(folder)]
        ours = _standstill_ms(sick, [PMF, "capture", "--pid", pid, *options])
        theirs = _standstill_ms(sick, ["gcore", "-o", str(folder / "core"), pid])
    shutil.rmtree(folder)
    row(
        f"full core of {size_mb} MB: standstill",
        f"{ours:.0f} ms",
        f"gcore {theirs:.0f} ms",
        f"{theirs / max(ours, 1.0):.1f} times shorter",
        "-",
    )
