"""Go's own pprof program as the judge of the profiles that were stored."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from tests import zoo


def _pprof() -> Path:
    """Built once: `go tool pprof` would link it anew each time, for 20 s."""
    done = zoo.CACHE / "pprof"
    if not done.exists():
        zoo.CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=zoo.CACHE) as private:
            built = Path(private) / "pprof"
            go_build(["cmd/pprof"], built, zoo.ZOO / "go")
            built.rename(done)
    return done


def go_build(what: list[str], output: Path, cwd: Path) -> None:
    """`go build`, without the network, with the zoo's cache."""
    env = {**os.environ, **zoo._GO_ENV}
    subprocess.run([zoo.get_tool("go"), "build", "-o", output, *what], cwd=cwd, env=env, check=True)


def raw(profile: bytes) -> str:
    """What `pprof -raw` prints; fails where pprof cannot read the profile."""
    with tempfile.NamedTemporaryFile(suffix=".pb.gz") as file:
        file.write(profile)
        file.flush()
        ran = subprocess.run([_pprof(), "-raw", file.name], capture_output=True, text=True, check=True)
    return ran.stdout


def samples(profile: bytes) -> list[tuple[int, int]]:
    """First value and depth of each sample."""
    body = raw(profile).partition("Samples:\n")[2].partition("\nLocations\n")[0]
    rows = re.findall(r"^ +(-?\d+)(?: +-?\d+)*: ([\d ]*)$", body, re.MULTILINE)
    return [(int(value), len(stack.split())) for value, stack in rows]
