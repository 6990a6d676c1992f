"""The target as the kernel sees it, read before anything attaches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.collect.gaps import gap_of
from pmforensics.errors import CollectError, NotThere, TargetGone
from pmforensics.model.capture import MIB, Artifact, Gap, Json, Outcome, Reason
from pmforensics.model.process import Target

THREAD_FILES = ("status", "wchan", "syscall", "stack", "comm", "schedstat")
MAX_THREADS = 20_000
MAX_FDS = 100_000

# Read without the target's memory lock, most telling first.
PLAIN_FILES = (
    "stat",
    "limits",
    "cgroup",
    "io",
    "sched",
    "schedstat",
    "statm",
    "oom_score",
    "oom_score_adj",
    "coredump_filter",
    "mountinfo",
    "uid_map",
    "timerslack_ns",
)
SOCKET_FILES = ("net/tcp", "net/tcp6", "net/udp", "net/udp6", "net/unix", "net/netstat", "net/sockstat")
# Reading these takes the lock of the target's address space: in a wedged process they may never answer.
MEMORY_FILES = ("auxv", "maps")

# Settings that change how a runtime behaves or where it keeps things; never a name that could carry a secret.
ENVIRONMENT = frozenset({
    "CONTAINER_NAME", "GODEBUG", "GOGC", "GOMAXPROCS", "GOMEMLIMIT", "GOTRACEBACK", "HOSTNAME", "JAVA_HOME",
    "JAVA_OPTS", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "LANG", "LC_ALL", "LC_TIME", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "MALLOC_ARENA_MAX", "MALLOC_CHECK_", "MALLOC_PERTURB_", "NAMESPACE", "NODE_ENV", "NODE_NAME",
    "NODE_OPTIONS", "NODE_VERSION", "OMP_NUM_THREADS", "PATH", "POD_NAME", "POD_NAMESPACE", "PYTHONASYNCIODEBUG",
    "PYTHONDEVMODE", "PYTHONFAULTHANDLER", "PYTHONHASHSEED", "PYTHONHOME", "PYTHONMALLOC", "PYTHONPATH",
    "PYTHONTRACEMALLOC", "PYTHONUNBUFFERED", "TZ", "UV_THREADPOOL_SIZE", "VIRTUAL_ENV",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProcessState:
    """
    Threads, descriptors, limits, sockets and memory map, in the kernel's own words.

    Source:   /proc/PID/*, /proc/PID/task/*/{status,wchan,syscall,stack,comm,schedstat}.
    Yields:   status, threads.jsonl (one line per thread), the small files of /proc/PID as they are,
              fds.jsonl, net/*, cmdline.json (secrets redacted), environ.json (allow-list), auxv, maps.
    Cost:     none to the target; about 40 us per thread file.
    Partial:  over 20,000 threads or 100,000 descriptors the rest is counted, not read.
    Errors:   AccessDenied per file without the target's uid or CAP_SYS_PTRACE; DeadlinePassed when the target's
              memory lock is held (cmdline, environ, auxv and maps come last for that reason).
    """

    name: ClassVar[str] = "process_state"
    question: ClassVar[str] = "What was the process doing, and what did it hold, in the kernel's view?"
    limit_s: ClassVar[float] = 5.0
    stops: ClassVar[bool] = False
    opt_in: ClassVar[bool] = False

    def applies_to(self, target: Target) -> bool:
        return True

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        yield from self._copies(("status",), target, host)
        yield from self._threads(target, host)
        yield from self._copies(PLAIN_FILES, target, host)
        yield from self._descriptors(target, host)
        yield from self._copies(SOCKET_FILES, target, host)
        yield from self._attempt("cmdline.json", self._command_line(target, host))
        yield from self._attempt("environ.json", self._environment(target, host))
        yield from self._copies(MEMORY_FILES, target, host)

    def _copies(self, names: tuple[str, ...], target: Target, host: Host) -> Iterator[Artifact | Gap]:
        for name in names:
            yield from self._attempt(name, self._copy(name, target, host))

    def _attempt(self, name: str, artifacts: Iterator[Artifact]) -> Iterator[Artifact | Gap]:
        """One file that cannot be read does not cost the next one."""
        try:
            yield from artifacts
        except NotThere:
            return  # this kernel has no such file
        except TargetGone:
            raise
        except CollectError as error:
            yield gap_of(error, f"{self.name}/{name}")

    def _copy(self, name: str, target: Target, host: Host) -> Iterator[Artifact]:
        body = host.read_proc(name, 64 * MIB)
        media_type = "application/octet-stream" if name == "auxv" else "text/plain"
        yield Artifact(
            name, body, f"/proc/{target.pid}/{name}", media_type, Outcome.COLLECTED if body else Outcome.EMPTY
        )

    def _threads(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        try:
            tids = host.list_proc("task")
        except CollectError as error:
            yield gap_of(error, f"{self.name}/threads.jsonl", self.question)
            return
        denied: dict[str, int] = {}
        read = 0

        def lines() -> Iterator[bytes]:
            nonlocal read
            for tid in tids[:MAX_THREADS]:
                host.check_deadline()
                thread: dict[str, Json] = {"tid": int(tid), "read_at_monotonic_ns": time.monotonic_ns()}
                for name in THREAD_FILES:
                    try:
                        thread[name] = host.read_proc(f"task/{tid}/{name}").decode("utf-8", "replace")
                    except NotThere:
                        continue  # the thread ended, or the kernel has no such file
                    except TargetGone:
                        host.check_alive()  # only this thread ended, or the whole process?
                    except CollectError as error:
                        denied[name] = denied.get(name, 0) + 1
                        thread[name] = None
                        thread.setdefault("refused", error.message)
                if "status" in thread:
                    read += 1
                    yield json.dumps(thread).encode() + b"\n"

        yield Artifact(
            "threads.jsonl",
            lines(),
            f"/proc/{target.pid}/task/*/{{{','.join(THREAD_FILES)}}}",
            "application/jsonl",
            Outcome.COLLECTED if len(tids) <= MAX_THREADS else Outcome.PARTIAL,
            None
            if len(tids) <= MAX_THREADS
            else Reason("too-many", f"{len(tids):,} threads; the first {MAX_THREADS:,} were read"),
            {"threads": len(tids)},
        )
        for name, count in denied.items():
            yield Gap(
                f"{self.name}/threads.jsonl: {name} of {count} of {len(tids)} threads",
                Outcome.DENIED,
                Reason(
                    "access-denied",
                    f"/proc/{target.pid}/task/*/{name}: not permitted",
                    "Run pmf as root or give it CAP_SYS_PTRACE"
                    + (" (stack needs CAP_SYS_ADMIN)." if name == "stack" else "."),
                ),
            )

    def _descriptors(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        try:
            numbers = host.list_proc("fd")
        except CollectError as error:
            yield gap_of(error, f"{self.name}/fds.jsonl", "Which files, sockets and pipes were open?")
            return

        def lines() -> Iterator[bytes]:
            for number in numbers[:MAX_FDS]:
                host.check_deadline()
                try:
                    yield json.dumps({"fd": int(number), "to": host.link_proc(f"fd/{number}")}).encode() + b"\n"
                except CollectError:
                    continue  # closed in between

        yield Artifact(
            "fds.jsonl",
            lines(),
            f"/proc/{target.pid}/fd/*",
            "application/jsonl",
            Outcome.COLLECTED if len(numbers) <= MAX_FDS else Outcome.PARTIAL,
            None
            if len(numbers) <= MAX_FDS
            else Reason("too-many", f"{len(numbers):,} descriptors; the first {MAX_FDS:,} were read"),
            {"descriptors": len(numbers)},
        )

    def _command_line(self, target: Target, host: Host) -> Iterator[Artifact]:
        from pmforensics.formats.argv import parse_cmdline, redact_argv

        argv, redacted = redact_argv(parse_cmdline(host.read_proc("cmdline", 8 * MIB)))
        yield _json("cmdline.json", {"argv": list(argv)}, f"/proc/{target.pid}/cmdline", redacted=redacted)

    def _environment(self, target: Target, host: Host) -> Iterator[Artifact]:
        from pmforensics.formats.argv import redact_argv

        kept: dict[str, Json] = {}
        withheld = 0
        for entry in host.read_proc("environ", 8 * MIB).split(b"\0"):
            name, equals, value = entry.decode("utf-8", "replace").partition("=")
            if name in ENVIRONMENT:
                kept[name] = " ".join(redact_argv(value.split(" "))[0])
            elif equals:
                withheld += 1
        yield _json("environ.json", kept, f"/proc/{target.pid}/environ", withheld=withheld)


def _json(path: str, value: dict[str, Json], source: str, **facts: Json) -> Artifact:
    body = json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"
    return Artifact(path, body, source, "application/json", facts=facts)
