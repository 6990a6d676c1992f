"""
Collectors that misbehave in one named way each, and two ways to run them through the real capture.

    folder = rogues.capture([rogues.Hangs(), rogues.Fine("after")], pid, evidence, budget_s=4)
    python -m tests.collect.rogues Hangs,Fine capture --pid N ...      the same as a process that can be killed
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from unittest import mock

from pmforensics.bundle.seal import Seal
from pmforensics.collect.base import Collector, Host
from pmforensics.collect.pin import pin
from pmforensics.collect.worker import Stop
from pmforensics.errors import BrokenElf, NotThere
from pmforensics.model.capture import MIB, Artifact, Ask, Gap, Outcome, Reason, Settlement
from pmforensics.model.process import Target

PTRACE_ATTACH = 16


class _Rogue:
    """What all have in common; each one's name is its class, in small letters."""

    name: ClassVar[str] = ""
    question: ClassVar[str] = "What does a rogue leave open?"
    limit_s: ClassVar[float] = 0.7
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.name = cls.__name__.lower()

    def applies_to(self, target: Target) -> bool:
        return True


def _small(path: str) -> Artifact:
    return Artifact(path, b"evidence\n", "made up")


class Fine(_Rogue):
    """One small artifact: it runs after the others, and must."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("fine.txt")


class Again(Fine):
    """The same once more."""


# ---- they do not end


class Hangs(_Rogue):
    """Reads what never comes."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("before.txt")
        read_fd, _keep_open = os.pipe()
        os.read(read_fd, 1)


class HangsInBody(_Rogue):
    """The same with an artifact half sent."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            yield b"half"
            time.sleep(1000)

        yield Artifact("half.txt", body(), "made up")


class IgnoresTerm(_Rogue):
    """Hangs, and takes no hint."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        yield _small("before.txt")
        while True:
            time.sleep(1000)


class Blocks(_Rogue):
    """Hangs in a call that no signal handler of Python can interrupt."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("before.txt")
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        ctypes.CDLL(None).pause()


class StubbornTool(_Rogue):
    """Runs a program that ignores TERM and has a child that does too."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        host.run(["/bin/sh", "-c", "trap '' TERM; (trap '' TERM; sleep 987) & sleep 988"], timeout_s=900)
        yield _small("never.txt")


class LeavesChild(_Rogue):
    """Ends in good order and leaves a child behind that ignores TERM."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        subprocess.Popen(["/bin/sh", "-c", "trap '' TERM HUP; sleep 989"])
        yield _small("before.txt")


class WritesForever(_Rogue):
    """A body without end."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            block = os.urandom(MIB // 4)
            while True:
                yield block

        yield Artifact("endless.bin", body(), "made up", bulk=True)


class Trickles(_Rogue):
    """One byte at a time, for ever."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            while True:
                yield b"."
                time.sleep(0.01)

        yield Artifact("dots.txt", body(), "made up")


# ---- they break


class Crashes(_Rogue):
    """A segmentation fault in a C call."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("before.txt")
        ctypes.string_at(0)


class CrashesInBody(_Rogue):
    """The same with an artifact half sent."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            yield b"half"
            ctypes.string_at(0)

        yield Artifact("half.txt", body(), "made up")


class Bug(_Rogue):
    """An exception that nobody foresaw, between artifacts."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("before.txt")
        raise KeyError("no such thing")


class BugInBody(_Rogue):
    """The same with an artifact half sent."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            yield b"half"
            raise KeyError("no such thing")

        yield Artifact("half.txt", body(), "made up")
        yield _small("after.txt")


class BugInSettle(_Rogue):
    """The same after the last byte."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def settle() -> Settlement:
            raise KeyError("no such thing")

        yield Artifact("whole.txt", b"whole", "made up", settle=settle)


class BadFacts(_Rogue):
    """Facts that are no JSON."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield Artifact("whole.txt", b"whole", "made up", facts={"of": object()})  # type: ignore[dict-item]


class BrokenFormat(_Rogue):
    """An error of our own tree, but not of collecting, in the body and then between."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            yield b"half"
            raise BrokenElf("impossible contents")

        yield Artifact("half.txt", body(), "made up")
        yield _small("after.txt")
        raise BrokenElf("once more")


class NotThereInBody(_Rogue):
    """An error before the first byte, then another artifact."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            raise NotThere("it is not there")
            yield b""

        yield Artifact("nothing.txt", body(), "made up")
        yield _small("after.txt")


class ExitsQuietly(_Rogue):
    """Leaves without a word, and with status 0."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("before.txt")
        os._exit(0)


# ---- they talk too much


class FloodsTouches(_Rogue):
    """Touches as fast as it can."""

    limit_s = 2.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("before.txt")
        while host.remaining_s() > 0:
            host.note("touch", "x" * 1000)


class FloodsGaps(_Rogue):
    """Gaps as fast as it can."""

    limit_s = 2.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("before.txt")
        while host.remaining_s() > 0:
            yield Gap("y" * 1000, Outcome.FAILED, Reason("flood", "z" * 50_000))


class FloodsTouchesInBody(_Rogue):
    """Touches while an artifact is open."""

    limit_s = 2.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        def body() -> Iterator[bytes]:
            yield b"half"
            while host.remaining_s() > 0:
                host.note("touch", "x" * 1000)

        yield Artifact("half.txt", body(), "made up")


class HugeMessage(_Rogue):
    """A gap and facts far longer than anybody reads."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield Gap("w", Outcome.FAILED, Reason("long", "l" * (50 * MIB)))
        yield _small("after.txt")


class BadPaths(_Rogue):
    """Names that lead out of the bundle."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        for path in ("../../../../escaped", "/tmp/escaped", "a/../../b", "line\nbreak", "\x1b[31m"):
            yield _small(path)
        yield Artifact("spooled", Path("/etc/hostname"), "not in the spool")
        yield _small("good.txt")


# ---- they leave things in the spool


class LeavesSpool(_Rogue):
    """Cut off with a file that it has not handed over."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        (host.spool / "left.bin").write_bytes(b"left" * 1000)
        (host.spool / "folder").mkdir()
        (host.spool / "folder" / "inside").write_bytes(b"x")
        (host.spool / "link").symlink_to("/etc/shadow")
        os.mkfifo(host.spool / "fifo")
        time.sleep(1000)
        yield _small("never.txt")


class FailsWithSpool(_Rogue):
    """Ends with an error, its file not handed over."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        (host.spool / "left.bin").write_bytes(b"left" * 1000)
        yield _small("before.txt")
        host.run(["/bin/false"])


class KeepsScratch(_Rogue):
    """Ends in good order; what is in the spool was scratch."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        (host.spool / "scratch.bin").write_bytes(b"left" * 1000)
        yield _small("before.txt")


class LeavesHuge(_Rogue):
    """Cut off with a file that takes longer to hash than there is time."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        with (host.spool / "huge.bin").open("wb") as file:
            file.truncate(200 << 30)
        time.sleep(1000)
        yield _small("never.txt")


LATE_WRITER = """
import sys, time
with open(sys.argv[1], "r+b") as file:
    for number in range(3000):
        file.seek(0)
        file.write(b"late %d" % number)
        file.seek(0, 2)
        file.write(b"more")
        file.flush()
        time.sleep(0.01)
"""


class LateWriter(_Rogue):
    """Cut off while a child that has left its process group goes on writing into the spool."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        path = host.spool / "growing.bin"
        path.write_bytes(bytes(1000))
        subprocess.Popen([sys.executable, "-c", LATE_WRITER, path], start_new_session=True)
        time.sleep(1000)
        yield _small("never.txt")


class FillsVolume(_Rogue):
    """Takes all the space there is on the evidence volume, as a neighbour might."""

    limit_s = 20.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        place = host.spool.parents[3] / "neighbour"
        with place.open("wb") as file:
            try:
                while True:
                    file.write(bytes(MIB // 16))
                    file.flush()
            except OSError:
                pass
        yield _small("after.txt")


class RemovesBundle(_Rogue):
    """Removes the bundle under the capture."""

    limit_s = 5.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        import shutil

        shutil.rmtree(host.spool.parents[1])
        yield _small("after.txt")


class Unmounts(_Rogue):
    """Takes the volume away under the capture."""

    limit_s = 20.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        subprocess.run(["umount", "-l", host.spool.parents[3]], check=True)
        yield _small("after.txt")


# ---- they hold the target


class Attaches(_Rogue):
    """Stops the target with PTRACE_ATTACH and never lets go."""

    stops = True
    limit_s = 60.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(PTRACE_ATTACH, target.pid, None, None) != 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        os.waitpid(target.pid, 0x40000000)  # __WALL
        yield _small("attached.txt")
        time.sleep(1000)


class AttachesBriefly(Attaches):
    """The same within a time limit."""

    limit_s = 0.7


class Stops(_Rogue):
    """Stops the target with SIGSTOP and dies."""

    stops = True
    limit_s = 60.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        os.kill(target.pid, signal.SIGSTOP)
        yield _small("stopped.txt")
        time.sleep(1000)


class GdbHolds(_Rogue):
    """Lets gdb stop the target, which then waits."""

    stops = True
    limit_s = 60.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield _small("attached.txt")
        host.run(["gdb", "-q", "-batch", "-p", str(target.pid), "-ex", "shell sleep 990"], timeout_s=900)


class Escapes(_Rogue):
    """Leaves a debugger outside its process group that holds the target."""

    stops = True
    limit_s = 20.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        command = ["gdb", "-q", "-batch", "-p", str(target.pid), "-ex", "shell sleep 30"]
        quiet = subprocess.DEVNULL
        subprocess.Popen(command, start_new_session=True, stdout=quiet, stderr=quiet)
        while "t" not in Path(f"/proc/{target.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            time.sleep(0.01)
        yield _small("before.txt")


# ---- they wait for the test


@dataclass(frozen=True)
class Waits(_Rogue):
    """Says that it is there, and goes on once the test has done what it wants to do."""

    limit_s: ClassVar[float] = 60.0

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        folder = Path(os.environ["ROGUE_MEETING"])
        (folder / "here").touch()
        while not (folder / "go").exists():
            time.sleep(0.005)
        yield _small("waited.txt")


# ---- running them


def _table(rogues: Sequence[Collector]) -> ExitStack:
    """The real capture with these collectors in place of its own."""
    stack = ExitStack()
    stack.enter_context(
        mock.patch.multiple(
            "pmforensics.cli.capture",
            collectors=lambda _ask: iter(rogues),
            NAMES=tuple(rogue.name for rogue in rogues),
            OPT_IN=(),
            STARTED=time.monotonic(),
        )
    )
    return stack


def capture(
    rogues: Sequence[Collector], pid: int, evidence: Path, *, budget_s: float = 10.0, stop: Stop | None = None
) -> Seal:
    """A sealed bundle of what they yield, through pin, run, writer and seal as `pmf capture` joins them."""
    from pmforensics.cli.capture import capture as real

    with _table(rogues), pin(pid) as held:
        return real(Ask(pid=pid, budget_s=budget_s), held, evidence, force=True, stop=stop or Stop())


def _main() -> None:
    names, *arguments = sys.argv[1:]
    before, _, after = names.partition("+real")
    rogues: list[Collector] = [globals()[name]() for name in before.split(",") if name]
    from pmforensics.cli import main

    if after or names.endswith("+real"):
        # These first, then the whole real table.
        import pmforensics.cli.capture as module

        real, real_names = module.collectors, module.NAMES

        def both(ask: Ask) -> Iterator[Collector]:
            yield from rogues
            yield from real(ask)

        module.collectors = both
        module.NAMES = (*(rogue.name for rogue in rogues), *real_names)
        sys.argv = ["pmf", *arguments]
        main()
    with _table(rogues):
        sys.argv = ["pmf", *arguments]
        main()


if __name__ == "__main__":
    _main()
