"""
What build a PE file is: linker's time stamp and size, and the debug files it names.

Works over a file and, with `loaded`, over the image as it lies in memory or in a dump. An image may name several
debug files: a ReadyToRun assembly names its native ni.pdb and its Portable PDB, and only one of them is the file at
hand. All are returned, in the order of the debug directory.

Source: Microsoft PE format; PE/COFF addendum of the Portable PDB specification (entries of type CodeView with minor
version 0x504d, Embedded Portable PDB, Reproducible).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from pmforensics.errors import FormatError
from pmforensics.formats.codeview import (
    MAX_RECORD_BYTES,
    BrokenCodeView,
    CodeViewForm,
    code_id,
    parse_codeview,
    portable_pdb_id,
)
from pmforensics.formats.elf import ReadAt
from pmforensics.formats.pdb import read_pdb_identity
from pmforensics.model.image import ImageId

MACHINES = {0x014C: "x86", 0x8664: "amd64", 0xAA64: "arm64", 0x01C0: "arm", 0x01C2: "arm", 0x01C4: "arm"}

_PE32, _PE32_PLUS = 0x10B, 0x20B
_DEBUG_DIRECTORY = 6
_CODEVIEW, _REPRODUCIBLE, _EMBEDDED_PORTABLE_PDB = 2, 16, 17
_PORTABLE_MINOR_VERSION = 0x504D
_DEBUG_ENTRY = struct.Struct("<IIHHIIII")
_SECTION = struct.Struct("<8sIIII16x")
_FIXED_BYTES = {_PE32: 96, _PE32_PLUS: 112}  # the optional header before its data directories

_MAX_DEBUG_ENTRIES = 64  # linkers write at most about ten
_EMBEDDED_HEAD_BYTES = 64 << 10  # compressed bytes that are looked at; the identity stands in the first hundred
_UNPACKED_HEAD_BYTES = 64 << 10
_DLL = 0x2000


class NotPe(FormatError):
    """The bytes are not a PE image."""

    code = "not-pe"


class BrokenPe(FormatError):
    """A PE image whose headers are impossible or cut off."""

    code = "broken-pe"


@dataclass(frozen=True, slots=True)
class DebugFile:
    """
    A debug file that the image names.

    id          kind PDB, PORTABLE_PDB (the stamp is the directory entry's) or PDB20
    record      the same as a minidump copies it, without the stamp: kind PDB or PDB20; None where it is embedded
    name        its path in the linker's words; "" where there is none; never opened
    offset      where the record starts: in the file, or from the image's base where the image is loaded
    age         the record's age; in a Portable PDB's record it is a dummy
    embedded    the debug file lies inside the image
    """

    id: ImageId
    record: ImageId | None
    name: str
    offset: int
    age: int | None = None
    embedded: bool = False


@dataclass(frozen=True, slots=True)
class PeIdentity:
    """
    What a PE image says it is.

    machine          IMAGE_FILE_MACHINE
    bits             32 or 64
    linker           major and minor version
    checksum         0 where the linker wrote none
    reproducible     the time stamp is a hash of the content, not a time
    code             time stamp and size: what symbol servers file the image under
    debug_files      every one that the debug directory names, in its order
    lost             sentences: entries that could not be read
    """

    machine: int
    bits: int
    time_date_stamp: int
    size_of_image: int
    image_base: int
    checksum: int
    linker: tuple[int, int]
    is_dll: bool
    reproducible: bool
    code: ImageId
    debug_files: tuple[DebugFile, ...]
    lost: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[ImageId, ...]:
        """Every identity, the debug files' first, each as the file and as a minidump of the image would state it."""
        stated = [
            one for debug_file in self.debug_files for one in (debug_file.id, debug_file.record) if one is not None
        ]
        return (*dict.fromkeys(stated), self.code)


@dataclass(frozen=True, slots=True)
class _Section:
    rva: int
    memory_bytes: int
    file_offset: int
    file_bytes: int


class _Image:
    """`read` behind bounds, and the translation from addresses to offsets."""

    __slots__ = ("_loaded", "_read", "header_bytes", "sections", "size")

    def __init__(self, read: ReadAt, size: int, loaded: bool) -> None:
        self._read = read
        self._loaded = loaded
        self.size = size
        self.header_bytes = 0
        self.sections: list[_Section] = []

    def at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return self._read(offset, length)[:length] if offset >= 0 and length > 0 else b""

    def offset_of(self, rva: int) -> int | None:
        """Where an address relative to the image base lies; None where nothing in the file backs it."""
        if self._loaded or rva < self.header_bytes:
            return rva
        for section in self.sections:
            if section.rva <= rva < section.rva + section.file_bytes:
                return section.file_offset + rva - section.rva
        return None

    def place_of(self, rva: int, file_offset: int) -> int:
        """Where a debug record lies; its entry names both."""
        return rva if self._loaded else file_offset


def read_pe_identity(read: ReadAt, size: int, *, loaded: bool = False) -> PeIdentity:
    """
    The identity of the PE image of `size` bytes behind `read`.

    With `loaded`, offset 0 of `read` is the image's base in memory, and things are looked up by address.

    Raises NotPe, BrokenPe; passes on what `read` raises. A debug entry that makes no sense is lost, not an error.
    """
    image = _Image(read, size, loaded)
    dos = image.at(0, 64)
    if dos[:2] != b"MZ":
        raise NotPe("The bytes do not begin with the MZ of a PE image.")
    if len(dos) < 64:
        raise BrokenPe(f"The DOS header is cut after {len(dos)} bytes.")
    (pe_at,) = struct.unpack_from("<I", dos, 60)
    coff = image.at(pe_at, 24)
    if coff[:4] != b"PE\0\0":
        raise NotPe("The bytes begin with MZ and have no PE header: a DOS or 16-bit Windows program.")
    if len(coff) < 24:
        raise BrokenPe("The COFF header is cut.")
    machine, section_count, stamp, _, _, optional_bytes, characteristics = struct.unpack_from("<HHIIIHH", coff, 4)
    optional = image.at(pe_at + 24, optional_bytes)
    magic = int.from_bytes(optional[:2], "little")
    fixed_bytes = _FIXED_BYTES.get(magic)
    if fixed_bytes is None:
        raise BrokenPe(f"The optional header's magic is 0x{magic:x}, neither 0x10b (32-bit) nor 0x20b (64-bit).")
    if len(optional) < fixed_bytes:
        raise BrokenPe(f"The optional header has {len(optional)} bytes and needs {fixed_bytes}.")
    wide = magic == _PE32_PLUS
    (image_base,) = struct.unpack_from("<Q" if wide else "<I", optional, 24 if wide else 28)
    size_of_image, image.header_bytes, checksum = struct.unpack_from("<III", optional, 56)
    (directories,) = struct.unpack_from("<I", optional, fixed_bytes - 4)
    image.sections = list(_sections(image.at(pe_at + 24 + optional_bytes, section_count * _SECTION.size)))
    debug_rva, debug_bytes = 0, 0
    debug_at = fixed_bytes + 8 * _DEBUG_DIRECTORY
    if directories > _DEBUG_DIRECTORY and len(optional) >= debug_at + 8:
        debug_rva, debug_bytes = struct.unpack_from("<II", optional, debug_at)
    lost: list[str] = []
    debug_files: list[DebugFile] = []
    reproducible = False
    for entry in _debug_entries(image, debug_rva, debug_bytes, lost):
        _, entry_stamp, _, minor, kind, data_bytes, rva, file_offset = entry
        place = image.place_of(rva, file_offset)
        reproducible = reproducible or kind == _REPRODUCIBLE
        try:
            if kind == _CODEVIEW:
                portable_stamp = entry_stamp if minor == _PORTABLE_MINOR_VERSION else None
                debug_files.append(_codeview_file(image, place, data_bytes, portable_stamp))
            elif kind == _EMBEDDED_PORTABLE_PDB:
                debug_files.append(_embedded_file(image, place, data_bytes))
        except FormatError as error:
            lost.append(f"A debug entry could not be read: {error.message}")
    return PeIdentity(
        machine=machine,
        bits=64 if wide else 32,
        time_date_stamp=stamp,
        size_of_image=size_of_image,
        image_base=image_base,
        checksum=checksum,
        linker=(optional[2], optional[3]),
        is_dll=bool(characteristics & _DLL),
        reproducible=reproducible,
        code=code_id(stamp, size_of_image),
        debug_files=tuple(debug_files),
        lost=tuple(lost),
    )


def _sections(table: bytes) -> Iterator[_Section]:
    whole = table[: len(table) - len(table) % _SECTION.size]
    for _, memory_bytes, rva, file_bytes, file_offset in _SECTION.iter_unpack(whole):
        yield _Section(rva, memory_bytes, file_offset, file_bytes)


def _debug_entries(image: _Image, rva: int, length: int, lost: list[str]) -> Iterator[tuple[int, ...]]:
    count = length // _DEBUG_ENTRY.size
    if not rva or not count:
        return
    if count > _MAX_DEBUG_ENTRIES:
        lost.append(f"The debug directory has {count} entries; the first {_MAX_DEBUG_ENTRIES} were read.")
        count = _MAX_DEBUG_ENTRIES
    offset = image.offset_of(rva)
    table = b"" if offset is None else image.at(offset, count * _DEBUG_ENTRY.size)
    if len(table) < count * _DEBUG_ENTRY.size:
        lost.append("The debug directory lies outside the file.")
    yield from _DEBUG_ENTRY.iter_unpack(table[: len(table) - len(table) % _DEBUG_ENTRY.size])


def _debug_data(image: _Image, place: int, length: int) -> bytes:
    data = image.at(place, length) if place else b""  # 0: the linker left the data out of the file, or of memory
    if not data:
        raise BrokenPe("its data is not there.")
    return data


def _codeview_file(image: _Image, place: int, length: int, portable_stamp: int | None) -> DebugFile:
    """`portable_stamp` is the entry's time stamp where the entry is a Portable PDB's."""
    data = _debug_data(image, place, min(length, MAX_RECORD_BYTES))
    record = parse_codeview(data)
    if record.form is CodeViewForm.ELF:
        raise BrokenCodeView("A PE image holds the build ID record of an ELF module.")
    if portable_stamp is not None and record.form is CodeViewForm.RSDS:
        stamped = portable_pdb_id(record.identity, portable_stamp)
        return DebugFile(stamped, record.id, record.name, place, record.age)
    return DebugFile(record.id, record.id, record.name, place, record.age)


def _embedded_file(image: _Image, place: int, length: int) -> DebugFile:
    """A Portable PDB inside the image: "MPDB", its unpacked size, and a deflate stream, of which the head is read."""
    import zlib

    data = _debug_data(image, place, min(length, 8 + _EMBEDDED_HEAD_BYTES))
    if data[:4] != b"MPDB" or len(data) < 8:
        raise BrokenPe("The embedded Portable PDB has no MPDB signature.")
    try:
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[8:], _UNPACKED_HEAD_BYTES)
    except zlib.error as error:
        raise BrokenPe(f"The embedded Portable PDB cannot be unpacked: {error}.") from error
    pdb = read_pdb_identity(lambda offset, count: unpacked[offset : offset + count], len(unpacked))
    return DebugFile(pdb.id, None, "", place, embedded=True)
