"""Runs frozen.c: targets that are awkward to stop."""

from __future__ import annotations

import functools
import os
import signal
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import zoo

SOURCE = Path(__file__).with_name("frozen.c")
PATIENCE_S = 60.0  # for what must happen at all, on a machine that may be slow


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="frozen-")  # removed with the last reference, at the end of the run


@functools.cache
def build() -> Path:
    """The program, built once per test run."""
    built = Path(_folder().name) / "frozen"
    command = [zoo.get_tool("gcc"), "-g", "-O1", "-pthread", "-Wl,--build-id", "-o", built, SOURCE, "-ldl"]
    subprocess.run(command, check=True)
    return built


@dataclass
class Running:
    """frozen.c at work; `file` holds its three numbers."""

    pid: int
    file: Path

    def numbers(self) -> tuple[int, int, int]:
        """Beats, signals received, and what the way counts."""
        beats, signals, counted = struct.unpack("=3Q", self.file.read_bytes()[:24])
        return beats, signals, counted

    def assert_running(self) -> None:
        """No thread is held, and the beats go on."""
        before = self.numbers()[0]
        wait_for(lambda: self.numbers()[0] > before + 2)
        assert not set(states(self.pid).values()) & set("Tt")


@contextmanager
def running(way: str, tmp_path: Path, *args: object, prefix: Sequence[str | Path] = ()) -> Iterator[Running]:
    """One way of frozen.c, from "ready" until it is killed with all that it started."""
    file = tmp_path / f"{way}.numbers"
    file.write_bytes(bytes(4096))
    command = [*prefix, build(), way, file, *map(str, args)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as popen:
        assert popen.stdout is not None
        try:
            assert popen.stdout.readline() == b"ready\n"
            yield Running(popen.pid, file)
        finally:
            os.killpg(popen.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], bool]) -> None:
    """Until it is true; fails after PATIENCE_S."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def states(pid: int) -> dict[int, str]:
    """Thread id -> state letter."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            found[int(task.name)] = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found
