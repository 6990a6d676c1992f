"""
What build an ELF file is: GNU and Go build IDs, package note, debug link, Go module information.

The readers take `read(offset, length) -> bytes`, which returns up to `length` bytes and fewer only where the
bytes end. So they work over a file, a buffer, or the memory of a live process. Every count and length in the
file is taken as a claim: it is checked against a bound before anything is read for it.

Sources: System V gABI (header, program headers, notes, extended numbering), elf(5), the FDO package metadata
specification, cmd/link and debug/buildinfo of Go.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pmforensics.errors import BrokenElf, NotElf

ReadAt = Callable[[int, int], bytes]

ELF_HEADER_BYTES = 64  # the 64-bit header; the 32-bit one has 52
ET_CORE = 4
PT_LOAD, PT_INTERP, PT_NOTE = 1, 3, 4
PF_X, PF_W = 1, 2
PN_XNUM = 0xFFFF  # "too many to say here": the count is sh_info of section 0

SHT_NOTE, SHT_NOBITS = 7, 8
_SHN_XINDEX = 0xFFFF
_NT_GNU_BUILD_ID = 3
_NT_GO_BUILD_ID = 4
_NT_FDO_PACKAGE_NOTE = 0xCAFE1A7E

_MAX_SEGMENTS = 1 << 20  # vm.max_map_count is 65,530 by default; cores with 72,056 mappings are real
_MAX_SECTIONS = 1 << 17
_MAX_NOTE_BYTES = 4 << 20  # over all note segments of one file; real ones need a few hundred bytes
_MAX_NOTE_SEGMENTS = 64
_MAX_GO_ID_BYTES = 4096  # real ones have 83
_MAX_NAME_TABLE_BYTES = 1 << 20
_MAX_PATH_BYTES = 4096
MAX_DEBUGLINK_BYTES = _MAX_PATH_BYTES + 8  # a name, padding, and four bytes
_TABLE_BATCH = 1024  # header table entries per read
_MAX_FILE_OFFSET = (1 << 63) - 1  # pread(2) takes a signed offset


@dataclass(frozen=True, slots=True)
class ElfHeader:
    """The ELF header, with counts as stored: `phnum` may be PN_XNUM, `shnum` may be 0 for "see section 0"."""

    elf_class: int
    little_endian: bool
    elf_type: int
    machine: int
    phoff: int
    phentsize: int
    phnum: int
    shoff: int
    shentsize: int
    shnum: int
    shstrndx: int

    @property
    def order(self) -> str:
        """Byte order as `struct` writes it."""
        return "<" if self.little_endian else ">"


@dataclass(frozen=True, slots=True)
class ProgramHeader:
    """One segment. Offsets and sizes in bytes; `vaddr` before any relocation."""

    segment_type: int
    flags: int
    offset: int
    vaddr: int
    filesz: int
    memsz: int
    align: int


@dataclass(frozen=True, slots=True)
class SectionHeader:
    """One section; `name_offset` points into the section name table."""

    name_offset: int
    section_type: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


@dataclass(frozen=True, slots=True)
class DebugLink:
    """`.gnu_debuglink`: the file name of the separate debug file and the CRC-32 of its contents."""

    name: str
    crc32: int


@dataclass(frozen=True, slots=True)
class ElfIdentity:
    """
    What an ELF file says it is. None means: not said.

    `gnu_build_id` is lowercase hex of 1 to 64 bytes, `go_build_id` the text of Go's own note, `package_note`
    the raw JSON text of `.note.package`, `interp` the program interpreter's path.
    """

    elf_class: int
    little_endian: bool
    machine: int
    elf_type: int
    gnu_build_id: str | None
    go_build_id: str | None
    package_note: str | None
    interp: str | None
    debuglink: DebugLink | None


@dataclass(frozen=True, slots=True)
class GoModule:
    """One Go module as the linker recorded it; `sum` is "" for the main module and for replaced ones."""

    path: str
    version: str
    sum: str
    replace: GoModule | None = None


@dataclass(frozen=True, slots=True)
class GoBuildInfo:
    """
    What a Go binary carries about its build.

    `path` is the main package, `main` its module (None outside a module), `settings` the build settings
    with the values of flags that may carry secrets replaced by "(withheld)". `deps_lost` counts
    dependencies beyond the bound that were not kept.
    """

    go_version: str
    path: str
    main: GoModule | None
    deps: tuple[GoModule, ...]
    settings: dict[str, str]
    deps_lost: int


# --------------------------------------------------------------------------------------------- headers


def parse_elf_header(data: bytes) -> ElfHeader:
    """
    The ELF header at the start of `data` (give ELF_HEADER_BYTES where there are that many).

    Raises NotElf without the magic, BrokenElf when the rest is cut or impossible.
    """
    if data[:4] != b"\x7fELF":
        raise NotElf("The bytes do not begin with the ELF magic.")
    if len(data) < 16:
        raise BrokenElf(f"The ELF header is cut after {len(data)} bytes.")
    if data[4] not in (1, 2):
        raise BrokenElf(f"The ELF class is {data[4]}, neither 1 (32-bit) nor 2 (64-bit).")
    if data[5] not in (1, 2):
        raise BrokenElf(f"The ELF data encoding is {data[5]}, neither 1 (little-endian) nor 2 (big-endian).")
    order = "<" if data[5] == 1 else ">"
    layout = struct.Struct(order + ("HHIQQQIHHHHHH" if data[4] == 2 else "HHIIIIIHHHHHH"))
    if len(data) < 16 + layout.size:
        raise BrokenElf(f"The ELF header is cut after {len(data)} bytes.")
    elf_type, machine, _, _, phoff, shoff, _, _, *tables = layout.unpack_from(data, 16)
    phentsize, phnum, shentsize, shnum, shstrndx = tables
    return ElfHeader(
        elf_class=32 * data[4],
        little_endian=data[5] == 1,
        elf_type=elf_type,
        machine=machine,
        phoff=phoff,
        phentsize=phentsize,
        phnum=phnum,
        shoff=shoff,
        shentsize=shentsize,
        shnum=shnum,
        shstrndx=shstrndx,
    )


def program_header_bytes(header: ElfHeader) -> int:
    """The size of one program header in this class of file."""
    return 56 if header.elf_class == 64 else 32


def section_header_bytes(header: ElfHeader) -> int:
    """The size of one section header in this class of file."""
    return 64 if header.elf_class == 64 else 40


def iter_program_headers(table: bytes, header: ElfHeader) -> Iterator[ProgramHeader]:
    """The program headers in `table`, which must hold a whole number of them."""
    wide = header.elf_class == 64
    for entry in struct.iter_unpack(header.order + ("IIQQQQQQ" if wide else "IIIIIIII"), table):
        if wide:
            kind, flags, offset, vaddr, _, filesz, memsz, align = entry
        else:
            kind, offset, vaddr, _, filesz, memsz, flags, align = entry
        yield ProgramHeader(kind, flags, offset, vaddr, filesz, memsz, align)


def iter_section_headers(table: bytes, header: ElfHeader) -> Iterator[SectionHeader]:
    """The section headers in `table`, which must hold a whole number of them."""
    layout = header.order + ("IIQQQQIIQQ" if header.elf_class == 64 else "IIIIIIIIII")
    for name, kind, flags, _, offset, size, link, info, align, _ in struct.iter_unpack(layout, table):
        yield SectionHeader(name, kind, flags, offset, size, link, info, align)


class _Source:
    """`read` behind the bounds that every access needs."""

    __slots__ = ("_read", "size")

    def __init__(self, read: ReadAt, size: int | None) -> None:
        self._read = read
        self.size = size

    def at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; b"" for a place that no file has."""
        end = _MAX_FILE_OFFSET if self.size is None else self.size
        length = min(length, end - offset)
        if offset < 0 or length <= 0:
            return b""
        return self._read(offset, length)[:length]


def _segments(source: _Source, header: ElfHeader) -> Iterator[ProgramHeader]:
    entry_bytes = program_header_bytes(header)
    count = header.phnum
    if count == PN_XNUM:
        first = _first_section(source, header)
        if first is None:
            raise BrokenElf("The program header count is in section 0, and there is no section 0.")
        count = first.info
    if count == 0:
        return
    if header.phentsize != entry_bytes:
        raise BrokenElf(f"A program header has {header.phentsize} bytes instead of {entry_bytes}.")
    if count > _MAX_SEGMENTS:
        raise BrokenElf(f"There are {count} program headers, more than the bound of {_MAX_SEGMENTS}.")
    for start in range(0, count, _TABLE_BATCH):
        wanted = min(_TABLE_BATCH, count - start) * entry_bytes
        table = source.at(header.phoff + start * entry_bytes, wanted)
        if len(table) < wanted:
            raise BrokenElf(f"The table of {count} program headers at byte {header.phoff} is cut.")
        yield from iter_program_headers(table, header)


def _first_section(source: _Source, header: ElfHeader) -> SectionHeader | None:
    entry_bytes = section_header_bytes(header)
    table = source.at(header.shoff, entry_bytes) if header.shoff else b""
    if header.shentsize != entry_bytes or len(table) < entry_bytes:
        return None
    return next(iter_section_headers(table, header))


def _sections(source: _Source, header: ElfHeader) -> Iterator[SectionHeader]:
    """The sections; ends early without an error where the table is cut, since programs run without one."""
    first = _first_section(source, header)
    if first is None:
        return
    entry_bytes = section_header_bytes(header)
    count = min(header.shnum or first.size, _MAX_SECTIONS)
    for start in range(0, count, _TABLE_BATCH):
        wanted = min(_TABLE_BATCH, count - start) * entry_bytes
        table = source.at(header.shoff + start * entry_bytes, wanted)
        yield from iter_section_headers(table[: len(table) - len(table) % entry_bytes], header)
        if len(table) < wanted:
            return


def iter_sections(read: ReadAt, size: int | None, header: ElfHeader) -> Iterator[tuple[str, SectionHeader]]:
    """
    The sections of the ELF file behind `read` with their names, the null section first; `size` as for
    `read_elf_identity`. Ends early without an error where the table is cut; names that are cut off are "".
    """
    source = _Source(read, size)
    names = _section_names(source, header)
    for section in _sections(source, header):
        end = names.find(b"\0", section.name_offset, section.name_offset + _MAX_PATH_BYTES)
        yield _text(names[section.name_offset : end]) if end >= 0 else "", section


def _section_names(source: _Source, header: ElfHeader) -> bytes:
    """The section name table, b"" where there is none."""
    first = _first_section(source, header)
    if first is None:
        return b""
    entry_bytes = section_header_bytes(header)
    index = first.link if header.shstrndx == _SHN_XINDEX else header.shstrndx
    entry = source.at(header.shoff + index * entry_bytes, entry_bytes)
    if len(entry) < entry_bytes:
        return b""
    names = next(iter_section_headers(entry, header))
    return source.at(names.offset, min(names.size, _MAX_NAME_TABLE_BYTES))


def _has_name(section: SectionHeader, names: bytes, name: bytes) -> bool:
    return names[section.name_offset : section.name_offset + len(name) + 1] == name + b"\0"


# ----------------------------------------------------------------------------------------------- notes


class _Notes:
    """Collects the notes that identify a build; the first of each kind counts, as in readelf's order."""

    __slots__ = ("budget_bytes", "gnu_build_id", "go_build_id", "package_note")

    def __init__(self) -> None:
        self.budget_bytes = _MAX_NOTE_BYTES
        self.gnu_build_id: str | None = None
        self.go_build_id: str | None = None
        self.package_note: str | None = None

    def read(self, source: _Source, order: str, offset: int, size: int, align: int) -> None:
        data = source.at(offset, min(size, self.budget_bytes))
        self.budget_bytes -= len(data)
        for owner, note_type, content in _iter_notes(data, order, 8 if align == 8 else 4):
            self._take(owner, note_type, content)

    def _take(self, owner: bytes, note_type: int, content: bytes) -> None:
        # Other owners use small type numbers too, so the type alone proves nothing.
        if owner == b"GNU\0" and note_type == _NT_GNU_BUILD_ID:
            if self.gnu_build_id is None and 1 <= len(content) <= 64:
                self.gnu_build_id = content.hex()
        elif owner == b"Go\0\0" and note_type == _NT_GO_BUILD_ID:
            if self.go_build_id is None and 1 <= len(content) <= _MAX_GO_ID_BYTES:
                self.go_build_id = content.decode("ascii", "backslashreplace")
        elif owner == b"FDO\0" and note_type == _NT_FDO_PACKAGE_NOTE and self.package_note is None:
            self.package_note = _text(content.rstrip(b"\0"))


def _iter_notes(data: bytes, order: str, align: int) -> Iterator[tuple[bytes, int, bytes]]:
    """(owner with its NUL, type, content) of every note that is there whole."""
    head = struct.Struct(order + "III")
    at = 0
    while at + head.size <= len(data):
        owner_bytes, content_bytes, note_type = head.unpack_from(data, at)
        owner_at = at + head.size
        content_at = _round_up(owner_at + owner_bytes, align)
        content_end = content_at + content_bytes
        if content_end > len(data):
            return
        yield data[owner_at : owner_at + owner_bytes], note_type, data[content_at:content_end]
        at = _round_up(content_end, align)


def _round_up(value: int, align: int) -> int:
    return (value + align - 1) & -align


# -------------------------------------------------------------------------------------------- identity


def read_elf_identity(read: ReadAt, size: int | None, *, loaded: bool = False) -> ElfIdentity:
    """
    The identity of the ELF file behind `read`; `size` is its length in bytes where known.

    With `loaded`, offset 0 of `read` is where the image is mapped in memory: segments are then looked up by
    their address, because a segment's place in memory is not its place in the file, and sections are not
    looked for, because they are not mapped.

    Notes are read through PT_NOTE, and through the sections where PT_NOTE did not tell. A build ID that is
    not within 1 to 64 bytes, or a note of another owner, counts as not there.

    Raises NotElf, BrokenElf; passes on what `read` raises.
    """
    source = _Source(read, size)
    header = parse_elf_header(source.at(0, ELF_HEADER_BYTES))
    note_segments: list[ProgramHeader] = []
    interp_segment: ProgramHeader | None = None
    first_load: ProgramHeader | None = None
    for segment in _segments(source, header):
        if segment.segment_type == PT_NOTE and len(note_segments) < _MAX_NOTE_SEGMENTS:
            note_segments.append(segment)
        elif segment.segment_type == PT_INTERP:
            interp_segment = interp_segment or segment
        elif segment.segment_type == PT_LOAD:
            first_load = first_load or segment
    # The address that file offset 0 was linked for.
    link_base = first_load.vaddr - first_load.offset if first_load else 0

    def place(segment: ProgramHeader) -> int:
        return segment.vaddr - link_base if loaded else segment.offset

    notes = _Notes()
    for segment in note_segments:
        notes.read(source, header.order, place(segment), segment.filesz, segment.align)
    interp = None
    if interp_segment is not None:
        raw = source.at(place(interp_segment), min(interp_segment.filesz, _MAX_PATH_BYTES))
        interp = _text(raw.split(b"\0", 1)[0]) or None
    debuglink = None if loaded else _read_sections(source, header, notes)
    return ElfIdentity(
        elf_class=header.elf_class,
        little_endian=header.little_endian,
        machine=header.machine,
        elf_type=header.elf_type,
        gnu_build_id=notes.gnu_build_id,
        go_build_id=notes.go_build_id,
        package_note=notes.package_note,
        interp=interp,
        debuglink=debuglink,
    )


def _read_sections(source: _Source, header: ElfHeader, notes: _Notes) -> DebugLink | None:
    """Adds to `notes` what only sections tell, and returns the debug link."""
    names = _section_names(source, header)
    debuglink = None
    for section in _sections(source, header):
        if section.section_type == SHT_NOTE:
            notes.read(source, header.order, section.offset, section.size, section.align)
        elif section.section_type != SHT_NOBITS and _has_name(section, names, b".gnu_debuglink"):
            debuglink = debuglink or _read_debuglink(source, header, section)
    return debuglink


def _read_debuglink(source: _Source, header: ElfHeader, section: SectionHeader) -> DebugLink | None:
    return parse_debuglink(source.at(section.offset, min(section.size, MAX_DEBUGLINK_BYTES)), header.order)


def parse_debuglink(data: bytes, order: str) -> DebugLink | None:
    """The debug link that section .gnu_debuglink holds; None where it is cut or names no file."""
    name, end, _ = data.partition(b"\0")
    crc_at = _round_up(len(name) + 1, 4)
    if not name or not end or crc_at + 4 > len(data):
        return None
    (crc32,) = struct.unpack_from(order + "I", data, crc_at)
    return DebugLink(_text(name), crc32)


# -------------------------------------------------------------------------------------- Go build information

_GO_MAGIC = b"\xff Go buildinf:"
_GO_HEADER_BYTES = 32
_GO_SEARCH_BYTES = 1 << 20
_GO_ALIGN = 16
_GO_INLINE = 2  # flag since Go 1.18: strings follow the header
_GO_BIG_ENDIAN = 1  # flag, pointer format only
_MAX_GO_TEXT_BYTES = 4 << 20
_MAX_GO_DEPS = 10_000
_MAX_GO_SETTINGS = 1000
_MAX_LOADS = 4096
_WITHHELD = "(withheld)"

# Linker flags set variables (-X main.token=...), C flags define macros (-DTOKEN=...): both are used for
# secrets.
_FLAGS_THAT_MAY_CARRY_SECRETS = frozenset(
    {
        "-ldflags",
        "-gcflags",
        "-asmflags",
        "-gccgoflags",
        "CGO_CFLAGS",
        "CGO_CPPFLAGS",
        "CGO_CXXFLAGS",
        "CGO_FFLAGS",
        "CGO_LDFLAGS",
    }
)


def read_go_build_info(read: ReadAt, size: int | None) -> GoBuildInfo | None:
    """
    The build information that the Go linker put into the ELF file behind `read`, None where there is none.

    Both layouts are read: strings inline (Go 1.18 and later) and pointers to strings (Go 1.13 to 1.17). It is
    looked for in section .go.buildinfo, else in the first MiB of the first writable segment.

    Raises NotElf, BrokenElf; passes on what `read` raises.
    """
    source = _Source(read, size)
    header = parse_elf_header(source.at(0, ELF_HEADER_BYTES))
    loads: list[ProgramHeader] = []
    for segment in _segments(source, header):
        if segment.segment_type == PT_LOAD and segment.filesz and len(loads) < _MAX_LOADS:
            loads.append(segment)
    blob_at = _find_go_blob(source, header, loads)
    return None if blob_at is None else _read_go_blob(source, loads, blob_at)


def read_go_blob(read: ReadAt, size: int | None, loads: list[ProgramHeader], blob_at: int) -> GoBuildInfo | None:
    """
    As `read_go_build_info`, from the blob at a known offset, in a file of any format; None where none is there.

    `loads` says which address each part of the file has; only the layout before Go 1.18 needs it.
    """
    return _read_go_blob(_Source(read, size), loads, blob_at)


def _read_go_blob(source: _Source, loads: list[ProgramHeader], blob_at: int) -> GoBuildInfo | None:
    blob = source.at(blob_at, _GO_HEADER_BYTES)
    if len(blob) < _GO_HEADER_BYTES or not blob.startswith(_GO_MAGIC):
        return None
    if blob[15] & _GO_INLINE:
        version, next_at = _read_go_inline(source, blob_at + _GO_HEADER_BYTES)
        modules, _ = _read_go_inline(source, next_at)
    else:
        version, modules = _read_go_pointed(source, loads, blob)
    if not version:
        return None
    # 16 bytes of sentinel stand on both sides of the text (modload's infoStart and infoEnd).
    text = modules[16:-16] if len(modules) >= 33 and modules[-17:-16] == b"\n" else b""
    return _parse_go_modules(_text(version), _text(text))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def _find_go_blob(source: _Source, header: ElfHeader, loads: list[ProgramHeader]) -> int | None:
    """The file offset of the magic."""
    names = _section_names(source, header)
    places = [
        (section.offset, section.size, 0)
        for section in _sections(source, header)
        if section.section_type != SHT_NOBITS and _has_name(section, names, b".go.buildinfo")
    ][:1]
    data_segment = next((load for load in loads if load.flags & (PF_W | PF_X) == PF_W), None)
    if data_segment is not None:
        places.append((data_segment.offset, data_segment.filesz, data_segment.vaddr))
    for offset, length, address in places:
        data = source.at(offset, min(length, _GO_SEARCH_BYTES))
        found = data.find(_GO_MAGIC)
        while found >= 0:
            if (address + found) % _GO_ALIGN == 0:
                return offset + found
            found = data.find(_GO_MAGIC, found + 1)
    return None


def _read_go_inline(source: _Source, offset: int) -> tuple[bytes, int]:
    """A string behind its varint length, and the offset after it; b"" when it is cut or too long."""
    length = 0
    for index, byte in enumerate(source.at(offset, 10)):
        length |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            text_at = offset + index + 1
            text = source.at(text_at, length) if length <= _MAX_GO_TEXT_BYTES else b""
            return (text if len(text) == length else b""), text_at + length
    return b"", offset


def _read_go_pointed(source: _Source, loads: list[ProgramHeader], blob: bytes) -> tuple[bytes, bytes]:
    """The two strings of the pointer layout: each pointer leads to a Go string header (address, length)."""
    pointer_bytes = blob[14]
    if pointer_bytes not in (4, 8):
        return b"", b""
    order = ">" if blob[15] & _GO_BIG_ENDIAN else "<"
    pair = struct.Struct(order + ("QQ" if pointer_bytes == 8 else "II"))

    def string_at(address: int) -> bytes:
        string_header = _read_address(source, loads, address, pair.size)
        if len(string_header) < pair.size:
            return b""
        text_address, length = pair.unpack(string_header)
        if length > _MAX_GO_TEXT_BYTES:
            return b""
        text = _read_address(source, loads, text_address, length)
        return text if len(text) == length else b""

    version_address, modules_address = pair.unpack_from(blob, 16)
    return string_at(version_address), string_at(modules_address)


def _read_address(source: _Source, loads: list[ProgramHeader], address: int, length: int) -> bytes:
    for load in loads:
        if load.vaddr <= address < load.vaddr + load.filesz:
            skip = address - load.vaddr
            return source.at(load.offset + skip, min(length, load.filesz - skip))
    return b""


def _parse_go_modules(version: str, text: str) -> GoBuildInfo:
    """The tab-separated lines of Go's module text: path, mod, dep, => (replaces the one before), build."""
    path = ""
    main: GoModule | None = None
    deps: list[GoModule] = []
    settings: dict[str, str] = {}
    deps_lost = 0
    last = ""
    for line in text.split("\n"):
        kind, _, rest = line.partition("\t")
        columns = rest.split("\t")
        if kind == "path":
            path = rest
        elif kind == "mod":
            main = _go_module(columns)
        elif kind == "dep":
            if len(deps) < _MAX_GO_DEPS:
                deps.append(_go_module(columns))
            else:
                deps_lost += 1
        elif kind == "=>":
            if last == "mod" and main is not None:
                main = GoModule(main.path, main.version, main.sum, _go_module(columns))
            elif last == "dep" and deps and not deps_lost:
                deps[-1] = GoModule(deps[-1].path, deps[-1].version, deps[-1].sum, _go_module(columns))
        elif kind == "build" and len(settings) < _MAX_GO_SETTINGS:
            setting = _GO_SETTING.fullmatch(rest)
            if setting is not None:
                key, value = _go_unquote(setting[1]), _go_unquote(setting[2])
                settings[key] = _WITHHELD if value and key in _FLAGS_THAT_MAY_CARRY_SECRETS else value
        last = kind
    return GoBuildInfo(version, path, main, tuple(deps), settings, deps_lost)


def _go_module(columns: list[str]) -> GoModule:
    path, version, checksum = (*columns, "", "", "")[:3]
    return GoModule(path, version, checksum)


# A key or value with a blank, "=" or quote in it is written by strconv.Quote.
_GO_SETTING = re.compile(r'("(?:[^"\\]|\\.)*"|[^="]*)=(.*)', re.DOTALL)
_GO_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))", re.DOTALL)
_GO_ESCAPE_LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _go_unquote(text: str) -> str:
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text

    def unescape(escape: re.Match[str]) -> str:
        code = escape[1] or escape[2] or escape[3]
        if code is None:
            return _GO_ESCAPE_LETTERS.get(escape[4], escape[4])
        return chr(int(code, 16)) if int(code, 16) < 0x110000 else "\ufffd"

    return _GO_ESCAPE.sub(unescape, text[1:-1])
