"""
Cut the window out of one log file: which bytes, by which clock, and whether they held still.

The files belong to somebody else, who writes, truncates, renames and compresses them at any moment. So everything
goes by an open descriptor and by positions in it, and what was read is compared with what is there afterwards.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, tzinfo
from enum import Enum
from typing import TypeAlias

from pmforensics.collect.base import CHUNK_BYTES, Host, facts_of
from pmforensics.collect.gaps import gap_of
from pmforensics.collect.log_zone import LocalZone, Zone
from pmforensics.errors import (
    AccessDenied,
    AnswerBroken,
    CollectError,
    DeadlinePassed,
    NotThere,
    TargetGone,
    ToolFailed,
)
from pmforensics.formats.log_lines import (
    FoundBy,
    ReadAt,
    Search,
    StampedLine,
    find_first_at_or_after,
    find_first_stamped,
    find_last_stamped,
)
from pmforensics.model.capture import GIB, MIB, Artifact, Gap, Json, Outcome, Reason, Settlement

TAIL_BYTES = 4 * MIB  # of a file in which no time can be found
BULK_BYTES = 32 * MIB  # from here on, a slice is asked about free space and may be compressed
HEAD_BYTES = 512  # of a slice, kept to see whether the file was rewritten while it was read
LEAST_BYTES = 4096  # less than this is no slice
TRIES = 3  # a log is truncated once in a while, not for ever
IDLE_S = 60.0  # a file whose last stamp is this much older than its last change has another clock, or lines without
GZIP_MAGIC = b"\x1f\x8b"
GZIP_STEP_BYTES = 16 << 10  # what zlib unpacked of a piece before it met broken data is lost
GZIP_BLOCK_BYTES = 4 * MIB
GZIP_MAX_BYTES = 8 * GIB  # unpacked
# Deflate can reach 1032:1. Logs reach 20:1, and some hundred when one line is all there is.
GZIP_MAX_RATIO, GZIP_RATIO_FROM_BYTES = 400, 256 * MIB
PACKED = re.compile(r"\.(?:gz|zst|bz2|xz|lz4|Z)$")


class Origin(Enum):
    """How pmf came to know of a log."""

    GIVEN = "given"
    OPEN = "open"
    CONTAINER = "container"


@dataclass(frozen=True, slots=True)
class LogFile:
    """
    A log, or a rotated part of one.

    path     for people and for the facts; the bytes come from a descriptor
    insist   it is known to be a log, whatever its bytes look like
    fds      the descriptors that the target has of it
    rotated  it is an older part: worth nothing when it holds no line of the window
    """

    path: str
    origin: Origin
    insist: bool
    fds: tuple[int, ...] = ()
    rotated: bool = False


Cut: TypeAlias = Generator[Artifact | Gap, None, tuple[bool, Zone | None]]
"""Yields at most one item; returns whether the file reaches back beyond the window, and the zone of its stamps."""


@contextmanager
def refusals(path: str) -> Iterator[None]:
    """OSError as the CollectError that fits."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise NotThere(f"{shown_path(path)} does not exist") from None
    except PermissionError as error:
        raise AccessDenied(
            f"{shown_path(path)}: {error.strerror}", hint="Run pmf as root, or with the group that may read it."
        ) from None
    except OSError as error:
        raise ToolFailed(f"{shown_path(path)}: {error.strerror}") from None


def shown_path(path: str) -> str:
    """A path for facts and messages: bytes that are no UTF-8 as backslash escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class LogSlicer:
    """
    Slices of log files, all of one window and within one allowance.

    taken_bytes   of everything so far
    """

    def __init__(
        self, host: Host, *, now_s: float, since_s: float, max_bytes: int, all_bytes: int, question: str
    ) -> None:
        self.taken_bytes = 0
        self.since = datetime.fromtimestamp(now_s - since_s, UTC)
        self._now = datetime.fromtimestamp(now_s, UTC)
        self._host = host
        self._max_bytes = max_bytes
        self._all_bytes = all_bytes
        self._question = question
        self._local_zone = LocalZone(host, self._now)
        self._number = 0

    @property
    def limit_bytes(self) -> int:
        """The most that the next slice may take."""
        return min(self._max_bytes, self._all_bytes - self.taken_bytes)

    def take(self, taken_bytes: int) -> None:
        """Count log lines that came from elsewhere."""
        self.taken_bytes += taken_bytes

    def cut(self, fd: int, log: LogFile, zone: Zone | None) -> Cut:
        """The slice of the file behind `fd`. `zone` is that of its newer neighbour, where that is known."""
        if self.limit_bytes < min(LEAST_BYTES, self._max_bytes):
            reason = Reason(
                "over-limit",
                f"{self.taken_bytes:,} bytes of logs are taken already",
                "Shorten --since, or copy the file.",
            )
            yield self._gap(log, Outcome.REFUSED, reason)
            return True, zone
        try:
            with refusals(log.path):
                if os.pread(fd, len(GZIP_MAGIC), 0) == GZIP_MAGIC:
                    return (yield from self._gzip(fd, log, zone))
                if PACKED.search(log.path):
                    status = os.fstat(fd)
                    reason = Reason(
                        "packed",
                        f"it was last changed at {_changed(status)}, and pmf unpacks gzip only",
                        f"Copy it: inode {status.st_ino}, {status.st_size:,} bytes.",
                    )
                    yield self._gap(log, Outcome.REFUSED, reason)
                    return False, zone
                return (yield from self._plain(fd, log, zone))
        except DeadlinePassed:
            raise
        except (CollectError, TargetGone) as error:
            yield gap_of(error, f"the log {shown_path(log.path)}", self._question)
            return False, zone

    # -- files as they are written -------------------------------------------------------------------------------

    def _plain(self, fd: int, log: LogFile, zone: Zone | None) -> Cut:
        status, found = self._find_patiently(fd, log, zone)
        zone = found.zone or zone
        length = found.end - found.start
        if log.rotated and length == 0:
            return found.reaches_back, zone
        if found.found_by is FoundBy.TAIL and found.last is None and not log.insist and _is_binary(fd, status):
            reason = Reason(
                "binary", "it has a log's name and holds binary data", f"If it is wanted: --log {shown_path(log.path)}"
            )
            yield self._gap(log, Outcome.REFUSED, reason)
            return True, zone
        head = os.pread(fd, min(HEAD_BYTES, length), found.start)
        facts = self._facts(log, status, found)
        sent = _Sent()

        def settle() -> Settlement:
            got = {**facts, "range": [found.start, found.start + sent.bytes]}
            if sent.bytes < length:
                reason = Reason(
                    "cut",
                    f"the file was truncated while it was read: {sent.bytes:,} of {length:,} bytes were there",
                    "Look for the rest in its rotated neighbours.",
                )
                return Settlement(Outcome.PARTIAL, reason, got)
            if os.pread(fd, len(head), found.start) != head:
                reason = Reason("rewritten", "the file was truncated and written again while it was read")
                return Settlement(Outcome.PARTIAL, reason, got)
            return self._settlement(found, got)

        chunks = self._host.iter_fd(fd, found.start, found.end)
        yield Artifact(
            self._next_name(log.path),
            self._counted(chunks, log, sent),
            f"{shown_path(log.path)} [{found.start}, {found.end})",
            facts=facts,
            bulk=length >= BULK_BYTES,
            settle=settle,
        )
        return found.reaches_back, zone

    def _counted(self, chunks: Iterator[bytes], log: LogFile, sent: _Sent) -> Iterator[bytes]:
        with refusals(log.path):
            for chunk in chunks:
                sent.bytes += len(chunk)
                self.take(len(chunk))
                yield chunk

    def _find_patiently(self, fd: int, log: LogFile, zone: Zone | None) -> tuple[os.stat_result, _Range]:
        for _ in range(TRIES):
            try:
                status = os.fstat(fd)
                return status, self._find(fd, status, zone)
            except _Shrunk:
                continue
        raise AnswerBroken(f"{shown_path(log.path)} kept becoming shorter while it was searched")

    def _find(self, fd: int, status: os.stat_result, zone: Zone | None) -> _Range:
        """Which bytes of the file belong to the window."""
        size = status.st_size
        begin = _first_data(fd, size)
        read = _Reader(self._host, fd, size)
        last = find_last_stamped(read, size, now=self._now, zone=_or_utc(zone), begin=begin)
        if last is not None and not last.stamp.zone_known and zone is None:
            zone = self._local_zone.of_file(last.stamp.at, status.st_mtime)
            last = find_last_stamped(read, size, now=self._now, zone=zone.zone, begin=begin)
        in_zone = _or_utc(zone)
        search = find_first_at_or_after(read, size, self.since, now=self._now, zone=in_zone, begin=begin)
        found = self._range_of(search, begin, status, last)
        length, limit_bytes = found.end - found.start, self.limit_bytes
        if length > limit_bytes:
            start = _next_line(read, found.end - limit_bytes, size)
            first = find_first_stamped(read, size, now=self._now, zone=in_zone, begin=start)
            found = replace(
                found, start=start, first=first, reaches_back=True, reason=_over_limit(length), truncated_to=limit_bytes
            )
        return replace(found, zone=zone, reads=read.reads, hole_bytes=begin)

    def _range_of(self, search: Search, begin: int, status: os.stat_result, last: StampedLine | None) -> _Range:
        size, previous = status.st_size, search.previous
        tail = max(begin, size - TAIL_BYTES)
        if search.found_by is FoundBy.NO_STAMPS:
            if tail == begin:
                return _Range(begin, size, FoundBy.WHOLE, search=search)
            return _Range(tail, size, FoundBy.TAIL, reaches_back=True, reason=_no_timestamps(), search=search)
        if search.first is not None or previous is None:
            return _Range(search.start, size, search.found_by, search.first, last, previous is not None, search=search)
        if status.st_mtime < self.since.timestamp():
            return _Range(size, size, search.found_by, None, last, True, search=search)
        # The newest stamp lies before the window, and yet the file was written inside it.
        if size - previous.end > 1:
            return _Range(previous.start, size, FoundBy.TAIL, previous, previous, True, search=search)
        if status.st_mtime - previous.stamp.at.timestamp() <= IDLE_S:
            return _Range(size, size, search.found_by, None, last, True, search=search)
        reason = Reason(
            "stamps-disagree",
            f"the file was written at {_changed(status)} and its last line says {previous.stamp.raw};"
            f" the last {size - tail:,} bytes are kept",
            "Compare the clock and the time zone of the process with those of the machine.",
        )
        return _Range(tail, size, FoundBy.TAIL, None, last, True, reason=reason, search=search)

    # -- files that were compressed ------------------------------------------------------------------------------

    def _gzip(self, fd: int, log: LogFile, zone: Zone | None) -> Cut:
        """Unpacked once to find the window, and once more to copy it."""
        status = os.fstat(fd)
        found = self._scan(_Gunzip(self._host, fd, log.path), zone)
        length = found.end - found.start
        if log.rotated and length == 0:
            return found.reaches_back, found.zone
        facts = {**self._facts(log, status, found), "unpacked": "gzip"}
        sent = _Sent()

        def settle() -> Settlement:
            if sent.bytes < length:
                reason = Reason("cut", f"{sent.bytes:,} of {length:,} bytes were there when it was unpacked again")
                return Settlement(Outcome.PARTIAL, reason, {**facts, "range": [found.start, found.start + sent.bytes]})
            return self._settlement(found, facts)

        yield Artifact(
            self._next_name(log.path),
            self._counted(_Gunzip(self._host, fd, log.path).range(found.start, found.end), log, sent),
            f"{shown_path(log.path)}, unpacked [{found.start}, {found.end})",
            facts=facts,
            bulk=length >= BULK_BYTES,
            settle=settle,
        )
        return found.reaches_back, found.zone

    def _scan(self, stream: _Gunzip, zone: Zone | None) -> _Range:
        """Which bytes belong to the window, block by block: whole blocks of early lines cost a few probes each."""
        start: int | None = None
        first = last = None
        stamps_seen = False
        for offset, block in stream.blocks():
            read, size = _reading(block), len(block)
            in_block = find_last_stamped(read, size, now=self._now, zone=_or_utc(zone))
            if in_block is not None and not in_block.stamp.zone_known and zone is None:
                zone = self._local_zone.of_process()
                in_block = find_last_stamped(read, size, now=self._now, zone=zone.zone)
            last = in_block or last
            if start is None:
                search = find_first_at_or_after(
                    read, size, self.since, now=self._now, zone=_or_utc(zone), continues=stamps_seen
                )
                stamps_seen = stamps_seen or search.found_by is not FoundBy.NO_STAMPS
                if search.first is not None:
                    first = search.first
                    # Blocks without any stamp before this one are the head of the file.
                    start = 0 if search.found_by is FoundBy.WHOLE else offset + search.start
        end = stream.unpacked_bytes
        reason = stream.reason
        found_by = FoundBy.SCAN
        if not stamps_seen:
            start, found_by = max(0, end - TAIL_BYTES), FoundBy.TAIL
            reason = _no_timestamps() if start > 0 else reason
        start = end if start is None else start
        truncated_to = None
        if end - start > self.limit_bytes:
            truncated_to = self.limit_bytes
            reason = _over_limit(end - start)
            start, first = end - truncated_to, None
        return _Range(start, end, found_by, first, last, start > 0, zone=zone, reason=reason, truncated_to=truncated_to)

    # -- records -------------------------------------------------------------------------------------------------

    def _facts(self, log: LogFile, status: os.stat_result, found: _Range) -> dict[str, Json]:
        first, last, search = found.first, found.last, found.search
        one = first or last
        return facts_of(
            path=shown_path(log.path),
            origin=log.origin.value,
            fds=list(log.fds) or None,
            device=f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}",
            inode=status.st_ino,
            size=status.st_size,
            written_at=_changed(status),
            deleted=True if status.st_nlink == 0 else None,
            since_at=_iso(self.since),
            range=[found.start, found.end],
            first_stamp_raw=first.stamp.raw if first else None,
            first_at=_iso(first.stamp.at) if first else None,
            last_stamp_raw=last.stamp.raw if last else None,
            last_at=_iso(last.stamp.at) if last else None,
            form=one.stamp.form.value if one else None,
            zone_assumed=found.zone.says if found.zone and one and not one.stamp.zone_known else None,
            found_by=found.found_by.value,
            reads=found.reads or None,
            stepped_back_bytes=search.stepped_back_bytes or None if search else None,
            unknown_bytes=search.unknown_bytes or None if search else None,
            widened_s=search.widened_s or None if search else None,
            hole_bytes=found.hole_bytes or None,
            truncated_to=found.truncated_to,
        )

    def _settlement(self, found: _Range, facts: Mapping[str, Json]) -> Settlement:
        if found.reason is not None:
            return Settlement(Outcome.PARTIAL, found.reason, facts)
        if found.start < found.end:
            return Settlement(Outcome.COLLECTED, None, facts)
        if found.end == 0:
            return Settlement(Outcome.EMPTY, None, facts)
        newest = f"; its last one says {found.last.stamp.raw}" if found.last else ""
        reason = Reason("nothing-in-window", f"no line was written since {_iso(self.since)}{newest}")
        return Settlement(Outcome.EMPTY, reason, facts)

    def _gap(self, log: LogFile, outcome: Outcome, reason: Reason) -> Gap:
        return Gap(f"the log {shown_path(log.path)}", outcome, reason, self._question)

    def _next_name(self, path: str) -> str:
        self._number += 1
        name = PACKED.sub("", os.path.basename(path)).removesuffix(".log")
        safe = re.sub(r"[^A-Za-z0-9._-]", "_", name).strip(".")[:80] or "log"
        return f"{self._number:02d}-{safe}.log"


@dataclass(frozen=True, slots=True)
class _Range:
    """
    What is wanted of a file: bytes [start, end).

    first, last    its stamped lines; `last` is the file's last one even when the range is empty
    reaches_back   the file holds lines from before the window: its older neighbours are not needed
    """

    start: int
    end: int
    found_by: FoundBy
    first: StampedLine | None = None
    last: StampedLine | None = None
    reaches_back: bool = False
    zone: Zone | None = None
    reason: Reason | None = None
    reads: int = 0
    hole_bytes: int = 0
    truncated_to: int | None = None
    search: Search | None = None


@dataclass(slots=True)
class _Sent:
    bytes: int = 0


class _Shrunk(AnswerBroken):
    """The file became shorter while it was searched."""


class _Reader:
    """pread that counts, keeps the deadline, and notices a file that shrinks."""

    def __init__(self, host: Host, fd: int, size: int) -> None:
        self.reads = 0
        self._host = host
        self._fd = fd
        self._size = size

    def __call__(self, offset: int, length: int) -> bytes:
        self._host.check_deadline()
        self.reads += 1
        wanted = min(length, self._size - offset)
        data = os.pread(self._fd, wanted, offset)
        if len(data) < wanted:
            raise _Shrunk("the file became shorter while it was searched")
        return data


class _Gunzip:
    """
    A .gz file, in bounded memory.

    unpacked_bytes   so far
    reason           why the end is not the end, once it was reached
    """

    def __init__(self, host: Host, fd: int, path: str) -> None:
        self.unpacked_bytes = 0
        self.reason: Reason | None = None
        self._host = host
        self._fd = fd
        self._path = path

    def pieces(self) -> Iterator[bytes]:
        """At most CHUNK_BYTES each; members are joined, as gzip does."""
        import zlib

        member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        packed_bytes = 0
        between_members = True
        chunks = self._host.iter_fd(self._fd)
        for packed in (
            chunk[at : at + GZIP_STEP_BYTES] for chunk in chunks for at in range(0, len(chunk), GZIP_STEP_BYTES)
        ):
            packed_bytes += len(packed)
            while packed:
                try:
                    piece = member.decompress(packed, CHUNK_BYTES)
                except zlib.error:
                    # Padding may follow the last member, as tapes and block devices leave it.
                    if not (between_members and self.unpacked_bytes):
                        self.reason = Reason("broken", f"its gzip data is broken after {self.unpacked_bytes:,} bytes")
                    return
                between_members = member.eof
                self.unpacked_bytes += len(piece)
                self._check_ratio(packed_bytes)
                if piece:
                    self._host.check_deadline()
                    yield piece
                packed = member.unused_data if member.eof else member.unconsumed_tail
                if member.eof:
                    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
        if not between_members:
            self.reason = Reason(
                "cut", "its gzip data ends in the middle; it may be in the making", "Capture again in a minute."
            )

    def _check_ratio(self, packed_bytes: int) -> None:
        most_bytes = min(GZIP_MAX_BYTES, max(GZIP_RATIO_FROM_BYTES, GZIP_MAX_RATIO * packed_bytes))
        if self.unpacked_bytes > most_bytes:
            raise AnswerBroken(
                f"{shown_path(self._path)} unpacks to more than {most_bytes:,} bytes; pmf stopped there",
                hint="Copy the packed file and look at it elsewhere.",
            )

    def range(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes [start, end) of what it unpacks to."""
        at = 0
        for piece in self.pieces():
            if wanted := piece[max(0, start - at) : max(0, end - at)]:
                yield wanted
            at += len(piece)
            if at >= end:
                return

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """(offset, whole lines), some MiB at a time."""
        offset, block = 0, b""
        for piece in self.pieces():
            block += piece
            if len(block) >= GZIP_BLOCK_BYTES:
                end = block.rfind(b"\n") + 1 or len(block)
                yield offset, block[:end]
                offset, block = offset + end, block[end:]
        if block:
            yield offset, block


def _first_data(fd: int, size: int) -> int:
    """
    Where a sparse file begins to hold anything.

    A log that is truncated under a writer without O_APPEND goes on at the writer's old offset, behind a hole.
    """
    try:
        return min(os.lseek(fd, 0, os.SEEK_DATA), size)
    except OSError as error:
        return size if error.errno == errno.ENXIO else 0  # nothing but a hole; or no such question here


def _next_line(read_at: ReadAt, offset: int, size: int) -> int:
    """The first line that starts at or after offset, if one does in the next MiB; else the offset."""
    newline = read_at(offset - 1, min(CHUNK_BYTES, size - offset + 1)).find(b"\n")
    return offset if newline < 0 else offset + newline


def _is_binary(fd: int, status: os.stat_result) -> bool:
    """NUL bytes at the end, where even a log that was truncated under its writer holds text."""
    return b"\0" in os.pread(fd, 4096, max(0, status.st_size - 4096))


def _reading(block: bytes) -> Callable[[int, int], bytes]:
    return lambda offset, length: block[offset : offset + length]


def _or_utc(zone: Zone | None) -> tzinfo:
    return UTC if zone is None else zone.zone


def _over_limit(length: int) -> Reason:
    return Reason(
        "over-limit",
        f"the window holds {length:,} bytes; the newest are kept",
        "Shorten --since, or copy the file.",
    )


def _no_timestamps() -> Reason:
    return Reason(
        "no-timestamps",
        f"it has no timestamps that pmf can read; the last {TAIL_BYTES // MIB} MiB are kept",
        "Copy the file if more of it is wanted.",
    )


def _iso(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _changed(status: os.stat_result) -> str:
    try:
        return _iso(datetime.fromtimestamp(status.st_mtime, UTC))
    except (ValueError, OverflowError):
        return f"{status.st_mtime:.0f} s after 1970"  # a file's owner may set any time
