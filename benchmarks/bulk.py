"""Writing bulk: a large file into a sealed bundle, against `cp` and `sha256sum` of the same file at once."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from benchmarks.timing import PMF, in_turn, row, timed

C_SOURCE = "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n"


def run(size_mb: int = 2048, runs: int = 3) -> None:
    """A process whose executable is that large (zeros would compress and cache too well: random blocks)."""
    folder = Path(tempfile.mkdtemp(dir=Path.cwd() / ".cache"))
    try:
        big = folder / "big"
        (folder / "big.c").write_text(C_SOURCE)
        subprocess.run(["gcc", "-o", big, folder / "big.c"], check=True)
        with Path("/dev/urandom").open("rb") as noise, big.open("ab") as file:
            block = noise.read(32 << 20)
            for _ in range(size_mb // 32):
                file.write(block)
        evidence, copy = folder / "evidence", folder / "copy"
        peaks = []
        with subprocess.Popen([big]) as target:

            def ours() -> float:
                done = timed(
                    [PMF, "capture", "--pid", str(target.pid), "--evidence", str(evidence), "--force", "--core", "none",
                     "--budget", "300s", "--include", "executable", "--exclude", "provenance"]
                )  # fmt: skip
                assert any(evidence.glob("*/*/data/*-executable/executable*"))
                peaks.append(done.peak_mb)
                shutil.rmtree(evidence)
                return done.wall_s

            def peer() -> float:
                line = f"cp {big} {copy} & sha256sum {big} > {copy}.sha256 & wait; sync {copy}"
                seconds = timed(["sh", "-c", line]).wall_s
                copy.unlink()
                return seconds

            our_s, peer_s = in_turn(runs, ours, peer)
            target.kill()
        row(
            f"{size_mb} MB into a sealed bundle",
            f"{our_s:.2f} s ({size_mb / our_s:.0f} MB/s), peak {max(peaks):.0f} MB",
            f"cp + sha256sum + sync {peer_s:.2f} s",
            f"{peer_s / our_s:.2f} of its speed",
            ">= 0.8, 60 MB",
        )
    finally:
        shutil.rmtree(folder)
