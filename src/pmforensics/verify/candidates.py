"""
The files that somebody believes to belong to a dump: executables, libraries, debug files, dSYMs, PDBs, .sym files.

Only what is named on the command line is opened. A candidate's identity is read from its own bytes; what its name is
never decides anything but which image it was meant for.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from pmforensics.errors import CandidateUnreadable, FormatError, PmfError
from pmforensics.formats.elf import (
    ELF_HEADER_BYTES,
    ET_CORE,
    SHT_NOTE,
    ReadAt,
    iter_sections,
    parse_elf_header,
    read_elf_identity,
    read_go_build_info,
)
from pmforensics.formats.macho import MH_DSYM, MH_EXECUTE, Slice, is_macho, read_macho_slices
from pmforensics.model.image import ImageId

if TYPE_CHECKING:
    from pmforensics.formats.debuglink import DebugKind, DebugLinks
    from pmforensics.formats.pdb import PdbIdentity

MAX_FILES = 200_000
MAX_NOTES = 64  # of one section
NT_GNU_BUILD_ID = 3
MAX_TROUBLE = 10  # sentences about broken files in folders
JAR_SUFFIXES = (".jar", ".war")
DSYM_FILES = "Contents/Resources/DWARF"


class CandidateKind(Enum):
    """What a candidate is good for."""

    PROGRAM = "program"
    DEBUG_FILE = "debug file"
    DSYM = "dSYM"
    MACHO = "Mach-O"
    PE = "PE"
    PDB = "PDB"
    SYM = "breakpad symbols"
    JAR = "jar"


@dataclass(frozen=True, slots=True)
class Candidate:
    """
    One file, or one architecture of a file.

    name      what an image of it would be called
    ids       every identity that it holds
    slice     architecture, for files that hold several
    explicit  it was named itself, not found in a folder
    says      version, VCS revision, package: which build this is, in words
    meant_for the identity under which a store or a server had it; "" when nobody said
    debug     ELF: what of a program it holds
    links     ELF: where its debug information is
    pdb       PDB: both ages
    lacks     what a debugger will miss in it though it is the right build, in words
    """

    path: Path
    kind: CandidateKind
    name: str
    ids: tuple[ImageId, ...]
    slice: str = ""
    explicit: bool = True
    is_main: bool = False
    says: dict[str, str] = field(default_factory=dict)
    meant_for: str = ""
    debug: DebugKind | None = None
    links: DebugLinks | None = None
    pdb: PdbIdentity | None = None
    lacks: str = ""

    def __str__(self) -> str:
        return f"{self.path} ({self.slice})" if self.slice else str(self.path)


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A regular file, open for reading at positions."""

    fd: int
    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Up to `length` bytes; fewer only at the end."""
        if offset < 0 or length <= 0 or offset >= self.size:
            return b""
        parts = []
        while length > 0 and (part := os.pread(self.fd, min(length, 1 << 20), offset)):
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close it."""
        os.close(self.fd)


def open_regular(path: Path) -> OpenFile:
    """
    Open a file that must be a regular one.

    Errors: CandidateUnreadable with a sentence for a folder, a pipe, a device, a missing file.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise CandidateUnreadable(f"{path} cannot be opened ({error.strerror})") from None
    except ValueError as error:  # a NUL in a path that a dump names
        raise CandidateUnreadable(f"{path} cannot be opened ({error})") from None
    if stat.S_ISDIR(status.st_mode):
        raise CandidateUnreadable(f"{path} is a folder", hint="Give the file inside it.")
    if not stat.S_ISREG(status.st_mode):
        raise CandidateUnreadable(
            f"{path} is a pipe or a device", hint="Write it to a file first: identities lie all over a dump."
        )
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CandidateUnreadable(f"{path} cannot be opened ({error.strerror})") from None
    return OpenFile(fd, os.fstat(fd).st_size)


def read_candidates(paths: Sequence[Path]) -> tuple[list[Candidate], list[str]]:
    """
    All candidates behind the paths, and sentences about files in folders that could not be read.

    Errors: CandidateUnreadable for a path that was named itself and holds no identity that pmf knows how to read.
    """
    candidates: list[Candidate] = []
    trouble: list[str] = []
    for path in paths:
        if not path.is_dir():
            candidates += read_candidate(path)
            continue
        is_dsym = (path / DSYM_FILES).is_dir()  # one debug file that happens to be a folder
        for inside in _walk(path / DSYM_FILES if is_dsym else path):
            try:
                candidates += (replace(candidate, explicit=is_dsym) for candidate in read_candidate(inside))
            except PmfError as error:
                if not isinstance(error, CandidateUnreadable):
                    trouble.append(error.message)
    if len(trouble) > MAX_TROUBLE:
        trouble[MAX_TROUBLE:] = [f"{len(trouble) - MAX_TROUBLE} more files in folders could not be read"]
    return candidates, trouble


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Readers know bytes only: put the path before what they say."""
    try:
        yield
    except FormatError as error:
        error.message = f"{path}: {error.message}"
        error.args = (error.message,)
        raise


def read_candidate(path: Path) -> list[Candidate]:
    """
    The candidate in one file: one, or one per architecture.

    Errors: CandidateUnreadable (no known kind of file), FormatError (the right kind, broken).
    """
    file = open_regular(path)
    try:
        with naming(path):
            return _read(path, file)
    finally:
        file.close()


def _read(path: Path, file: OpenFile) -> list[Candidate]:
    head = file.read(0, 64)
    if head[:4] == b"\x7fELF":
        return [_elf(path, file)]
    if is_macho(head):
        return _macho(path, file)
    if head[:2] == b"MZ":
        return [_pe(path, file)]
    if head.startswith((b"Microsoft C/C++ MSF 7.00", b"Microsoft C/C++ program database 2.00", b"BSJB", b"MSCF")):
        return [_pdb(path, file)]
    if head.startswith(b"MODULE "):
        return [_sym(path, file)]
    if head[:4] == b"PK\x03\x04" and path.suffix.lower() in JAR_SUFFIXES:
        return [Candidate(path, CandidateKind.JAR, path.name, ())]
    if not head:
        raise CandidateUnreadable(f"{path} is empty", hint="Was the copy or the link interrupted? Fetch it again.")
    raise CandidateUnreadable(
        f"{path} is no executable, library, debug file, PDB, .sym file or jar that pmf can read",
        hint="Give the binary itself, unpacked.",
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Regular files under a folder; links to files outside of it too (stores are made of them), to folders not."""
    count = 0
    root = folder.resolve()
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            count += 1
            if count > MAX_FILES:
                raise CandidateUnreadable(f"{folder} holds more than {MAX_FILES:,} files", hint="Name a smaller one.")
            path = Path(parent) / name
            if path.is_symlink() and path.resolve().is_relative_to(root):
                continue  # it comes under its own name
            if path.is_file():
                yield path


def _elf(path: Path, file: OpenFile) -> Candidate:
    from pmforensics.formats.core import gnu_id, go_id
    from pmforensics.formats.debuglink import Split, read_debug_kind, read_debug_links

    identity = read_elf_identity(file.read, file.size)
    gnu = bytes.fromhex(identity.gnu_build_id) if identity.gnu_build_id is not None else None
    if identity.elf_type == ET_CORE:
        raise CandidateUnreadable(
            f"{path} is a core, not a binary", hint="The dump comes first: pmf verify CORE BINARY"
        )
    kind = read_debug_kind(file.read, file.size)
    if kind.debug_only:
        gnu = _gnu_id_in_sections(file) or gnu
    ids = [gnu_id(gnu)] if gnu is not None else []
    if identity.go_build_id is not None:
        ids.append(go_id(identity.go_build_id.encode()))
    links = read_debug_links(file.read, file.size)
    return Candidate(
        path,
        CandidateKind.DEBUG_FILE if kind.debug_only or kind.split in (Split.DWO, Split.DWP) else CandidateKind.PROGRAM,
        _name_of(path),
        tuple(ids),
        is_main=identity.interp is not None or identity.elf_type == 2 or bool(identity.go_build_id),
        says=_elf_says(identity.package_note, file.read, file.size),
        debug=kind,
        links=links,
        lacks=_lacks(kind, links),
    )


def _gnu_id_in_sections(file: OpenFile) -> bytes | None:
    """The build ID of a debug file, whose program headers are the program's and may point at anything in it."""
    from pmforensics.formats.core_memory import iter_notes

    header = parse_elf_header(file.read(0, ELF_HEADER_BYTES))
    for _, section in iter_sections(file.read, file.size, header):
        if section.section_type != SHT_NOTE:
            continue
        end = min(section.offset + section.size, file.size)
        for note in iter_notes(
            file.read, header.order, section.offset, end, section.align, limit=MAX_NOTES, window_bytes=1024
        ):
            if note.owner == b"GNU\0" and note.kind == NT_GNU_BUILD_ID and 1 <= note.content_bytes <= 64:
                return file.read(note.at, note.content_bytes)
    return None


def _lacks(kind: DebugKind, links: DebugLinks) -> str:
    from pmforensics.formats.debuglink import Split

    words = []
    if kind.stripped:
        where = f", {links.debuglink.name}," if links.debuglink else ""
        words.append(
            f"stripped: its debug file{where} has the lines"
            + (", itself some function names" if kind.mini else " and names")
        )
    elif not kind.debug_only and not kind.dwarf:
        words.append("without debug information: names, no lines")
    if kind.split is Split.SKELETON:
        words.append(f"its lines are in {len(kind.dwo_ids)} .dwo files")
    return "; ".join([*words, *kind.lost[:1]])


def _elf_says(package_note: str | None, read: ReadAt, size: int) -> dict[str, str]:
    says: dict[str, str] = {}
    if package_note:
        says["package"] = package_note[:500]
    try:
        info = read_go_build_info(read, size)
    except FormatError:
        info = None
    if info is not None:
        says["go_version"] = info.go_version
        if info.main is not None:
            says["go_module"] = f"{info.main.path} {info.main.version}".strip()
        for key, name in (("vcs.revision", "vcs_revision"), ("vcs.time", "vcs_time"), ("vcs.modified", "vcs_modified")):
            if key in info.settings:
                says[name] = info.settings[key]
    return says


def _name_of(path: Path) -> str:
    """`libx.so.1.debug` is meant for `libx.so.1`."""
    return path.name.removesuffix(".debug")


def _macho(path: Path, file: OpenFile) -> list[Candidate]:
    return [_slice(path, one) for one in read_macho_slices(file.read, file.size)]


def _slice(path: Path, one: Slice) -> Candidate:
    is_dsym = one.file_type == MH_DSYM
    return Candidate(
        path,
        CandidateKind.DSYM if is_dsym else CandidateKind.MACHO,
        path.name,
        one.ids(),
        slice=one.arch,
        is_main=one.file_type == MH_EXECUTE,
        says=one.says,
        lacks="; ".join([*(["no debug information in it"] if is_dsym and not one.has_dwarf else []), *one.lost[:1]]),
    )


def _pe(path: Path, file: OpenFile) -> Candidate:
    from pmforensics.formats.pe import read_pe_identity

    identity = read_pe_identity(file.read, file.size)
    return Candidate(path, CandidateKind.PE, path.name, tuple(identity.ids), is_main=not identity.is_dll)


def _pdb(path: Path, file: OpenFile) -> Candidate:
    from pmforensics.formats.pdb import read_pdb_identity

    identity = read_pdb_identity(file.read, file.size)
    return Candidate(path, CandidateKind.PDB, path.stem, (identity.id,), pdb=identity)


def _sym(path: Path, file: OpenFile) -> Candidate:
    from pmforensics.formats.sym import read_sym_identity

    identity = read_sym_identity(file.read, file.size)
    return Candidate(path, CandidateKind.SYM, identity.name, tuple(identity.ids), slice=identity.arch)
