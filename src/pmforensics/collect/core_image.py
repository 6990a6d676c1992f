"""
The bytes of an ELF core: headers and notes from what is known, room for memory in any order.

Program headers stand in the order of addresses, as readers expect; the contents stand in the order of importance,
so that a core that is cut short keeps what tells most. Sources: core(5), elf(5), the System V gABI (extended
numbering of program headers), <sys/procfs.h>, and the notes as the kernel's binfmt_elf.c orders them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pmforensics.collect.freeze import NT_PRFPREG, NT_PRSTATUS, SIGINFO_BYTES, FrozenThread, Machine
from pmforensics.collect.target_memory import ProcessNotes
from pmforensics.formats.elf import ET_CORE, PN_XNUM, PT_LOAD, PT_NOTE
from pmforensics.formats.proc import Mapping
from pmforensics.model.process import Target

NT_PRPSINFO, NT_AUXV = 3, 6
NT_SIGINFO, NT_FILE = 0x53494749, 0x46494C45
PF_R, PF_W, PF_X = 4, 2, 1
CORE_OWNER, LINUX_OWNER = b"CORE", b"LINUX"

_HEADER = struct.Struct("=16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("=IIQQQQQQ")
_SECTION_HEADER = struct.Struct("=IIQQQQIIQQ")
_PRSTATUS_HEAD = struct.Struct("=iiihxxQQiiii64x")  # siginfo, cursig, pending, held, pid, ppid, pgrp, sid, 4 times
_PRPSINFO = struct.Struct("=4b4xQIIiiii16s80s")
_STATES = "RSDTZ"  # pr_state counts in this order
_COMM_CHARS, _ARGS_CHARS = 15, 79


@dataclass(frozen=True, slots=True)
class Segment:
    """
    A stretch of the target's memory.

    perms              as in /proc/PID/maps
    held               its bytes go into the core; otherwise only the place is recorded
    rank               bytes of a lower rank stand earlier in the file
    untouched_is_zero  private and of no file: a page that was never touched need not be read
    """

    start: int
    end: int
    perms: str
    held: bool
    rank: int = 0
    untouched_is_zero: bool = False

    @property
    def bytes(self) -> int:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class CoreImage:
    """
    Where everything stands in the file.

    head         everything before the contents, padded to a page
    contents     the segments held, in file order
    file_bytes   size of the whole core
    """

    head: bytes
    contents: tuple[Segment, ...]
    file_bytes: int


def lay_out(machine: Machine, segments: Sequence[Segment], notes: bytes, page_bytes: int) -> CoreImage:
    """
    Assign file offsets. `segments` are by address and do not overlap.

    A segment that directly follows another one in memory should not precede it in the file, unless nobody looks for
    ELF headers or loaded objects in the former one: see the note on elfutils below.
    """
    count = len(segments) + 1
    extended = count >= PN_XNUM
    tables_bytes = _HEADER.size + count * _PROGRAM_HEADER.size + (_SECTION_HEADER.size if extended else 0)
    notes_at = tables_bytes
    contents_at = offset = -(-(notes_at + len(notes)) // page_bytes) * page_bytes
    contents = sorted((segment for segment in segments if segment.held), key=lambda segment: segment.rank)
    offsets: dict[int, int] = {}
    for segment in contents:
        offsets[segment.start] = offset
        offset += segment.bytes
    shoff = tables_bytes - _SECTION_HEADER.size if extended else 0
    ident = b"\x7fELF" + bytes((2, 1, 1, 0)) + bytes(8)
    parts = [
        _HEADER.pack(
            ident, ET_CORE, machine.e_machine, 1, 0, _HEADER.size, shoff, 0, _HEADER.size, _PROGRAM_HEADER.size,
            min(count, PN_XNUM), _SECTION_HEADER.size if extended else 0, int(extended), 0,
        ),
        _PROGRAM_HEADER.pack(PT_NOTE, 0, notes_at, 0, 0, len(notes), 0, 4),
    ]  # fmt: skip
    for segment in segments:
        held_bytes = segment.bytes if segment.held else 0
        # elfutils reads on from one segment into the next unless the next one's offset shows that something lies
        # between; an empty segment that points back into the file makes it lose the modules (0.188, core-file.c).
        at = offsets.get(segment.start, offset)
        parts.append(
            _PROGRAM_HEADER.pack(
                PT_LOAD, _flags(segment.perms), at, segment.start, 0, held_bytes, segment.bytes, page_bytes
            )
        )
    if extended:
        parts.append(_SECTION_HEADER.pack(0, 0, 0, 0, 0, 1, 0, count, 0, 0))
    parts.append(notes)
    head = b"".join(parts)
    return CoreImage(head.ljust(contents_at, b"\0"), tuple(contents), offset)


def _flags(perms: str) -> int:
    return PF_R * ("r" in perms) | PF_W * ("w" in perms) | PF_X * ("x" in perms)


# -- notes -----------------------------------------------------------------------------------------------------------


def pack_notes(
    target: Target,
    process: ProcessNotes,
    threads: Sequence[FrozenThread],
    mappings: Sequence[Mapping],
    page_bytes: int,
) -> bytes:
    """All notes in the kernel's order: the first thread, the process, the other threads."""
    parts: list[bytes] = []
    for index, thread in enumerate(threads):
        parts.append(_note(CORE_OWNER, NT_PRSTATUS, _prstatus(thread, process)))
        if index == 0:
            parts.append(_note(CORE_OWNER, NT_PRPSINFO, _prpsinfo(target, process)))
            parts.append(_note(CORE_OWNER, NT_AUXV, process.auxv))
            parts.append(_note(CORE_OWNER, NT_FILE, _files(mappings, page_bytes)))
        if thread.siginfo:
            parts.append(_note(CORE_OWNER, NT_SIGINFO, thread.siginfo[:SIGINFO_BYTES]))
        for kind, content in thread.regsets:
            parts.append(_note(CORE_OWNER if kind == NT_PRFPREG else LINUX_OWNER, kind, content))
    return b"".join(parts)


def _note(owner: bytes, kind: int, content: bytes) -> bytes:
    name = owner + b"\0"
    return b"".join(_padded(part) for part in (struct.pack("=III", len(name), len(content), kind), name, content))


def _padded(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


def _prstatus(thread: FrozenThread, process: ProcessNotes) -> bytes:
    """struct elf_prstatus. CPU times stay zero, as in gdb's cores; the thread's stat file has them."""
    ppid, pgrp, sid = (_number(process.stat, index) for index in (1, 2, 3))
    has_fp = any(kind == NT_PRFPREG for kind, _ in thread.regsets)
    head = _PRSTATUS_HEAD.pack(thread.signal, 0, 0, thread.signal, 0, thread.blocked, thread.tid, ppid, pgrp, sid)
    return head + thread.registers + struct.pack("=i4x", has_fp)


def _prpsinfo(target: Target, process: ProcessNotes) -> bytes:
    """struct elf_prpsinfo; the arguments come redacted from `target`."""
    state = process.stat[0] if process.stat else "?"
    ppid, pgrp, sid = (_number(process.stat, index) for index in (1, 2, 3))
    return _PRPSINFO.pack(
        max(_STATES.find(state), 0),
        ord(state[:1] or "?") & 0x7F,
        state == "Z",
        max(-128, min(127, _number(process.stat, 16))),
        _number(process.stat, 6),
        target.uid & 0xFFFFFFFF,
        target.gid & 0xFFFFFFFF,
        target.pid,
        ppid,
        pgrp,
        sid,
        target.comm.encode("utf-8", "replace")[:_COMM_CHARS],
        " ".join(target.argv).encode("utf-8", "replace")[:_ARGS_CHARS],
    )


def _number(fields: Sequence[str], index: int) -> int:
    try:
        return int(fields[index])
    except (IndexError, ValueError):
        return 0


def _files(mappings: Sequence[Mapping], page_bytes: int) -> bytes:
    """NT_FILE: which file is mapped where. Offsets count pages; a deleted file is named as the kernel names it."""
    files = [mapping for mapping in mappings if mapping.inode]
    table = [struct.pack("=QQ", len(files), page_bytes)]
    table += (struct.pack("=QQQ", file.start, file.end, file.offset // page_bytes) for file in files)
    return b"".join((*table, *_file_names(files)))


def _file_names(files: Sequence[Mapping]) -> Iterator[bytes]:
    for file in files:
        name = file.path + (" (deleted)" if file.deleted else "")
        yield name.encode("utf-8", "surrogateescape").replace(b"\0", b"") + b"\0"
