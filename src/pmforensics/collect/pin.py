"""
Hold on to one process, whatever becomes of its number.

A pid is a number that the kernel hands out again. A pidfd and a descriptor of /proc/PID both belong to the process
itself: after its death they answer ESRCH, never with the facts of a successor.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from typing import Self

from pmforensics.errors import NoSuchProcess, NotAProcess, TargetGone

STOPPED = frozenset("Tt")
"""States of a thread that stands still: by a signal, by a tracer."""


@dataclass(frozen=True, slots=True)
class Pin:
    """
    A process, held.

    pidfd         readable once the process has exited
    proc_fd       /proc/PID, for use as dir_fd
    start_ticks   field 22 of stat, clock ticks after boot
    state         one letter, when it was pinned
    """

    pid: int
    pidfd: int
    proc_fd: int
    start_ticks: int
    state: str
    comm: str

    def is_alive(self) -> bool:
        """Whether the process has not exited (a zombie has)."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def read(self, name: str, limit_bytes: int = 1 << 16) -> bytes:
        """The first bytes of /proc/PID/`name`; OSError as the kernel gives it."""
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self.proc_fd)
        try:
            parts = []
            while limit_bytes > 0 and (part := os.read(fd, limit_bytes)):
                parts.append(part)
                limit_bytes -= len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Let go."""
        os.close(self.pidfd)
        os.close(self.proc_fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split_stat(stat: bytes) -> tuple[str, list[bytes]]:
    """
    comm and the fields from state on (index 0 = field 3) of /proc/PID/stat.

    comm may hold blanks, parentheses and newlines; only the last ')' ends it.
    """
    head, _, tail = stat.rpartition(b")")
    comm = head.partition(b"(")[2]
    return comm.decode("utf-8", "replace"), tail.split()


def pin(pid: int) -> Pin:
    """
    Take hold of a process.

    Errors: NoSuchProcess, NotAProcess (thread id, or pmf itself), TargetGone (it exited in between).
    """
    if pid <= 0:
        raise NoSuchProcess(f"{pid} is not a process id", hint="Find it with: pgrep -af NAME")
    if pid == os.getpid():
        raise NotAProcess("pmf cannot capture itself", hint="Give the pid of the sick process.")
    try:
        proc_fd = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NoSuchProcess(f"there is no process {pid}", hint="Find it with: pgrep -af NAME") from None
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        leader = _leader_of(proc_fd)
        os.close(proc_fd)
        if leader is not None and leader != pid:
            raise NotAProcess(
                f"{pid} is a thread of process {leader}", hint=f"Capture the process: --pid {leader}"
            ) from None
        raise NoSuchProcess(f"process {pid} cannot be held: {error.strerror}") from None
    held = Pin(pid, pidfd, proc_fd, 0, "?", "")
    try:
        comm, fields = split_stat(held.read("stat"))
        # proc_fd was opened before pidfd; both answering now means that they are the same process.
        state, start_ticks = fields[0].decode(), int(fields[19])
    except (OSError, IndexError, ValueError):
        held.close()
        raise TargetGone(f"process {pid} exited before it could be examined") from None
    return Pin(pid, pidfd, proc_fd, start_ticks, state, comm)


def _leader_of(proc_fd: int) -> int | None:
    try:
        fd = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    except OSError:
        return None
    try:
        for line in os.read(fd, 1 << 16).splitlines():
            if line.startswith(b"Tgid:"):
                return int(line.split()[1])
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)
    return None
