"""Every Python thread's stack, as py-spy reads it from outside."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pmforensics.collect.base import Host, Ran, facts_of
from pmforensics.collect.checked import settlement_of
from pmforensics.collect.gaps import gap_of
from pmforensics.errors import (
    AccessDenied,
    CollectError,
    DeadlinePassed,
    NotSupported,
    NotThere,
    ToolFailed,
    ToolMissing,
    WouldHarm,
)
from pmforensics.formats.proc import parse_status
from pmforensics.formats.structure import JsonCheck
from pmforensics.model.capture import MIB, Artifact, Gap, Json, Pause, PauseBasis
from pmforensics.model.process import Runtime, Target

ANSWER_S = 5.0  # of one try that stops nothing; 400 threads took 0.1 s
TRIES = 12  # six threads that compute: one try in four finds memory that holds still, and takes 0.02 to 0.08 s
MAX_BYTES = 16 * MIB  # 1.4 kB per thread, 3 kB with native frames
MAX_TIDS = 100  # named in a fact; more are counted

_NO_ACCESS = re.compile(r"permission denied|operation not permitted|os error (?:1|13)\b", re.IGNORECASE)
_NO_ACCESS_HINT = "Run pmf as root, or with the target's uid and CAP_SYS_PTRACE; `pmf doctor --pid N` tells which."


@dataclass(frozen=True, slots=True)
class _Way:
    """
    One way to call py-spy, and how long the target stands still: start_s + thread_s per thread.

    Measured with py-spy 0.4.3, CPython 3.11, x86-64, its own start included: 2 to 400 threads stood for 0.01 to
    0.07 s without native frames, and py-spy took 0.05 to 0.5 s with them, most of it for the libraries' symbols.
    """

    path: str
    option: str
    wanted: str
    start_s: float
    thread_s: float


_RUNNING = _Way("threads.json", "--nonblocking", "Python threads", 0.0, 0.0)
_STOPPED = _Way("threads.json", "", "Python threads", 0.1, 0.0005)
_NATIVE = _Way("threads-native.json", "--native", "Python threads with native frames", 0.3, 0.001)


@dataclass(frozen=True, slots=True)
class ThreadsPython:
    """
    Every Python thread with its frames, who holds the GIL, and the native frames below.

    Source:   py-spy dump --json --nonblocking (without the option when threads move too fast), then --native.
    Yields:   threads.json and threads-native.json: a list of threads with name, ids, active, owns_gil, frames.
    Cost:     the first reads the memory of the running process and disturbs nothing; a moving thread may show a torn
              stack. --native stops every thread for as long as it works, 0.05 to 0.5 s for 2 to 400 threads; it is
              refused when more than `allow_pause_s` is expected, and ended when it takes longer.
    Partial:  threads that Python does not know are missing: unlisted_tids names them. From outside the target's pid
              namespace py-spy calls every thread active, and has no native frames.
    Errors:   ToolMissing, AccessDenied, ToolFailed (a Python that py-spy does not know), DeadlinePassed.
    """

    name: ClassVar[str] = "threads_python"
    question: ClassVar[str] = "Where in the Python code was every thread, and which one held the GIL?"
    limit_s: ClassVar[float] = 30.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False

    allow_pause_s: float = 1.0

    def applies_to(self, target: Target) -> bool:
        return Runtime.CPYTHON in target

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        tool = host.find_tool("py-spy")
        if tool is None:
            raise ToolMissing("py-spy is not installed", hint="pip install 'pmforensics[python]'")
        spy = _PySpy(tool, _version(tool, host), target, host)
        try:
            yield self._running(spy)
        except ToolFailed as failed:
            yield from self._stopped(spy, _STOPPED, failed)
        yield from self._stopped(spy, _NATIVE)

    def _running(self, spy: _PySpy) -> Artifact:
        """Tries until no thread moves under the reader's hands."""
        tries = 0
        give_up = time.monotonic() + min(ANSWER_S, spy.host.remaining_s() / 2)
        while True:
            tries += 1
            try:
                return spy.dump(_RUNNING, max(0.1, give_up - time.monotonic()), tries=tries)
            except ToolFailed:
                if tries >= TRIES or time.monotonic() >= give_up:
                    raise

    def _stopped(self, spy: _PySpy, way: _Way, before: ToolFailed | None = None) -> Iterator[Artifact | Gap]:
        try:
            yield self._stopped_dump(spy, way)
        except CollectError as error:
            spy.host.check_deadline()
            yield gap_of(before or error, way.wanted, self.question)

    def _stopped_dump(self, spy: _PySpy, way: _Way) -> Artifact:
        if way is _NATIVE and not spy.target.same_pid_ns:
            raise NotSupported(
                "py-spy reads native frames only from inside the target's pid namespace",
                hint="Run pmf inside the target's container; the core has the native stacks.",
            )
        threads = len(spy.host.list_proc("task"))
        predicted_s = way.start_s + way.thread_s * threads
        if predicted_s > self.allow_pause_s:
            raise WouldHarm(
                f"{threads:,} threads would stand still for about {predicted_s:.1f} s;"
                f" {self.allow_pause_s:g} s are allowed",
                hint=f"--allow-pause {math.ceil(predicted_s * 1.25)} takes them all the same.",
            )
        try:
            return spy.dump(way, self.allow_pause_s)
        except DeadlinePassed as error:
            raise DeadlinePassed(
                error.message,
                hint="A thread that cannot be stopped holds py-spy up: see its state and wchan, or --allow-pause more.",
            ) from None


@dataclass(frozen=True, slots=True)
class _PySpy:
    tool: Path
    version: str | None
    target: Target
    host: Host

    def dump(self, way: _Way, timeout_s: float, **facts: Json) -> Artifact:
        """One call, to its end. Errors: ToolFailed, AccessDenied, DeadlinePassed."""
        options = [option for option in ("--json", way.option) if option]
        argv = [str(self.tool), "dump", *options, "--pid", str(self.target.pid)]
        started = time.monotonic()
        ran = self.host.run(argv, timeout_s=timeout_s, limit_bytes=MAX_BYTES, ok=range(256))
        took_s = time.monotonic() - started
        _raise_if_failed(ran)
        check = JsonCheck()
        check.feed(ran.stdout)
        known = facts_of(tool="py-spy", tool_version=self.version, said=ran.stderr_tail or None, **facts)
        verdict = settlement_of(check.finish(), {**known, **self._coverage(ran.stdout)})
        return Artifact(
            way.path,
            ran.stdout,
            " ".join(("py-spy", *argv[1:])),
            "application/json",
            verdict.outcome,
            verdict.reason,
            verdict.facts,
            Pause(took_s, PauseBasis.AT_MOST) if way is not _RUNNING else None,
        )

    def _coverage(self, answer: bytes) -> dict[str, Json]:
        """Which of the kernel's threads py-spy lists; {} when its answer cannot be read."""
        try:
            dumped = json.loads(answer)
            listed = {int(thread["os_thread_id"]) for thread in dumped if thread["os_thread_id"] is not None}
        except (ValueError, TypeError, KeyError):
            return {}
        tids = [self._own_tid(tid) for tid in self.host.list_proc("task")]
        unlisted: list[Json] = [tid for tid in tids if tid not in listed]
        return {
            "threads": len(dumped),
            "os_threads": len(tids),
            "unlisted_threads": len(unlisted),
            "unlisted_tids": unlisted[:MAX_TIDS],
        }

    def _own_tid(self, tid: str) -> int:
        """The thread's number as the target sees it: py-spy has it from the target's memory."""
        if self.target.same_pid_ns:
            return int(tid)
        try:
            status = self.host.read_proc(f"task/{tid}/status").decode("utf-8", "replace")
        except NotThere:
            return int(tid)  # ended in between
        return int(parse_status(status).get("NSpid", tid).split()[-1])


def _version(tool: Path, host: Host) -> str | None:
    try:
        words = host.run([tool, "--version"], timeout_s=2.0, limit_bytes=4096).stdout.split()
    except (ToolFailed, DeadlinePassed):
        host.check_deadline()
        return None
    return words[-1].decode("utf-8", "replace") if words else None


def _raise_if_failed(ran: Ran) -> None:
    if ran.exit_code == 0:
        return
    said = " ".join(ran.stderr_tail.split())[:500] or "no message"
    message = f"py-spy ended with {ran.exit_code}: {said}"
    if _NO_ACCESS.search(said):
        raise AccessDenied(message, hint=_NO_ACCESS_HINT)
    raise ToolFailed(message)
