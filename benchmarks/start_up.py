"""Start-up and first evidence, against a bare interpreter; a small service, start to seal."""

from __future__ import annotations

import compileall
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import zoo

import pmforensics
from benchmarks.timing import PMF, PYTHON, in_turn, row, timed


def run(runs: int = 15) -> None:
    """Print the rows. Bytecode is compiled first, as in an installed pmf."""
    compileall.compile_dir(Path(pmforensics.__file__).parent, quiet=2)
    bare, version = in_turn(
        runs, lambda: timed([PYTHON, "-c", "pass"]).wall_s, lambda: timed([PMF, "--version"]).wall_s
    )
    row(
        "`pmf --version`",
        f"{version * 1e3:.0f} ms",
        f"bare Python {bare * 1e3:.0f} ms",
        f"{version / bare:.1f}",
        "<= 4.5",
    )
    _first_evidence(runs)
    _small_services(runs)


def _capture(pid: int, *options: str) -> tuple[float, float, float]:
    """Wall seconds, seconds to the first durable artifact, peak MB of one capture."""
    folder = Path(tempfile.mkdtemp(dir=Path.cwd() / ".cache"))
    began_ns = time.monotonic_ns()
    done = timed([PMF, "capture", "--pid", str(pid), "--evidence", str(folder), "--force", *options])
    journal = next(folder.glob("*/*/journal.jsonl"))
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    first_ns = next(record["mono_ns"] for record in records if record["event"] == "artifact")
    shutil.rmtree(folder)
    return done.wall_s, (first_ns - began_ns) / 1e9, done.peak_mb


def _first_evidence(runs: int) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"]) as target:
        time.sleep(0.5)
        bare, first = in_turn(
            runs, lambda: timed([PYTHON, "-c", "pass"]).wall_s, lambda: _capture(target.pid, "--core", "none")[1]
        )
        target.kill()
    row(
        "first durable artifact of `pmf capture`",
        f"{first * 1e3:.0f} ms",
        f"bare Python {bare * 1e3:.0f} ms",
        f"{first / bare:.1f}",
        "<= 8",
    )


def _small_services(runs: int) -> None:
    for program, way in (("go", "idle"), ("c", "threads"), ("python", "idle"), ("node", "idle"), ("java17", "idle")):
        with zoo.start(program, way) as sick:
            seen = [_capture(sick.pid, "--core", "none") for _ in range(max(3, runs // 3))]
        wall = statistics.median(wall for wall, _, _ in seen)
        peak = max(peak for _, _, peak in seen)
        row(f"small {program} service, sealed", f"{wall:.2f} s, {peak:.0f} MB", "-", "-", "<= 2 s, 60 MB")
