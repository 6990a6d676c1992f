"""Time whole processes, in turn, and say what was seen as medians and ratios."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

PYTHON = sys.executable
PMF = str(Path(sys.executable).parent / "pmf")


@dataclass(frozen=True, slots=True)
class Timed:
    """One finished run: wall seconds, and the peak memory of the largest of its processes in MB."""

    wall_s: float
    peak_mb: float
    exit_code: int


def timed(argv: Sequence[str], **options: object) -> Timed:
    """Run a command to its end, its output thrown away."""
    began = time.monotonic()
    child = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return Timed(time.monotonic() - began, usage.ru_maxrss / 1024, child.returncode)


def in_turn(runs: int, *jobs: Callable[[], float]) -> list[float]:
    """Run each job once per round, A B A B, after a warm-up; the median of each."""
    for job in jobs:
        job()
    rounds = [[job() for job in jobs] for _ in range(runs)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def row(name: str, ours: str, peer: str, ratio: str, asked: str) -> None:
    """One line of the table that every benchmark prints."""
    print(f"| {name} | {ours} | {peer} | {ratio} | {asked} |", flush=True)


def head() -> None:
    """The table's head, with the machine that the figures belong to."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    versions = f"Linux {platform.release()}, Python {platform.python_version()}"
    print(f"{os.cpu_count()} x {model}, {versions}, {time.strftime('%Y-%m-%d')}")
    print()
    print("| what | pmf | peer | ratio | asked |")
    print("|---|---|---|---|---|", flush=True)
