"""
What a minidump says of its images, and of the state of its threads.

A minidump is a directory of streams; the readers here take those they need and say what is missing or cut. The
writers differ more than the format shows:

    Windows, crashpad   RSDS records; the dump's first module is the executable
    Wine 8              no CodeView records at all; in a full dump a thread's stack has no place of its own
                        (rva 0) and is found in the 64-bit memory list only
    breakpad, Linux     BpEL records with the whole build ID; before 2013 RSDS with its first 16 bytes and age 0;
                        without a build ID a hash of the first page of .text in its place, 16 bytes, unmarked
    breakpad, macOS     RSDS records, age 0, with the UUID's first three fields byte-swapped
    lldb 14             BpEL records; sizes of images are not sizes, contexts end after the general registers, and
                        the directory stands last

RSDS records are read by the operating system that the dump names: on macOS and iOS as LC_UUID (their byte order
undone), on other Unixes with age 0 as the first 16 bytes of a build ID, and else as GUID and age of a PDB. Where the
dump names no system, all three are returned: only equal kinds are ever compared.

Sources: minidumpapiset.h and winnt.h (Microsoft), breakpad minidump_format.h.
"""

from __future__ import annotations

import struct
import uuid
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum

from pmforensics.errors import FormatError
from pmforensics.formats.codeview import (
    GUID_BYTES,
    MAX_RECORD_BYTES,
    CodeViewForm,
    CodeViewRecord,
    code_id,
    gnu_id,
    parse_codeview,
    unpadded,
    uuid_id,
)
from pmforensics.formats.elf import ReadAt, read_elf_identity
from pmforensics.formats.pe import MACHINES, read_pe_identity
from pmforensics.formats.proc import Mapping, parse_maps
from pmforensics.model.image import DumpImage, DumpImages, IdKind, ImageId, Mapped, Reading, Unread

_HEADER = struct.Struct("<4sIIIIIQ")
_VERSION = 0xA793  # the low half; the high half is the writer's own
_DIRECTORY_ENTRY = struct.Struct("<III")

_THREADS, _MODULES, _MEMORY, _EXCEPTION, _SYSTEM = 3, 4, 5, 6, 7
_MEMORY64, _UNLOADED, _MISC, _MEMORY_INFO, _THREAD_NAMES = 9, 14, 15, 16, 24
_LINUX_AUXV, _LINUX_MAPS = 0x47670008, 0x47670009
_UNUSED = 0

_MODULE = struct.Struct("<QIIII52sIIII16s")
_UNLOADED_MODULE = struct.Struct("<QIIII")
_THREAD = struct.Struct("<IIIIQQIIII")
_THREAD_NAME = struct.Struct("<IQ")
_MEMORY_RANGE = struct.Struct("<QII")
_MEMORY64_RANGE = struct.Struct("<QQ")
_MEMORY_INFO_ENTRY = struct.Struct("<QQIIQIIII")
_EXCEPTION_STREAM = struct.Struct("<IIIIQQII15QII")
_SYSTEM_INFO = struct.Struct("<HHHBBIIIII")
_MAX_EXCEPTION_PARAMETERS = 15

_MAX_STREAMS = 4096
_MAX_MODULES = 1 << 14
_MAX_THREADS = 1 << 16
_MAX_RANGES = 1 << 17  # a process has at most 65,530 mappings by default; full Windows dumps list thousands
_MAX_STRING_BYTES = 65534  # a Windows path has at most 32,767 UTF-16 units
_MAX_CONTEXT_BYTES = 4096  # what stands before the vector registers, with room
_MAX_MAPS_BYTES = 8 << 20
_MAX_AUXV_BYTES = 4096
_TEXT_BUDGET_BYTES = 16 << 20  # over all names and records: many entries may point at one long text
_HEADER_BUDGET_BYTES = 32 << 20  # over all image headers found in dumped memory, for the same reason
_MAX_SENTENCES = 32  # per list; a dump made to quarrel would fill memory otherwise
_MAX_HOLE_BYTES = 64 << 20  # between the two parts of a file that a writer listed as two modules
_BATCH_BYTES = 64 << 10


class NotMinidump(FormatError):
    """The bytes do not begin as a minidump does; the message says what they look like."""

    code = "not-minidump"


class BrokenMinidump(FormatError):
    """A minidump whose header or stream directory is impossible or cut off."""

    code = "broken-minidump"


class Os(Enum):
    """The operating system that the dump names."""

    WINDOWS = "windows"
    MACOS = "macos"
    IOS = "ios"
    LINUX = "linux"
    ANDROID = "android"
    OTHER = "other"
    UNKNOWN = "unknown"  # no system information in the dump


class Cpu(Enum):
    """The processor that the dump names."""

    X86 = "x86"
    AMD64 = "amd64"
    ARM = "arm"
    ARM64 = "arm64"
    OTHER = "other"
    UNKNOWN = "unknown"


class RegionKind(Enum):
    """What backs a region of memory."""

    IMAGE = "image"  # a file mapped as an executable image; told apart from FILE on Windows only
    FILE = "file"
    PRIVATE = "private"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class SystemInfo:
    """`version` is the kernel's or Windows' number as the dump spells it, `release` its text, "" where empty."""

    os: Os
    cpu: Cpu
    version: str = ""
    release: str = ""

    @property
    def pointer_bytes(self) -> int:
        """Width of an address; 8 where the processor is not known."""
        return 4 if self.cpu in (Cpu.X86, Cpu.ARM) else 8


@dataclass(frozen=True, slots=True)
class Registers:
    """
    The general registers of one thread.

    pc, sp   program counter and stack pointer
    fp       rbp, ebp or x29, which need not be a frame pointer
    values   all of them by the processor's own names, the three above included
    """

    pc: int
    sp: int
    fp: int
    values: dict[str, int]


@dataclass(frozen=True, slots=True)
class DumpThread:
    """
    One thread.

    registers                None where the dump holds no context that could be read (`MinidumpState.lost` says why)
    stack_start, stack_end   the stack memory that the dump keeps for it, half-open; both 0 where it keeps none
    name                     "" where the dump has no names
    """

    id: int
    registers: Registers | None
    stack_start: int
    stack_end: int
    suspend_count: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class DumpException:
    """
    Why the dump was written, in the words of its system.

    code        NTSTATUS on Windows; signal number on Linux; exception type on macOS; breakpad writes 0xffffffff on
                Linux when nobody crashed
    flags       on Linux the signal's si_code
    address     of the instruction (Windows, lldb) or of the access (breakpad on Linux)
    registers   at the exception; a thread's own may be those of its handler
    """

    thread_id: int
    code: int
    flags: int
    address: int
    parameters: tuple[int, ...]
    registers: Registers | None


@dataclass(frozen=True, slots=True)
class DumpedMemory:
    """Memory whose bytes are in the dump: half-open addresses, and where in the dump `start` lies."""

    start: int
    end: int
    dump_offset: int


@dataclass(frozen=True, slots=True)
class Region:
    """
    One region of the address space, dumped or not; addresses half-open.

    protection   "rwx" with "-" for what is not allowed
    guard        touching it raises an exception once (Windows)
    name         path, "[stack]" ... where the dump says (Linux); "" elsewhere
    """

    start: int
    end: int
    protection: str
    kind: RegionKind
    guard: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class UnloadedModule:
    """A module that was unloaded before the dump; its addresses may since belong to another."""

    name: str
    base: int
    size_bytes: int
    code: ImageId


@dataclass(frozen=True, slots=True)
class MinidumpState:
    """
    The threads, memory and exception of a minidump.

    memory    disjoint, by address; `read_dumped_memory` reads through it
    regions   by address; empty where the dump has no list of them
    lost      sentences: what could not be read and why
    """

    system: SystemInfo
    written_at: datetime | None
    pid: int | None
    exception: DumpException | None
    threads: tuple[DumpThread, ...]
    memory: tuple[DumpedMemory, ...]
    regions: tuple[Region, ...]
    unloaded: tuple[UnloadedModule, ...]
    lost: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


def read_minidump_images(read: ReadAt, size: int) -> DumpImages:
    """
    The images of the minidump of `size` bytes behind `read`, by address.

    Rules of the readings: "codeview-rsds", "codeview-nb10", "codeview-elf" (build ID as a whole), "codeview-rsds-elf"
    (its first 16 bytes only: at best a prefix), "codeview-rsds-mac" (UUID with its byte order undone),
    "module-list" (time stamp and size), "memory-header" (the image's own headers in dumped memory). `unread` is set
    where an image has no reading at all. `base` is where the image begins in memory: for an ELF file not linked at 0
    that is not its load bias.

    Facts: os, cpu, streams, unloaded_modules, main_rule; at_entry, at_phdr, at_phnum where the dump has an auxiliary
    vector.

    Raises NotMinidump, BrokenMinidump; passes on what `read` raises.
    """
    dump = _Dump(read, size)
    system = _system_info(dump)
    modules = list(_modules(dump))
    threads = list(_raw_threads(dump))
    memory = _memory(dump, threads)
    maps = _linux_maps(dump)
    auxv = _auxv(dump, system)
    headers = _Headers(dump, memory)
    mapped = _Layout(maps, memory)
    main_base, main_rule = _find_main(modules, auxv, maps)
    images: list[DumpImage] = []
    for module in sorted(modules, key=lambda module: module.base):
        image = _image(dump, module, system, headers, mapped)
        is_vdso = _is_vdso(image, auxv)
        image = replace(image, is_main=module.base == main_base and not is_vdso, is_vdso=is_vdso)
        if images and _is_same_file(images[-1], image):
            if images[-1].base == image.base:
                _quarrel_if_different(dump, images[-1], image)
            images[-1] = _joined(images[-1], image)
        else:
            images.append(image)
    _compare_images(dump, images)
    if _MODULES not in dump.streams:
        dump.lose("The dump has no module list.")
    elif main_base is None:
        dump.lose("The module list does not hold the executable.")
    dump.lose_if_cut()
    facts: dict[str, int | str] = {
        "os": system.os.value,
        "cpu": system.cpu.value,
        "streams": len(dump.streams),
        "unloaded_modules": sum(1 for _ in _unloaded(dump)),
        "main_rule": main_rule,
    }
    facts |= {name: auxv[key] for key, name in _AUXV_FACTS.items() if key in auxv}
    return DumpImages(
        format="minidump",
        images=tuple(images),
        actual_bytes=size,
        declared_bytes=dump.end,
        lost=tuple(dump.lost),
        conflicts=tuple(dump.conflicts),
        facts=facts,
    )


def read_minidump_state(read: ReadAt, size: int) -> MinidumpState:
    """
    Threads, exception and memory of the minidump of `size` bytes behind `read`.

    Registers are read for x86, amd64 and arm64. Raises NotMinidump, BrokenMinidump; passes on what `read` raises.
    """
    dump = _Dump(read, size)
    system = _system_info(dump)
    raw_threads = list(_raw_threads(dump))
    names = _thread_names(dump)
    memory = _memory(dump, raw_threads)
    threads = tuple(
        DumpThread(
            id=raw.id,
            registers=_context(dump, system, raw.context, f"thread {raw.id}"),
            stack_start=raw.stack_start if raw.stack_bytes else 0,
            stack_end=raw.stack_start + raw.stack_bytes if raw.stack_bytes else 0,
            suspend_count=raw.suspend_count,
            name=names.get(raw.id, ""),
        )
        for raw in raw_threads
    )
    exception = _exception(dump, system)
    maps = _linux_maps(dump)
    regions = tuple(_linux_regions(maps) if maps else sorted(_windows_regions(dump), key=lambda region: region.start))
    unloaded = tuple(_unloaded(dump))
    if _THREADS not in dump.streams:
        dump.lose("The dump has no thread list.")
    pid = _pid(dump)
    dump.lose_if_cut()
    return MinidumpState(
        system=system,
        written_at=datetime.fromtimestamp(dump.written_s, UTC) if dump.written_s else None,
        pid=pid,
        exception=exception,
        threads=threads,
        memory=memory.ranges,
        regions=regions,
        unloaded=unloaded,
        lost=tuple(dump.lost),
        conflicts=tuple(dump.conflicts),
    )


def read_dumped_memory(state: MinidumpState, read: ReadAt, address: int, length: int) -> bytes:
    """Up to `length` bytes at `address`; fewer where the dump holds no more in a row, b"" where it holds none."""
    return _read_memory(state.memory, read, address, length)


def read_stack_words(state: MinidumpState, read: ReadAt, sp: int, count: int) -> tuple[int, ...]:
    """Up to `count` words from `sp` upwards, as wide as the processor's addresses."""
    width = state.system.pointer_bytes
    data = read_dumped_memory(state, read, sp, count * width)
    return struct.unpack(f"<{len(data) // width}{'Q' if width == 8 else 'I'}", data[: len(data) // width * width])


# ------------------------------------------------------------------------------------------------- container


class _Dump:
    """`read` behind bounds, the stream directory, and what was lost on the way."""

    __slots__ = ("_read", "_text_budget_bytes", "conflicts", "end", "lost", "size", "streams", "written_s")

    def __init__(self, read: ReadAt, size: int) -> None:
        self._read = read
        self._text_budget_bytes = _TEXT_BUDGET_BYTES
        self.size = size
        self.lost: list[str] = []
        self.conflicts: list[str] = []
        self.end = _HEADER.size  # of all that the dump refers to
        self.streams: dict[int, tuple[int, int]] = {}  # kind -> (offset, length)
        self.written_s = 0
        self._read_directory()

    def _read_directory(self) -> None:
        head = self.at(0, _HEADER.size)
        if head[:4] != b"MDMP":
            raise NotMinidump(*_what_it_is(head))
        if len(head) < _HEADER.size:
            raise BrokenMinidump(f"The minidump header is cut after {len(head)} bytes.")
        _, version, count, directory_at, _, self.written_s, _ = _HEADER.unpack(head)
        if version & 0xFFFF != _VERSION:
            raise BrokenMinidump(f"The version is 0x{version & 0xFFFF:x}; minidumps have 0x{_VERSION:x}.")
        if not count or not directory_at:
            raise BrokenMinidump(
                "The header names no stream.", hint="The writer may have been stopped before it finished."
            )
        if directory_at >= self.size:
            raise BrokenMinidump(
                f"The stream directory at byte {directory_at} lies behind the end at {self.size}.",
                hint="The dump is cut, or still being written.",
            )
        if count > _MAX_STREAMS:
            raise BrokenMinidump(f"The header claims {count} streams, more than the bound of {_MAX_STREAMS}.")
        table = self.at(directory_at, count * _DIRECTORY_ENTRY.size)
        self.claim(directory_at, count * _DIRECTORY_ENTRY.size)
        for kind, length, offset in _DIRECTORY_ENTRY.iter_unpack(table[: len(table) // 12 * 12]):
            if kind == _UNUSED:
                continue
            if kind in self.streams:
                self.quarrel(f"Stream {kind} is listed twice; the first was read.")
                continue
            self.streams[kind] = (offset, length)
            self.claim(offset, length)

    def at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        return self._read(offset, length)[:length] if offset >= 0 and length > 0 else b""

    def claim(self, offset: int, length: int) -> None:
        """Remember that the dump refers to these bytes."""
        self.end = max(self.end, offset + length)

    def lose(self, sentence: str) -> None:
        if len(self.lost) < _MAX_SENTENCES and sentence not in self.lost:
            self.lost.append(sentence)

    def quarrel(self, sentence: str) -> None:
        if len(self.conflicts) < _MAX_SENTENCES:
            self.conflicts.append(sentence)

    def lose_if_cut(self) -> None:
        if self.end > self.size:
            self.lose(f"The dump is cut: it refers to bytes up to {self.end} and ends at {self.size}.")

    def text_bytes(self, offset: int, length: int) -> bytes:
        """As `at`, for names and records; b"" once the dump has made more of them than any writer does."""
        self.claim(offset, length)
        if length > self._text_budget_bytes:
            length = self._text_budget_bytes
            self.lose("The dump holds more text in names than pmf reads; the rest was left out.")
        data = self.at(offset, length)
        self._text_budget_bytes -= len(data)
        return data

    def string(self, rva: int) -> str:
        """A length in bytes, then UTF-16; "" for rva 0."""
        if not rva:
            return ""
        length = int.from_bytes(self.at(rva, 4), "little")
        self.claim(rva, 4)
        return self.text_bytes(rva + 4, min(length, _MAX_STRING_BYTES) & ~1).decode("utf-16-le", "backslashreplace")

    def stream_head(self, kind: int, length: int) -> bytes:
        """Up to `length` bytes from the start of a stream, b"" where there is none."""
        offset, stream_bytes = self.streams.get(kind, (0, 0))
        return self.at(offset, min(length, stream_bytes))

    def counted(self, kind: int, layout: struct.Struct, most: int, what: str) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of the entries of a stream that begins with a 32-bit count."""
        count = int.from_bytes(self.stream_head(kind, 4), "little")
        _, stream_bytes = self.streams.get(kind, (0, 0))
        # Some writers align the entries to 8 bytes.
        first = 8 if stream_bytes == 8 + count * layout.size else 4
        yield from self.table(kind, first, count, layout.size, most, what)

    def table(
        self, kind: int, first: int, count: int, entry_bytes: int, most: int, what: str
    ) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of `count` entries from byte `first` of a stream: those that are there, `most` at most."""
        offset, stream_bytes = self.streams.get(kind, (0, 0))
        room = max(0, min(stream_bytes, self.size - offset) - first) // entry_bytes
        if count > room:
            self.lose(f"The list of {what} claims {count} entries and has room for {room}.")
        if min(count, room) > most:
            self.lose(f"The list of {what} has {count} entries; the first {most} were read.")
        kept = min(count, room, most)
        batch = max(1, _BATCH_BYTES // entry_bytes)
        for start in range(0, kept, batch):
            at = offset + first + start * entry_bytes
            data = self.at(at, min(batch, kept - start) * entry_bytes)
            for skip in range(0, len(data) - entry_bytes + 1, entry_bytes):
                yield at + skip, data[skip : skip + entry_bytes]


def _what_it_is(head: bytes) -> tuple[str]:
    if head[:4] == b"PMDM":
        return ("The file is a big-endian minidump, which pmf does not read.",)
    if head[:8] in (b"PAGEDUMP", b"PAGEDU64"):
        return ("The file is a crash dump of the Windows kernel, not a minidump of a process.",)
    if head and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return ("The file is text, not a minidump.",)
    return ("The file does not begin with MDMP, as a minidump does.",)


_SYSTEMS = {0: Os.WINDOWS, 1: Os.WINDOWS, 2: Os.WINDOWS, 3: Os.WINDOWS, 0x8101: Os.MACOS, 0x8102: Os.IOS}
_SYSTEMS |= {0x8201: Os.LINUX, 0x8203: Os.ANDROID}
# 10 is a 32-bit process on 64-bit Windows; 0x8003 is what breakpad used before Windows had a number for arm64.
_PROCESSORS = {0: Cpu.X86, 10: Cpu.X86, 9: Cpu.AMD64, 5: Cpu.ARM, 12: Cpu.ARM64, 0x8003: Cpu.ARM64}


def _system_info(dump: _Dump) -> SystemInfo:
    head = dump.stream_head(_SYSTEM, _SYSTEM_INFO.size)
    if len(head) < _SYSTEM_INFO.size:
        dump.lose("The dump does not name its operating system and processor.")
        return SystemInfo(Os.UNKNOWN, Cpu.UNKNOWN)
    processor, _, _, _, _, major, minor, build, platform, release_rva = _SYSTEM_INFO.unpack(head)
    return SystemInfo(
        _SYSTEMS.get(platform, Os.OTHER),
        _PROCESSORS.get(processor, Cpu.OTHER),
        f"{major}.{minor}.{build}",
        dump.string(release_rva).rstrip("\0"),
    )


def _pid(dump: _Dump) -> int | None:
    head = dump.stream_head(_MISC, 12)
    if len(head) < 12:
        return None
    _, flags, pid = struct.unpack("<III", head)
    return pid if flags & 1 else None


# ---------------------------------------------------------------------------------------------------- memory


class _Memory:
    """The dumped memory; overlapping ranges are trimmed so that each address has one place."""

    __slots__ = ("ranges", "starts")

    def __init__(self, ranges: Iterable[DumpedMemory]) -> None:
        disjoint: list[DumpedMemory] = []
        end = 0
        for one in sorted(ranges, key=lambda one: (one.start, -one.end)):
            if one.start < end:
                skip = end - one.start
                one = DumpedMemory(end, one.end, one.dump_offset + skip)
            if one.start < one.end:
                disjoint.append(one)
                end = one.end
        self.ranges = tuple(disjoint)

    def read(self, read: ReadAt, address: int, length: int) -> bytes:
        return _read_memory(self.ranges, read, address, length)

    def place(self, address: int) -> tuple[int, int]:
        """(offset in the dump, bytes from there to the end of the range); (0, 0) where it is not dumped."""
        index = bisect_right(self.ranges, address, key=_start) - 1
        if index < 0 or address >= self.ranges[index].end:
            return 0, 0
        one = self.ranges[index]
        return one.dump_offset + address - one.start, one.end - address


def _start(one: DumpedMemory) -> int:
    return one.start


def _read_memory(ranges: tuple[DumpedMemory, ...], read: ReadAt, address: int, length: int) -> bytes:
    out = bytearray()
    index = bisect_right(ranges, address, key=_start) - 1
    while 0 <= index < len(ranges) and len(out) < length and ranges[index].start <= address < ranges[index].end:
        one = ranges[index]
        wanted = min(length - len(out), one.end - address)
        data = read(one.dump_offset + address - one.start, wanted)[:wanted]
        out += data
        if len(data) < wanted:
            break
        address += wanted
        index += 1
    return bytes(out)


def _memory(dump: _Dump, threads: list[_RawThread]) -> _Memory:
    ranges: list[DumpedMemory] = []

    def add(start: int, length: int, offset: int) -> None:
        dump.claim(offset, length)
        there = min(length, dump.size - offset)
        if there > 0:
            ranges.append(DumpedMemory(start, start + there, offset))

    for _, entry in dump.counted(_MEMORY, _MEMORY_RANGE, _MAX_RANGES, "memory ranges"):
        start, length, rva = _MEMORY_RANGE.unpack(entry)
        add(start, length, rva)
    head = dump.stream_head(_MEMORY64, 16)
    if len(head) == 16:
        count, offset = struct.unpack("<QQ", head)
        for _, entry in dump.table(_MEMORY64, 16, count, _MEMORY64_RANGE.size, _MAX_RANGES, "64-bit memory ranges"):
            start, length = _MEMORY64_RANGE.unpack(entry)
            add(start, length, offset)
            offset += length
    for thread in threads:
        if thread.stack_rva:  # 0 in full dumps: the bytes are in the 64-bit list
            add(thread.stack_start, thread.stack_bytes, thread.stack_rva)
    return _Memory(ranges)


_PROTECTIONS = {1: "---", 2: "r--", 4: "rw-", 8: "rw-", 0x10: "--x", 0x20: "r-x", 0x40: "rwx", 0x80: "rwx"}
_GUARD = 0x100
_FREE = 0x10000
_RESERVED = 0x2000
_KINDS = {0x1000000: RegionKind.IMAGE, 0x40000: RegionKind.FILE, 0x20000: RegionKind.PRIVATE}


def _windows_regions(dump: _Dump) -> Iterator[Region]:
    """MemoryInfoList, which also breakpad's successor writes on Linux."""
    head = dump.stream_head(_MEMORY_INFO, 16)
    if len(head) < 16:
        return
    header_bytes, entry_bytes, count = struct.unpack("<IIQ", head)
    if entry_bytes < _MEMORY_INFO_ENTRY.size or header_bytes < 16:
        dump.lose("The list of memory regions has entries too small to be read.")
        return
    for _, entry in dump.table(_MEMORY_INFO, header_bytes, count, entry_bytes, _MAX_RANGES, "memory regions"):
        start, _, _, _, length, state, protect, kind, _ = _MEMORY_INFO_ENTRY.unpack_from(entry)
        if state == _FREE:
            continue
        protection = "---" if state == _RESERVED else _PROTECTIONS.get(protect & 0xFF, "---")
        yield Region(
            start, start + length, protection, _KINDS.get(kind, RegionKind.UNKNOWN), guard=bool(protect & _GUARD)
        )


def _linux_maps(dump: _Dump) -> list[Mapping]:
    """/proc/PID/maps as breakpad and lldb copy it; empty where the dump has none."""
    offset, length = dump.streams.get(_LINUX_MAPS, (0, 0))
    if length > _MAX_MAPS_BYTES:
        dump.lose(f"The memory map has {length} bytes; the first {_MAX_MAPS_BYTES} were read.")
    text = dump.at(offset, min(length, _MAX_MAPS_BYTES))
    if not text:
        return []
    maps = parse_maps(text.rstrip(b"\0").decode("utf-8", "backslashreplace"))
    if maps.lost_lines:
        dump.lose(f"{maps.lost_lines} lines of the memory map could not be read.")
    return maps.mappings


def _linux_regions(maps: list[Mapping]) -> Iterator[Region]:
    for mapping in maps:
        kind = RegionKind.FILE if mapping.path.startswith("/") else RegionKind.PRIVATE
        yield Region(mapping.start, mapping.end, mapping.perms[:3], kind, name=mapping.path)


# --------------------------------------------------------------------------------------------------- threads


@dataclass(frozen=True, slots=True)
class _RawThread:
    id: int
    suspend_count: int
    stack_start: int
    stack_bytes: int
    stack_rva: int
    context: tuple[int, int]  # offset, length


def _raw_threads(dump: _Dump) -> Iterator[_RawThread]:
    for _, entry in dump.counted(_THREADS, _THREAD, _MAX_THREADS, "threads"):
        thread_id, suspended, _, _, _, start, stack_bytes, stack_rva, length, rva = _THREAD.unpack(entry)
        dump.claim(rva, length)
        yield _RawThread(thread_id, suspended, start, stack_bytes, stack_rva, (rva, length))


def _thread_names(dump: _Dump) -> dict[int, str]:
    names = {}
    for _, entry in dump.counted(_THREAD_NAMES, _THREAD_NAME, _MAX_THREADS, "thread names"):
        thread_id, rva = _THREAD_NAME.unpack(entry)
        names[thread_id] = dump.string(rva).rstrip("\0")
    return names


@dataclass(frozen=True, slots=True)
class _ContextLayout:
    """Where the registers stand in a CONTEXT. `flags_at` holds a mark of the processor: one of `marks`."""

    flags_at: int
    marks: int
    width: int
    first_at: int
    names: tuple[str, ...]
    pc: str
    sp: str
    fp: str

    @property
    def least_bytes(self) -> int:
        return self.first_at + self.width * len(self.names)


_AMD64_NAMES = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15 rip"
_X86_NAMES = "edi esi ebx edx ecx eax ebp eip cs eflags esp ss"
_CONTEXTS = {
    Cpu.AMD64: _ContextLayout(0x30, 0x100000, 8, 0x78, tuple(_AMD64_NAMES.split()), "rip", "rsp", "rbp"),
    Cpu.X86: _ContextLayout(0, 0x10000, 4, 0x9C, tuple(_X86_NAMES.split()), "eip", "esp", "ebp"),
    # 0x80000000 marks breakpad's own layout; up to the program counter it is the same.
    Cpu.ARM64: _ContextLayout(
        0, 0x400000 | 0x80000000, 8, 8, (*(f"x{n}" for n in range(29)), "fp", "lr", "sp", "pc"), "pc", "sp", "fp"
    ),
}
_HAS_GENERAL_REGISTERS = 3  # the bits CONTROL and INTEGER, the same for all three


def _context(dump: _Dump, system: SystemInfo, place: tuple[int, int], whose: str) -> Registers | None:
    offset, length = place
    layout = _CONTEXTS.get(system.cpu)
    if layout is None:
        dump.lose(f"Registers of processor {system.cpu.value!r} are not read.")
        return None
    data = dump.at(offset, min(length, _MAX_CONTEXT_BYTES)) if offset else b""
    if len(data) < layout.least_bytes:
        dump.lose(f"The registers of {whose} are not in the dump or cut.")
        return None
    flags = int.from_bytes(data[layout.flags_at : layout.flags_at + 4], "little")
    if not flags & layout.marks or not flags & _HAS_GENERAL_REGISTERS:
        dump.lose(f"The context of {whose} is not one of {system.cpu.value} with general registers.")
        return None
    numbers = struct.unpack_from(f"<{len(layout.names)}{'Q' if layout.width == 8 else 'I'}", data, layout.first_at)
    values = dict(zip(layout.names, numbers, strict=True))
    return Registers(values[layout.pc], values[layout.sp], values[layout.fp], values)


def _exception(dump: _Dump, system: SystemInfo) -> DumpException | None:
    head = dump.stream_head(_EXCEPTION, _EXCEPTION_STREAM.size)
    if not head:
        return None
    if len(head) < _EXCEPTION_STREAM.size:
        dump.lose("The exception record is cut.")
        return None
    thread_id, _, code, flags, _, address, count, _, *rest = _EXCEPTION_STREAM.unpack(head)
    parameters, (length, rva) = rest[:_MAX_EXCEPTION_PARAMETERS], rest[_MAX_EXCEPTION_PARAMETERS:]
    dump.claim(rva, length)
    return DumpException(
        thread_id=thread_id,
        code=code,
        flags=flags,
        address=address,
        parameters=tuple(parameters[: min(count, _MAX_EXCEPTION_PARAMETERS)]),
        registers=_context(dump, system, (rva, length), "the exception"),
    )


# ---------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True, slots=True)
class _Module:
    """One row of the module list; `record_at` is where its CodeView record lies."""

    index: int
    row_at: int
    base: int
    size: int
    stamp: int
    name: str
    version: tuple[int, ...]
    record_at: int
    record_bytes: int


def _modules(dump: _Dump) -> Iterator[_Module]:
    for index, (at, entry) in enumerate(dump.counted(_MODULES, _MODULE, _MAX_MODULES, "modules")):
        base, size, _, stamp, name_rva, version, record_bytes, record_rva, *_ = _MODULE.unpack(entry)
        yield _Module(
            index=index,
            row_at=at,
            base=base,
            size=size,
            stamp=stamp,
            name=dump.string(name_rva),
            version=struct.unpack_from("<IIII", version),
            record_at=record_rva,
            record_bytes=record_bytes,
        )


def _unloaded(dump: _Dump) -> Iterator[UnloadedModule]:
    head = dump.stream_head(_UNLOADED, 12)
    if len(head) < 12:
        return
    header_bytes, entry_bytes, count = struct.unpack("<III", head)
    if entry_bytes < _UNLOADED_MODULE.size or header_bytes < 12:
        dump.lose("The list of unloaded modules has entries too small to be read.")
        return
    for _, entry in dump.table(_UNLOADED, header_bytes, count, entry_bytes, _MAX_MODULES, "unloaded modules"):
        base, size, _, stamp, name_rva = _UNLOADED_MODULE.unpack_from(entry)
        yield UnloadedModule(dump.string(name_rva), base, size, code_id(stamp, size))


def _image(dump: _Dump, module: _Module, system: SystemInfo, headers: _Headers, layout: _Layout) -> DumpImage:
    record, unread = _read_record(dump, module)
    readings: list[Reading] = []
    says: dict[str, str] = {}
    if record is not None:
        readings += _codeview_readings(record, module.record_at, system.os)
        if record.name:
            says["debug_file"] = record.name
        if _may_be_text_hash(record, system.os):
            says["id_form"] = (
                "16 bytes: a build ID of that length, the start of a longer one, or breakpad's hash of the first "
                "page of .text"
            )
    found = headers.readings(module)
    readings += [one for one in found if one.id.kind is not IdKind.CODE]
    if system.os is Os.WINDOWS:
        readings.append(Reading(code_id(module.stamp, module.size), module.row_at, "module-list"))
    readings += [one for one in found if one.id.kind is IdKind.CODE]
    if system.os is Os.WINDOWS and all(one.id.kind is IdKind.CODE for one in readings):
        says["debug_id"] = f"none in the dump: {_UNREAD_WORDS[unread]}"
    if module.version[0] == _FIXED_FILE_INFO:
        says["version"] = _version_text(module.version, system.os)
    _compare_readings(dump, module.name, readings)
    return DumpImage(
        name=module.name,
        base=module.base,
        readings=tuple(readings),
        unread=None if readings else unread,
        mapped=layout.of(module),
        machine=headers.machine(module) or system.cpu.value,
        says=says,
    )


_UNREAD_WORDS = {
    Unread.NO_ID: "the module has no CodeView record",
    Unread.TRUNCATED: "the dump ends before the CodeView record",
    Unread.BROKEN: "the CodeView record makes no sense",
}


def _read_record(dump: _Dump, module: _Module) -> tuple[CodeViewRecord | None, Unread]:
    """The record, and why there is none where there is none."""
    if not module.record_bytes or not module.record_at:
        return None, Unread.NO_ID
    wanted = min(module.record_bytes, MAX_RECORD_BYTES)
    data = dump.text_bytes(module.record_at, wanted)
    if len(data) < wanted:
        return None, Unread.TRUNCATED
    try:
        return parse_codeview(data), Unread.NO_ID
    except FormatError as error:
        # A record of the build ID's form without one is the writer's word for "none".
        if data == CodeViewForm.ELF.value:
            return None, Unread.NO_ID
        dump.lose(f"{module.name!r}: {error.message}")
        return None, Unread.BROKEN


def _codeview_readings(record: CodeViewRecord, offset: int, os: Os) -> Iterator[Reading]:
    if record.form is CodeViewForm.NB10:
        yield Reading(record.id, offset, "codeview-nb10")
    elif record.form is CodeViewForm.ELF:
        is_uuid = os in (Os.MACOS, Os.IOS) and len(record.identity) == GUID_BYTES
        yield Reading(uuid_id(record.identity) if is_uuid else record.id, offset, "codeview-elf")
    else:
        apple = os in (Os.MACOS, Os.IOS)
        unix = os in (Os.LINUX, Os.ANDROID, Os.OTHER)
        unknown = os is Os.UNKNOWN
        if not apple and not (unix and record.age == 0):
            yield Reading(record.id, offset, "codeview-rsds")
        if apple or (unknown and record.age == 0):
            yield Reading(uuid_id(uuid.UUID(bytes_le=record.identity).bytes), offset, "codeview-rsds-mac")
        if record.age == 0 and (unix or unknown):
            yield Reading(gnu_id(unpadded(record.identity)), offset, "codeview-rsds-elf")


def _may_be_text_hash(record: CodeViewRecord, os: Os) -> bool:
    if os in (Os.WINDOWS, Os.MACOS, Os.IOS) or len(record.identity) != GUID_BYTES:
        return False
    return record.form is CodeViewForm.ELF or record.age == 0


_FIXED_FILE_INFO = 0xFEEF04BD


def _version_text(version: tuple[int, ...], os: Os) -> str:
    _, _, high, low = version
    if os is Os.WINDOWS:
        return f"{high >> 16}.{high & 0xFFFF}.{low >> 16}.{low & 0xFFFF}"
    return f"{high}.{low}"  # breakpad's successor takes the numbers behind ".so" on Linux


class _Headers:
    """The images' own headers, where the dump holds the memory that they lie in. Each base is read once."""

    __slots__ = ("_budget_bytes", "_dump", "_found", "_memory")

    def __init__(self, dump: _Dump, memory: _Memory) -> None:
        self._dump = dump
        self._memory = memory
        self._budget_bytes = _HEADER_BUDGET_BYTES
        self._found: dict[int, tuple[tuple[Reading, ...], str]] = {}

    def readings(self, module: _Module) -> tuple[Reading, ...]:
        return self._look(module)[0]

    def machine(self, module: _Module) -> str:
        """The machine that the header names; "" where it is not dumped."""
        return self._look(module)[1]

    def _look(self, module: _Module) -> tuple[tuple[Reading, ...], str]:
        if module.base not in self._found:
            try:
                self._found[module.base] = self._read(module.base)
            except FormatError as error:
                self._dump.lose(f"{module.name!r}: its header in dumped memory makes no sense: {error.message}")
                self._found[module.base] = (), ""
        return self._found[module.base]

    def _read(self, base: int) -> tuple[tuple[Reading, ...], str]:
        offset, there = self._memory.place(base)
        magic = self._dump.at(offset, min(there, 4))

        def read(skip: int, length: int) -> bytes:
            length = min(length, self._budget_bytes)
            if not length:
                self._dump.lose("More image headers lie in dumped memory than pmf reads; the rest was left out.")
            data = self._memory.read(self._dump.at, base + skip, length)
            self._budget_bytes -= len(data)
            return data

        if magic == b"\x7fELF":
            elf = read_elf_identity(read, None, loaded=True)
            ids = [gnu_id(bytes.fromhex(elf.gnu_build_id))] if elf.gnu_build_id else []
            if elf.go_build_id:
                ids.append(ImageId(IdKind.GO, elf.go_build_id, "redacted" if elf.go_build_id == "redacted" else ""))
            return tuple(Reading(one, offset, "memory-header") for one in ids), ""
        if magic[:2] == b"MZ":
            pe = read_pe_identity(read, _MAX_IMAGE_BYTES, loaded=True)
            found = [
                Reading(one.id, self._memory.place(base + one.offset)[0], "memory-header") for one in pe.debug_files
            ]
            found.append(Reading(pe.code, offset, "memory-header"))
            return tuple(found), MACHINES.get(pe.machine, "")
        return (), ""


_MAX_IMAGE_BYTES = 1 << 32  # SizeOfImage has 32 bits


class _Layout:
    """Which mappings an image has: from /proc/PID/maps where the dump holds it, else the module list's range."""

    __slots__ = ("_by_start", "_maps", "_memory")

    def __init__(self, maps: list[Mapping], memory: _Memory) -> None:
        self._maps = maps
        self._memory = memory
        self._by_start = {mapping.start: index for index, mapping in enumerate(maps)}

    def of(self, module: _Module) -> tuple[Mapped, ...]:
        first = self._by_start.get(module.base)
        if first is None:
            return (self._mapped(module.base, module.base + module.size, 0, ""),) if module.size else ()
        path = self._maps[first].path
        found: list[Mapped] = []
        for index in range(first, len(self._maps)):
            mapping = self._maps[index]
            # A file that begins anew is mapped a second time: another image.
            if mapping.path != path or (found and not mapping.offset):
                break
            found.append(self._mapped(mapping.start, mapping.end, mapping.offset, mapping.perms))
        return tuple(found)

    def _mapped(self, start: int, end: int, file_offset: int, flags: str) -> Mapped:
        offset, there = self._memory.place(start)
        return Mapped(start, end, file_offset, flags, offset, min(there, end - start))


# ----------------------------------------------------------------------------------- what the images add up to

_AT_PHDR, _AT_PHNUM, _AT_ENTRY, _AT_SYSINFO_EHDR = 3, 5, 9, 33
_AUXV_FACTS = {_AT_PHDR: "at_phdr", _AT_PHNUM: "at_phnum", _AT_ENTRY: "at_entry"}
_VDSO_NAMES = ("linux-gate.so", "linux-vdso", "[vdso]")


def _auxv(dump: _Dump, system: SystemInfo) -> dict[int, int]:
    """The auxiliary vector as breakpad and lldb copy it from Linux."""
    data = dump.stream_head(_LINUX_AUXV, _MAX_AUXV_BYTES)
    pair = struct.Struct("<QQ" if system.pointer_bytes == 8 else "<II")
    found: dict[int, int] = {}
    for key, value in pair.iter_unpack(data[: len(data) - len(data) % pair.size]):
        if key == 0:
            break
        found.setdefault(key, value)
    return found


def _find_main(modules: list[_Module], auxv: dict[int, int], maps: list[Mapping]) -> tuple[int | None, str]:
    """
    Where the executable begins and how that is known.

    Writers put it first, but a writer that drops modules without identity drops the executable too. Where the
    entry point is known, it decides.
    """
    if not modules:
        return None, ""
    entry = auxv.get(_AT_ENTRY)
    if entry is None:
        return modules[0].base, "first-module"
    for module in modules:
        if module.base <= entry < module.base + module.size:
            return module.base, "at-entry"
    path = next((mapping.path for mapping in maps if mapping.start <= entry < mapping.end), "")
    starts = {mapping.start for mapping in maps if mapping.path == path and path}
    for module in modules:
        if module.base in starts or (path and module.name == path):
            return module.base, "at-entry"
    return (None, "at-entry") if path else (modules[0].base, "first-module")


def _is_vdso(image: DumpImage, auxv: dict[int, int]) -> bool:
    return image.name.startswith(_VDSO_NAMES) or (image.base is not None and auxv.get(_AT_SYSINFO_EHDR) == image.base)


def _has_identity(image: DumpImage) -> bool:
    return any(one.id.kind is not IdKind.CODE for one in image.readings)


_ARCHIVE = ".apk"  # Android maps libraries straight out of it: one name, several images


def _is_same_file(left: DumpImage, right: DumpImage) -> bool:
    """Two rows of the list that are one image: the same row twice, or a file with a hole in the middle."""
    if left.name != right.name or left.base is None or right.base is None:
        return False
    if left.base == right.base:
        return True
    # Windows maps an image as a whole; only ELF files come in parts.
    if left.name.endswith(_ARCHIVE) or any(one.id.kind is IdKind.CODE for one in (*left.readings, *right.readings)):
        return False
    end = max((mapped.end for mapped in left.mapped), default=left.base)
    return (
        bool(left.name) and right.base - end <= _MAX_HOLE_BYTES and not (_has_identity(left) and _has_identity(right))
    )


def _joined(left: DumpImage, right: DumpImage) -> DumpImage:
    readings = (*left.readings, *(one for one in right.readings if one not in left.readings))
    mapped = (*left.mapped, *(one for one in right.mapped if one not in left.mapped))
    rows = int(left.says.get("rows", "1")) + 1
    return replace(
        left,
        readings=readings,
        unread=None if readings else left.unread,
        mapped=mapped,
        is_main=left.is_main or right.is_main,
        says={**right.says, **left.says, "rows": str(rows)},
    )


def _compare_readings(dump: _Dump, name: str, readings: Iterable[Reading]) -> None:
    seen: dict[IdKind, Reading] = {}
    for one in readings:
        first = seen.setdefault(one.id.kind, one)
        shorter, longer = sorted((first.id.value, one.id.value), key=len)
        prefix = one.id.kind is IdKind.GNU and longer.startswith(shorter)
        several_debug_files = one.rule == first.rule
        if first.id != one.id and not prefix and not several_debug_files:
            dump.quarrel(f"{name!r}: {first.rule} says {first.id.value}, {one.rule} says {one.id.value}.")


def _quarrel_if_different(dump: _Dump, first: DumpImage, second: DumpImage) -> None:
    one, other = ({a.id.kind: a.id.value for a in image.readings if not a.id.weak} for image in (first, second))
    if any(one[kind] != other[kind] for kind in one.keys() & other.keys()):
        dump.quarrel(
            f"{first.name!r} is listed at {first.base:#x} and at {second.base:#x} with different identities: "
            "two builds, or an archive that holds both."
        )


def _compare_images(dump: _Dump, images: list[DumpImage]) -> None:
    by_name: dict[str, DumpImage] = {}
    end, below = 0, ""
    for image in images:
        first = by_name.setdefault(image.name, image) if image.name else image
        if first is not image:
            _quarrel_if_different(dump, first, image)
        for mapped in image.mapped:
            if mapped.start < end and image.name != below:
                dump.quarrel(f"{image.name!r} at {mapped.start:#x} overlaps {below!r}, which ends at {end:#x}.")
                break
        top = max((mapped.end for mapped in image.mapped), default=0)
        if top > end:
            end, below = top, image.name
