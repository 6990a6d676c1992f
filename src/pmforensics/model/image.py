"""
Executables and libraries, as dumps and files name them, and what can be proven of them.

An image has identities: a GNU build ID, a Go build ID, a Mach-O UUID, a PDB signature. A dump's identity comes from
the dump's own bytes only; a candidate's from the candidate's. Only `verify` compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class IdKind(Enum):
    """
    What kind of identity; only equal kinds are ever compared.

    GNU           note "GNU" type 3; lowercase hex of 1 to 64 bytes
    GO            note "Go" type 4; the text as it is
    UUID          Mach-O LC_UUID; 32 lowercase hex digits
    PDB           CodeView RSDS: GUID as 32 lowercase hex digits, "-", age in lowercase hex
    PORTABLE_PDB  GUID as 32 hex digits, "-", the 32-bit stamp as 8 hex digits
    PDB20         CodeView NB10: signature as 8 hex digits, "-", age in hex
    CODE          PE: TimeDateStamp as 8 hex digits, "-", SizeOfImage in hex (weaker: proves little alone)
    """

    GNU = "gnu"
    GO = "go"
    UUID = "uuid"
    PDB = "pdb"
    PORTABLE_PDB = "portable-pdb"
    PDB20 = "pdb20"
    CODE = "code"


@dataclass(frozen=True, slots=True)
class ImageId:
    """
    One identity. `weak` says why it proves nothing by itself ("" when it does): zeros, the word "id", a text hash,
    "redacted", fewer than 8 bytes.
    """

    kind: IdKind
    value: str
    weak: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """
    Where in the dump an identity was read: file offset, and the rule that led there.

    rule   "nt-file", "segment-sniff", "at-phdr", "link-map", "vdso", "relro-copy", "codeview", "lc-uuid", ...
    """

    id: ImageId
    offset: int
    rule: str


class Unread(Enum):
    """Why a dump does not hold the identity of an image."""

    NO_ID = "no-id"  # the image's headers are there and hold none
    NOT_DUMPED = "page-not-dumped"
    TRUNCATED = "truncated"
    FILTERED = "filtered"  # coredump_filter left the header pages out
    BROKEN = "broken"  # the bytes are there and make no sense


@dataclass(frozen=True, slots=True)
class Mapped:
    """One mapping of an image: half-open address range, offset in the file, and where its bytes lie in the dump."""

    start: int
    end: int
    file_offset: int
    flags: str = ""
    dump_offset: int = 0
    dumped_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DumpImage:
    """
    One image as the dump knows it.

    name       path or name in the dump's own words; never opened
    base       load bias for ELF, image base otherwise; None when it cannot be known
    readings   every identity that was found, by every rule that found it
    unread     why there is none, when there is none
    is_main    the executable
    is_vdso    provided by the kernel: its lack of an identity is no mismatch
    says       version, package note, VCS revision ... where the dump holds them
    """

    name: str
    base: int | None
    readings: tuple[Reading, ...] = ()
    unread: Unread | None = None
    mapped: tuple[Mapped, ...] = ()
    is_main: bool = False
    is_vdso: bool = False
    machine: str = ""
    says: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DumpImages:
    """
    All images of a dump, and what stands between them and completeness.

    format           "elf-core", "minidump", "macho-core", "ips", "crash", ...
    declared_bytes   where the dump says that it ends; None when it does not say
    actual_bytes     where it ends
    lost             sentences: what could not be read and why (truncated, filtered, NT_FILE absent, ...)
    conflicts        sentences: where two rules disagree
    facts            auxiliary values that verification uses: at_entry, at_phnum, at_phdr, filter ...
    """

    format: str
    images: tuple[DumpImage, ...]
    actual_bytes: int
    declared_bytes: int | None = None
    lost: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    facts: dict[str, int | str] = field(default_factory=dict)
