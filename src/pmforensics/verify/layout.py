"""
The candidate as a guide: does a file have the shape, and the bytes, that the core holds of an image?

A contradiction proves "not this file", with or without an identity. Agreement proves nothing by itself: another
build of the same program often has the same shape.

Only what stays the same when a file is stripped is compared. Stripping changes the section headers and where the
ELF header says that they are; and it may cut the zeros at the end of a writable segment off (binutils 2.40 does so
with Go programs), so that p_filesz of writable segments proves nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pmforensics.errors import FormatError
from pmforensics.formats.core import DumpedHeaders, ElfCore
from pmforensics.formats.elf import (
    ELF_HEADER_BYTES,
    PF_W,
    PT_LOAD,
    ElfHeader,
    ProgramHeader,
    iter_program_headers,
    parse_elf_header,
    program_header_bytes,
    section_header_bytes,
)
from pmforensics.model.capture import MIB
from pmforensics.model.image import DumpImage
from pmforensics.verify.candidates import OpenFile

PT_DYNAMIC, PT_PHDR = 2, 6
PIECE_BYTES = MIB // 4
MAX_PIECES = 16  # so at most 4 MiB of the read-only bytes that the core holds of one image
MAX_SEGMENTS = 1000  # of a program; real ones have about 13
MAX_DYNAMIC_BYTES = 64 << 10  # real ones have some 500

# Tags of the dynamic section, by what their values are (System V gABI; elf.h of glibc).
_DT_TEXTREL, _DT_FLAGS, _DF_TEXTREL = 22, 30, 4
_DT_NUMBERS = frozenset(
    {1, 2, 8, 9, 10, 11, 14, 15, 18, 19, 20, 27, 28, 29, _DT_FLAGS, 0x6FFFFFF9, 0x6FFFFFFA, 0x6FFFFFFB, 0x6FFFFFFD}
    | {0x6FFFFFFF}
)
_DT_ADDRESSES = frozenset({3, 4, 5, 6, 7, 12, 13, 17, 23, 25, 26, 0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFE})

_X86 = frozenset({3, 62})  # e_machine of i386 and x86_64
_INT3 = 0xCC


@dataclass(frozen=True, slots=True)
class Comparison:
    """
    What the comparison of a file with an image in a core gave.

    contradictions   sentences: each proves that the file is not what was loaded, byte for byte
    agreements       what was compared and is the same ("entry point", "12 program headers", "8,192 bytes")
    compared_bytes   read-only bytes that are in both, and the same
    """

    contradictions: tuple[str, ...]
    agreements: tuple[str, ...]
    compared_bytes: int = 0


def compare_layout(core: ElfCore, image: DumpImage, headers: DumpedHeaders | None, file: OpenFile) -> Comparison:
    """Hold a file's headers, mappings, dynamic section and read-only bytes against what the core holds of an image."""
    try:
        header = parse_elf_header(file.read(0, ELF_HEADER_BYTES))
        table = file.read(header.phoff, min(header.phnum, MAX_SEGMENTS) * program_header_bytes(header))
        whole = len(table) - len(table) % program_header_bytes(header)
        segments = tuple(iter_program_headers(table[:whole], header))
    except FormatError as error:
        return Comparison((f"the file's own headers are broken: {error.message}",), ())
    return _Comparing(core, image, headers, file, header, segments).finish()


@dataclass(slots=True)
class _Comparing:
    core: ElfCore
    image: DumpImage
    dumped: DumpedHeaders | None
    file: OpenFile
    header: ElfHeader
    segments: tuple[ProgramHeader, ...]
    against: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    compared_bytes: int = 0

    def finish(self) -> Comparison:
        """Everything that can be compared, the cheapest first."""
        if self.header.elf_class != self.core.memory.bits:
            return Comparison(
                (f"the file is of {self.header.elf_class} bits, the core of {self.core.memory.bits}",), ()
            )
        self._headers()
        if self.image.is_main:
            self._auxiliary()
        bias = self._bias()
        if bias is not None:
            self._mappings(bias)
            self._dynamic(bias)
            self._bytes(bias)
        return Comparison(tuple(self.against), tuple(self.same), self.compared_bytes)

    def _hold(self, what: str, in_file: int, in_core: int) -> None:
        if in_file == in_core:
            self.same.append(what)
        else:
            self.against.append(f"{what} is {in_file:#x} in the file and {in_core:#x} in the core")

    @property
    def _mask(self) -> int:
        return (1 << self.core.memory.bits) - 1

    @property
    def _entry(self) -> int:
        width = self.header.elf_class // 8
        return int.from_bytes(self.file.read(24, width), "little" if self.header.order == "<" else "big")

    def _page_of(self, place: int) -> int:
        page = self.core.images.facts.get("page_bytes")
        return place - place % page if isinstance(page, int) and page > 0 else place

    def _page_end(self, place: int) -> int:
        page = self.core.images.facts.get("page_bytes")
        return place + -place % page if isinstance(page, int) and page > 0 else place

    # -- headers

    def _headers(self) -> None:
        dumped = self.dumped
        if dumped is None:
            return
        if dumped.header is not None:
            if (dumped.header.machine, dumped.header.order) != (self.header.machine, self.header.order):
                self.against.append("the file is for another machine")
            if dumped.header.elf_type != self.header.elf_type:
                self._hold("the type in the ELF header", self.header.elf_type, dumped.header.elf_type)
        if dumped.entry is not None:
            self._hold("the entry point", self._entry, dumped.entry)
        if dumped.program_headers:
            ours, theirs = len(self.segments), len(dumped.program_headers)
            if _shape(self.segments) == _shape(dumped.program_headers):
                self.same.append(f"{ours} program headers")
            elif ours != theirs:
                self.against.append(f"the file has {ours} program headers and the core {theirs}")
            else:
                self.against.append("its program headers are not those in the core")

    def _auxiliary(self) -> None:
        """AT_ENTRY, AT_PHDR and AT_PHNUM are in the core's notes even when no page of the program is."""
        facts = self.core.images.facts
        phnum, at_phdr, at_entry = (facts.get(name) for name in ("at_phnum", "at_phdr", "at_entry"))
        if isinstance(phnum, int) and not (self.dumped and self.dumped.program_headers):
            self._hold("the number of program headers (AT_PHNUM)", len(self.segments), phnum)
        table_at = self._table_vaddr()
        if isinstance(at_entry, int) and isinstance(at_phdr, int) and table_at is not None:
            between = at_entry - at_phdr & self._mask
            self._hold("AT_ENTRY less AT_PHDR", self._entry - table_at & self._mask, between)

    def _table_vaddr(self) -> int | None:
        """Where the program headers are in memory, by the file."""
        for segment in self.segments:
            if segment.segment_type == PT_PHDR:
                return segment.vaddr
        for segment in self.segments:
            if segment.segment_type == PT_LOAD and 0 <= self.header.phoff - segment.offset < segment.filesz:
                return segment.vaddr + self.header.phoff - segment.offset
        return None

    # -- what lies at addresses

    def _bias(self) -> int | None:
        """The load bias as the core knows it; else what it must be if this is the file."""
        if self.image.base is not None:
            return self.image.base
        at_phdr, table_at = self.core.images.facts.get("at_phdr"), self._table_vaddr()
        if self.image.is_main and isinstance(at_phdr, int) and table_at is not None:
            return at_phdr - table_at & self._mask
        first = next((one for one in self.segments if one.segment_type == PT_LOAD), None)
        if self.image.mapped and first is not None and self.image.mapped[0].file_offset == self._page_of(first.offset):
            return self.image.mapped[0].start - self._page_of(first.vaddr) & self._mask
        return None

    def _mappings(self, bias: int) -> None:
        """
        What the core says is mapped of the image, against the file's segments.

        Rows between segments prove nothing: dynamic linkers map a library in one piece first. Neither does a place
        where other memory took a segment's: programs move their text into huge pages.
        """
        if not self.image.mapped or not self.core.images.facts.get("nt_file_rows"):
            return  # without NT_FILE only segments of the core are known, and not every dumper writes empty ones
        loads = [one for one in self.segments if one.segment_type == PT_LOAD and one.filesz]
        held = 0
        for load in islice(loads, 64):
            start = bias + self._page_of(load.vaddr) & self._mask
            end = start + self._page_end(load.vaddr + load.filesz) - self._page_of(load.vaddr)
            skew = start - self._page_of(load.offset)
            rows = [row for row in self.image.mapped if row.start < end and row.end > start]
            strange = next((row for row in rows if row.start - row.file_offset != skew), None)
            longer = next((row for row in rows if row.end > end and row.flags.startswith("r")), None)
            if strange is not None:
                where = start + strange.file_offset - self._page_of(load.offset) & self._mask
                self.against.append(
                    f"byte {strange.file_offset:#x} of the file was mapped at {strange.start:#x}; this file's would be "
                    f"at {where:#x}"
                )
            elif not load.flags & PF_W and longer is not None and not self._continues(load, loads):
                self.against.append(
                    f"its segment at {load.vaddr:#x} ends {longer.end - end:,} bytes before the one that was mapped"
                )
            elif not rows and not self.core.memory.is_mapped(start):
                self.against.append(f"its segment at {load.vaddr:#x} would be at {start:#x}, where nothing was mapped")
            else:
                held += bool(rows)
                continue
            return
        if held:
            self.same.append(f"{held} mappings")

    def _continues(self, load: ProgramHeader, loads: list[ProgramHeader]) -> bool:
        """Whether another segment goes on where this one ends, so that both may be one mapping."""
        end, skew = self._page_end(load.vaddr + load.filesz), load.vaddr - load.offset
        return any(self._page_of(one.vaddr) == end and one.vaddr - one.offset == skew for one in loads)

    def _dynamic(self, bias: int) -> None:
        """The dynamic section is writable and so in every core; dynamic linkers add the bias to its addresses."""
        part = next((one for one in self.segments if one.segment_type == PT_DYNAMIC), None)
        if part is None:
            return
        pair = struct.Struct(self.header.order + ("qQ" if self.header.elf_class == 64 else "iI"))
        length = min(part.filesz, MAX_DYNAMIC_BYTES)
        length -= length % pair.size
        dumped = self.core.memory.read(bias + part.vaddr & self._mask, length)
        expected = self.file.read(part.offset, length)
        if len(dumped) < length or len(expected) < length or not any(dumped):
            return
        for (tag, value), (their_tag, their_value) in zip(
            pair.iter_unpack(expected), pair.iter_unpack(dumped), strict=True
        ):
            moved = tag in _DT_ADDRESSES and their_value == value + bias & self._mask
            compared = tag in _DT_NUMBERS or tag in _DT_ADDRESSES
            if tag != their_tag or (compared and value != their_value and not moved):
                self.against.append(f"the dynamic section differs from the core's in the entry with tag {tag:#x}")
                return
            if tag == 0:
                break
        self.same.append("the dynamic section")

    def _bytes(self, bias: int) -> None:
        """Read-only bytes of the image that the core holds, against the file's at the same places."""
        loads = [one for one in self.segments if one.segment_type == PT_LOAD and not one.flags & PF_W]
        if self._has_text_relocations():
            loads = loads[:1]  # the dynamic linker wrote into the others
        breakpoints = 0
        for begin, length, offset, flags in islice(self._read_only(bias, loads), MAX_PIECES):
            dumped = bytearray(self.core.memory.read(begin, length))
            expected = bytearray(self.file.read(offset, len(dumped)))
            for first, last in self._unproving():
                _blank(dumped, first - offset, last - offset)
                _blank(expected, first - offset, last - offset)
            ignored = _INT3 if self.header.machine in _X86 and "x" in flags else None
            at, patched = _first_difference(bytes(dumped), bytes(expected), ignored)
            if at is not None:
                self.against.append(
                    f"byte {offset + at:#x} of the file is another than the core holds at {begin + at:#x}"
                )
                return
            breakpoints += patched
            self.compared_bytes += len(dumped)
        if self.compared_bytes:
            aside = f" ({breakpoints} breakpoints aside)" if breakpoints else ""
            self.same.append(f"{self.compared_bytes:,} bytes{aside}")

    def _read_only(self, bias: int, loads: list[ProgramHeader]) -> Iterator[tuple[int, int, int, str]]:
        """(address, length, offset in the file, protection) of what the core holds of read-only segments, in pieces."""
        for segment in loads[:64]:
            start = bias + segment.vaddr & self._mask
            for part in self.core.memory.iter_range(start, start + segment.filesz):
                begin, end = max(part.start, start), min(part.start + part.dumped_bytes, start + segment.filesz)
                if "w" not in part.flags:
                    for at in range(begin, end, PIECE_BYTES):
                        yield at, min(end - at, PIECE_BYTES), segment.offset + at - start, part.flags

    def _has_text_relocations(self) -> bool:
        part = next((one for one in self.segments if one.segment_type == PT_DYNAMIC), None)
        if part is None:
            return False
        pair = struct.Struct(self.header.order + ("qQ" if self.header.elf_class == 64 else "iI"))
        data = self.file.read(part.offset, min(part.filesz, MAX_DYNAMIC_BYTES))
        tags = pair.iter_unpack(data[: len(data) - len(data) % pair.size])
        return any(tag == _DT_TEXTREL or (tag == _DT_FLAGS and value & _DF_TEXTREL) for tag, value in tags)

    def _unproving(self) -> tuple[tuple[int, int], ...]:
        """
        Spans of the file that prove nothing.

        The program headers, which were compared by their meaning; what the ELF header says of sections; and the
        section headers themselves, which Go's linker puts into the first page, where strip takes them away.
        """
        fields = ((0x28, 0x30), (0x3A, 0x40)) if self.header.elf_class == 64 else ((0x20, 0x24), (0x2E, 0x34))
        table_end = self.header.phoff + len(self.segments) * program_header_bytes(self.header)
        headers = [self.header, *([self.dumped.header] if self.dumped and self.dumped.header else ())]
        sections = [(one.shoff, one.shoff + one.shnum * section_header_bytes(one)) for one in headers]
        return (*fields, (self.header.phoff, table_end), *sections)


def _shape(segments: tuple[ProgramHeader, ...]) -> list[tuple[int, ...]]:
    return [
        (one.segment_type, one.flags, one.offset, one.vaddr, one.memsz, 0 if one.flags & PF_W else one.filesz)
        for one in segments
    ]


def _blank(data: bytearray, first: int, last: int) -> None:
    first, last = max(first, 0), min(last, len(data))
    if first < last:
        data[first:last] = bytes(last - first)


def _first_difference(dumped: bytes, expected: bytes, breakpoint_byte: int | None) -> tuple[int | None, int]:
    """
    Where the two differ, and how many breakpoints stand before.

    A debugger or a uprobe of the kernel writes its breakpoint into the process's own copy of a page, and the core
    holds that copy.
    """
    patched = 0
    if len(expected) < len(dumped):
        # A cut file; memory behind the end of a file is zeros.
        expected = expected.ljust(len(dumped), b"\0")
    for at in range(0, len(dumped), 4096):
        if dumped[at : at + 4096] == expected[at : at + 4096]:
            continue
        for place in range(at, min(at + 4096, len(dumped))):
            if dumped[place] != expected[place]:
                if dumped[place] != breakpoint_byte:
                    return place, patched
                patched += 1
    return None, patched
