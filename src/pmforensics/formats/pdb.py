"""
What build a PDB is for: MSF 7.00 files of MSVC and lld, and Portable PDBs of .NET.

A PDB of MSF form has two ages. Tools that write into it after the link (pdbstr, source indexing) raise the age in the
info stream; the age in the DBI stream is the one that the image was linked with and knows. Only where there is no DBI
stream does the info stream's age count. So an image whose GUID is equal and whose age is not the DBI age is a case
of its own: PdbAgreement names it.

A Portable PDB is ECMA-335 metadata with a stream "#Pdb", which begins with a GUID and a 32-bit stamp. The age 1 in
the image's CodeView record is a dummy.

Sources: LLVM's "The PDB File Format" (MSF, PdbStream, DbiStream), Microsoft's microsoft-pdb repository, ECMA-335
II.24.2, Portable PDB v1.0 specification. GUID and age are written as `codeview` writes them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

from pmforensics.errors import FormatError
from pmforensics.formats.codeview import GUID_BYTES, guid_text, pdb20_id, pdb_id, portable_pdb_id
from pmforensics.formats.elf import ReadAt
from pmforensics.model.image import IdKind, ImageId

_MSF7_MAGIC = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0"
_MSF2_MAGIC = b"Microsoft C/C++ program database 2.00\r\n\x1aJG"
_CABINET_MAGIC = b"MSCF"
_METADATA_MAGIC = b"BSJB"

_SUPERBLOCK = struct.Struct("<32sIIIIII")
_BLOCK_BYTES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
_INFO_STREAM, _DBI_STREAM = 1, 3
_NIL_STREAM = 0xFFFFFFFF
_FIRST_VERSION_WITH_GUID = 20000404  # PdbImplVC70; before it the info stream ends after the age
_DBI_HEADER_BYTES = 64
_MACHINE_AT = 58

_MAX_METADATA_STREAMS = 32  # a Portable PDB has 6
_MAX_VERSION_BYTES = 255  # ECMA-335 II.24.2.1
_PDB_STREAM_HEAD_BYTES = 20


class NotPdb(FormatError):
    """Not a PDB, or one of a kind that pmf does not read: the message says which."""

    code = "not-pdb"


class BrokenPdb(FormatError):
    """A PDB whose contents are impossible or cut off."""

    code = "broken-pdb"


class PdbForm(Enum):
    """The container."""

    MSF = "msf-7.00"
    PORTABLE = "portable"


class PdbAgreement(Enum):
    """How the identity in an image's CodeView record stands to a PDB."""

    SAME = "same"
    INFO_AGE_ONLY = "info-age-only"  # GUID equal; the age is the info stream's, not the DBI stream's
    AGE_DIFFERS = "age-differs"  # GUID equal; the age is neither: another link of an incremental chain
    GUID_ONLY = "guid-only"  # a Portable PDB, and the record does not hold the stamp: minidumps keep GUID and age 1
    DIFFERENT = "different"
    INCOMPARABLE = "incomparable"  # one has no such identity


@dataclass(frozen=True, slots=True)
class PdbIdentity:
    """
    The identity of a PDB.

    id          kind PDB with the age that the image knows, PORTABLE_PDB, or PDB20 for an info stream without GUID
    guid        32 hex digits; "" without one
    info_age    the info stream's age; None in a Portable PDB
    dbi_age     the DBI stream's age; None where there is no such stream
    machine     IMAGE_FILE_MACHINE of the DBI stream; None where there is none
    lost        sentences: what could not be read
    """

    form: PdbForm
    id: ImageId
    guid: str
    info_age: int | None = None
    dbi_age: int | None = None
    machine: int | None = None
    lost: tuple[str, ...] = ()

    def agreement(self, record: ImageId) -> PdbAgreement:
        """How `record`, which an image or a dump names as its PDB, stands to this PDB."""
        if record.weak or self.id.weak:
            return PdbAgreement.INCOMPARABLE
        if record == self.id:
            return PdbAgreement.SAME
        if IdKind.PDB20 in (record.kind, self.id.kind):
            return PdbAgreement.DIFFERENT if record.kind is self.id.kind else PdbAgreement.INCOMPARABLE
        if record.kind not in (IdKind.PDB, IdKind.PORTABLE_PDB):
            return PdbAgreement.INCOMPARABLE
        guid, _, age = record.value.partition("-")
        if guid != self.guid:
            return PdbAgreement.DIFFERENT
        if record.kind is not self.id.kind:
            return PdbAgreement.GUID_ONLY
        if self.info_age is None:
            return PdbAgreement.DIFFERENT  # the stamp of a Portable PDB is part of its content hash
        return PdbAgreement.INFO_AGE_ONLY if int(age, 16) == self.info_age else PdbAgreement.AGE_DIFFERS


def read_pdb_identity(read: ReadAt, size: int) -> PdbIdentity:
    """
    The identity of the PDB of `size` bytes behind `read`.

    Raises NotPdb (also for a cabinet and for MSF 2.00, each with its sentence), BrokenPdb; passes on what `read`
    raises.
    """
    magic = read(0, min(size, 64))
    if magic.startswith(_MSF7_MAGIC):
        return _read_msf(read, size)
    if magic.startswith(_METADATA_MAGIC):
        return _read_portable(read, size)
    if magic.startswith(_CABINET_MAGIC):
        raise NotPdb(
            "The file is a Microsoft cabinet, as symbol stores pack PDBs; its identity cannot be read while packed.",
            hint="Unpack it first, for example with cabextract or expand.exe.",
        )
    if magic.startswith(_MSF2_MAGIC):
        raise NotPdb(
            "The file is a PDB of the old form MSF 2.00 (Visual C++ 6 and older), which pmf does not read.",
            hint="Compare by hand: such images carry an NB10 record with signature and age.",
        )
    raise NotPdb("The file begins like neither an MSF 7.00 PDB nor a Portable PDB.")


# ------------------------------------------------------------------------------------------------- MSF 7.00


class _Msf:
    """The streams of a multi-stream file. Reads the few blocks that are asked for, never the whole directory."""

    __slots__ = ("_block_bytes", "_blocks", "_directory", "_directory_bytes", "_read", "_size", "stream_count")

    _block_bytes: int
    _blocks: int
    _directory_bytes: int

    def __init__(self, read: ReadAt, size: int) -> None:
        self._read = read
        self._size = size
        head = read(0, min(size, _SUPERBLOCK.size))
        if len(head) < _SUPERBLOCK.size:
            raise BrokenPdb(f"The superblock is cut after {len(head)} bytes.")
        _, self._block_bytes, _, self._blocks, self._directory_bytes, _, map_block = _SUPERBLOCK.unpack(head)
        if self._block_bytes not in _BLOCK_BYTES:
            raise BrokenPdb(f"The block size is {self._block_bytes}, not a power of 2 from 512 to 32,768.")
        directory_blocks = -(-self._directory_bytes // self._block_bytes)
        if directory_blocks * 4 > self._block_bytes:
            raise BrokenPdb(f"The stream directory claims {self._directory_bytes} bytes, more than its map can hold.")
        table = self._block(map_block, 0, directory_blocks * 4)
        if len(table) < directory_blocks * 4:
            raise BrokenPdb("The map of the stream directory lies outside the file.")
        self._directory = struct.unpack(f"<{directory_blocks}I", table)
        self.stream_count = self._directory_number(0)

    @property
    def declared_bytes(self) -> int:
        return self._blocks * self._block_bytes

    def _block(self, index: int, start: int, length: int) -> bytes:
        """Up to `length` bytes of one block from its byte `start`; b"" outside the file."""
        offset = index * self._block_bytes + start
        length = min(length, self._block_bytes - start, self._size - offset)
        return self._read(offset, length)[:length] if length > 0 else b""

    def _directory_number(self, offset: int) -> int:
        """The 32-bit number at a byte of the stream directory. It never straddles two blocks."""
        index, start = divmod(offset, self._block_bytes)
        data = b""
        if offset + 4 <= self._directory_bytes and index < len(self._directory):
            data = self._block(self._directory[index], start, 4)
        if len(data) < 4:
            raise BrokenPdb(f"The stream directory is cut: it has no number at byte {offset}.")
        return int.from_bytes(data, "little")

    def head(self, stream: int, length: int) -> bytes:
        """
        Up to `length` bytes from the start of a stream; b"" for a stream that is not there.

        `length` is at most 512, so that the first block holds all of it.
        """
        if stream >= self.stream_count:
            return b""
        entry = 1 + self.stream_count  # the block lists follow the sizes
        for earlier in range(stream):
            entry += -(-self._stream_bytes(earlier) // self._block_bytes)
        length = min(length, self._stream_bytes(stream))
        return self._block(self._directory_number(4 * entry), 0, length) if length else b""

    def _stream_bytes(self, stream: int) -> int:
        size = self._directory_number(4 + 4 * stream)
        return 0 if size == _NIL_STREAM else size


def _read_msf(read: ReadAt, size: int) -> PdbIdentity:
    msf = _Msf(read, size)
    info = msf.head(_INFO_STREAM, 12 + GUID_BYTES)
    if len(info) < 12:
        raise BrokenPdb("The PDB has no info stream, so it has no identity.")
    version, signature, info_age = struct.unpack_from("<III", info)
    lost = []
    if msf.declared_bytes > size:
        lost.append(f"The PDB is cut: it declares {msf.declared_bytes} bytes and has {size}.")
    dbi_age, machine = None, None
    try:
        dbi = msf.head(_DBI_STREAM, _DBI_HEADER_BYTES)
        if len(dbi) == _DBI_HEADER_BYTES and dbi[:4] == b"\xff\xff\xff\xff":
            (dbi_age,) = struct.unpack_from("<I", dbi, 8)
            (machine,) = struct.unpack_from("<H", dbi, _MACHINE_AT)
        elif dbi:
            lost.append("The DBI stream has no header that could be read, so the age is the info stream's.")
    except BrokenPdb as error:
        lost.append(f"The DBI stream could not be found, so the age is the info stream's: {error.message}")
    age = info_age if dbi_age is None else dbi_age
    if version < _FIRST_VERSION_WITH_GUID:
        return PdbIdentity(
            PdbForm.MSF, pdb20_id(signature, age), "", info_age, dbi_age, machine=machine, lost=tuple(lost)
        )
    guid = info[12:]
    if len(guid) < GUID_BYTES:
        raise BrokenPdb("The info stream is cut before its GUID.")
    return PdbIdentity(
        PdbForm.MSF, pdb_id(guid, age), guid_text(guid), info_age, dbi_age, machine=machine, lost=tuple(lost)
    )


# --------------------------------------------------------------------------------------------- Portable PDB


def _read_portable(read: ReadAt, size: int) -> PdbIdentity:
    def at(offset: int, length: int) -> bytes:
        length = min(length, size - offset)
        return read(offset, length)[:length] if length > 0 else b""

    version_head = at(12, 4)
    version_bytes = int.from_bytes(version_head, "little")
    if len(version_head) < 4 or version_bytes > _MAX_VERSION_BYTES + 1:
        raise BrokenPdb(f"The metadata version claims {version_bytes} bytes; there can be 255.")
    cursor = 16 + (version_bytes + 3 & ~3)
    counts = at(cursor, 4)
    if len(counts) < 4:
        raise BrokenPdb("The metadata header is cut before its streams.")
    streams = int.from_bytes(counts[2:], "little")
    if streams > _MAX_METADATA_STREAMS:
        raise BrokenPdb(f"The metadata claims {streams} streams, more than the bound of {_MAX_METADATA_STREAMS}.")
    cursor += 4
    for _ in range(streams):
        header = at(cursor, 8 + 32)
        name, end, _ = header[8:].partition(b"\0")
        if not end:
            raise BrokenPdb("A metadata stream header is cut or has a name without an end.")
        offset, length = struct.unpack_from("<II", header)
        if name == b"#Pdb":
            identity = at(offset, min(length, _PDB_STREAM_HEAD_BYTES))
            if len(identity) < _PDB_STREAM_HEAD_BYTES:
                raise BrokenPdb("The #Pdb stream is cut before the end of its identity.")
            guid, stamp = identity[:GUID_BYTES], int.from_bytes(identity[GUID_BYTES:], "little")
            return PdbIdentity(PdbForm.PORTABLE, portable_pdb_id(guid, stamp), guid_text(guid))
        cursor += 8 + (len(name) + 4 & ~3)
    raise NotPdb("The file is .NET metadata without a #Pdb stream: an assembly's, not a PDB's.")
