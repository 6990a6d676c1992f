"""
CodeView records: how an executable, and a dump that lists it, name the debug file it was linked with.

    RSDS   GUID and age: a PDB; breakpad on Linux and macOS puts other identities into the same fields
    NB10   32-bit signature and age: a PDB of Visual C++ 6 and older
    BpEL   a GNU build ID of any length, in minidumps of ELF systems (breakpad, crashpad, lldb)

GUIDs are stored with their first three fields little-endian and written here as tools print them, without
dashes and braces. Ages are hexadecimal, as in symbol store keys.

Sources: Microsoft PE format (debug directory), minidumpapiset.h, breakpad minidump_format.h.
"""

from __future__ import annotations

import struct
import uuid
from dataclasses import dataclass
from enum import Enum

from pmforensics.errors import FormatError
from pmforensics.model.image import IdKind, ImageId

MAX_RECORD_BYTES = 24 + 32768 * 3  # a path may have 32,767 UTF-16 units, each at most 3 bytes of UTF-8

GUID_BYTES = 16
_MAX_BUILD_ID_BYTES = 64
_LEAST_STRONG_ID_BYTES = 8  # lld's fast hash has 8; 4 is a CRC of the file, which lldb puts in place of an ID
_NAME_AT_LEAST = {b"RSDS": 24, b"NB10": 16}


class BrokenCodeView(FormatError):
    """A CodeView record that is cut, or of a kind that names no debug file."""

    code = "broken-codeview"


class CodeViewForm(Enum):
    """Which record it is; the value is its signature as stored."""

    RSDS = b"RSDS"
    NB10 = b"NB10"
    ELF = b"LEpB"  # the number 0x4270454c, "BpEL", little-endian


@dataclass(frozen=True, slots=True)
class CodeViewRecord:
    """
    One record as stored.

    identity   the GUID (16 bytes), the signature (4 bytes) or the build ID (1 to 64 bytes), in file order
    age        0 for ELF
    name       path of the debug file in the linker's words; "" where the record has none; never opened
    """

    form: CodeViewForm
    identity: bytes
    age: int
    name: str

    @property
    def id(self) -> ImageId:
        """The identity that the record's own form states."""
        if self.form is CodeViewForm.RSDS:
            return pdb_id(self.identity, self.age)
        if self.form is CodeViewForm.NB10:
            return pdb20_id(int.from_bytes(self.identity, "little"), self.age)
        return gnu_id(self.identity)


def parse_codeview(data: bytes) -> CodeViewRecord:
    """The record that fills `data`. Raises BrokenCodeView."""
    signature = data[:4]
    if signature == CodeViewForm.ELF.value:
        build_id = data[4:]
        if not 1 <= len(build_id) <= _MAX_BUILD_ID_BYTES:
            raise BrokenCodeView(f"A build ID record holds {len(build_id)} bytes; a build ID has 1 to 64.")
        return CodeViewRecord(CodeViewForm.ELF, build_id, 0, "")
    least = _NAME_AT_LEAST.get(signature)
    if least is None:
        raise BrokenCodeView(f"A CodeView record begins with {signature!r}, which names no debug file.")
    if len(data) < least:
        raise BrokenCodeView(f"A CodeView record has {len(data)} bytes and needs {least}.")
    # Before the name: RSDS has GUID and age, NB10 has an offset that is always 0, signature and age.
    identity = data[4:20] if signature == b"RSDS" else data[8:12]
    (age,) = struct.unpack_from("<I", data, least - 4)
    name = data[least:].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    return CodeViewRecord(CodeViewForm(signature), identity, age, name)


def guid_text(guid: bytes) -> str:
    """32 lowercase hex digits of a GUID of 16 bytes as stored in a file."""
    return uuid.UUID(bytes_le=guid).hex


def _zeros(identity: bytes) -> str:
    return "" if any(identity) else "all zeros: no identity"


def pdb_id(guid: bytes, age: int) -> ImageId:
    """GUID as stored, and the age that the image knows."""
    return ImageId(IdKind.PDB, f"{guid_text(guid)}-{age:x}", _zeros(guid))


def portable_pdb_id(guid: bytes, stamp: int) -> ImageId:
    """GUID as stored, and the 32-bit stamp that follows it in the PDB."""
    return ImageId(IdKind.PORTABLE_PDB, f"{guid_text(guid)}-{stamp:08x}", _zeros(guid))


def pdb20_id(signature: int, age: int) -> ImageId:
    """The 32-bit signature, which is the time of linking, and the age."""
    return ImageId(IdKind.PDB20, f"{signature:08x}-{age:x}", "" if signature else "all zeros: no identity")


def code_id(time_date_stamp: int, size_of_image: int) -> ImageId:
    """What symbol servers file an executable under."""
    weak = "" if time_date_stamp else "the time stamp is 0"
    return ImageId(IdKind.CODE, f"{time_date_stamp:08x}-{size_of_image:x}", weak)


def uuid_id(uuid_bytes: bytes) -> ImageId:
    """A Mach-O UUID of 16 bytes in the order of LC_UUID."""
    return ImageId(IdKind.UUID, uuid_bytes.hex(), _zeros(uuid_bytes))


def gnu_id(build_id: bytes) -> ImageId:
    """A GNU build ID as stored in its note."""
    weak = _zeros(build_id)
    if not weak and len(build_id) < _LEAST_STRONG_ID_BYTES:
        weak = f"only {len(build_id)} bytes, too few for a build ID"
    return ImageId(IdKind.GNU, build_id.hex(), weak)


def unpadded(build_id: bytes) -> bytes:
    """
    A build ID out of a field of 16 bytes, without the zeros that fill the field behind a shorter one.

    Only 4 zero bytes or more count as filling: a hash ends in as many once in four thousand million times.
    """
    stripped = build_id.rstrip(b"\0")
    return stripped if stripped and len(build_id) - len(stripped) >= 4 else build_id
