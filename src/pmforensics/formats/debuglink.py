"""
What ties an ELF file to its separate debug information, and which of the two a file is.

    .gnu_debuglink      file name of the debug file, and the CRC-32 of that file's contents
    .gnu_debugaltlink   file name and build ID of the file that dwz moved shared parts to
    .dwo, .dwp          split DWARF: carry no build ID, only a 64-bit ID per compilation unit

A name proves nothing: a stripped file often bears the name that its own link gives, and a stale debug file always
does. The CRC covers the debug file as it was when the link was made; rewriting that file breaks the CRC and leaves
the build ID. So the build ID is compared first, the CRC second, and the name never.

Sections tell what a file is, and not its program headers: in a debug-only file, those are a copy of the program's.
This reads the section headers, the links and the heads of compilation units; pyelftools is not used, because it lets
errors of its own and of the interpreter out of broken input, and because all but the unit heads was here already.

Sources: GDB manual (Separate Debug Files), dwz(1), System V gABI (compressed sections), DWARF 5, GNU DebugFission.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Literal

from pmforensics.formats.core_memory import text_of
from pmforensics.formats.elf import (
    ELF_HEADER_BYTES,
    MAX_DEBUGLINK_BYTES,
    PF_X,
    PN_XNUM,
    PT_LOAD,
    SHT_NOBITS,
    SHT_NOTE,
    DebugLink,
    ElfHeader,
    ReadAt,
    SectionHeader,
    iter_program_headers,
    iter_sections,
    parse_debuglink,
    parse_elf_header,
    program_header_bytes,
    section_header_bytes,
)

CHUNK_BYTES = 1 << 20

_SHT_NULL, _SHT_SYMTAB, _SHT_DYNSYM = 0, 2, 11
_SHF_ALLOC, _SHF_EXECINSTR, _SHF_COMPRESSED = 0x2, 0x4, 0x800
_ELFCOMPRESS_ZLIB, _ELFCOMPRESS_ZSTD = 1, 2
_MAX_BUILD_ID_BYTES = 64
_MAX_UNPACKED_BYTES = 8 << 20  # of one section; the skeleton of 100,000 split units has some 6 MiB
_MAX_UNITS = 1 << 16
_MAX_SLOTS = 1 << 17  # of a .dwp's index, which is kept at most two thirds full
_MAX_SENTENCES = 32

_DW_UT_SKELETON, _DW_UT_SPLIT_COMPILE = 4, 5
_DW_AT_GNU_DWO_ID = 0x2131
_DW_FORM_ADDR, _DW_FORM_DATA8, _DW_FORM_STRING = 0x1, 0x7, 0x8
# By form: data1, data2, data4, data8, flag, ref1, ref2, ref4, ref8, flag_present, ref_sig8.
_FORM_BYTES = {0xB: 1, 0x5: 2, 0x6: 4, 0x7: 8, 0xC: 1, 0x11: 1, 0x12: 2, 0x13: 4, 0x14: 8, 0x19: 0, 0x20: 8}
_OFFSET_FORMS = frozenset({0xE, 0x10, 0x17, 0x1F20, 0x1F21})  # strp, ref_addr, sec_offset, GNU_ref_alt, GNU_strp_alt
_LEB_FORMS = frozenset({0xD, 0xF, 0x15, 0x1F01, 0x1F02})  # sdata, udata, ref_udata, GNU_addr_index, GNU_str_index
_BLOCK_LENGTH_BYTES = {0xA: 1, 0x3: 2, 0x4: 4}  # block1, block2, block4
_BLOCK_FORMS = frozenset({0x9, 0x18})  # block, exprloc
_BYTE_ORDERS: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
_MAX_DIE_BYTES = 4096
_MAX_ABBREV_BYTES = 4096  # the declaration of a unit's own entry is the first of its table, or nearly
_MAX_ATTRIBUTES = 64


@dataclass(frozen=True, slots=True)
class AltLink:
    """`.gnu_debugaltlink`: the name of dwz's shared file, and its build ID in lowercase hex."""

    name: str
    build_id: str


@dataclass(frozen=True, slots=True)
class DebugLinks:
    """What a file says of where its debug information is; `lost` has a sentence for a link that is cut."""

    debuglink: DebugLink | None
    altlink: AltLink | None
    lost: tuple[str, ...] = ()


class Split(Enum):
    """What part of split DWARF a file has."""

    NONE = "none"
    SKELETON = "skeleton"  # in the program: each unit names the .dwo with the rest
    DWO = "dwo"
    DWP = "dwp"  # many .dwo files in one


@dataclass(frozen=True, slots=True)
class DebugKind:
    """
    What of a program a file holds.

    code         instructions that can be loaded
    debug_only   nothing of it can be loaded: its symbols and debug information were split off from a program
    symtab       a symbol table with more than what dynamic linking needs
    dynsym       the symbol table for dynamic linking
    dwarf        debug information in sections of its own (`compressed`: packed)
    mini         .gnu_debugdata, a packed symbol table within a stripped program
    split        part of split DWARF
    dwo_ids      IDs of its split units, 16 hex digits each
    lost         sentences: what is cut or could not be read
    """

    code: bool
    debug_only: bool
    symtab: bool
    dynsym: bool
    dwarf: bool
    compressed: bool
    mini: bool
    split: Split
    dwo_ids: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()

    @property
    def stripped(self) -> bool:
        """A program without symbols and debug information of its own: the right build, and no help with names."""
        return not (self.debug_only or self.symtab or self.dwarf)


# ----------------------------------------------------------------------------------------------- links


def crc32_of(chunks: Iterable[bytes]) -> int:
    """The CRC that a debug link states, of a debug file's contents; as in GNU's gnu_debuglink_crc32 and zlib."""
    crc = 0
    for chunk in chunks:
        crc = zlib.crc32(chunk, crc)
    return crc


def iter_chunks(read: ReadAt, size: int) -> Iterator[bytes]:
    """The contents in order; ends early where `read` does."""
    at = 0
    while at < size and (chunk := read(at, min(CHUNK_BYTES, size - at))):
        yield chunk
        at += len(chunk)


def read_debug_links(read: ReadAt, size: int) -> DebugLinks:
    """
    The links of the ELF file behind `read`, which has `size` bytes; the first of each kind counts.

    Raises NotElf, BrokenElf; passes on what `read` raises.
    """
    header = parse_elf_header(_read_within(read, size, 0, ELF_HEADER_BYTES))
    debuglink: DebugLink | None = None
    altlink: AltLink | None = None
    lost: list[str] = []
    for name, section in iter_sections(read, size, header):
        if section.section_type == SHT_NOBITS:
            continue
        if name == ".gnu_debuglink" and debuglink is None:
            data = _read_within(read, size, section.offset, min(section.size, MAX_DEBUGLINK_BYTES))
            debuglink = parse_debuglink(data, header.order)
            if debuglink is None:
                lost.append("The section .gnu_debuglink is cut, or names no file.")
        elif name == ".gnu_debugaltlink" and altlink is None:
            data = _read_within(
                read, size, section.offset, min(section.size, MAX_DEBUGLINK_BYTES + _MAX_BUILD_ID_BYTES)
            )
            altlink = _parse_altlink(data)
            if altlink is None:
                lost.append("The section .gnu_debugaltlink is cut, or names no file.")
    return DebugLinks(debuglink, altlink, tuple(lost[:_MAX_SENTENCES]))


def _parse_altlink(data: bytes) -> AltLink | None:
    name, _, build_id = data.partition(b"\0")
    if not name or not 1 <= len(build_id) <= _MAX_BUILD_ID_BYTES:
        return None
    return AltLink(text_of(name), build_id.hex())


# ------------------------------------------------------------------------------------------------ kind


def read_debug_kind(read: ReadAt, size: int) -> DebugKind:
    """
    What the ELF file behind `read`, which has `size` bytes, holds of a program.

    Where the section headers are gone, the program headers are believed. Raises NotElf, BrokenElf; passes on what
    `read` raises.
    """
    return _Kind(read, size).finish()


class _Kind:
    """Goes through the sections once and keeps those that tell something."""

    def __init__(self, read: ReadAt, size: int) -> None:
        self._read = read
        self._size = size
        self.lost: list[str] = []
        self.header = header = parse_elf_header(_read_within(read, size, 0, ELF_HEADER_BYTES))
        self.code = self.loadable = self.symtab = self.dynsym = self.seen = False
        self.kept: dict[str, _Contents] = {}
        count = 0
        for name, section in iter_sections(read, size, header):
            if count == 0:
                self._check_table(section)
            count += 1
            if section.section_type != _SHT_NULL and section.size:
                self.seen = True
                self._take(name, section)
        if not count and header.shoff:
            self._lose("The section headers are cut off: the file is not whole.")
        if not self.seen:
            self.code = self.loadable = self._has_code_segment()

    def _lose(self, says: str) -> None:
        if len(self.lost) < _MAX_SENTENCES:
            self.lost.append(says)

    def _check_table(self, first: SectionHeader) -> None:
        count = self.header.shnum or first.size
        if self.header.shoff + count * section_header_bytes(self.header) > self._size:
            self._lose(f"The table of {count} section headers is cut: the file is not whole.")

    def _take(self, name: str, section: SectionHeader) -> None:
        if section.section_type == SHT_NOBITS:
            return  # in a debug-only file, what the program has there
        if section.offset + section.size > self._size:
            self._lose(f"The section {name or 'without a name'} ends beyond the end of the file: it is not whole.")
        if section.flags & _SHF_ALLOC and section.section_type != SHT_NOTE:
            self.loadable = True
            self.code = self.code or bool(section.flags & _SHF_EXECINSTR)
        if section.section_type == _SHT_SYMTAB:
            self.symtab = True
        elif section.section_type == _SHT_DYNSYM:
            self.dynsym = True
        if name.startswith((".debug_", ".zdebug_", ".gnu_debugdata")):
            plain_name = name.replace(".zdebug_", ".debug_")
            self.kept.setdefault(
                plain_name, _Contents(self._read, self._size, self.header, section, name != plain_name)
            )

    def _has_code_segment(self) -> bool:
        header = self.header
        entry_bytes = program_header_bytes(header)
        if header.phentsize != entry_bytes or header.phnum == PN_XNUM:
            return False
        table = _read_within(self._read, self._size, header.phoff, header.phnum * entry_bytes)
        segments = iter_program_headers(table[: len(table) - len(table) % entry_bytes], header)
        return any(one.segment_type == PT_LOAD and one.flags & PF_X and one.filesz for one in segments)

    def finish(self) -> DebugKind:
        info, split_info = self.kept.get(".debug_info"), self.kept.get(".debug_info.dwo")
        index = self.kept.get(".debug_cu_index")
        split, ids = Split.NONE, set[int]()
        if index is not None:
            split, ids = Split.DWP, self._ids(_index_ids(index))
        elif split_info is not None:
            split, ids = Split.DWO, self._ids(_unit_ids(split_info, self.kept.get(".debug_abbrev.dwo")))
        elif info is not None and ".debug_addr" in self.kept:
            # Split units need .debug_addr; without it there are none to look for.
            ids = self._ids(_unit_ids(info, self.kept.get(".debug_abbrev")))
            split = Split.SKELETON if ids else Split.NONE
        dwarf = info or split_info
        return DebugKind(
            code=self.code,
            debug_only=self.seen and not self.loadable,
            symtab=self.symtab,
            dynsym=self.dynsym,
            dwarf=dwarf is not None,
            compressed=dwarf is not None and dwarf.packed,
            mini=".gnu_debugdata" in self.kept,
            split=split,
            dwo_ids=tuple(sorted(f"{one:016x}" for one in ids)),
            lost=tuple(self.lost),
        )

    def _ids(self, found: Iterator[int | str]) -> set[int]:
        """IDs as they come; a text is a sentence on what is lost."""
        ids = set()
        for one in found:
            if isinstance(one, str):
                self._lose(one)
            else:
                ids.add(one)
        return ids


# ------------------------------------------------------------------------------------------ split units


class _Contents:
    """A section's contents, unpacked where it is packed; of a packed one, the first 8 MiB at most."""

    __slots__ = ("_read", "_section", "_size", "_unpacked", "_zdebug", "header", "packed")

    def __init__(self, read: ReadAt, size: int, header: ElfHeader, section: SectionHeader, zdebug: bool) -> None:
        self._read = read
        self._size = size
        self._section = section
        self._zdebug = zdebug
        self._unpacked: bytes | None = None
        self.header = header
        self.packed = zdebug or bool(section.flags & _SHF_COMPRESSED)

    @property
    def size(self) -> int:
        """Of what `at` can reach."""
        return (
            len(self._unpack()) if self.packed else min(self._section.size, max(self._size - self._section.offset, 0))
        )

    def at(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes from `offset` on."""
        if self.packed:
            return self._unpack()[offset : offset + length]
        return self._stored(offset, length)

    def _stored(self, offset: int, length: int) -> bytes:
        section = self._section
        return _read_within(self._read, self._size, section.offset + offset, min(length, section.size - offset))

    def _unpack(self) -> bytes:
        """What could be unpacked; b"" where it is broken or packed in a way that is not known."""
        if self._unpacked is None:
            order, wide = self.header.order, self.header.elf_class == 64
            head_bytes = 12 if self._zdebug or not wide else 24
            head = self._stored(0, head_bytes)
            kind = _ELFCOMPRESS_ZLIB if self._zdebug else int.from_bytes(head[:4], _BYTE_ORDERS[order])
            packed = self._stored(head_bytes, _MAX_UNPACKED_BYTES)
            self._unpacked = _unpacked(kind, packed)
        return self._unpacked


def _unpacked(kind: int, packed: bytes) -> bytes:
    try:
        if kind == _ELFCOMPRESS_ZLIB:
            return zlib.decompressobj().decompress(packed, _MAX_UNPACKED_BYTES)
    except zlib.error:
        return b""
    if kind != _ELFCOMPRESS_ZSTD:
        return b""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore] # new in Python 3.14
    except ImportError:
        from backports import zstd  # type: ignore[no-redef, unused-ignore] # below 3.14
    try:
        return bytes(zstd.ZstdDecompressor().decompress(packed, _MAX_UNPACKED_BYTES))
    except zstd.ZstdError:
        return b""


def _index_ids(index: _Contents) -> Iterator[int | str]:
    """The IDs in the hash table of .debug_cu_index: version, columns, units, slots; then a 64-bit ID per slot."""
    order = index.header.order
    head = index.at(0, 16)
    if len(head) < 16:
        yield "The index of split units is cut or cannot be unpacked."
        return
    units, slots = struct.unpack_from(order + "2I", head, 8)
    if slots > _MAX_SLOTS:
        yield f"The index of split units has {slots} slots: only the first {_MAX_SLOTS} were read."
        slots = _MAX_SLOTS
    table = index.at(16, slots * 8)
    if len(table) < slots * 8:
        yield f"The index of {units} split units is cut."
    yield from (one for (one,) in struct.iter_unpack(order + "Q", table[: len(table) - len(table) % 8]) if one)


def _unit_ids(info: _Contents, abbrev: _Contents | None) -> Iterator[int | str]:
    """The IDs of the split units in .debug_info or .debug_info.dwo."""
    at, end, order = 0, info.size, info.header.order
    if not end:
        yield "The debug information cannot be unpacked."
    for _ in range(_MAX_UNITS):
        if at >= end:
            return
        head = info.at(at, 32)
        is_64 = head[:4] == b"\xff\xff\xff\xff"
        length_bytes, offset_letter = (12, "Q") if is_64 else (4, "I")
        if len(head) < length_bytes + 8:
            break
        (length,) = struct.unpack_from(order + offset_letter, head, length_bytes - (8 if is_64 else 4))
        (version,) = struct.unpack_from(order + "H", head, length_bytes)
        if not 2 <= version <= 5 or (not is_64 and length >= 0xFFFFFFF0):
            break
        if version == 5:
            yield from _unit_id_5(head[length_bytes:], order, offset_letter)
        elif abbrev is not None:
            found = _unit_id_4(info, abbrev, at + length_bytes, offset_letter)
            if found is not None:
                yield found
        at += length_bytes + length
    else:
        yield f"There are more than {_MAX_UNITS} compilation units; the rest was not read."
        return
    yield f"The compilation units make no sense from byte {at} on."


def _unit_id_5(head: bytes, order: str, offset_letter: str) -> Iterator[int]:
    """Version, unit type, address size, offset of abbreviations, and for split units the ID."""
    layout = struct.Struct(order + "HBB" + offset_letter + "Q")
    if len(head) >= layout.size and head[2] in (_DW_UT_SKELETON, _DW_UT_SPLIT_COMPILE):
        yield layout.unpack_from(head)[4]


def _unit_id_4(info: _Contents, abbrev: _Contents, at: int, offset_letter: str) -> int | None:
    """Before DWARF 5 the ID is an attribute, DW_AT_GNU_dwo_id, of the unit's first entry."""
    order = info.header.order
    layout = struct.Struct(order + "H" + offset_letter + "B")
    data = info.at(at, layout.size + _MAX_DIE_BYTES)
    if len(data) <= layout.size:
        return None
    _, abbrev_at, address_bytes = layout.unpack_from(data)
    try:
        code, place = _uleb(data, layout.size)
        declarations = abbrev.at(abbrev_at, _MAX_ABBREV_BYTES)
        for attribute, form in _attributes(declarations, code):
            if attribute == _DW_AT_GNU_DWO_ID:
                return int(struct.unpack_from(order + "Q", data, place)[0]) if form == _DW_FORM_DATA8 else None
            place = _after(form, data, place, order, struct.calcsize("=" + offset_letter), address_bytes)
    except (IndexError, ValueError, struct.error):
        return None
    return None


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and the place behind it. Raises IndexError where it is cut."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _attributes(declarations: bytes, wanted: int) -> Iterator[tuple[int, int]]:
    """Attribute and form of one declaration. Raises IndexError where it is cut or not there."""
    at = 0
    while True:
        code, at = _uleb(declarations, at)
        if code == 0:
            return
        _, at = _uleb(declarations, at)
        at += 1  # whether entries of this kind have children
        for _ in range(_MAX_ATTRIBUTES):
            attribute, at = _uleb(declarations, at)
            form, at = _uleb(declarations, at)
            if attribute == form == 0:
                break
            if code == wanted:
                yield attribute, form
        if code == wanted:
            return


def _after(form: int, data: bytes, at: int, order: str, offset_bytes: int, address_bytes: int) -> int:
    """The place behind a value. Raises ValueError for forms that are not known before DWARF 5."""
    if form in _FORM_BYTES:
        return at + _FORM_BYTES[form]
    if form in _OFFSET_FORMS:
        return at + offset_bytes
    if form == _DW_FORM_ADDR:
        return at + address_bytes
    if form == _DW_FORM_STRING:
        return data.index(b"\0", at) + 1
    if form in _BLOCK_LENGTH_BYTES:
        width = _BLOCK_LENGTH_BYTES[form]
        return at + width + int.from_bytes(data[at : at + width], _BYTE_ORDERS[order])
    if form in _BLOCK_FORMS:
        length, at = _uleb(data, at)
        return at + length
    if form in _LEB_FORMS:
        return _uleb(data, at)[1]
    raise ValueError(f"form {form:#x}")


def _read_within(read: ReadAt, size: int, offset: int, length: int) -> bytes:
    """Up to `length` bytes; b"" for a place that the file does not have."""
    length = min(length, size - offset)
    return read(offset, length)[:length] if offset >= 0 and length > 0 else b""
