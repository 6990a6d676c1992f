"""The whole heap, when it is asked for and when it fits."""

from __future__ import annotations

import math
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pmforensics.collect.attach_jvm import SECOND_PATIENCE_S, Jvm, attach
from pmforensics.collect.base import Host
from pmforensics.collect.checked import checked, settlement_of
from pmforensics.collect.class_histogram import refuse_pause
from pmforensics.collect.target_folder import memory_left_bytes, room_in_target, take_file, target_folder
from pmforensics.errors import CollectError, DeadlinePassed, NotSupported, ToolFailed, WouldHarm
from pmforensics.formats.heap_info import HeapInfo
from pmforensics.formats.proc import parse_status
from pmforensics.formats.structure import HprofCheck, JsonCheck
from pmforensics.model.capture import GIB, KIB, MIB, Artifact, Gap, Json, Outcome, Pause, PauseBasis, Reason
from pmforensics.model.process import Runtime, Target

FILE = "heap.hprof"

# JDK 17.0.15 and 25.0.3, all collectors, heap full of 28-byte objects, 2 CPUs, disk writing 1 GiB/s: 2.5 to 4.7 s per
# GiB of used heap up to 21; from 22 on 4.0 to 11 s, the later part of it with the VM running.
DUMP_S_PER_GIB = 5.0
MERGED_DUMP_S_PER_GIB = 11.0
COPY_S_PER_GIB = 3.0
# An object array with compressed references doubles: 4 bytes in the heap, 8 in the file. Measured 1.4 to 1.8.
FILE_PER_HEAP = 2.0
FILE_LEAST_BYTES = 32 * MIB  # classes, strings and stacks of a JVM with an empty heap
# From 22 on HotSpot writes a segment file first and then copies it behind the header: both are on the disk.
FIRST_WITH_SEGMENTS = 22

# Node 20.20.2, 1,000,000 small objects, 2 CPUs: from 0.2 GB resident to 1.2 GB, 40 s during which the event loop stood
# still, a file of 0.24 GB.
SNAPSHOT_S_PER_RESIDENT_GIB = 200.0
SNAPSHOT_MEMORY_PER_RESIDENT = 5.0
SNAPSHOT_FILE_PER_RESIDENT = 1.5
SNAPSHOT_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class HeapDump:
    """
    Every object of the heap with its references.

    Source:   JVM: GC.heap_dump -all. Node: the signal of --heapsnapshot-signal, when it was started with it.
    Yields:   heap.hprof or heap.heapsnapshot, written straight onto the evidence volume where the target can reach
              it, else in the target's /tmp (Node: its own folder), copied out and removed.
    Cost:     the VM stands still while it writes: up to 5 s per GiB of used heap. Twice the used heap of space, from
              JDK 22 on four times, for a moment.
    Partial:  a dump without its end record.
    Errors:   WouldHarm (pause over `allow_pause_s`, no time, no space, no memory), NotSupported (Go, Python, native),
              those of attaching.
    """

    name: ClassVar[str] = "heap_dump"
    question: ClassVar[str] = "Which objects filled the heap, and what kept them alive?"
    limit_s: ClassVar[float] = 900.0
    stops: ClassVar[bool] = True
    opt_in: ClassVar[bool] = False
    asked: bool = False
    allow_pause_s: float = 1.0

    def applies_to(self, target: Target) -> bool:
        return self.asked

    def collect(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        if Runtime.JVM in target:
            yield from self._hotspot(target, host)
        elif Runtime.NODE in target:
            yield from self._node(target, host)
        else:
            raise NotSupported(_no_such_dump(target), hint="Take all of its memory: --core full")

    # -- JVM ---------------------------------------------------------------------------------------------------------

    def _hotspot(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        with attach(target, host, patience_s=SECOND_PATIENCE_S) as jvm:
            heap = jvm.heap()
            used_bytes = heap.used_bytes or 0
            refuse_pause(DUMP_S_PER_GIB * used_bytes / GIB, self.allow_pause_s, heap)
            file_bytes = int(used_bytes * FILE_PER_HEAP) + FILE_LEAST_BYTES
            facts: dict[str, Json] = {**jvm.facts(), "used_heap_bytes": used_bytes, "predicted_bytes": file_bytes}
            if _can_reach(host, target):
                self._refuse_time(host, jvm, heap, copied=False)
                host.room_for(_peak_bytes(jvm, file_bytes))
                try:
                    yield from self._onto_the_volume(jvm, host, facts)
                    return
                except ToolFailed as error:
                    # It sees the folder and may not write there: a read-only mount, a security module.
                    host.note("heap dump", "written straight onto the evidence volume", error.message)
            self._refuse_time(host, jvm, heap, copied=True)
            room_in_target(target, host, _peak_bytes(jvm, file_bytes))
            host.room_for(file_bytes)
            yield from self._through_the_target(jvm, target, host, facts)

    def _refuse_time(self, host: Host, jvm: Jvm, heap: HeapInfo, *, copied: bool) -> None:
        rate = MERGED_DUMP_S_PER_GIB if jvm.feature >= FIRST_WITH_SEGMENTS else DUMP_S_PER_GIB
        predicted_s = (rate + (COPY_S_PER_GIB if copied else 0.0)) * (heap.used_bytes or 0) / GIB
        if predicted_s > host.remaining_s():
            raise WouldHarm(
                f"the dump would take about {predicted_s:.0f} s and {host.remaining_s():.0f} s are left",
                hint="Give more time with --budget; a dump that has begun cannot be called off.",
            )

    def _onto_the_volume(self, jvm: Jvm, host: Host, facts: dict[str, Json]) -> Iterator[Artifact]:
        # In a folder of its own: what is left there when time is up is thrown away, not adopted while HotSpot writes.
        folder = host.spool.resolve() / "jvm"
        folder.mkdir(mode=0o700)
        try:
            pause = _dump(jvm, host, str(folder / FILE))
            done = host.spool / FILE
            (folder / FILE).chmod(0o600)
            (folder / FILE).rename(done)
        finally:
            for left in [*folder.iterdir()]:
                with suppress(OSError):
                    left.unlink()
            with suppress(OSError):
                folder.rmdir()
        check = HprofCheck()
        reason: Reason | None = None
        fd = os.open(done, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for chunk in host.iter_fd(fd):
                check.feed(chunk)
        except DeadlinePassed as error:
            reason = Reason(error.code, "the dump is written; there was no time to check its structure", error.hint)
        finally:
            os.close(fd)
        facts = {**facts, "written": "straight onto the evidence volume"}
        settled = settlement_of(check.finish(), facts, pause)
        yield Artifact(
            FILE,
            done,
            "GC.heap_dump -all",
            "application/vnd.java.hprof",
            outcome=settled.outcome if reason is None else Outcome.PARTIAL,
            reason=settled.reason if reason is None else reason,
            facts=settled.facts if reason is None else facts,
            pause=pause,
            bulk=True,
        )

    def _through_the_target(self, jvm: Jvm, target: Target, host: Host, facts: dict[str, Json]) -> Iterator[Artifact]:
        with target_folder(target, host) as folder:
            pause = _dump(jvm, host, f"{folder.path}/{FILE}")
            fd = folder.take(FILE)
        try:
            check = HprofCheck()
            yield Artifact(
                FILE,
                checked(host.iter_fd(fd), check),
                "GC.heap_dump -all",
                "application/vnd.java.hprof",
                bulk=True,
                pause=pause,
                settle=lambda: settlement_of(
                    check.finish(), {**facts, "written": "in the target's /tmp, then copied"}, pause
                ),
            )
        finally:
            os.close(fd)

    # -- Node --------------------------------------------------------------------------------------------------------

    def _node(self, target: Target, host: Host) -> Iterator[Artifact | Gap]:
        signum, folder = _snapshot_options(target, host)
        status = parse_status(host.read_proc("status").decode("utf-8", "replace"))
        resident_bytes = int(status.get("VmRSS", "0").split()[0]) * KIB
        predicted_s = SNAPSHOT_S_PER_RESIDENT_GIB * resident_bytes / GIB
        shown = f"{resident_bytes / MIB:,.0f} MiB resident"
        if predicted_s > self.allow_pause_s:
            raise WouldHarm(
                f"the event loop would stand still for up to {predicted_s:.0f} s ({shown}), and"
                f" {self.allow_pause_s:g} s are allowed",
                hint=f"Allow it: --allow-pause {math.ceil(predicted_s)}",
            )
        if predicted_s > host.remaining_s():
            raise WouldHarm(
                f"the snapshot would take up to {predicted_s:.0f} s and {host.remaining_s():.0f} s are left",
                hint="Give more time with --budget; a snapshot that has begun cannot be called off.",
            )
        left_bytes = memory_left_bytes(host)
        if left_bytes is not None and resident_bytes * SNAPSHOT_MEMORY_PER_RESIDENT > left_bytes:
            raise WouldHarm(
                f"Node builds the snapshot in memory: {resident_bytes * SNAPSHOT_MEMORY_PER_RESIDENT / MIB:,.0f} MiB,"
                f" and it may use {left_bytes / MIB:,.0f} MiB more before it is killed",
                hint="Raise its memory limit first, or take all of its memory from outside: --core full",
            )
        file_bytes = int(resident_bytes * SNAPSHOT_FILE_PER_RESIDENT) + FILE_LEAST_BYTES
        host.room_for(file_bytes, folder)
        host.room_for(file_bytes)
        folder_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            host.check_alive()
            name, pause = _take_snapshot(target, host, folder_fd, signum)
            fd = take_file(folder_fd, name, target.uid)
        finally:
            os.close(folder_fd)
        try:
            check = JsonCheck()
            facts: dict[str, Json] = {"signal": signum.name, "resident_bytes": resident_bytes}
            yield Artifact(
                "heap.heapsnapshot",
                checked(host.iter_fd(fd), check),
                f"{signum.name}, as --heapsnapshot-signal says",
                "application/json",
                bulk=True,
                pause=pause,
                settle=lambda: settlement_of(check.finish(), facts, pause),
            )
        finally:
            os.close(fd)


# -- JVM -------------------------------------------------------------------------------------------------------------


def _peak_bytes(jvm: Jvm, file_bytes: int) -> int:
    return 2 * file_bytes if jvm.feature >= FIRST_WITH_SEGMENTS else file_bytes


def _can_reach(host: Host, target: Target) -> bool:
    """
    Whether the target sees the spool folder at the same path and, as its owner, may write there.

    Every folder above it is 0700 and ours, so another user's process gets no further than the bundle's door.
    """
    spool = host.spool.resolve()
    ours = spool.stat()
    # HotSpot splits at blanks, unquotes, and from JDK 24 on expands %p in file names.
    if ours.st_uid != target.uid or not re.fullmatch(r"[\w./+,:@=-]{1,900}", str(spool), re.ASCII):
        return False
    try:
        theirs = os.stat(host.target_path(str(spool)))
    except (CollectError, OSError):
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def _dump(jvm: Jvm, host: Host, path: str) -> Pause:
    # Without -all HotSpot runs a full garbage collection first, and what was dead is gone from the evidence.
    try:
        answer = jvm.call(f"GC.heap_dump -all {path}", timeout_s=host.remaining_s())
    except DeadlinePassed as error:
        raise DeadlinePassed(
            f"the dump was not finished in time: {error.message}",
            hint="Give more time: --budget. The JVM cannot be called off; its file goes when it is done.",
        ) from None
    text = b"".join(answer.chunks).decode("utf-8", "replace")
    if "Heap dump file created" not in text:
        last = [line for line in text.splitlines() if line.strip()][-1:] or ["no reason given"]
        raise ToolFailed(f"the JVM wrote no heap dump: {last[0][:300]}")
    return Pause(answer.waited_s, PauseBasis.AT_MOST)


# -- Node ------------------------------------------------------------------------------------------------------------


def _snapshot_options(target: Target, host: Host) -> tuple[signal.Signals, Path]:
    """
    The signal that makes this Node write a snapshot, and the folder where it will.

    Only Node's own options count: what follows the script's name is the program's, and a signal on its word could
    mean anything.
    """
    words = list(target.argv[1:])
    for entry in host.read_proc("environ", MIB).split(b"\0"):
        if entry.startswith(b"NODE_OPTIONS="):
            words = entry.partition(b"=")[2].decode("utf-8", "replace").split() + words
    name = folder = ""
    while words and words[0].startswith("-"):
        option, equals, value = words.pop(0).partition("=")
        if option in ("--heapsnapshot-signal", "--diagnostic-dir"):
            value = value if equals or not words else words.pop(0)
            name, folder = (value, folder) if option == "--heapsnapshot-signal" else (name, value)
    if name not in signal.Signals.__members__:
        raise NotSupported(
            "this Node was not started with --heapsnapshot-signal, and takes no snapshot otherwise",
            hint="Take all of its memory now: --core full. Next time: NODE_OPTIONS=--heapsnapshot-signal=SIGUSR2",
        )
    here = Path(f"/proc/{target.pid}/cwd")
    if not folder:
        return signal.Signals[name], here
    return signal.Signals[name], host.target_path(folder) if folder.startswith("/") else here / folder


def _take_snapshot(target: Target, host: Host, folder_fd: int, signum: signal.Signals) -> tuple[str, Pause]:
    """The name of the new file in Node's folder, once Node has closed it. DeadlinePassed, TargetGone, WouldHarm."""
    wanted = re.compile(rf"Heap\.\d{{8}}\.\d{{6}}\.{target.own_pid}\.\d+\.\d+\.heapsnapshot")
    before = set(os.listdir(folder_fd))
    started = time.monotonic()
    host.signal(signum)
    while True:
        host.check_alive()
        if host.remaining_s() <= 0:
            raise DeadlinePassed(
                "the snapshot was not finished in time",
                hint="Node goes on with it: look for Heap.*.heapsnapshot in its working directory.",
            )
        time.sleep(SNAPSHOT_POLL_S)
        new = [name for name in os.listdir(folder_fd) if name not in before and wanted.fullmatch(name)]
        if new and not _is_open(new[0], host):
            return new[0], Pause(time.monotonic() - started, PauseBasis.AT_MOST)


def _is_open(name: str, host: Host) -> bool:
    for number in host.list_proc("fd"):
        with suppress(CollectError):
            if host.link_proc(f"fd/{number}").endswith(f"/{name}"):
                return True
    return False


def _no_such_dump(target: Target) -> str:
    if Runtime.GO in target:
        return "a Go process cannot dump its heap; its heap profile (samples by allocation site) is what there is"
    if Runtime.CPYTHON in target:
        return "CPython cannot dump its heap from outside"
    return "a native process has no heap dump of its own"
