"""
Writes small ELF files byte by byte, for the cases that no toolchain here produces.

It shares no layout code with pmforensics.formats, so that one mistake cannot hide the other. The tests let readelf
and the go command read its files too.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Segment:
    kind: int
    data: bytes
    flags: int = 4
    vaddr: int | None = None  # default: 0x400000 + file offset
    align: int = 4
    filesz: int | None = None  # default: what is there
    offset: int = 0  # set by ElfWriter.render


@dataclass
class Section:
    name: str
    kind: int
    data: bytes
    align: int = 4
    addr: int = 0


@dataclass
class ElfWriter:
    """Header, program headers, segment contents, section contents, section names, section headers: in this order."""

    bits: int = 64
    big_endian: bool = False
    elf_type: int = 2
    machine: int = 62
    segments: list[Segment] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)
    extended_count: bool = False  # e_phnum = 0xffff, the count in section 0, as above 65,534 segments

    def number(self, value: int, width: int) -> bytes:
        return value.to_bytes(width, "big" if self.big_endian else "little")

    def address(self, value: int) -> bytes:
        return self.number(value, self.bits // 8)

    def note(self, owner: bytes, kind: int, content: bytes, align: int = 4) -> bytes:
        """One note, with the padding that `align` asks for after owner and content."""
        out = self.number(len(owner), 4) + self.number(len(content), 4) + self.number(kind, 4) + owner
        out += bytes(-len(out) % align) + content
        return out + bytes(-len(out) % align)

    def render(self) -> bytes:
        wide = self.bits == 64
        header_bytes, phent, shent = (64, 56, 64) if wide else (52, 32, 40)
        at = header_bytes + phent * len(self.segments)
        body = bytearray()
        for segment in self.segments:
            pad = -(at + len(body)) % 16
            body += bytes(pad)
            segment.offset = at + len(body)
            body += segment.data
        places = []
        for section in self.sections:
            body += bytes(-(at + len(body)) % 16)
            places.append(at + len(body))
            body += section.data
        tables = b""
        shoff = shnum = shstrndx = 0
        if self.sections or self.extended_count:
            names = b"\0"
            name_at = []
            for section in [*self.sections, Section(".shstrtab", 3, b"")]:
                name_at.append(len(names))
                names += section.name.encode() + b"\0"
            names_at = at + len(body)
            body += names
            body += bytes(-(at + len(body)) % 16)
            shoff = at + len(body)
            shnum = len(self.sections) + 2
            shstrndx = shnum - 1
            info = len(self.segments) if self.extended_count else 0
            tables = self._section_header(0, Section("", 0, b"", align=0), 0, info)
            for section, place, name in zip(self.sections, places, name_at, strict=False):
                tables += self._section_header(name, section, place, 0)
            tables += self._section_header(name_at[-1], Section(".shstrtab", 3, names, align=1), names_at, 0)
        phnum = 0xFFFF if self.extended_count else len(self.segments)
        out = bytearray(b"\x7fELF") + bytes([2 if wide else 1, 2 if self.big_endian else 1, 1]) + bytes(9)
        out += self.number(self.elf_type, 2) + self.number(self.machine, 2) + self.number(1, 4)
        out += self.address(0) + self.address(header_bytes if self.segments else 0) + self.address(shoff)
        out += self.number(0, 4)
        for value in (header_bytes, phent, phnum, shent, shnum, shstrndx):
            out += self.number(value, 2)
        for segment in self.segments:
            out += self._program_header(segment)
        return bytes(out + body + tables)

    def _program_header(self, segment: Segment) -> bytes:
        vaddr = 0x400000 + segment.offset if segment.vaddr is None else segment.vaddr
        filesz = len(segment.data) if segment.filesz is None else segment.filesz
        out = self.number(segment.kind, 4)
        if self.bits == 64:
            out += self.number(segment.flags, 4)
        for value in (segment.offset, vaddr, vaddr, filesz, filesz):
            out += self.address(value)
        if self.bits == 32:
            out += self.number(segment.flags, 4)
        return out + self.address(segment.align)

    def _section_header(self, name: int, section: Section, place: int, info: int) -> bytes:
        out = self.number(name, 4) + self.number(section.kind, 4) + self.address(0) + self.address(section.addr)
        out += self.address(place) + self.address(len(section.data)) + self.number(0, 4) + self.number(info, 4)
        return out + self.address(section.align) + self.address(0)
