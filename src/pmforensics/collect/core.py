"""A full core of the running process."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from pmforensics.collect.base import Host
from pmforensics.collect.checked import settlement_of
from pmforensics.collect.core_contents import CoreLimits
from pmforensics.collect.live_core import (
    CORE_MEDIA_TYPE,
    predict_full,
    refuse_long_pause,
    settled,
    take_full,
    threads_not_stopped,
)
from pmforensics.errors import NotSupported
from pmforensics.formats.proc import parse_status
from pmforensics.formats.structure import CoreCheck
from pmforensics.model.capture import KIB, MIB, Artifact, CoreKind, Gap, Pause, PauseBasis
from pmforensics.model.process import Target

# gdb 13, 2 virtual CPUs: 0.3 s before the first byte, 1.9 GB/s of used memory at best; it writes untouched memory too.
GCORE_START_S, GCORE_BYTES_PER_S = 0.5, 0.5e9


@dataclass(frozen=True, slots=True)
class Core:
    """
    All memory and registers of the process, as an ELF core for gdb, lldb, delve, drgn, jhsdb or pystack.

    Source:   PTRACE_SEIZE, process_vm_readv, /proc/PID/mem; chosen by /proc/PID/{smaps,pagemap,coredump_filter}.
    Yields:   core: what coredump_filter asks for; stacks first in the file, small writable memory next.
    Cost:     stops the target while it is copied: about a second per gigabyte used, predicted beforehand, measured
              and recorded. Needs as much room on the volume.
    Partial:  cut where `allow_pause_s` or the budget ends, with the bytes expected and written. Memory that was
              never touched takes no room; pages of shared memory that only others touched are left out.
    Errors:   WouldHarm when the predicted pause or size is too much, AccessDenied with the reason, NotSupported
              for 32-bit programs where gcore is missing too.
    """

    name: ClassVar[str] = "core"
    question: ClassVar[str] = "What was in its memory: variables, queues, locks, the heap itself?"
    limit_s: ClassVar[float] = 600.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False

    kind: CoreKind = CoreKind.NONE
    allow_pause_s: float = 1.0
    stack_bytes: int = 256 * KIB
    stacks_limit_bytes: int = 32 * MIB

    def applies_to(self, target: Target) -> bool:
        return self.kind is CoreKind.FULL and not target.kernel_thread

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        limits = CoreLimits(self.allow_pause_s, self.stack_bytes, self.stacks_limit_bytes)
        try:
            predict_full(target, host, limits)
        except NotSupported as error:
            yield from self._by_gcore(target, host, error)
            return
        path = host.spool / "core"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            taken = take_full(target, host, fd, limits)
        finally:
            os.close(fd)
        settlement = settled(taken, self.allow_pause_s)
        yield Artifact(
            "core",
            path,
            f"memory of process {target.pid}",
            CORE_MEDIA_TYPE,
            settlement.outcome,
            settlement.reason,
            settlement.facts,
            settlement.pause,
            bulk=True,
        )
        yield from threads_not_stopped(taken, self.name)

    def _by_gcore(self, target: Target, host: Host, why: NotSupported) -> Iterator[Artifact]:
        """pmf does not know this kind of registers: gdb has to hold the target and write the file."""
        gcore = host.find_tool("gcore")
        if gcore is None:
            raise why
        status = parse_status(host.read_proc("status").decode("utf-8", "replace"))
        used_bytes, most_bytes = _kib(status, "VmRSS", "VmSwap"), _kib(status, "VmSize")
        predicted_s = GCORE_START_S + used_bytes / GCORE_BYTES_PER_S
        refuse_long_pause(predicted_s, self.allow_pause_s, f"gcore of {used_bytes / MIB:,.0f} MiB")
        host.room_for(most_bytes)
        started = time.monotonic()
        host.run([gcore, "-o", host.spool / "core", str(target.pid)], timeout_s=self.allow_pause_s)
        pause = Pause(time.monotonic() - started, PauseBasis.AT_MOST)
        path = host.spool / f"core.{target.pid}"
        check = CoreCheck()
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for chunk in host.iter_fd(fd):
                check.feed(chunk)
        finally:
            os.close(fd)
        settlement = settlement_of(check.finish(), {"tool": gcore.name}, pause)
        yield Artifact(
            "core",
            path,
            f"gcore at process {target.pid}",
            CORE_MEDIA_TYPE,
            settlement.outcome,
            settlement.reason,
            settlement.facts,
            settlement.pause,
            bulk=True,
        )


def _kib(status: dict[str, str], *names: str) -> int:
    """The sum of these fields in bytes; a field that is missing counts nothing."""
    words = (status.get(name, "0").split() or ["0"] for name in names)
    return sum(int(word[0]) * KIB for word in words if word[0].isdecimal())
