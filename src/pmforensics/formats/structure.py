"""
Is an artifact whole, cut, or unreadable? Decided while its bytes stream past, in memory that does not grow.

A checker is fed the artifact's bytes in order, in chunks of any size, and asked at the end. It never
raises on what it reads and never sees the bytes again. WHOLE is said only where the format itself shows its
end: a declared size, a last record, a total that adds up. Where a format has no such sign, the class says
what can slip through.

    CoreCheck                  ELF core: every segment and table the headers declare is there
    HprofCheck                 JVM heap dump: records up to HEAP_DUMP_END
    PprofCheck                 pprof profile: gzip trailer, then the protobuf fields
    HotspotThreadsCheck        HotSpot thread dump: its last section
    HistogramCheck             HotSpot class histogram: the rows add up to the Total line
    JsonCheck                  any JSON document: brackets and strings closed
    GoroutineTextCheck         Go goroutine?debug=2: not the silent 64 MiB cut, last stack complete
    GoroutineProfileTextCheck  Go goroutine?debug=1: groups add up to the announced total
"""

from __future__ import annotations

import bisect
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from operator import itemgetter
from typing import Protocol

from pmforensics.errors import FormatError
from pmforensics.formats.elf import (
    ET_CORE,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    ElfHeader,
    ProgramHeader,
    iter_program_headers,
    iter_section_headers,
    parse_elf_header,
    program_header_bytes,
    section_header_bytes,
)

MIB = 1 << 20


class Shape(Enum):
    """What became of an artifact's structure."""

    WHOLE = "whole"
    CUT = "cut"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Structure:
    """
    The verdict on one artifact.

    expected_bytes  the least size that the bytes themselves declare, None where they declare none
    says            one sentence for a person
    facts           what was counted on the way, by name; of a cut artifact it covers what is there
    """

    shape: Shape
    actual_bytes: int
    expected_bytes: int | None
    says: str
    facts: dict[str, int | str] = field(default_factory=dict)


class StructureCheck(Protocol):
    """Fed every byte of one artifact once, in order; asked at the end."""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes. Never raises, whatever they are."""

    def finish(self) -> Structure:
        """The verdict on all that was fed so far; asking changes nothing."""


def _nothing() -> Structure:
    return Structure(Shape.CUT, 0, None, "Nothing was written: 0 bytes.")


# ------------------------------------------------------------------------------------------------ ELF core

_ELF_MAGIC = b"\x7fELF"
_NT_PRSTATUS = 1
_MAX_CORE_NOTE_SEGMENTS = 64  # a core has one
_MAX_OFFSET = 1 << 63

_Sink = Callable[[memoryview], None]


class CoreCheck:
    """
    An ELF core of either class and byte order.

    Whole when the stream reaches the end of the last segment and of the header tables (gdb writes its
    section table last, and so does the kernel above 65,534 segments). Zeros inside a segment cannot be told
    from a hole.

    Facts: elf_class, machine, segments (PT_LOAD), threads (NT_PRSTATUS notes; left out where notes do not
    follow the headers).
    """

    def __init__(self) -> None:
        self._seen = 0
        self._looked_at = 0  # what stands before this has passed
        self._head = bytearray()
        self._header: ElfHeader | None = None
        self._broken = ""
        # (start, stop, sink) by start: parts of the stream to look at. Headers tell of notes: it grows.
        self._wanted: list[tuple[int, int, _Sink]] = [(0, 16, self._on_head)]
        self._missed = False
        self._entry = bytearray()  # a program header whose end has not come yet
        self._section = bytearray()  # the same for section 0
        self._headers_read = 0
        self._headers_declared: int | None = None
        self._first_content = _MAX_OFFSET
        self._expected = 0
        self._segments = 0
        self._notes: list[_NoteWalk] = []

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(chunk)
        base = self._seen
        self._seen += len(view)
        while self._wanted and not self._broken:
            start, stop, sink = self._wanted[0]
            if start >= self._seen:
                break
            del self._wanted[0]
            if start < self._looked_at:
                self._missed = True
                continue
            end = min(stop, self._seen)
            self._want(end, stop, sink)
            self._looked_at = end
            sink(view[start - base : end - base])

    def _want(self, start: int, stop: int, sink: _Sink) -> None:
        if start < stop:
            bisect.insort(self._wanted, (start, stop, sink), key=itemgetter(0))

    def _expect(self, end: int) -> None:
        if end > _MAX_OFFSET:
            self._broken = f"A header points to byte {end}, beyond what a file can hold."
        self._expected = max(self._expected, end)

    def _on_head(self, view: memoryview) -> None:
        self._head += view
        if len(self._head) < 16:
            return
        whole_bytes = 52 if self._head[4] == 1 else 64
        if len(self._head) == 16:
            self._want(16, whole_bytes, self._on_head)
        elif len(self._head) == whole_bytes:
            try:
                self._on_header(parse_elf_header(bytes(self._head)))
            except FormatError as error:
                self._broken = error.message

    def _on_header(self, header: ElfHeader) -> None:
        entry_bytes = program_header_bytes(header)
        if header.elf_type != ET_CORE:
            self._broken = f"This is an ELF file of type {header.elf_type}, not a core (type {ET_CORE})."
        elif header.phnum == 0:
            self._broken = "The core declares no program headers."
        elif header.phentsize != entry_bytes:
            self._broken = f"A program header has {header.phentsize} bytes instead of {entry_bytes}."
        elif header.phoff < len(self._head):
            self._broken = f"The program headers are said to start at byte {header.phoff}, in the ELF header."
        elif header.phnum == PN_XNUM and not header.shoff:
            self._broken = "The program header count is in section 0, and there is no section 0."
        if self._broken:
            return
        self._header = header
        if header.shoff:
            self._expect(header.shoff + max(header.shnum, 1) * header.shentsize)
        on_table = partial(self._on_table, header)
        if header.phnum == PN_XNUM:
            # The count comes last in the file: until then the table is read up to the first content it
            # points at.
            self._want(header.phoff, header.phoff + entry_bytes, on_table)
            on_section = partial(self._on_first_section, header)
            self._want(header.shoff, header.shoff + section_header_bytes(header), on_section)
        else:
            self._headers_declared = header.phnum
            self._want(header.phoff, header.phoff + header.phnum * entry_bytes, on_table)
            self._expect(header.phoff + header.phnum * entry_bytes)

    def _on_table(self, header: ElfHeader, view: memoryview) -> None:
        self._entry += view
        entry_bytes = program_header_bytes(header)
        ready = len(self._entry) - len(self._entry) % entry_bytes
        for segment in iter_program_headers(bytes(self._entry[:ready]), header):
            self._on_segment(header, segment)
        del self._entry[:ready]
        self._headers_read += ready // entry_bytes
        if header.phnum == PN_XNUM and ready:
            start = header.phoff + self._headers_read * entry_bytes
            if start + entry_bytes <= min(self._first_content, header.shoff):
                self._want(start, start + entry_bytes, partial(self._on_table, header))

    def _on_segment(self, header: ElfHeader, segment: ProgramHeader) -> None:
        if segment.segment_type == PT_LOAD:
            self._segments += 1
        if not segment.filesz:
            return
        end = segment.offset + segment.filesz
        self._expect(end)
        self._first_content = min(self._first_content, segment.offset)
        if segment.segment_type == PT_NOTE:
            if len(self._notes) == _MAX_CORE_NOTE_SEGMENTS:
                self._missed = True
                return
            walk = _NoteWalk(header.order)
            self._notes.append(walk)
            self._want(segment.offset, end, walk.feed)

    def _on_first_section(self, header: ElfHeader, view: memoryview) -> None:
        self._section += view
        if len(self._section) == section_header_bytes(header):
            self._headers_declared = next(iter_section_headers(bytes(self._section), header)).info

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        header = self._header
        if header is None or self._broken:
            return self._without_header()
        facts: dict[str, int | str] = {
            "elf_class": header.elf_class,
            "machine": header.machine,
            "segments": self._segments,
        }
        if self._notes and not self._missed:
            facts["threads"] = sum(walk.threads for walk in self._notes)
        expected = self._expected
        if self._seen < expected:
            says = f"The core is cut: {self._seen} bytes of at least {expected}."
            return Structure(Shape.CUT, self._seen, expected, says, facts)
        if self._headers_declared is None or self._headers_declared > self._headers_read:
            declared = "an unknown number" if self._headers_declared is None else self._headers_declared
            says = f"The core declares {declared} of program headers; its table holds {self._headers_read}."
            return Structure(Shape.UNREADABLE, self._seen, expected, says, facts)
        says = f"All {self._segments} segments that the core declares are there."
        return Structure(Shape.WHOLE, self._seen, expected, says, facts)

    def _without_header(self) -> Structure:
        if self._broken:
            return Structure(Shape.UNREADABLE, self._seen, None, self._broken)
        if _ELF_MAGIC.startswith(self._head[:4]):
            least_bytes = 64 if self._head[4:5] == b"\2" else 52
            says = f"The ELF header is cut after {self._seen} bytes."
            return Structure(Shape.CUT, self._seen, least_bytes, says)
        return Structure(Shape.UNREADABLE, self._seen, None, "The bytes do not begin with the ELF magic.")


class _NoteWalk:
    """Counts NT_PRSTATUS notes, one per thread, in a note segment that streams past."""

    __slots__ = ("_head", "_order", "_skip", "threads")

    def __init__(self, order: str) -> None:
        self._order = order
        self._head = bytearray()
        self._skip = 0
        self.threads = 0

    def feed(self, view: memoryview) -> None:
        at = 0
        while at < len(view):
            if self._skip:
                step = min(self._skip, len(view) - at)
                self._skip -= step
                at += step
                continue
            # 12 bytes of sizes and type, 8 for the owner "CORE\0" and its padding.
            wanted = 12 if len(self._head) < 12 else 20
            taken = view[at : at + wanted - len(self._head)]
            self._head += taken
            at += len(taken)
            if len(self._head) == wanted:
                self._on_note_head()

    def _on_note_head(self) -> None:
        owner_bytes, content_bytes, note_type = struct.unpack_from(self._order + "III", self._head)
        if len(self._head) == 12:
            if note_type == _NT_PRSTATUS and owner_bytes == 5:
                return  # the owner decides, and has yet to come
            self._skip = -(-owner_bytes // 4) * 4
        elif self._head[12:17] == b"CORE\0":
            self.threads += 1
        self._skip += -(-content_bytes // 4) * 4
        self._head.clear()


# --------------------------------------------------------------------------------------------------- hprof

_HPROF_MAGIC = b"JAVA PROFILE 1.0."
_HPROF_MAX_VERSION_BYTES = 24
_HPROF_UTF8, _HPROF_LOAD_CLASS = 0x01, 0x02
_HPROF_HEAP_DUMP, _HPROF_HEAP_DUMP_SEGMENT, _HPROF_HEAP_DUMP_END = 0x0C, 0x1C, 0x2C
_HPROF_TAGS = frozenset({*range(0x01, 0x08), *range(0x0A, 0x0F), 0x1C, 0x2C})


class HprofCheck:
    """
    A JVM heap dump in hprof binary format, not compressed.

    Whole when the walk over the top-level records ends with HEAP_DUMP_END, or with HEAP_DUMP in the older
    layout without segments, and no byte is left over. What is inside a heap dump segment is skipped by its
    length.

    Facts: version, id_bytes, records, heap_segments, strings, classes.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._pending = bytearray()  # header or record head whose end has not come yet
        self._version = ""
        self._id_bytes = 0
        self._skip = 0
        self._record_end = 0  # where the record being skipped ends
        self._broken = ""
        self._ended = False
        self._last_tag = 0
        self._records = 0
        self._heap_segments = 0
        self._strings = 0
        self._classes = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        view = memoryview(chunk)
        base = self._seen
        self._seen += len(view)
        at = 0
        while at < len(view) and not self._broken:
            if self._skip:
                step = min(self._skip, len(view) - at)
                self._skip -= step
                at += step
            elif self._ended:
                self._broken = f"Bytes follow the end record of the heap dump, at byte {base + at}."
            elif not self._id_bytes:
                at = self._take_header(view, at)
            elif not self._pending and at + 9 <= len(view):
                self._on_record(view[at], int.from_bytes(view[at + 5 : at + 9], "big"), base + at)
                at += 9
            else:
                taken = view[at : at + 9 - len(self._pending)]
                self._pending += taken
                at += len(taken)
                if len(self._pending) == 9:
                    tag, length = self._pending[0], int.from_bytes(self._pending[5:], "big")
                    self._pending.clear()
                    self._on_record(tag, length, base + at - 9)

    def _take_header(self, view: memoryview, at: int) -> int:
        """Version text with its NUL, size of an identifier (4 bytes), milliseconds since 1970 (8 bytes)."""
        nul = self._pending.find(0)
        wanted = nul + 13 if nul >= 0 else len(self._pending) + 1
        taken = view[at : at + wanted - len(self._pending)]
        self._pending += taken
        if nul < 0:
            magic = bytes(self._pending[: len(_HPROF_MAGIC)])
            if not _HPROF_MAGIC.startswith(magic) or len(self._pending) > _HPROF_MAX_VERSION_BYTES:
                self._broken = "The bytes do not begin with the hprof header."
                if magic.startswith(b"\x1f\x8b"):
                    self._broken = "The heap dump is gzip-compressed; only its plain form can be checked."
        elif len(self._pending) == wanted:
            self._version = self._pending[:nul].decode("latin-1")
            id_bytes = int.from_bytes(self._pending[nul + 1 : nul + 5], "big")
            if id_bytes in (4, 8):
                self._id_bytes = id_bytes
            else:
                self._broken = f"The hprof header gives an identifier {id_bytes} bytes, neither 4 nor 8."
            self._pending.clear()
        return at + len(taken)

    def _on_record(self, tag: int, length: int, at: int) -> None:
        if tag not in _HPROF_TAGS:
            self._broken = f"No hprof record has the tag {tag:#04x} that stands at byte {at}."
        elif tag == _HPROF_LOAD_CLASS and length != 8 + 2 * self._id_bytes:
            self._broken = f"The class record at byte {at} has the impossible length {length}."
        elif tag == _HPROF_UTF8 and length < self._id_bytes:
            self._broken = f"The string record at byte {at} has the impossible length {length}."
        elif tag == _HPROF_HEAP_DUMP_END and length:
            self._broken = f"The end record at byte {at} has the impossible length {length}."
        else:
            self._records += 1
            self._strings += tag == _HPROF_UTF8
            self._classes += tag == _HPROF_LOAD_CLASS
            self._heap_segments += tag in (_HPROF_HEAP_DUMP, _HPROF_HEAP_DUMP_SEGMENT)
            self._ended = tag == _HPROF_HEAP_DUMP_END
            self._last_tag = tag
            self._skip = length
            self._record_end = at + 9 + length

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        if not self._id_bytes:
            if self._broken:
                return Structure(Shape.UNREADABLE, self._seen, None, self._broken)
            says = f"The hprof header is cut after {self._seen} bytes."
            return Structure(Shape.CUT, self._seen, None, says)
        facts: dict[str, int | str] = {
            "version": self._version,
            "id_bytes": self._id_bytes,
            "records": self._records,
            "heap_segments": self._heap_segments,
            "strings": self._strings,
            "classes": self._classes,
        }
        if self._broken:
            return Structure(Shape.UNREADABLE, self._seen, None, self._broken, facts)
        # A record that starts is at least as long as its head.
        expected = max(self._record_end, self._seen - len(self._pending) + 9 if self._pending else 0)
        if self._skip or self._pending:
            says = f"The heap dump is cut inside a record: {self._seen} bytes of at least {expected}."
            return Structure(Shape.CUT, self._seen, expected, says, facts)
        if not self._ended and self._last_tag != _HPROF_HEAP_DUMP:
            says = f"The heap dump stops after {self._records} records without its end record."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        says = f"All {self._records} records up to the end of the heap dump are there."
        return Structure(Shape.WHOLE, self._seen, self._seen, says, facts)


# --------------------------------------------------------------------------------------------------- pprof

_GZIP_MAGIC = b"\x1f\x8b\x08"
_PPROF_SAMPLE_TYPE, _PPROF_SAMPLE, _PPROF_STRING_TABLE = 1, 2, 6
_PPROF_MESSAGES = frozenset(range(1, 7))  # sample_type, sample, mapping, location, function, string_table
_UNPACK_STEP_BYTES = MIB
_RATIO_FREE_BYTES = 16 * MIB  # below this, repetition is no attack: a goroutine profile packs very well
_MAX_RATIO = 300
_MAX_VARINT_BYTES = 10


class PprofCheck:
    """
    A pprof profile: gzip around a protobuf Profile message.

    Whole when the gzip trailer (CRC-32 and length) agrees, the fields of the message end where the message
    ends, and the fields that every profile has are there. Unpacking stops at `max_unpacked_bytes`, and at a
    ratio that only a bomb has; such a profile is UNREADABLE.

    Facts: unpacked_bytes, samples, first_value_sum (the first value of every sample, added up: in a goroutine
    profile the number of goroutines).
    """

    def __init__(self, max_unpacked_bytes: int = 512 * MIB) -> None:
        import zlib  # loaded where a profile is checked, not by every capture

        self._gzip_error = zlib.error
        self._unpacker = zlib.decompressobj(wbits=31)
        self._max_unpacked_bytes = max_unpacked_bytes
        self._seen = 0
        self._start = b""
        self._unpacked = 0
        self._broken = ""
        self._profile = _ProfileWalk()

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        if len(self._start) < len(_GZIP_MAGIC):
            self._start += bytes(chunk[: len(_GZIP_MAGIC)])
        self._seen += len(chunk)
        packed: bytes | memoryview = chunk
        while not self._broken:
            if self._unpacker.eof:
                if len(packed):
                    self._broken = "Bytes follow the end of the gzip stream."
                return
            try:
                unpacked = self._unpacker.decompress(packed, _UNPACK_STEP_BYTES)
            except self._gzip_error as error:
                self._broken = f"The gzip stream is broken ({error})."
                return
            self._unpacked += len(unpacked)
            self._profile.feed(unpacked)
            self._broken = self._broken or self._profile.broken or self._over_limit()
            packed = self._unpacker.unused_data if self._unpacker.eof else self._unpacker.unconsumed_tail
            if not packed and len(unpacked) < _UNPACK_STEP_BYTES:
                return

    def _over_limit(self) -> str:
        if self._unpacked > self._max_unpacked_bytes:
            return f"Unpacking was stopped at {self._max_unpacked_bytes} bytes."
        if self._unpacked > _RATIO_FREE_BYTES and self._unpacked > _MAX_RATIO * self._seen:
            return f"Unpacking was stopped: {self._seen} bytes had grown to {self._unpacked}."
        return ""

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        if not _GZIP_MAGIC.startswith(self._start[: len(_GZIP_MAGIC)]):
            says = "The bytes do not begin with the gzip magic."
            return Structure(Shape.UNREADABLE, self._seen, None, says)
        facts: dict[str, int | str] = {
            "unpacked_bytes": self._unpacked,
            "samples": self._profile.samples,
            "first_value_sum": self._profile.first_value_sum,
        }
        if self._broken:
            return Structure(Shape.UNREADABLE, self._seen, None, self._broken, facts)
        if not self._unpacker.eof:
            says = f"The gzip stream stops after {self._seen} bytes without its trailer."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        if not self._profile.at_field_end:
            says = "The gzip stream is whole, but the profile inside stops within a field."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        if not self._profile.is_profile:
            says = "The gzip stream is whole, but what is inside is no pprof profile."
            return Structure(Shape.UNREADABLE, self._seen, None, says, facts)
        says = f"The gzip trailer agrees and all {self._profile.samples} samples are there."
        return Structure(Shape.WHOLE, self._seen, self._seen, says, facts)


_MAX_SAMPLE_BYTES = MIB  # a sample is a stack of addresses: 128 frames need about 1.3 kB
_MORE = -1  # in place of an offset: the bytes end too early to tell
_BROKEN = -2  # in place of an offset: protobuf does not allow this


class _ProfileWalk:
    """Walks the top-level fields of a protobuf Profile message that streams past."""

    __slots__ = ("_fields", "_pending", "_skip", "broken", "first_value_sum", "samples")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._skip = 0
        self._fields: set[int] = set()
        self.broken = ""
        self.samples = 0
        self.first_value_sum = 0

    @property
    def at_field_end(self) -> bool:
        return not self._pending and not self._skip

    @property
    def is_profile(self) -> bool:
        return {_PPROF_SAMPLE_TYPE, _PPROF_STRING_TABLE} <= self._fields

    def feed(self, chunk: bytes) -> None:
        if self._skip >= len(chunk):
            self._skip -= len(chunk)
            return
        buffer = self._pending + chunk[self._skip :]
        at = end = 0
        while end >= 0 and at < len(buffer):
            end = self._take_field(buffer, at)
            at = max(at, end)
        if end == _BROKEN:
            self.broken = "What the gzip stream holds is no protobuf message."
        self._skip = max(0, at - len(buffer))
        self._pending = buffer[at:]

    def _take_field(self, buffer: bytearray, at: int) -> int:
        """Where the field at `at` ends, perhaps beyond the buffer; _MORE; _BROKEN."""
        key, at = _varint(buffer, at)
        if at < 0:
            return at
        number, wire = key >> 3, key & 7
        if number == 0 or (number in _PPROF_MESSAGES and wire != 2):
            return _BROKEN
        if wire == 0:
            _, end = _varint(buffer, at)
        elif wire == 2:
            length, at = _varint(buffer, at)
            end = at + length if at >= 0 else at
        elif wire in (1, 5):
            end = at + (8 if wire == 1 else 4)
        else:
            return _BROKEN
        if end < 0:
            return end
        if number == _PPROF_SAMPLE:
            if end > len(buffer) and end - at <= _MAX_SAMPLE_BYTES:
                return _MORE
            self.samples += 1
            if end <= len(buffer):
                self.first_value_sum += _first_value(buffer[at:end])
        elif number in _PPROF_MESSAGES:
            self._fields.add(number)
        return end


def _varint(data: bytearray, at: int) -> tuple[int, int]:
    """(value, offset after it), or (0, _MORE), or (0, _BROKEN) where it is longer than protobuf allows."""
    value = 0
    for index, byte in enumerate(data[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    return 0, (_BROKEN if at + _MAX_VARINT_BYTES <= len(data) else _MORE)


def _first_value(sample: bytearray) -> int:
    """The first of a Sample's values (int64 field 2, packed or not); 0 where there is none."""
    at = 0
    while at < len(sample):
        key, at = _varint(sample, at)
        if at < 0 or key & 7 not in (0, 2):
            return 0
        value, at = _varint(sample, at)
        if at < 0:
            return 0
        if key & 7 == 2 and key >> 3 != 2:
            at += value
        elif key >> 3 == 2:
            if key & 7 == 2:
                value, _ = _varint(sample, at)
            return value - (1 << 64) if value >= 1 << 63 else value
    return 0


# --------------------------------------------------------------------------------------------- lines of text

_MAX_LINE_BYTES = 64 * 1024


class _Lines:
    """Cuts a stream into blocks of whole lines. Of a longer line, the first `_MAX_LINE_BYTES` are kept."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = b""  # the line whose end has not come yet

    def push(self, chunk: bytes | memoryview) -> bytes:
        """The lines that `chunk` completes, each with its newline."""
        data = bytes(chunk)
        first_end = data.find(b"\n")
        if first_end < 0:
            self.rest += data[: max(0, _MAX_LINE_BYTES - len(self.rest))]
            return b""
        last_end = data.rfind(b"\n") + 1
        block = self.rest + data[:last_end]
        self.rest = data[last_end:][:_MAX_LINE_BYTES]
        return block


# -------------------------------------------------------------------------------------- HotSpot thread dump

_THREADS_START = b"Full thread dump "
_THREAD_HEADER = re.compile(rb" tid=0x[0-9a-f]+ nid=(?:0x)?[0-9a-f]+ ")
# JDK 8: "JNI global references: 271"; since 9: "JNI global refs: 4, weak refs: 0".
_JNI_LINE = re.compile(rb"JNI global (?:references: \d+|refs: \d+, weak refs: \d+)")
_DEADLOCK_START = b"Found one Java-level deadlock:"
_DEADLOCK_END = re.compile(rb"Found (?:a total of )?\d+ deadlocks?\.")
_HEAP_END = re.compile(rb"class space\s+used \d.*K")


class HotspotThreadsCheck:
    """
    A HotSpot thread dump as text: jcmd Thread.print, jstack, or SIGQUIT in a log, JDK 8 to 25.

    Whole when the last line with anything on it is one that HotSpot ends with: the JNI reference counts,
    the count of deadlocks, or the class space line of the heap section. What can slip through: a dump that
    is cut exactly after the JNI line or the count of deadlocks, where another section would have followed.

    Facts: threads (headers with tid and nid; the deadlock section repeats names, not these), deadlocks.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._lines = _Lines()
        self._started = False
        self._ended = False
        self._threads = 0
        self._deadlocks = 0

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._seen += len(chunk)
        for line in self._lines.push(chunk).split(b"\n"):
            self._on_line(line)

    def _on_line(self, line: bytes) -> None:
        if line.startswith(_THREADS_START):
            self._started = True
            self._ended = False
            self._threads = self._deadlocks = 0
        elif self._started and (text := line.strip()):
            self._threads += _THREAD_HEADER.search(line) is not None
            self._deadlocks += text == _DEADLOCK_START
            self._ended = any(end.fullmatch(text) for end in (_JNI_LINE, _DEADLOCK_END, _HEAP_END))

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        if not self._started:
            says = "There is no whole line that begins with 'Full thread dump'."
            return Structure(Shape.UNREADABLE, self._seen, None, says)
        facts: dict[str, int | str] = {"threads": self._threads, "deadlocks": self._deadlocks}
        if self._lines.rest.strip() or not self._ended:
            says = f"The thread dump stops after {self._threads} threads, not as HotSpot ends it."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        says = f"The thread dump ends as HotSpot ends it, after {self._threads} threads."
        return Structure(Shape.WHOLE, self._seen, None, says, facts)


# ---------------------------------------------------------------------------------- HotSpot class histogram

_HISTOGRAM_START = re.compile(rb"\s*num\s+#instances\s+#bytes\s+class name")
_HISTOGRAM_ROW = re.compile(rb"\s*(\d{1,18}):\s+(\d{1,18})\s+(\d{1,18})\s+\S")
_HISTOGRAM_TOTAL = re.compile(rb"Total\s+(\d{1,18})\s+(\d{1,18})\s*")


class HistogramCheck:
    """
    A HotSpot class histogram as text: jcmd GC.class_histogram, jmap -histo.

    Whole when the Total line ends it and the rows before it are numbered without a gap and add up to it.

    Facts: classes (rows), instances, bytes (both added up over the rows).
    """

    def __init__(self) -> None:
        self._seen = 0
        self._lines = _Lines()
        self._started = False
        self._rows = 0
        self._instances = 0
        self._bytes = 0
        self._total: tuple[int, int] | None = None
        self._broken = ""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        self._seen += len(chunk)
        for line in self._lines.push(chunk).split(b"\n"):
            if line.strip():
                self._on_line(line)

    def _on_line(self, line: bytes) -> None:
        if not self._started:
            self._started = _HISTOGRAM_START.match(line) is not None
        elif self._total is not None:
            self._broken = self._broken or "Text follows the Total line of the histogram."
        elif row := _HISTOGRAM_ROW.match(line):
            self._rows += 1
            self._instances += int(row[2])
            self._bytes += int(row[3])
            if int(row[1]) != self._rows:
                self._broken = self._broken or f"Row {self._rows} of the histogram is numbered {int(row[1])}."
        elif total := _HISTOGRAM_TOTAL.fullmatch(line):
            self._total = int(total[1]), int(total[2])

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        if not self._started:
            says = "There is no whole head line of a class histogram."
            return Structure(Shape.UNREADABLE, self._seen, None, says)
        facts: dict[str, int | str] = {
            "classes": self._rows,
            "instances": self._instances,
            "bytes": self._bytes,
        }
        if self._broken:
            return Structure(Shape.UNREADABLE, self._seen, None, self._broken, facts)
        if self._total is None or self._lines.rest.strip():
            says = f"The histogram stops after {self._rows} rows without its Total line."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        if self._total != (self._instances, self._bytes):
            says = (
                f"The rows add up to {self._instances} instances and {self._bytes} bytes, "
                f"the Total line says {self._total[0]} and {self._total[1]}."
            )
            return Structure(Shape.UNREADABLE, self._seen, None, says, facts)
        says = f"The {self._rows} rows of the histogram add up to its Total line."
        return Structure(Shape.WHOLE, self._seen, None, says, facts)


# ---------------------------------------------------------------------------------------------------- JSON

_JSON_OUTSIDE = re.compile(rb'["{}\[\]]|[^ \t\r\n,:0-9A-Za-z+.\-]')
_JSON_INSIDE = re.compile(rb'["\\]')
_JSON_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_JSON_CLOSES = {ord("}"): ord("{"), ord("]"): ord("[")}
_MAX_JSON_DEPTH = 1000  # Node reports, py-spy and thread dumps stay below 20


class JsonCheck:
    """
    A JSON document that is an object or an array: Node report, py-spy dump, Thread.dump_to_file.

    Whole when every string and bracket is closed, in order, and nothing but white space follows. The
    document is not built and commas are not judged: damage that keeps the brackets balanced slips through,
    a cut does not.

    Facts: top ("object" or "array"), items (objects and arrays directly inside the top one).
    """

    def __init__(self) -> None:
        self._seen = 0
        self._open = bytearray()  # the brackets that are open, outermost first
        self._in_string = False
        self._escaped = False
        self._top = ""
        self._items = 0
        self._broken = ""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        data = bytes(chunk)
        base = self._seen
        self._seen += len(data)
        at = 0
        while at < len(data) and not self._broken:
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            if not self._open:
                found = _JSON_NOT_SPACE.search(data, at)
            else:
                found = (_JSON_INSIDE if self._in_string else _JSON_OUTSIDE).search(data, at)
            if found is None:
                break
            at = found.end()
            if self._open:
                self._on_token(data[at - 1], base + at - 1)
            else:
                self._on_outermost(data[at - 1], base + at - 1)

    def _on_outermost(self, byte: int, at: int) -> None:
        if self._top:
            self._broken = f"Text follows the end of the JSON document, at byte {at}."
        elif byte not in b"{[":
            self._broken = "The text does not begin with a JSON object or array."
        else:
            self._top = "object" if byte == ord("{") else "array"
            self._open.append(byte)

    def _on_token(self, byte: int, at: int) -> None:
        if byte == ord('"'):
            self._in_string = not self._in_string
        elif self._in_string:
            self._escaped = True
        elif byte in b"{[":
            self._items += len(self._open) == 1
            self._open.append(byte)
            if len(self._open) > _MAX_JSON_DEPTH:
                self._broken = f"The JSON document is nested deeper than {_MAX_JSON_DEPTH}."
        elif byte in _JSON_CLOSES and self._open[-1] == _JSON_CLOSES[byte]:
            self._open.pop()
        else:
            self._broken = f"Byte {at} of the JSON document is {chr(byte)!r}, which cannot stand there."

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        facts: dict[str, int | str] = {"top": self._top, "items": self._items} if self._top else {}
        if self._broken:
            return Structure(Shape.UNREADABLE, self._seen, None, self._broken, facts)
        if self._open or not self._top:
            says = f"The JSON document stops after {self._seen} bytes with {len(self._open)} brackets open."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        says = "The JSON document is closed."
        return Structure(Shape.WHOLE, self._seen, None, says, facts)


# ------------------------------------------------------------------------------------- Go goroutine?debug=2

GO_STACK_LIMIT_BYTES = 64 * MIB  # runtime/pprof gives runtime.Stack no larger buffer and does not say so
_TAIL_BYTES = 16 * 1024  # enough for the last two lines of a stack
_GOROUTINE_HEADER = re.compile(rb"^goroutine (\d+) (?:gp=[^\n\[]*)?\[([^\n]*)\n", re.MULTILINE)
_GO_FILE_LINE = re.compile(rb"\t.+:\d+(?: \+0x[0-9a-f]+)?(?: fp=0x[0-9a-f]+ sp=0x[0-9a-f]+ pc=0x[0-9a-f]+)?")
_GO_NO_STACK_LINE = b"\tgoroutine running on other thread; stack unavailable"
# How the stack of goroutine 1 ends, the only one that nobody created: in main, in an init, or (with
# GOTRACEBACK=system) in the runtime.
_GO_MAIN_BOTTOM = re.compile(rb"(?:main\.main\(|runtime\.(?:main|goexit)\(|.*\.init(?:\.\d+)*\()")


class GoroutineTextCheck:
    """
    All goroutines as text: net/http/pprof goroutine?debug=2.

    Cut when the body has exactly the 64 MiB at which Go stops without a word, or when the last stack is
    visibly broken: no newline, a blank line with nothing after it, half a frame, or no "created by". What
    can slip through: a cut exactly between two stacks, and a cut between two frames of a goroutine locked
    to its thread, since those that come from C have no creator. Hold the count against the goroutine
    profile taken before.

    Facts: goroutines.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._lines = _Lines()
        self._start = b""
        self._goroutines = 0
        self._last_id = b""
        self._last_state = b""
        self._tail = b""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        if len(self._start) < 16:
            self._start += bytes(chunk[:16])
        self._seen += len(chunk)
        block = self._lines.push(chunk)
        if not block:
            return
        headers = _GOROUTINE_HEADER.findall(block)
        if headers:
            self._goroutines += len(headers)
            self._last_id, self._last_state = headers[-1]
        self._tail = (self._tail + block[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        magic = b"goroutine "
        facts: dict[str, int | str] = {"goroutines": self._goroutines}
        if self._start[: len(magic)] != magic[: len(self._start)] or (self._tail and not self._goroutines):
            says = "The text does not begin with a goroutine."
            return Structure(Shape.UNREADABLE, self._seen, None, says)
        if self._seen == GO_STACK_LIMIT_BYTES:
            says = f"Go cut the dump at its limit of 64 MiB, after {self._goroutines} goroutines."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        fault = self._fault()
        if fault:
            says = f"The dump is cut after {self._goroutines} goroutines: {fault}."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        says = f"The last of {self._goroutines} goroutines has a complete stack."
        return Structure(Shape.WHOLE, self._seen, None, says, facts)

    def _fault(self) -> str:
        """What is visibly broken at the end, "" for nothing."""
        if self._lines.rest or not self._tail:
            return "the last line has no end"
        lines = self._tail.split(b"\n")
        function, place = (b"", *lines)[-3:-1]
        if not place:
            return "a blank line announces another one"
        if place != _GO_NO_STACK_LINE and not _GO_FILE_LINE.fullmatch(place):
            return "the last frame has no file and line"
        if function.startswith(b"created by ") or b"locked to thread" in self._last_state:
            return ""
        if self._last_id == b"1" and (_GO_MAIN_BOTTOM.match(function) or place == _GO_NO_STACK_LINE):
            return ""
        return "the last stack does not end with its creator"


# ------------------------------------------------------------------------------------- Go goroutine?debug=1

_GO_PROFILE_START = b"goroutine profile: total "
_GO_PROFILE_HEAD = re.compile(rb"goroutine profile: total (\d{1,12})\n")
_GO_PROFILE_GROUP = re.compile(rb"^(\d{1,12}) @(?: |$)", re.MULTILINE)


class GoroutineProfileTextCheck:
    """
    Goroutines grouped by equal stacks, as text: net/http/pprof goroutine?debug=1.

    Whole when the groups add up to the total of the first line and the last one is closed by its blank line.

    Facts: total (announced), goroutines (added up over the groups), groups.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._lines = _Lines()
        self._start = b""
        self._total: int | None = None
        self._started = False
        self._groups = 0
        self._goroutines = 0
        self._end = b""

    def feed(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes."""
        if len(self._start) < len(_GO_PROFILE_START):
            self._start += bytes(chunk[: len(_GO_PROFILE_START)])
        self._seen += len(chunk)
        block = self._lines.push(chunk)
        if not block:
            return
        if not self._started:
            self._started = True
            head = _GO_PROFILE_HEAD.match(block)
            self._total = int(head[1]) if head else None
        for count in _GO_PROFILE_GROUP.findall(block):
            self._groups += 1
            self._goroutines += int(count)
        self._end = (self._end + block)[-2:]

    def finish(self) -> Structure:
        """The verdict on all that was fed."""
        if not self._seen:
            return _nothing()
        total = self._total
        if total is None:
            start = self._start[: len(_GO_PROFILE_START)]
            if not self._started and _GO_PROFILE_START.startswith(start):
                says = f"The profile is cut inside its first line, after {self._seen} bytes."
                return Structure(Shape.CUT, self._seen, None, says)
            says = "The text does not begin with a goroutine profile."
            return Structure(Shape.UNREADABLE, self._seen, None, says)
        facts: dict[str, int | str] = {"total": total, "goroutines": self._goroutines, "groups": self._groups}
        if self._goroutines > total:
            says = f"The groups add up to {self._goroutines} goroutines, more than the {total} announced."
            return Structure(Shape.UNREADABLE, self._seen, None, says, facts)
        if self._goroutines < total or self._lines.rest or (self._groups and self._end != b"\n\n"):
            says = f"The profile is cut: {self._goroutines} of {total} goroutines."
            return Structure(Shape.CUT, self._seen, None, says, facts)
        says = f"All {total} goroutines that the profile announces are there."
        return Structure(Shape.WHOLE, self._seen, None, says, facts)
