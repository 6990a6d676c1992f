"""What a collector is, and the one door through which it reaches the outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from pmforensics.model.capture import MIB, Artifact, Gap, Json
from pmforensics.model.process import Target

CHUNK_BYTES = MIB  # one read, one frame, one write; also the largest pipe an ordinary user may have


@dataclass(frozen=True, slots=True)
class HttpReply:
    """
    An HTTP answer whose body has not been read yet.

    length_bytes   what the server declared, None when it declared nothing
    chunks         the body, at most CHUNK_BYTES each; ends early and raises AnswerBroken when the server sent
                   less than it declared, AnswerBroken when it sent more than the caller's limit,
                   DeadlinePassed when time is up
    """

    status: int
    headers: Mapping[str, str]
    length_bytes: int | None
    chunks: Iterator[bytes]


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished program: exit code (negative: killed by that signal), its output, and the end of its stderr."""

    exit_code: int
    stdout: bytes
    stderr_tail: str


class Host(Protocol):
    """
    The only door to the outside. Every call is logged as a Touch, bounded in size, and obeys the deadline.

    All methods raise the CollectError that fits: NotThere, AccessDenied, DeadlinePassed, ToolMissing, ...
    `TargetGone` when the target has exited. Names under /proc are relative to the target's own folder and are
    resolved through a descriptor that was opened once: a reused pid can never be read by mistake.
    """

    spool: Path
    """A private, empty folder on the evidence volume, for tools that insist on writing a file."""

    def remaining_s(self) -> float:
        """Seconds until the collector must be done."""

    def check_deadline(self) -> None:
        """Raise DeadlinePassed when no time is left."""

    def check_alive(self) -> None:
        """Raise TargetGone when the target has exited."""

    def read_proc(self, name: str, limit_bytes: int = 16 * MIB) -> bytes:
        """All of /proc/PID/`name`; AnswerBroken above the limit."""

    def iter_proc(self, name: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """/proc/PID/`name` in chunks, from byte `start` up to `end`."""

    def list_proc(self, name: str = ".") -> list[str]:
        """Names in the folder /proc/PID/`name`, in natural order (numbers by value)."""

    def link_proc(self, name: str) -> str:
        """Where the link /proc/PID/`name` points."""

    def open_proc(self, name: str) -> int:
        """A descriptor for reading the regular file behind /proc/PID/`name`; the caller closes it."""

    def open_target(self, path: str) -> int:
        """
        A descriptor for a regular file by the path that the *target* sees: its root, its mounts, its links.

        Links are resolved inside the target's root, component by component, so that an absolute link in a
        container never leads to a file of the host. The caller closes it.
        """

    def list_target(self, path: str) -> list[str]:
        """Names in a folder of the target's file system, in natural order."""

    def target_path(self, path: str) -> Path:
        """The same file or folder as a path that pmf and tools it starts can use (through /proc/PID/root)."""

    def read_target(self, path: str, limit_bytes: int = 16 * MIB) -> bytes:
        """All of a file of the target's file system."""

    def read(self, path: str, limit_bytes: int = 16 * MIB) -> bytes:
        """All of a file of the host (kernel settings, cgroup files)."""

    def iter_fd(self, fd: int, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """An open file in chunks of at most CHUNK_BYTES, by positions, deadline kept; does not close it."""

    def http_get(self, url: str, *, timeout_s: float = 5.0, limit_bytes: int = 1024 * MIB) -> HttpReply:
        """
        GET from inside the target's network namespace; no proxy, no redirect, certificates not verified.

        `timeout_s` bounds connecting and the wait for each piece; the deadline bounds the whole.
        EndpointRefused when nobody answers or the status is not 200.
        """

    def find_tool(self, *names: str) -> Path | None:
        """The first of these programs that is installed: beside pmf's own interpreter, then on PATH."""

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout_s: float = 30.0,
        limit_bytes: int = 64 * MIB,
        ok: Sequence[int] = (0,),
        as_target_user: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        """
        Run a program to its end: TERM then KILL at the time limit or the deadline, output bounded.

        ToolMissing, ToolFailed (exit code not in `ok`), DeadlinePassed. The environment is pmf's own small one
        (PATH, LANG=C.UTF-8, TZ=UTC) plus `env`. `as_target_user` drops to the target's uid and gid.
        """

    def stream(
        self, argv: Sequence[str | Path], *, timeout_s: float = 30.0, env: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """The stdout of a program in chunks, in bounded memory; the same errors as `run`, raised at the end."""

    def signal(self, signum: int) -> None:
        """Send a signal, only when the target catches it: WouldHarm otherwise."""

    def room_for(self, wanted_bytes: int, at: str | Path | None = None) -> None:
        """WouldHarm when writing that much on the evidence volume (or at `at`) would cross the floor."""

    def note(self, verb: str, what: str, result: str = "ok", seconds: float = 0.0) -> None:
        """Log a touch that none of the other methods made (a ptrace stop, an attach)."""


class Collector(Protocol):
    """
    One kind of evidence.

    name      file name, folder name, option value and documentation anchor: one word, four uses
    question  the question of a post-mortem that stays open without this evidence
    limit_s   the most time it may take, before the budget is looked at
    stops     it may make the target stand still (ptrace, safepoint): the guard is set and the target is
              proven to run again
    opt_in    runs only when asked for by name
    """

    name: ClassVar[str]
    question: ClassVar[str]
    limit_s: ClassVar[float]
    stops: ClassVar[bool]
    opt_in: ClassVar[bool]

    def applies_to(self, target: Target) -> bool:
        """Whether this kind of target can have such evidence; False is silent, so prefer a Gap when in doubt."""

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        """Yield what there is, most telling first; raise a CollectError for what cannot be had."""


def facts_of(**values: Json) -> dict[str, Json]:
    """A facts mapping without the unknowns."""
    return {name: value for name, value in values.items() if value is not None}
