"""What the tests of the JVM collectors share: fake JVMs, a host in this process, and the JDK's own jcmd as judge."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pmforensics.collect.examine import examine, read_target_json
from pmforensics.collect.host import LocalHost
from pmforensics.collect.pin import pin
from pmforensics.model.capture import MIB
from pmforensics.model.process import Target
from tests import zoo
from tests.collect.harness import Collected

JDKS = [pytest.param(name, marks=pytest.mark.needs(*zoo.tools(name))) for name in ("java17", "java25")]
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
# A container in small: a pid namespace, a mount namespace, a /tmp of its own.
IN_A_CONTAINER = (
    "unshare", "--pid", "--mount", "--fork", "--mount-proc",
    "sh", "-c", 'mount -t tmpfs -o mode=1777 tmpfs /tmp && exec "$@"', "sh",
)  # fmt: skip


@dataclass
class Fake:
    """A fake JVM that has said ready."""

    pid: int
    stderr: Path

    def heard(self) -> list[str]:
        """What it was sent: "SIGQUIT", or operation and argument."""
        return self.stderr.read_text().splitlines()

    def is_alive(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"


@contextmanager
def fake_jvm(way: str, tmp_path: Path, library: str = "libjvm.so") -> Iterator[Fake]:
    """Run tests/collect/fake_jvm.py until it is ready; killed at the end."""
    mapped = tmp_path / library
    mapped.write_bytes(b"\x7fELF" + bytes(4092))
    stderr = tmp_path / "fake.log"
    with stderr.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("fake_jvm.py"), way, mapped],
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=tmp_path,
        )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n", stderr.read_text()
        yield Fake(process.pid, stderr)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        for name in (f".java_pid{process.pid}", f".attach_pid{process.pid}"):
            with suppress(FileNotFoundError):
                Path("/tmp", name).unlink()


def let_all_read(program: str) -> None:
    """Build the zoo's jar where any user can read it."""
    zoo.build(program).parent.chmod(0o755)


@dataclass
class Here:
    """A host in this process, for what the supervisor would hide."""

    target: Target
    host: LocalHost
    touches: list[str] = field(default_factory=list)


@contextmanager
def here(pid: int, tmp_path: Path, *, limit_s: float = 60.0, floor_bytes: int = MIB) -> Iterator[Here]:
    """Pin and examine the process, and give a LocalHost for it."""
    spool = tmp_path / "spool-here"
    spool.mkdir(mode=0o700, exist_ok=True)
    touches: list[str] = []
    with pin(pid) as held:

        def host_for(target: Target) -> LocalHost:
            return LocalHost(
                held,
                target,
                deadline=time.monotonic() + limit_s,
                spool=spool,
                floor_bytes=floor_bytes,
                log=lambda verb, what, _seconds, result: touches.append(f"{verb} {what}: {result}"),
            )

        blank = Target(pid, held.start_ticks)
        target = read_target_json(examine(held, host_for(blank)))
        yield Here(target, host_for(target), touches)


def jcmd(program: str, pid: int, *command: str) -> str:
    """The JDK's own client, of the same version as the target."""
    home = zoo.jdk(int(program.removeprefix("java")))
    assert home is not None
    ran = subprocess.run([home / "bin" / "jcmd", str(pid), *command], capture_output=True, text=True, check=True)
    return ran.stdout.partition("\n")[2]


def thread_names(dump: str) -> set[str]:
    """Names in the headers of a HotSpot text dump; the attach listener's own activity aside."""
    names = set(re.findall(r'^"([^"]+)" .*\btid=0x', dump, re.MULTILINE))
    return {name for name in names if not name.startswith(("Attach Listener", "C1 Comp", "C2 Comp", "GC Thread#"))}


def tmp_of(pid: int) -> set[str]:
    """Names in the /tmp that the process sees."""
    return set(os.listdir(f"/proc/{pid}/root/tmp"))


def left_behind(collected: Collected, pid: int) -> set[str]:
    """What pmf says that it put into the target's /tmp, and is still there."""
    made = {
        Path(touch.what.split()[0]).name
        for touch in collected.touches
        if touch.verb == "create" and touch.what.startswith("/tmp/")
    }
    return made & tmp_of(pid)
