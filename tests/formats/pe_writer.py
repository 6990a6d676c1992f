"""
Writes small PE images byte by byte: the debug directories that no linker here produces.

It shares no layout code with pmforensics.formats. The tests let llvm-readobj read its files too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CODEVIEW, REPRODUCIBLE, EMBEDDED = 2, 16, 17


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


@dataclass
class DebugEntry:
    data: bytes
    kind: int = CODEVIEW
    stamp: int = 0
    minor_version: int = 0
    length: int | None = None  # default: what is there
    offset: int | None = None  # default: where it is


@dataclass
class PeWriter:
    """One section, .rdata at 0x2000, holds the debug directory and its data; the file keeps it at byte 0x400."""

    entries: list[DebugEntry] = field(default_factory=list)
    bits: int = 64
    machine: int = 0x8664
    stamp: int = 0x61234567
    size_of_image: int = 0x3000
    directory_rva: int = 0x2000
    directory_bytes: int | None = None  # default: 28 for each entry
    directories: int = 16

    def render(self) -> bytes:
        """The file."""
        section = self._section()
        return self._headers(len(section)).ljust(0x400, b"\0") + section

    def render_loaded(self) -> bytes:
        """The image as a loader lays it out in memory."""
        section = self._section()
        return self._headers(len(section)).ljust(0x2000, b"\0") + section.ljust(0x1000, b"\0")

    def _section(self) -> bytes:
        directory, data = b"", b""
        data_at = 28 * len(self.entries)
        for entry in self.entries:
            place = data_at + len(data)
            length = len(entry.data) if entry.length is None else entry.length
            file_offset = 0x400 + place if entry.offset is None else entry.offset
            rva = 0x2000 + place if entry.offset is None else entry.offset
            directory += u32(0) + u32(entry.stamp) + u16(0x100) + u16(entry.minor_version) + u32(entry.kind)
            directory += u32(length) + u32(rva if entry.data else 0) + u32(file_offset if entry.data else 0)
            data += entry.data + bytes(-len(entry.data) % 4)
        return directory + data

    def _headers(self, section_bytes: int) -> bytes:
        wide = self.bits == 64
        out = b"MZ" + bytes(58) + u32(0x80) + bytes(0x40)
        optional_bytes = (112 if wide else 96) + 8 * self.directories
        out += b"PE\0\0" + u16(self.machine) + u16(1) + u32(self.stamp) + u32(0) + u32(0)
        out += u16(optional_bytes) + u16(0x2022 if wide else 0x2102)
        out += (
            u16(0x20B if wide else 0x10B)
            + bytes([14, 29])
            + u32(0)
            + u32(section_bytes)
            + u32(0)
            + u32(0)
            + u32(0x1000)
        )
        out += (0x180000000).to_bytes(8, "little") if wide else u32(0x2000) + u32(0x10000000)
        out += u32(0x1000) + u32(0x200) + u16(6) + u16(0) + u16(0) + u16(0) + u16(6) + u16(0) + u32(0)
        out += u32(self.size_of_image) + u32(0x400) + u32(0xABCD) + u16(3) + u16(0)
        out += bytes(32 if wide else 16) + u32(0) + u32(self.directories)
        tables = bytearray(8 * self.directories)
        if self.directories > 6:
            length = 28 * len(self.entries) if self.directory_bytes is None else self.directory_bytes
            tables[48:56] = u32(self.directory_rva if length else 0) + u32(length)
        out += tables
        out += b".rdata\0\0" + u32(section_bytes) + u32(0x2000) + u32(section_bytes) + u32(0x400)
        return out + bytes(12) + u32(0x40000040)
