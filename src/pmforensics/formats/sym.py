"""
What build a breakpad symbol file (.sym) is for.

    MODULE Linux x86_64 4C7EAA49F4870F21826BB605A4E75E6D0 libservice.so
    INFO CODE_ID 49AA7E4C87F4210F826BB605A4E75E6D3E1A70C5

The MODULE line squeezes every identity into a GUID and an age. For ELF that is the first 16 bytes of the build ID,
read as a GUID, and age 0; the whole build ID is in CODE_ID where the writer gave one. A store may hold the wrong
file under the right name: only these lines tell.

Source: breakpad docs/symbol_files.md.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from pmforensics.errors import FormatError
from pmforensics.formats.codeview import GUID_BYTES, code_id, gnu_id, pdb_id, unpadded, uuid_id
from pmforensics.model.image import IdKind, ImageId

_MAX_HEAD_BYTES = 64 << 10  # MODULE and INFO lines; real ones need a few hundred bytes
_NO_ID_WORD = "id"  # what some writers print for an identity of zeros
_MODULE_ID = re.compile(r"([0-9A-Fa-f]{32})([0-9A-Fa-f]{1,8})")
_WINDOWS_CODE_ID = re.compile(r"([0-9A-Fa-f]{8})([0-9A-Fa-f]{1,8})")
_ELF_CODE_ID = re.compile(r"(?:[0-9A-Fa-f]{2}){1,64}")
_PREFIX_WEAK = "16 bytes: the start of a build ID, or breakpad's hash of the first page of .text"


class NotSym(FormatError):
    """The bytes do not begin with a MODULE line."""

    code = "not-sym"


class BrokenSym(FormatError):
    """A MODULE line that says nothing."""

    code = "broken-sym"


@dataclass(frozen=True, slots=True)
class SymIdentity:
    """
    What the head of a symbol file says.

    os, arch, module_id, name   the MODULE line's own words
    code_id                     the text of INFO CODE_ID, "" where there is none
    ids                         comparable identities, the most telling first; for ELF a weak one has 16 bytes and
                                may be the start of a longer build ID
    conflicts                   sentences: where the two lines disagree
    """

    os: str
    arch: str
    module_id: str
    name: str
    code_id: str
    ids: tuple[ImageId, ...]
    conflicts: tuple[str, ...] = ()


def elf_id_prefix(guid_hex: str) -> bytes:
    """The first 16 bytes of the build ID that a MODULE line of an ELF system writes as a GUID."""
    return uuid.UUID(guid_hex).bytes_le


def read_sym_identity(read: Callable[[int, int], bytes], size: int) -> SymIdentity:
    """The identity of the symbol file behind `read`. Raises NotSym, BrokenSym."""
    head = read(0, min(size, _MAX_HEAD_BYTES))[:_MAX_HEAD_BYTES]
    if not head.startswith(b"MODULE "):
        raise NotSym("The file does not begin with a breakpad MODULE line.")
    lines = head.decode("utf-8", "backslashreplace").split("\n")
    words = lines[0].rstrip("\r").split(" ", 4)
    if len(words) < 5:
        raise BrokenSym(f"The MODULE line has {len(words)} of its 5 fields.")
    _, os_name, arch, module_id, name = words
    code_text = ""
    for line in lines[1:]:
        record = line.rstrip("\r").split(" ", 3)
        if record[0] != "INFO":
            break
        if record[1:2] == ["CODE_ID"] and len(record) > 2:
            code_text = record[2]
            break
    ids, conflicts = _ids(os_name.lower(), module_id, code_text)
    return SymIdentity(os_name, arch, module_id, name, code_text, ids, conflicts)


def _ids(os_name: str, module_id: str, code_text: str) -> tuple[tuple[ImageId, ...], tuple[str, ...]]:
    found = _MODULE_ID.fullmatch(module_id)
    if found is None and module_id != _NO_ID_WORD:
        raise BrokenSym(f"The MODULE line's identity {module_id[:80]!r} is not a GUID and an age in hex.")
    if os_name == "windows":
        return _windows_ids(found, code_text), ()
    if os_name in ("mac", "ios"):
        return (_no_id(IdKind.UUID) if found is None else uuid_id(bytes.fromhex(found[1])),), ()
    return _elf_ids(found, code_text)


def _no_id(kind: IdKind) -> ImageId:
    return ImageId(kind, _NO_ID_WORD, 'the word "id" stands for no identity')


def _windows_ids(found: re.Match[str] | None, code_text: str) -> tuple[ImageId, ...]:
    ids = [_no_id(IdKind.PDB) if found is None else pdb_id(uuid.UUID(found[1]).bytes_le, int(found[2], 16))]
    code = _WINDOWS_CODE_ID.fullmatch(code_text)
    if code is not None:
        ids.append(code_id(int(code[1], 16), int(code[2], 16)))
    return tuple(ids)


def _elf_ids(found: re.Match[str] | None, code_text: str) -> tuple[tuple[ImageId, ...], tuple[str, ...]]:
    build_id = bytes.fromhex(code_text) if _ELF_CODE_ID.fullmatch(code_text) else b""
    if found is None:
        return ((gnu_id(build_id),) if build_id else (_no_id(IdKind.GNU),)), ()
    prefix = elf_id_prefix(found[1])
    conflicts: tuple[str, ...] = ()
    if build_id and build_id[:GUID_BYTES].ljust(GUID_BYTES, b"\0") != prefix:
        conflicts = (f"The MODULE line stands for a build ID that begins {prefix.hex()}, CODE_ID says {code_text}.",)
    elif len(build_id) not in (0, GUID_BYTES):
        return (gnu_id(build_id),), ()
    whole = unpadded(prefix)
    if len(whole) < GUID_BYTES:  # a shorter build ID, filled up with zeros: all of it is there
        return (gnu_id(whole),), conflicts
    short = gnu_id(prefix)
    return (ImageId(short.kind, short.value, short.weak or _PREFIX_WEAK),), conflicts
