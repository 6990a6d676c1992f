"""
Writes ELF images and cores byte by byte, for the cases that no kernel or debugger here produces.

It shares no layout code with pmforensics.formats, so that one mistake cannot hide the other. The tests let readelf
and eu-unstrip read its files too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 0x1000
R, RX, RW = 4, 5, 6
PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_PHDR = 1, 2, 3, 4, 6
NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE = 1, 3, 6, 0x46494C45
AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_ENTRY, AT_EXECFN, AT_SYSINFO_EHDR = 3, 4, 5, 6, 7, 9, 31, 33


@dataclass
class Layout:
    """How numbers, headers and notes are written in one class and byte order."""

    bits: int = 64
    big_endian: bool = False

    @property
    def header_bytes(self) -> int:
        return 64 if self.bits == 64 else 52

    @property
    def entry_bytes(self) -> int:
        return 56 if self.bits == 64 else 32

    def number(self, value: int, width: int) -> bytes:
        return value.to_bytes(width, "big" if self.big_endian else "little")

    def word(self, *values: int) -> bytes:
        return b"".join(self.number(value, self.bits // 8) for value in values)

    def note(self, owner: bytes, kind: int, content: bytes, align: int = 4) -> bytes:
        out = self.number(len(owner), 4) + self.number(len(content), 4) + self.number(kind, 4) + owner
        out += bytes(-len(out) % align) + content
        return out + bytes(-len(out) % align)

    def gnu_note(self, build_id: bytes, align: int = 4) -> bytes:
        return self.note(b"GNU\0", 3, build_id, align)

    def elf_header(
        self, elf_type: int, machine: int, entry: int, phoff: int, phnum: int, shoff: int = 0, shnum: int = 0
    ) -> bytes:
        out = b"\x7fELF" + bytes([2 if self.bits == 64 else 1, 2 if self.big_endian else 1, 1]) + bytes(9)
        out += self.number(elf_type, 2) + self.number(machine, 2) + self.number(1, 4)
        out += self.word(entry, phoff, shoff) + self.number(0, 4)
        section_bytes = 64 if self.bits == 64 else 40
        for value in (self.header_bytes, self.entry_bytes, phnum, section_bytes if shoff else 0, shnum, 0):
            out += self.number(value, 2)
        return out

    def program_header(
        self, kind: int, flags: int, offset: int, vaddr: int, filesz: int, memsz: int, align: int
    ) -> bytes:
        if self.bits == 64:
            return self.number(kind, 4) + self.number(flags, 4) + self.word(offset, vaddr, 0, filesz, memsz, align)
        return self.word(kind, offset, vaddr, 0, filesz, memsz, flags, align)

    def section_zero(self, segments: int) -> bytes:
        """The section that holds the number of segments in sh_info."""
        if self.bits == 64:
            return bytes(44) + self.number(segments, 4) + bytes(16)
        return bytes(28) + self.number(segments, 4) + bytes(8)


@dataclass
class Part:
    """One program header of an image."""

    kind: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int | None = None
    flags: int = R
    align: int = PAGE


@dataclass
class ImageWriter(Layout):
    """An executable or library as a file; `contents` by file offset."""

    elf_type: int = 3
    machine: int = 62
    entry: int = PAGE
    phoff: int = 0  # default: behind the header
    parts: list[Part] = field(default_factory=list)
    contents: dict[int, bytes] = field(default_factory=dict)

    def render(self, size: int = 3 * PAGE) -> bytes:
        phoff = self.phoff or self.header_bytes
        out = bytearray(size)
        head = self.elf_header(self.elf_type, self.machine, self.entry, phoff, len(self.parts))
        out[: len(head)] = head
        table = b"".join(
            self.program_header(
                part.kind, part.flags, part.offset, part.vaddr, part.filesz,
                part.filesz if part.memsz is None else part.memsz, part.align,
            )
            for part in self.parts
        )  # fmt: skip
        for at, content in {phoff: table, **self.contents}.items():
            out[at : at + len(content)] = content
        assert len(out) == size, "the contents do not fit"
        return bytes(out)


@dataclass
class Load:
    """A segment of a core."""

    vaddr: int
    data: bytes = b""
    memsz: int | None = None
    flags: int = R


@dataclass
class CoreWriter(Layout):
    """
    Header, program headers, notes, contents.

    count_in   "section-last" and "section-first" put the number of segments into section 0, at the end of the file
               as the kernel does, or behind the header as createdump does
    """

    machine: int = 62
    loads: list[Load] = field(default_factory=list)
    note_segments: list[tuple[bytes, int]] = field(default_factory=list)  # contents and p_align
    count_in: str = "header"
    note_offset: int = 0  # of the first note segment, set by render
    offsets: dict[int, int] = field(default_factory=dict)  # vaddr -> place in the file, set by render

    def auxv(self, values: dict[int, int]) -> bytes:
        pairs = b"".join(self.word(kind, value) for kind, value in values.items())
        return self.note(b"CORE\0", NT_AUXV, pairs + self.word(0, 0))

    def nt_file(self, rows: list[tuple[int, int, int, str]], *, unit: int = PAGE, count: int | None = None) -> bytes:
        """Rows are (start, end, offset in bytes, name); `count` is what the note claims."""
        content = self.word(len(rows) if count is None else count, unit)
        content += b"".join(self.word(start, end, offset // unit) for start, end, offset, _ in rows)
        content += b"".join(name.encode() + b"\0" for *_, name in rows)
        return self.note(b"CORE\0", NT_FILE, content)

    def render(self) -> bytes:
        count = len(self.note_segments) + len(self.loads)
        first = self.count_in == "section-first"
        section_bytes = 64 if self.bits == 64 else 40
        phoff = self.header_bytes + (section_bytes if first else 0)
        at = phoff + count * self.entry_bytes
        table, body = [], []
        for index, (content, align) in enumerate(self.note_segments):
            if index == 0:
                self.note_offset = at
            table.append(self.program_header(PT_NOTE, 0, at, 0, len(content), 0, align))
            body.append(content)
            at += len(content)
        body.append(bytes(-at % PAGE))
        at += -at % PAGE
        for load in self.loads:
            self.offsets[load.vaddr] = at
            memsz = len(load.data) if load.memsz is None else load.memsz
            table.append(self.program_header(PT_LOAD, load.flags, at, load.vaddr, len(load.data), memsz, PAGE))
            body.append(load.data)
            at += len(load.data)
        shoff = {"header": 0, "section-first": self.header_bytes, "section-last": at}[self.count_in]
        phnum = 0xFFFF if shoff else count
        head = self.elf_header(4, self.machine, 0, phoff, phnum, shoff, int(bool(shoff)))
        section = self.section_zero(count)
        parts = [head, section if first else b"", *table, *body, section if self.count_in == "section-last" else b""]
        return b"".join(parts)


MAIN, LIB, LINKER, VDSO, HEAP, STACK = 0x5650_0000, 0xF7C0_0000, 0xF7E0_0000, 0xF7FC_0000, 0x5660_0000, 0xFFD0_0000
IDS = {at: bytes([number]) * 20 for number, at in enumerate((MAIN, LIB, LINKER, VDSO), start=0xA1)}
NAMES = {MAIN: "/srv/app", LIB: "/usr/lib/libwork.so.1.2", LINKER: "/usr/lib/ld.so"}
NOTES_AT, DYNAMIC_AT, DATA_VADDR = 0x400, 2 * PAGE, 3 * PAGE


class Process:
    """
    A core of a small process: executable, library, dynamic linker, vDSO, heap and stack, all below 4 GiB.

    Each image has three pages in its file: headers and notes; text (not dumped); data, one page further in memory,
    which begins with the dynamic section. Tests change what is public before they render.
    """

    def __init__(self, bits: int = 64, big_endian: bool = False) -> None:
        self.core = CoreWriter(bits, big_endian)
        self.images = {at: self.image(IDS[at]) for at in (MAIN, LIB, LINKER, VDSO)}
        self.images[MAIN].parts.insert(0, Part(PT_PHDR, self.core.header_bytes, self.core.header_bytes, 0x100))
        self.images[MAIN].parts.append(Part(PT_INTERP, 0x800, 0x800, 16))
        self.dynamic = {at: self.core.word(21, HEAP, 0, 0) if at == MAIN else self.core.word(0, 0) for at in IDS}
        self.rows = [row for at in NAMES for row in self.rows_of(at, NAMES[at])]
        self.linked = [
            [MAIN, "", MAIN + DATA_VADDR],
            [LIB, "/lib/libwork.so.1", LIB + DATA_VADDR],
            [LINKER, "/lib/ld.so", LINKER + DATA_VADDR],
            [VDSO, "linux-vdso.so.1", VDSO + DATA_VADDR],
        ]
        self.auxv = {
            AT_PHDR: MAIN + self.core.header_bytes,
            AT_PHENT: self.core.entry_bytes,
            AT_PHNUM: len(self.images[MAIN].parts),
            AT_PAGESZ: PAGE,
            AT_BASE: LINKER,
            AT_ENTRY: MAIN + PAGE,
            AT_SYSINFO_EHDR: VDSO,
            AT_EXECFN: STACK,
        }
        self.has_nt_file = True
        self.not_dumped: set[int] = set()  # addresses of segments
        self.more: list[Load] = []
        self.threads = 2

    def image(self, build_id: bytes | None, elf_type: int = 3) -> ImageWriter:
        image = ImageWriter(self.core.bits, self.core.big_endian, elf_type)
        image.parts = [
            Part(PT_LOAD, 0, 0, PAGE, flags=R),
            Part(PT_LOAD, PAGE, PAGE, PAGE, flags=RX),
            Part(PT_LOAD, DYNAMIC_AT, DATA_VADDR, PAGE, 2 * PAGE, flags=RW),
            Part(PT_DYNAMIC, DYNAMIC_AT, DATA_VADDR, 0x100, flags=RW),
        ]
        if build_id is not None:
            self.put_notes(image, self.core.gnu_note(build_id))
        return image

    @staticmethod
    def put_notes(image: ImageWriter, notes: bytes, at: int = NOTES_AT, align: int = 4) -> None:
        image.contents[at] = notes
        image.parts.append(Part(PT_NOTE, at, at, len(notes), align=align))

    def rows_of(self, at: int, name: str) -> list[tuple[int, int, int, str]]:
        return [
            (at, at + PAGE, 0, name),
            (at + PAGE, at + 2 * PAGE, PAGE, name),
            (at + DATA_VADDR, at + DATA_VADDR + PAGE, DYNAMIC_AT, name),
        ]

    def render(self) -> bytes:
        core = self.core
        loads = []
        for at, image in self.images.items():
            file = image.render()
            data = self.dynamic[at].ljust(PAGE, b"\0")
            loads += [
                Load(at, file[:PAGE]),
                Load(at + PAGE, b"", PAGE, RX),
                Load(at + DATA_VADDR, data, flags=RW),
            ]
        loads += [Load(HEAP, self._heap(), flags=RW), Load(STACK, b"./app\0".ljust(PAGE, b"\0"), flags=RW)]
        taken = {load.vaddr for load in self.more}
        loads = [load for load in loads if load.vaddr not in taken] + self.more
        core.loads = [
            Load(load.vaddr, b"", load.memsz or len(load.data), load.flags) if load.vaddr in self.not_dumped else load
            for load in sorted(loads, key=lambda load: load.vaddr)
        ]
        notes = core.note(b"CORE\0", NT_PRSTATUS, bytes(64))
        notes += core.note(b"CORE\0", NT_PRPSINFO, bytes(40) + b"app".ljust(16, b"\0") + bytes(80))
        notes += core.auxv(self.auxv) if self.auxv else b""
        notes += core.nt_file(self.rows) if self.has_nt_file else b""
        notes += core.note(b"CORE\0", NT_PRSTATUS, bytes(64)) * (self.threads - 1)
        core.note_segments = [(notes, 4)]
        return core.render()

    def _heap(self) -> bytes:
        """r_debug, then at each multiple of 256 an entry of the list, with its name 64 bytes behind."""
        word_bytes = self.core.bits // 8
        out = bytearray(PAGE)
        places = [HEAP + 0x100 * (index + 1) for index in range(len(self.linked))]
        head = self.core.number(1, 4).ljust(word_bytes, b"\0") + self.core.word(places[0] if places else 0, 0)
        out[: len(head)] = head
        for index, (bias, name, dynamic) in enumerate(self.linked):
            at = 0x100 * (index + 1)
            following = places[index + 1] if index + 1 < len(places) else 0
            entry = self.core.word(bias, HEAP + at + 64, dynamic, following, 0)
            out[at : at + len(entry)] = entry
            out[at + 64 : at + 64 + len(name) + 1] = name.encode() + b"\0"
        return bytes(out)
