"""
The memory of an ELF core by address, and the notes that tell what the process was.

Everything in a core is a claim: counts and lengths are bounded by the core's size and by what systems allow before
anything is read for them. A core that is cut is read as far as it goes.

Sources: core(5), elf(5), the System V gABI (extended numbering of program headers), fs/binfmt_elf.c of Linux.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import ge
from typing import NamedTuple

from pmforensics.errors import BrokenElf
from pmforensics.formats.elf import (
    ELF_HEADER_BYTES,
    ET_CORE,
    PF_W,
    PF_X,
    PN_XNUM,
    PT_LOAD,
    PT_NOTE,
    ProgramHeader,
    ReadAt,
    iter_program_headers,
    iter_section_headers,
    parse_elf_header,
    program_header_bytes,
    section_header_bytes,
)
from pmforensics.model.image import Unread

Progress = Callable[[int, int], None]
"""Called with how many segments have been looked at, and how many there are."""

ELF_MAGIC = b"\x7fELF"
AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_ENTRY, AT_EXECFN, AT_SYSINFO_EHDR = 3, 4, 5, 6, 7, 9, 31, 33

_PF_R = 4
_PF_ALL = _PF_R | PF_W | PF_X
_VM_READ, _VM_WRITE, _VM_EXEC = 1, 2, 4
_NT_PRSTATUS, _NT_PRPSINFO, _NT_AUXV, _NT_FILE = 1, 3, 6, 0x46494C45

_MAX_SEGMENTS = 1 << 20  # vm.max_map_count is 65,530 by default; cores with 72,057 segments are real
_MAX_NOTES = 1 << 20  # about 7 per thread
_MAX_NOTE_SEGMENTS = 64  # a core has one
_MAX_AUXV_BYTES = 4096
_MAX_NT_FILE_BYTES = 16 << 20  # kernel.core_file_note_size_limit cannot be set higher; 4 MiB by default
_MAX_NT_FILE_ROWS = 1 << 18
_MAX_TEXT_BYTES = 4096
_TABLE_BATCH = 1024  # program headers per read
_NOTE_WINDOW_BYTES = 16 << 10
_PROGRESS_STEP = 4096


# -------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True, slots=True)
class CoreSegment:
    """
    One segment of a core: half-open address range, protection as in "r-x", and what of it the core holds.

    dumped_bytes   from `start` on, as declared; where the core is cut they may lie beyond its end
    """

    start: int
    end: int
    flags: str
    dump_offset: int
    dumped_bytes: int


class CoreMemory:
    """
    The memory that a core describes, by address. To be mapped is one thing, to be dumped another: program text is
    mapped and usually not in the core.

    `len()` is the number of segments.

    bits       size of an address: 32 or 64
    has_code   some of it was executable
    overlaps   segments that begin inside another one; there the later one is believed
    vm_flags   the dumper wrote the kernel's own flags into p_flags (a gcore extension of crash did), in which
               readable is bit 0 and executable bit 2; they are understood as what they are
    """

    __slots__ = (
        "_flags",
        "_held",
        "_lasts",
        "_offsets",
        "_read",
        "_size",
        "_starts",
        "_texts",
        "bits",
        "has_code",
        "overlaps",
        "vm_flags",
    )

    def __init__(self, read: ReadAt, size: int, bits: int, segments: Iterable[ProgramHeader]) -> None:
        self._read = read
        self._size = size
        self.bits = bits
        starts, lasts, held, offsets, flags = (array("Q") for _ in range(5))
        for segment in segments:
            end = min(segment.vaddr + max(segment.memsz, segment.filesz), 1 << bits)
            if end > segment.vaddr:
                starts.append(segment.vaddr)
                lasts.append(end - 1)  # the end itself may be 2**64
                held.append(min(segment.filesz, end - segment.vaddr))
                offsets.append(segment.offset)
                flags.append(segment.flags)
        if any(one > other for one, other in pairwise(starts)):
            order = sorted(range(len(starts)), key=lambda index: (starts[index], held[index]))
            starts, lasts, held, offsets, flags = (
                array("Q", (column[index] for index in order)) for column in (starts, lasts, held, offsets, flags)
            )
        self._starts, self._lasts, self._held, self._offsets, self._flags = starts, lasts, held, offsets, flags
        self.overlaps = sum(map(ge, lasts, starts[1:]))
        self.vm_flags = any(flag & ~_PF_ALL for flag in flags)
        read_bit, write_bit, code_bit = (_VM_READ, _VM_WRITE, _VM_EXEC) if self.vm_flags else (_PF_R, PF_W, PF_X)
        self._texts = tuple(
            ("r" if bits & read_bit else "-") + ("w" if bits & write_bit else "-") + ("x" if bits & code_bit else "-")
            for bits in range(_PF_ALL + 1)
        )
        self.has_code = any(flag & code_bit for flag in flags)

    def __len__(self) -> int:
        return len(self._starts)

    def _index(self, address: int) -> int:
        """Of the segment that holds the address, -1 where nothing is mapped."""
        index = bisect_right(self._starts, address) - 1
        return index if index >= 0 and address <= self._lasts[index] else -1

    def _segment(self, index: int) -> CoreSegment:
        return CoreSegment(
            start=self._starts[index],
            end=self._lasts[index] + 1,
            flags=self._texts[self._flags[index] & _PF_ALL],
            dump_offset=self._offsets[index],
            dumped_bytes=self._held[index],
        )

    def find(self, address: int) -> CoreSegment | None:
        """The segment that holds the address."""
        index = self._index(address)
        return self._segment(index) if index >= 0 else None

    def iter_range(self, start: int, end: int) -> Iterator[CoreSegment]:
        """The segments that lie in the half-open range, wholly or in part, by address."""
        for index in range(max(bisect_right(self._starts, start) - 1, 0), bisect_left(self._starts, end)):
            if self._lasts[index] >= start:
                yield self._segment(index)

    def is_mapped(self, address: int) -> bool:
        """
        Whether the process had memory there, be it in the core or not.

        gdb and createdump leave out segments of which they dump nothing; for images, NT_FILE tells of those too.
        """
        return self._index(address) >= 0

    def flags(self, address: int) -> str:
        """The protection there, as in "r-x"; "" where nothing is mapped."""
        index = self._index(address)
        return self._texts[self._flags[index] & _PF_ALL] if index >= 0 else ""

    def read(self, address: int, length: int) -> bytes:
        """Up to `length` bytes from `address` on, fewer where the core holds no more in one piece."""
        parts = []
        while length > 0:
            index = self._index(address)
            if index < 0:
                break
            skip = address - self._starts[index]
            wanted = min(length, self._held[index] - skip)
            part = _read_within(self._read, self._size, self._offsets[index] + skip, wanted)
            parts.append(part)
            if len(part) < wanted or wanted <= 0:
                break
            address += wanted
            length -= wanted
        return b"".join(parts)

    def read_text(self, address: int) -> str:
        """The NUL-terminated text there, of up to 4 KiB; "" where it is not in the core whole."""
        text, end, _ = self.read(address, _MAX_TEXT_BYTES).partition(b"\0")
        return text_of(text) if end else ""

    def dump_offset(self, address: int) -> int | None:
        """Where in the core the byte at the address lies; None where it is not there."""
        index = self._index(address)
        if index < 0 or self.lack(address) is not None:
            return None
        return self._offsets[index] + address - self._starts[index]

    def lack(self, address: int) -> Unread | None:
        """Why the core does not hold the byte at the address: NOT_DUMPED or TRUNCATED; None where it does."""
        index = self._index(address)
        if index < 0:
            return Unread.NOT_DUMPED
        skip = address - self._starts[index]
        if skip >= self._held[index]:
            return Unread.NOT_DUMPED
        return Unread.TRUNCATED if self._offsets[index] + skip >= self._size else None

    def sniff(self, progress: Progress | None = None) -> Iterator[int]:
        """The addresses of dumped segments that begin with the ELF magic. Reads 4 bytes of each segment."""
        total = len(self)
        for index, (held, offset) in enumerate(zip(self._held, self._offsets, strict=True)):
            if progress is not None and index % _PROGRESS_STEP == 0:
                progress(index, total)
            if held and offset < self._size and self._read(offset, 4) == ELF_MAGIC:
                yield self._starts[index]
        if progress is not None:
            progress(total, total)


def _read_within(read: ReadAt, size: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes; b"" for a place that the file does not have."""
    length = min(length, size - offset)
    return read(offset, length)[:length] if offset >= 0 and length > 0 else b""


def text_of(data: bytes) -> str:
    """Names and paths are bytes; what is not UTF-8 in them is shown escaped."""
    return data.decode("utf-8", "backslashreplace")


# --------------------------------------------------------------------------------------------------- notes


class Note(NamedTuple):
    """One note: its owner with the NUL ("" when longer than 8 bytes), type, and where its content is."""

    owner: bytes
    kind: int
    at: int
    content_bytes: int


def iter_notes(
    read: ReadAt, order: str, start: int, end: int, align: int, *, limit: int, window_bytes: int
) -> Iterator[Note]:
    """
    Up to `limit` notes between two places of what `read` reads, `window_bytes` at a time; contents are left unread.

    `order` is the byte order as `struct` writes it; any `align` but 8 means 4. Ends at a note that is not wholly
    within the two places. The contents may still be missing.
    """
    head = struct.Struct(order + "III")
    owner_limit = 8  # longer than any of interest
    align = 8 if align == 8 else 4
    window, window_at = b"", start
    at = start
    for _ in range(limit):
        if at + head.size > end:
            return
        skip = at - window_at
        if skip + head.size + owner_limit > len(window):
            window, window_at, skip = read(at, min(window_bytes, end - at)), at, 0
            if len(window) < head.size:
                return
        owner_bytes, content_bytes, kind = head.unpack_from(window, skip)
        owner = b""
        if owner_bytes <= owner_limit:
            owner = window[skip + head.size : skip + head.size + owner_bytes]
        content_at = round_up(at + head.size + owner_bytes, align, start)
        if content_at + content_bytes > end:
            return
        yield Note(owner, kind, content_at, content_bytes)
        at = round_up(content_at + content_bytes, align, start)


def round_up(place: int, align: int, start: int) -> int:
    """The next place whose distance from `start` is a multiple of `align`."""
    return start + (place - start + align - 1 & -align)


# ---------------------------------------------------------------------------------------------------- file


class FileRow(NamedTuple):
    """One row of NT_FILE: half-open address range, offset in the file in bytes, name."""

    start: int
    end: int
    file_offset: int
    name: str


class CoreFile:
    """
    A core: its memory, and what its notes tell of the process.

    declared_bytes   where its headers say that it ends
    auxv             auxiliary vector, type -> value; empty where the core has none
    rows             NT_FILE by address; empty where the core has none
    threads          NT_PRSTATUS notes
    command          pr_fname: the first 15 bytes of the executable's name
    page_bytes       AT_PAGESZ, else NT_FILE's unit where that is a page, else 4096
    lost             sentences: what could not be read, and why

    Raises NotElf, BrokenElf; passes on what `read` raises.
    """

    def __init__(self, read: ReadAt, size: int) -> None:
        self._read = read
        self._size = size
        self.lost: list[str] = []
        self.header = header = parse_elf_header(self._at(0, ELF_HEADER_BYTES))
        if header.elf_type != ET_CORE:
            raise BrokenElf(f"This is an ELF file of type {header.elf_type}, not a core (type {ET_CORE}).")
        entry_bytes = program_header_bytes(header)
        if header.phnum and header.phentsize != entry_bytes:
            raise BrokenElf(f"A program header has {header.phentsize} bytes instead of {entry_bytes}.")
        self.bits = header.elf_class
        self.word_bytes = self.bits // 8
        self.declared_bytes = 0
        self._note_segments: list[ProgramHeader] = []
        self.memory = CoreMemory(self._at, size, self.bits, self._loads())
        if self.declared_bytes > size:
            self.lost.append(
                f"The core is cut: it has {size} of the {self.declared_bytes} bytes that its headers declare "
                f"({100 * size // self.declared_bytes} %)."
            )
        if self.memory.overlaps:
            self.lost.append(
                f"{self.memory.overlaps} segments begin inside the one before; there, the later one was read."
            )
        self.threads = 0
        self.command = ""
        self.auxv: dict[int, int] = {}
        self.rows: list[FileRow] = []
        self.page_bytes = 4096
        self._read_notes()
        self._row_starts = [row.start for row in self.rows]

    def _at(self, offset: int, length: int) -> bytes:
        return _read_within(self._read, self._size, offset, length)

    def words(self, data: bytes) -> tuple[int, ...]:
        """As many whole words of the core's address size and byte order as there are."""
        letter = "Q" if self.bits == 64 else "I"
        return struct.unpack_from(f"{self.header.order}{len(data) // self.word_bytes}{letter}", data)

    def row_at(self, address: int) -> FileRow | None:
        """The row of NT_FILE that holds the address."""
        index = bisect_right(self._row_starts, address) - 1
        return self.rows[index] if index >= 0 and address < self.rows[index].end else None

    def rows_from(self, start: int, end: int, *, limit: int = _MAX_NT_FILE_ROWS) -> list[FileRow]:
        """The first rows of NT_FILE that begin in the half-open range."""
        first = bisect_left(self._row_starts, start)
        return self.rows[first : min(bisect_left(self._row_starts, end), first + limit)]

    # -- segments

    def _declare(self, end: int) -> None:
        self.declared_bytes = max(self.declared_bytes, end)

    def _loads(self) -> Iterator[ProgramHeader]:
        """The segments of memory, in file order; those of notes are kept aside."""
        for segment in self._segments():
            if segment.filesz:
                self._declare(segment.offset + segment.filesz)
            if segment.segment_type == PT_LOAD:
                yield segment
            elif segment.segment_type == PT_NOTE and len(self._note_segments) < _MAX_NOTE_SEGMENTS:
                self._note_segments.append(segment)

    def _segments(self) -> Iterator[ProgramHeader]:
        header = self.header
        entry_bytes = program_header_bytes(header)
        count = self._segment_count()
        self._declare(header.phoff + (count or 0) * entry_bytes)
        if header.shoff:
            self._declare(header.shoff + max(header.shnum, 1) * header.shentsize)
        wanted = max(self._size - header.phoff, 0) // entry_bytes if count is None else count
        if wanted > _MAX_SEGMENTS:
            if count is not None:
                self.lost.append(f"The core declares {count} segments; only the first {_MAX_SEGMENTS} were read.")
            wanted = _MAX_SEGMENTS
        done = 0
        first_content = self._size
        while done < wanted:
            batch_bytes = min(_TABLE_BATCH, wanted - done) * entry_bytes
            table = self._at(header.phoff + done * entry_bytes, batch_bytes)
            for segment in iter_program_headers(table[: len(table) - len(table) % entry_bytes], header):
                done += 1
                if count is None and header.phoff + done * entry_bytes > first_content:
                    return  # without a count, the table ends at the latest where the first contents begin
                if segment.filesz:
                    first_content = min(first_content, segment.offset)
                yield segment
            if len(table) < batch_bytes:
                if count is not None:
                    self.lost.append(f"The table of {count} segments is cut after {done}.")
                return

    def _segment_count(self) -> int | None:
        """None where the count stood at the end of the core and is cut off."""
        header = self.header
        if header.phnum != PN_XNUM:
            if not header.phnum:
                raise BrokenElf("The core declares no segments.")
            return header.phnum
        entry_bytes = section_header_bytes(header)
        table = self._at(header.shoff, entry_bytes) if header.shoff else b""
        if len(table) == entry_bytes == header.shentsize:
            return next(iter_section_headers(table, header)).info
        if header.shoff + entry_bytes <= self._size:
            raise BrokenElf("The number of segments is in section 0, and there is no section 0.")
        self.lost.append("The number of segments stood at the end of the core and is cut off: it was inferred.")
        return None

    # -- notes

    def _iter_notes(self) -> Iterator[Note]:
        left = _MAX_NOTES
        for segment in self._note_segments:
            notes = iter_notes(
                self._at,
                self.header.order,
                segment.offset,
                segment.offset + segment.filesz,
                segment.align,
                limit=left,
                window_bytes=_NOTE_WINDOW_BYTES,
            )
            for note in notes:
                left -= 1
                yield note
        if not left:
            self.lost.append(f"The core has more than {_MAX_NOTES} notes; the rest was not read.")

    def _read_notes(self) -> None:
        nt_file: Note | None = None
        for note in self._iter_notes():
            if note.owner.rstrip(b"\0") != b"CORE":
                continue
            if note.kind == _NT_PRSTATUS:
                self.threads += 1
            elif note.kind == _NT_PRPSINFO and not self.command:
                self.command = self._command(note)
            elif note.kind == _NT_AUXV and not self.auxv:
                self.auxv = self._auxv(note)
            elif note.kind == _NT_FILE:
                nt_file = nt_file or note
        if not self.auxv:
            self.lost.append("The core has no auxiliary vector, so AT_PHDR does not tell the executable.")
        page_bytes = self.auxv.get(AT_PAGESZ, 0)
        if nt_file is None:
            self.lost.append(
                "The core has no NT_FILE note, which names mapped files: Linux before 3.7 and some dumpers write "
                "none, and the kernel drops one above kernel.core_file_note_size_limit (about 65,000 files mapped)."
            )
        else:
            unit = self._read_nt_file(nt_file)
            page_bytes = page_bytes or unit
        if 1 << 10 <= page_bytes <= 1 << 22 and page_bytes.bit_count() == 1:
            self.page_bytes = page_bytes

    def _command(self, note: Note) -> str:
        """struct elf_prpsinfo ends with pr_fname[16] and pr_psargs[80]; what is before differs by machine."""
        if not 96 <= note.content_bytes <= 512:
            return ""
        return text_of(self._at(note.at + note.content_bytes - 96, 16).partition(b"\0")[0])

    def _auxv(self, note: Note) -> dict[int, int]:
        words = self.words(self._at(note.at, min(note.content_bytes, _MAX_AUXV_BYTES)))
        values: dict[int, int] = {}
        for kind, value in zip(words[::2], words[1::2], strict=False):
            if kind == 0:
                break
            values.setdefault(kind, value)
        return values

    def _read_nt_file(self, note: Note) -> int:
        """Fills `rows`; returns the unit of the file offsets in bytes (the page, or 1 in gdb's cores)."""
        data = self._at(note.at, min(note.content_bytes, _MAX_NT_FILE_BYTES))
        head = self.words(data[: 2 * self.word_bytes])
        if len(head) < 2:
            self.lost.append("The NT_FILE note is cut before its first row.")
            return 0
        count, unit = head
        row_bytes = 3 * self.word_bytes
        table_at = 2 * self.word_bytes
        names_at = table_at + count * row_bytes
        if count > _MAX_NT_FILE_ROWS or names_at + count > len(data):
            # The names come last; without them a row tells no more than the segments do.
            self.lost.append(
                f"The NT_FILE note claims {count} mappings; its {len(data)} bytes do not hold them, so it was not used."
            )
            return 0
        names = data[names_at:].split(b"\0", count)
        rest = names.pop() if len(names) > count else b""
        if len(names) < count:
            self.lost.append(f"The NT_FILE note names only {len(names)} of its {count} mappings.")
        if rest.strip(b"\0"):
            self.lost.append(f"The NT_FILE note holds more names than the {count} mappings that it claims.")
        known = {name: text_of(name) for name in set(names)}
        rows = struct.iter_unpack(
            f"{self.header.order}3{'Q' if self.bits == 64 else 'I'}", data[table_at : table_at + len(names) * row_bytes]
        )
        self.rows = sorted(
            FileRow(start, end, offset * (unit or 1), known[name])
            for (start, end, offset), name in zip(rows, names, strict=True)
            if start < end and name
        )
        return unit
