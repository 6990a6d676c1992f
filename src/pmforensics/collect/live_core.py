"""
Take a core of the running target: stop it, copy, let it go.

Two ways, because they differ in what may hold the target up. A core of stacks is copied into our own memory, and the
target runs again before a byte is written anywhere. A full core does not fit there: it goes straight into a file of
the evidence volume, since that is the shortest way; a pipe to a process that hashes would make the pause several
times as long.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace

from pmforensics.collect.base import Host
from pmforensics.collect.core_contents import Contents, CoreLimits, Subject, plan_full, plan_stacks
from pmforensics.collect.core_image import CoreImage, Segment, lay_out, pack_notes
from pmforensics.collect.freeze import Freeze, freeze, machine_of
from pmforensics.collect.target_memory import (
    Layout,
    LoadedObject,
    Memory,
    PageTable,
    Source,
    parse_auxv,
)
from pmforensics.errors import DeadlinePassed, TargetGone, WouldHarm
from pmforensics.model.capture import MIB, Gap, Json, Outcome, Pause, Reason, Settlement
from pmforensics.model.process import Target

CORE_MEDIA_TYPE = "application/x-coredump"
COPY_BYTES = 256 << 10  # stays in the second-level cache between reading and writing: 3.3 against 1.9 GB/s with 1 MiB
STOP_WITHIN_S = 0.5  # a thread that was throttled by its cgroup runs again within a period or two of 100 ms
# Measured on 2 virtual CPUs under load, Linux 6.18, ext4: 1.6 to 3.3 GB/s from memory to the page cache, 30 to 50 us
# per thread, 5 us per mapping for the stacks and 35 us for all memory (smaps). Volumes are slower than the page
# cache, so less than the worst is promised.
COPY_BYTES_PER_S = 1e9
THREAD_S, MAPPING_S, MEASURED_MAPPING_S = 100e-6, 10e-6, 50e-6
MAX_NAMED = 1000  # threads listed one by one in the facts
MAX_NAMED_IN_TEXT = 8
HASH_BYTES_PER_S = 0.8e9  # the bundle hashes the file after us; that has to fit into the budget too


@dataclass(frozen=True, slots=True)
class Taken:
    """
    What became of one core.

    pid, place       whose, and where in its folder of /proc its memory shows ("" or "task/TID/")
    layout           the mappings while the target stood still
    threads          how many are in the core
    not_stopped      thread id -> state letter of those that did not stop
    expected_bytes   the size that its headers declare; `written_bytes` is less when it was cut
    cut_by           "" or the code of what ended the copying early
    """

    pid: int
    place: str
    layout: Layout
    objects: tuple[LoadedObject, ...]
    threads: int
    not_stopped: dict[int, str]
    expected_bytes: int
    written_bytes: int
    cut_by: str
    pause: Pause
    facts: dict[str, Json]


def refuse_long_pause(predicted_s: float, allow_pause_s: float, what: str) -> None:
    """WouldHarm when the pause is predicted to be longer than is allowed."""
    if predicted_s > allow_pause_s:
        raise WouldHarm(
            f"{what} would stop the target for about {predicted_s:.2f} s, {allow_pause_s:g} s are allowed",
            hint=f"--allow-pause {_rounded_up(predicted_s)}",
        )


def _rounded_up(seconds: float) -> str:
    tenths = int(seconds * 1.2 * 10) + 1
    return f"{tenths / 10:g}"


def take_stacks(target: Target, host: Host, limits: CoreLimits) -> tuple[Taken, list[bytes]]:
    """The registers and stacks of all threads, as a core in our memory: chunks, `leading_bytes` of contents at most."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    with closing(Source(host)) as source:
        auxv = parse_auxv(source.process.auxv)
        predicted_s = len(host.list_proc("task")) * THREAD_S + len(source.mappings()) * MAPPING_S
        refuse_long_pause(predicted_s, limits.allow_pause_s, "copying the stacks")
        with _frozen(target, host, limits) as frozen:
            memory = Memory(frozen.a_thread, source.mem_fd)
            subject = Subject(Layout(source.mappings()), frozen.threads, auxv, memory, page_bytes)
            contents = plan_stacks(subject, limits)
            copied: dict[int, bytes] = {}
            reader = _Reader(memory, None)
            for segment in sorted(contents.held, key=lambda segment: segment.rank):
                if frozen.seconds > limits.allow_pause_s:
                    break
                copied[segment.start] = b"".join(bytes(chunk) for chunk in reader.chunks(segment))
    # What there was no time to copy is recorded as a place without bytes: the core is whole, with less in it.
    segments = [replace(segment, held=segment.start in copied) for segment in contents.segments]
    notes = pack_notes(target, source.process, frozen.threads, subject.layout.mappings, page_bytes)
    image = lay_out(frozen.machine, segments, notes, page_bytes)
    chunks = [image.head, *(copied[segment.start] for segment in image.contents)]
    cut_by = "pause-limit" if len(copied) < len(contents.held) else ""
    written_bytes = sum(map(len, chunks))
    cut_by = cut_by or _gone(host, reader)
    return _taken(frozen, source, subject.layout, contents, image, reader, written_bytes, cut_by), chunks


def predict_full(target: Target, host: Host, limits: CoreLimits) -> int:
    """Size of a full core as of now; WouldHarm when its pause or its size is not acceptable."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    machine_of(target)
    with closing(Source(host)) as source:
        mappings, usage = source.usage()
        memory = Memory(target.pid, source.mem_fd)
        subject = Subject(Layout(mappings), (), parse_auxv(source.process.auxv), memory, page_bytes)
        table = PageTable(source.pagemap_fd, page_bytes)
        contents = plan_full(subject, limits, usage, source.process.coredump_filter, table)
    predicted_s = (
        len(host.list_proc("task")) * THREAD_S
        + len(mappings) * MEASURED_MAPPING_S
        + contents.held_bytes / COPY_BYTES_PER_S
    )
    refuse_long_pause(predicted_s, limits.allow_pause_s, f"a full core of {contents.held_bytes / MIB:,.0f} MiB")
    host.room_for(contents.held_bytes)
    return contents.held_bytes


def take_full(target: Target, host: Host, to_fd: int, limits: CoreLimits) -> Taken:
    """All memory that coredump_filter asks for, written to `to_fd`; cut at the pause limit, never held longer."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    written_bytes = 0
    cut_by = ""
    with closing(Source(host)) as source, _frozen(target, host, limits) as frozen:
        memory = Memory(frozen.a_thread, source.mem_fd)
        mappings, usage = source.usage()
        subject = Subject(Layout(mappings), frozen.threads, parse_auxv(source.process.auxv), memory, page_bytes)
        table = PageTable(source.pagemap_fd, page_bytes)
        contents = plan_full(subject, limits, usage, source.process.coredump_filter, table)
        notes = pack_notes(target, source.process, frozen.threads, mappings, page_bytes)
        image = lay_out(frozen.machine, contents.segments, notes, page_bytes)
        reader = _Reader(memory, table)
        try:
            for chunk in _file(image, reader):
                if frozen.seconds > limits.allow_pause_s:
                    cut_by = "pause-limit"
                    break
                if host.remaining_s() < written_bytes / HASH_BYTES_PER_S:
                    cut_by = "deadline-passed"
                    break
                written_bytes += _write(to_fd, chunk)
        except DeadlinePassed:
            cut_by = "deadline-passed"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
                raise
            cut_by = "volume-failed" if error.errno == errno.EIO else "volume-full"
    written_bytes = os.fstat(to_fd).st_size
    cut_by = cut_by or _gone(host, reader)
    return _taken(frozen, source, subject.layout, contents, image, reader, written_bytes, cut_by)


def _gone(host: Host, reader: _Reader) -> str:
    """Whether the target was killed under our hands: then what was read last is zeros."""
    if reader.unreadable_bytes:
        try:
            host.check_alive()
        except TargetGone:
            return "target-gone"
    return ""


def _frozen(target: Target, host: Host, limits: CoreLimits) -> AbstractContextManager[Freeze]:
    allowed_s = limits.allow_pause_s
    return freeze(target, host, stop_within_s=min(STOP_WITHIN_S, allowed_s), hold_at_most_s=allowed_s)


def _file(image: CoreImage, reader: _Reader) -> Iterator[bytes | memoryview]:
    """The bytes of the core, front to back; a chunk is valid until the next one is asked for."""
    head = memoryview(image.head)
    for start in range(0, len(head), COPY_BYTES):
        yield head[start : start + COPY_BYTES]
    for segment in image.contents:
        yield from reader.chunks(segment)


def _write(fd: int, chunk: bytes | memoryview) -> int:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
    return len(chunk)


class _Reader:
    """
    Reads segments into one buffer.

    unreadable_bytes   could not be read and are zero in the core
    untouched_bytes    were never touched by the target and are zero without having been read
    """

    def __init__(self, memory: Memory, table: PageTable | None) -> None:
        self.unreadable_bytes = 0
        self.untouched_bytes = 0
        self._memory = memory
        self._table = table
        self._buffer = bytearray(COPY_BYTES)
        self._view = memoryview(self._buffer)

    def chunks(self, segment: Segment) -> Iterator[memoryview]:
        """Its bytes; a chunk is valid until the next one is asked for."""
        for address in range(segment.start, segment.end, COPY_BYTES):
            length = min(COPY_BYTES, segment.end - address)
            if self._table is not None and segment.untouched_is_zero:
                self._read_touched(self._table, address, length)
            else:
                self._read(address, address, length)
            yield self._view[:length]

    def _read(self, base: int, address: int, length: int) -> None:
        self.unreadable_bytes += self._memory.read_into(self._buffer, address - base, address, length)

    def _read_touched(self, table: PageTable, base: int, length: int) -> None:
        """A page that was never touched is zero; reading it would make the kernel map one."""
        try:
            touched = list(table.used(base, base + length))
        except OSError:  # the target was killed: nothing is left to ask
            self._buffer[:length] = bytes(length)
            self.unreadable_bytes += length
            return
        at = base
        for start, end in touched:
            self._zero(base, at, start)
            self._read(base, start, end - start)
            at = end
        self._zero(base, at, base + length)

    def _zero(self, base: int, start: int, end: int) -> None:
        if start < end:
            self._buffer[start - base : end - base] = bytes(end - start)
            self.untouched_bytes += end - start


def _taken(
    frozen: Freeze,
    source: Source,
    layout: Layout,
    contents: Contents,
    image: CoreImage,
    reader: _Reader,
    written_bytes: int,
    cut_by: str,
) -> Taken:
    asked = source.process.coredump_filter
    facts: dict[str, Json] = {
        "threads": len(frozen.threads),
        "thread_ids": "as in the pid namespace of the capture",
        "mappings": len(layout.mappings),
        "coredump_filter": None if asked is None else f"{asked:#010x}",
    }
    for name, value in (
        ("threads_not_stopped", len(frozen.left_out)),
        ("unreadable_bytes", reader.unreadable_bytes),
        ("untouched_bytes", reader.untouched_bytes),
        ("dropped_bytes", contents.dropped_bytes),
        ("vector_registers_dropped", frozen.vector_sets_dropped),
        ("stack_pointers_outside_memory", list(contents.lost_stacks[:MAX_NAMED])),
    ):
        if value:
            facts[name] = value
    if cut_by:
        facts |= {"expected_bytes": image.file_bytes, "actual_bytes": written_bytes}
    return Taken(
        pid=frozen.pid,
        place=source.place,
        layout=layout,
        objects=contents.objects,
        threads=len(frozen.threads),
        not_stopped=dict(frozen.left_out),
        expected_bytes=image.file_bytes,
        written_bytes=written_bytes,
        cut_by=cut_by,
        pause=frozen.pause,
        facts=facts,
    )


def settled(taken: Taken, allow_pause_s: float) -> Settlement:
    """Collected when it is whole, else partial with what cut it."""
    if not taken.cut_by:
        return Settlement(Outcome.COLLECTED, None, taken.facts, taken.pause)
    if taken.cut_by == "target-gone":
        says = f"the target was killed while it was copied: {taken.facts['unreadable_bytes']:,} bytes are zero"
        return Settlement(Outcome.PARTIAL, Reason(taken.cut_by, says), taken.facts, taken.pause)
    share = taken.written_bytes / max(taken.expected_bytes, 1)
    why, next_step = {
        "pause-limit": (
            f"the target had stood still for the {allow_pause_s:g} s that are allowed",
            f"--allow-pause {_rounded_up(taken.pause.seconds / max(share, 0.01))}",
        ),
        "deadline-passed": ("the rest of the budget is needed to hash it", "Give more time: --budget"),
        "volume-full": ("the volume is full", "Give a larger volume with --evidence, or make room."),
        "volume-failed": ("the volume failed", "Give another volume with --evidence."),
    }[taken.cut_by]
    says = f"the core ends after {taken.written_bytes:,} of {taken.expected_bytes:,} bytes: {why}"
    return Settlement(Outcome.PARTIAL, Reason(taken.cut_by, says, next_step), taken.facts, taken.pause)


def threads_not_stopped(taken: Taken, collector: str) -> Iterator[Gap]:
    """A gap for the threads whose registers are not, or not all, in the core."""
    if not taken.not_stopped:
        return
    named = ", ".join(f"{tid} ({state})" for tid, state in sorted(taken.not_stopped.items())[:MAX_NAMED_IN_TEXT])
    yield Gap(
        f"{collector}: the registers of {len(taken.not_stopped)} threads",
        Outcome.PARTIAL,
        Reason(
            "not-stopped",
            f"they did not stop when told to: {named}; where the kernel shows it, pc, sp and system call are there",
            "A thread in state D waits inside the kernel: its wchan and stack are in process_state/threads.jsonl.",
        ),
    )
