"""
The traces that lead to the images of an ELF core: where ELF headers stand, AT_PHDR, the dynamic linker's list.

No single trace leads to all images. Each header found here is kept with the rules that led to it; what image it
belongs to, and where that lies, is another question: a header may be a copy of one that stands elsewhere.

Sources: the System V gABI, getauxval(3), <link.h> of glibc and musl.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pmforensics.errors import FormatError
from pmforensics.formats.core_memory import (
    AT_BASE,
    AT_PHDR,
    AT_PHENT,
    AT_PHNUM,
    AT_SYSINFO_EHDR,
    ELF_MAGIC,
    CoreFile,
    Progress,
)
from pmforensics.formats.elf import (
    ELF_HEADER_BYTES,
    PT_INTERP,
    PT_LOAD,
    ElfHeader,
    ProgramHeader,
    iter_program_headers,
    parse_elf_header,
    program_header_bytes,
)
from pmforensics.model.image import Unread

ET_EXEC, ET_DYN = 2, 3
PT_DYNAMIC, PT_PHDR = 2, 6
DT_STRTAB, DT_SONAME, DT_DEBUG = 5, 14, 21

_MAX_SITES = 10_000
_MAX_TABLE_BYTES = 64 << 10  # of program headers; Linux loads nothing with more
_MAX_ALL_TABLES_BYTES = 16 << 20
_MAX_DYNAMIC_TAGS = 1024
_MAX_LINK_MAPS = 10_000
_MAX_NAMESPACES = 64  # glibc has 16
_MAX_BIASES = 4  # under which one header could make sense; real ones have one or two
_MAX_SCORED = 64
_ENTRY_AT = 24  # e_entry: behind e_ident, e_type, e_machine, e_version


@dataclass(slots=True)
class Site:
    """
    A place in memory where an ELF header stands.

    entry    e_entry, not relocated
    lack     why there are no segments, when there are none
    biases   load biases under which this header belongs to a loaded image, the likeliest first; none where the
             file was put there in some other way than by loading it
    rules    what led here
    """

    at: int
    header: ElfHeader
    entry: int
    segments: tuple[ProgramHeader, ...]
    lack: Unread | None
    biases: tuple[int, ...]
    rules: list[str] = field(default_factory=list)


class Table(NamedTuple):
    """Program headers with the bias under which they are loaded (None where they are not), and how to read words."""

    segments: tuple[ProgramHeader, ...]
    bias: int | None
    order: str
    bits: int

    def of_type(self, segment_type: int) -> list[ProgramHeader]:
        """The segments of one type, in order."""
        return [segment for segment in self.segments if segment.segment_type == segment_type]


class Linked(NamedTuple):
    """One entry of the dynamic linker's list: load bias, name ("" for the executable), where PT_DYNAMIC is."""

    bias: int
    name: str
    dynamic: int


class Traces:
    """
    All that was found in one core.

    sites    ELF headers of executables and libraries, by address
    broken   where the ELF magic stands with an impossible header behind it
    main     the executable's program headers as AT_PHDR leads to them
    linked   the dynamic linker's list
    lost     sentences: which trace broke off, and why
    """

    def __init__(self, core: CoreFile, progress: Progress | None = None) -> None:
        self.core = core
        self.mask = (1 << core.bits) - 1
        self.sites: dict[int, Site] = {}
        self.broken: set[int] = set()
        self.lost: list[str] = []
        self._table_bytes = _MAX_ALL_TABLES_BYTES
        self._looked_at: set[int] = set()
        for row in core.rows:
            if row.file_offset == 0:
                self._add_site(row.start, "nt-file")
        for at in core.memory.sniff(progress):
            self._add_site(at, "segment-sniff")
        for kind, rule in ((AT_SYSINFO_EHDR, "vdso"), (AT_BASE, "at-base")):
            if at := core.auxv.get(kind, 0):
                self._add_site(at, rule)
        self.main: Table | None = None
        if at := core.auxv.get(AT_PHDR, 0):
            # Linkers put the program headers behind the ELF header; tools that edit files may move them.
            self._add_site(self.page_of(at), "at-phdr")
            self.main = self._main_table(at)
        self.linked = self._walk_link_maps()
        self._listed = {(entry.bias, entry.dynamic) for entry in self.linked}
        for entry in self.linked:
            self._add_site(entry.bias, "link-map")

    def lose(self, says: str) -> None:
        """Say once what could not be read."""
        if says not in self.lost:
            self.lost.append(says)

    def page_of(self, address: int) -> int:
        """Where the page with this address begins."""
        return address & -self.core.page_bytes

    def first_page_loads(self, segments: Iterable[ProgramHeader]) -> list[ProgramHeader]:
        """The segments that map the first page of the file, where the ELF header is."""
        return [part for part in segments if part.segment_type == PT_LOAD and part.offset < self.core.page_bytes]

    def home(self, segments: Iterable[ProgramHeader], bias: int) -> int | None:
        """Where offset 0 of the file is mapped under this bias; None where no segment maps it."""
        loads = self.first_page_loads(segments)
        return bias + self.page_of(loads[0].vaddr) & self.mask if loads else None

    def phdr_address(self, site: Site, bias: int) -> int | None:
        """Where the program headers are, if the image of this header is loaded with this bias."""
        phoff = site.header.phoff
        for part in site.segments:
            if part.segment_type == PT_LOAD and part.offset <= phoff < part.offset + part.filesz:
                return bias + part.vaddr + phoff - part.offset & self.mask
        return None

    # -- headers

    def _add_site(self, at: int, rule: str) -> None:
        if at not in self._looked_at:
            if len(self.sites) >= _MAX_SITES:
                self.lose(f"The core has more than {_MAX_SITES} ELF headers; the rest was not read.")
                return
            self._looked_at.add(at)
            site = self._parse_site(at)
            if site is not None:
                self.sites[at] = site
        if at in self.sites and rule not in self.sites[at].rules:
            self.sites[at].rules.append(rule)

    def _parse_site(self, at: int) -> Site | None:
        raw = self.core.memory.read(at, ELF_HEADER_BYTES)
        if raw[:4] != ELF_MAGIC:
            return None
        try:
            header = parse_elf_header(raw)
        except FormatError:
            if self.core.memory.lack(at + ELF_HEADER_BYTES - 1) is None:
                self.broken.add(at)
            return None
        if header.elf_type not in (ET_EXEC, ET_DYN):
            return None
        segments, lack = self._read_program_headers(at, header)
        entry = int.from_bytes(
            raw[_ENTRY_AT : _ENTRY_AT + header.elf_class // 8], "little" if header.little_endian else "big"
        )
        return Site(at, header, entry, segments, lack, self._find_biases(at, header, segments))

    def _read_program_headers(self, at: int, header: ElfHeader) -> tuple[tuple[ProgramHeader, ...], Unread | None]:
        entry_bytes = program_header_bytes(header)
        wanted = header.phnum * entry_bytes
        if header.phentsize != entry_bytes or not 0 < wanted <= _MAX_TABLE_BYTES:
            return (), Unread.BROKEN
        lack: Unread | None = None
        for place in self._program_header_places(at, header):
            if self._table_bytes < wanted:
                self.lose("The images have more program headers than were read.")
                break
            table = self.core.memory.read(place, wanted)
            self._table_bytes -= len(table)
            if len(table) < wanted:
                lack = lack or self.core.memory.lack(place + len(table))
                continue
            segments = tuple(iter_program_headers(table, header))
            tables_at = {part.offset for part in segments if part.segment_type == PT_PHDR}
            if tables_at <= {header.phoff} and any(part.segment_type == PT_LOAD for part in segments):
                return segments, None
        return (), lack or Unread.BROKEN

    def _program_header_places(self, at: int, header: ElfHeader) -> Iterator[int]:
        """Where e_phoff may be mapped: to say it, one would need the table that is looked for."""
        core = self.core
        row = core.row_at(at)
        if header.phoff >= core.page_bytes and row is not None:
            # patchelf moves the table to the end of the file, which is a mapping of its own.
            for other in core.rows_from(row.start, self.mask, limit=_MAX_SCORED):
                if other.name == row.name and 0 <= header.phoff - other.file_offset < other.end - other.start:
                    yield other.start + header.phoff - other.file_offset
        yield at + header.phoff & self.mask
        if header.phoff >= core.page_bytes and core.auxv.get(AT_PHNUM) == header.phnum:
            yield core.auxv.get(AT_PHDR, 0)

    def _find_biases(self, at: int, header: ElfHeader, segments: Sequence[ProgramHeader]) -> tuple[int, ...]:
        """
        One for each segment that maps the first page of the file.

        There is more than one where a writable segment begins in that page: it maps the page again, and the header
        that is seen may be that copy.
        """
        biases = dict.fromkeys(at - self.page_of(part.vaddr) & self.mask for part in self.first_page_loads(segments))
        if header.elf_type == ET_EXEC:
            return (0,) if 0 in biases else ()
        return tuple(biases)[:_MAX_BIASES]

    # -- the executable

    def _main_table(self, at: int) -> Table | None:
        """The program headers at AT_PHDR, with the bias that these two give."""
        core = self.core
        header = core.header
        entry_bytes = program_header_bytes(header)
        count = core.auxv.get(AT_PHNUM, 0)
        if not 0 < count <= _MAX_TABLE_BYTES // entry_bytes or core.auxv.get(AT_PHENT, entry_bytes) != entry_bytes:
            self.lose(f"The auxiliary vector describes impossible program headers: {count} of them.")
            return None
        raw = core.memory.read(at, count * entry_bytes)
        if len(raw) == count * entry_bytes:
            segments = tuple(iter_program_headers(raw, header))
            own = next((part for part in segments if part.segment_type == PT_PHDR), None)
            if own is not None and (at - own.vaddr) % core.page_bytes == 0:
                return Table(segments, at - own.vaddr & self.mask, header.order, core.bits)
            # Static executables have no PT_PHDR: then the table stands directly behind the ELF header.
            phoff = 64 if core.bits == 64 else 52
            for part in self.first_page_loads(segments) if own is None else ():
                bias = at - phoff - part.vaddr + part.offset
                if bias % core.page_bytes == 0:
                    return Table(segments, bias & self.mask, header.order, core.bits)
        # What is left may be a copy of the headers.
        for site in self.sites.values():
            for bias in site.biases:
                if self.phdr_address(site, bias) == at:
                    return Table(site.segments, bias, site.header.order, site.header.elf_class)
        self.lose(f"AT_PHDR says that the executable's program headers are at {at:#x}; they are not in the core there.")
        return None

    # -- the dynamic linker's list

    def dynamic(self, table: Table) -> dict[int, int]:
        """The first value of each tag of the dynamic section; empty where that is not in the core."""
        part = next(iter(table.of_type(PT_DYNAMIC)), None)
        if part is None or table.bias is None:
            return {}
        pair_bytes = table.bits // 4
        length = min(part.memsz, _MAX_DYNAMIC_TAGS * pair_bytes)
        data = self.core.memory.read(table.bias + part.vaddr & self.mask, length)
        tags: dict[int, int] = {}
        pairs = table.order + ("QQ" if table.bits == 64 else "II")
        for tag, value in struct.iter_unpack(pairs, data[: len(data) - len(data) % pair_bytes]):
            if tag == 0:
                break
            tags.setdefault(tag, value)
        return tags

    def _walk_link_maps(self) -> list[Linked]:
        for table in self._executables():
            dynamic = self.dynamic(table)
            if not table.of_type(PT_DYNAMIC):
                continue
            if not dynamic:
                self.lose(
                    "The executable's dynamic section is not in the core, so the dynamic linker's list is not known."
                )
            elif debug_at := dynamic.get(DT_DEBUG, 0):
                return self._walk_namespaces(debug_at)
            elif table.of_type(PT_INTERP):
                self.lose("The executable does not point to the dynamic linker's list: it may not have been made yet.")
        return []

    def _executables(self) -> list[Table]:
        if self.main is not None:
            return [self.main]
        found = [
            Table(site.segments, site.biases[0], site.header.order, site.header.elf_class)
            for site in self.sites.values()
            if site.biases
        ]
        return [table for table in found if table.of_type(PT_INTERP)][:_MAX_NAMESPACES]

    def _walk_namespaces(self, debug_at: int) -> list[Linked]:
        """Each namespace of dlmopen has a list of its own."""
        core = self.core
        linked: list[Linked] = []
        seen: set[int] = set()
        namespaces: set[int] = set()
        while debug_at and debug_at not in namespaces and len(namespaces) < _MAX_NAMESPACES:
            namespaces.add(debug_at)
            # int r_version; link_map *r_map; r_brk; int r_state; r_ldbase; since version 2: r_debug *r_next
            words = core.words(core.memory.read(debug_at, 6 * core.word_bytes))
            if len(words) < 2:
                self.lose(f"The dynamic linker's list, at {debug_at:#x}, is not in the core.")
                break
            self._walk_chain(words[1], linked, seen)
            # An int in a word of 64 bits: big-endian, it is the upper half.
            version = words[0] >> 32 if core.bits == 64 and core.header.order == ">" else words[0] & 0xFFFFFFFF
            debug_at = words[5] if len(words) == 6 and version >= 2 else 0
        return linked

    def _walk_chain(self, at: int, linked: list[Linked], seen: set[int]) -> None:
        core = self.core
        while at:
            if at in seen or len(seen) >= _MAX_LINK_MAPS:
                self.lose(f"The dynamic linker's list does not end; it was left after {len(linked)} entries.")
                return
            seen.add(at)
            # l_addr, l_name, l_ld, l_next, l_prev
            words = core.words(core.memory.read(at, 4 * core.word_bytes))
            if len(words) < 4:
                self.lose(
                    f"The dynamic linker's list breaks off: {at:#x}, after {len(linked)} entries, is not in the core."
                )
                return
            bias, name_at, dynamic, at = words
            if not core.memory.is_mapped(dynamic) and core.row_at(dynamic) is None:
                self.lose(f"The dynamic linker's list makes no sense after {len(linked)} entries.")
                return
            linked.append(Linked(bias, core.memory.read_text(name_at) if name_at else "", dynamic))

    # -- which bias

    def choose_bias(self, site: Site) -> int | None:
        """The load bias of the image that the header belongs to; None where it was not loaded."""
        if len(site.biases) < 2:
            return site.biases[0] if site.biases else None
        main_at = self.core.auxv.get(AT_PHDR, -1)
        dynamic = next((part.vaddr for part in site.segments if part.segment_type == PT_DYNAMIC), None)
        for bias in site.biases:
            if self.phdr_address(site, bias) == main_at:
                return bias
        if dynamic is not None:
            for bias in site.biases:
                if (bias, bias + dynamic & self.mask) in self._listed:
                    return bias
        return max(site.biases, key=lambda bias: self._segments_in_place(site, bias))

    def _segments_in_place(self, site: Site, bias: int) -> int:
        """How many segments of the image begin where one of the core does."""
        loads = [part for part in site.segments if part.segment_type == PT_LOAD][:_MAX_SCORED]
        places = [bias + self.page_of(part.vaddr) & self.mask for part in loads]
        found = [self.core.memory.find(at) for at in places]
        return sum(segment is not None and segment.start == at for segment, at in zip(found, places, strict=True))
