"""
The target's memory as bytes: reading it in bulk, and finding the few pages that tell what is loaded where.

Everything read here was written by the target and may lie: every count, length and chain is bounded.
"""

from __future__ import annotations

import os
import re
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pmforensics.collect.base import Host
from pmforensics.collect.pin import split_stat
from pmforensics.errors import AnswerBroken, CollectError, FormatError, NotThere
from pmforensics.formats.elf import (
    ELF_HEADER_BYTES,
    PT_LOAD,
    PT_NOTE,
    iter_program_headers,
    parse_elf_header,
    program_header_bytes,
)
from pmforensics.formats.proc import Mapping as Mapped
from pmforensics.formats.proc import parse_maps
from pmforensics.model.capture import MIB

MAX_IMAGES = 4096
MAX_NOTES_BYTES = 64 << 10  # of one image; real ones need a few hundred bytes
MAX_DYNAMIC_BYTES = 16 << 10
MAX_PROGRAM_HEADERS = 128  # of one image; the kernel accepts one page of them
MAX_LINK_MAPS = 4096
MAX_NAME_BYTES = 4096
MAX_DYNAMIC_TAGS = 1024
MAX_MAPS_BYTES = 64 * MIB

AT_NULL, AT_PHDR, AT_PHNUM = 0, 3, 5
PT_DYNAMIC, PT_PHDR = 2, 6
DT_DEBUG = 21

Range = tuple[int, int]
"""A half-open range of addresses."""


class Memory:
    """
    Reads the memory of a process through the id of one of its threads and a descriptor of its /proc/PID/mem.

    process_vm_readv copies three times as fast as /proc/PID/mem (9.8 against 3.4 GB/s, Linux 6.18, 256 KiB at a
    time); the latter also reads pages that the target itself may not read, so what the former leaves is tried there.
    """

    def __init__(self, tid: int, mem_fd: int) -> None:
        import ctypes

        class Iovec(ctypes.Structure):
            _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

        self._tid = tid
        self._mem_fd = mem_fd
        self._local, self._remote = Iovec(), Iovec()
        libc = ctypes.CDLL(None, use_errno=True)
        self._readv = libc.process_vm_readv
        self._readv.restype = ctypes.c_ssize_t
        self._address_of: Callable[[bytearray], int] = lambda buffer: ctypes.addressof(
            ctypes.c_char.from_buffer(buffer)
        )
        self._refer = ctypes.byref

    def read_into(self, buffer: bytearray, at: int, address: int, length: int) -> int:
        """Fill `length` bytes of `buffer` from `at` on; returns how many could not be read and are zero."""
        self._local.base, self._local.length = self._address_of(buffer) + at, length
        self._remote.base, self._remote.length = address, length
        got = int(self._readv(self._tid, self._refer(self._local), 1, self._refer(self._remote), 1, 0))
        if got == length:
            return 0
        got = max(got, 0)
        return self._read_slowly(memoryview(buffer)[at + got : at + length], address + got)

    def _read_slowly(self, view: memoryview, address: int) -> int:
        """A page that cannot be read is passed over."""
        missing = at = 0
        page_bytes = os.sysconf("SC_PAGE_SIZE")
        while at < len(view):
            try:
                got = os.preadv(self._mem_fd, [view[at:]], address + at)
            except (OSError, OverflowError):  # above the signed offsets of pread lies only [vsyscall]
                got = 0
            if got <= 0:
                got = min(page_bytes - (address + at) % page_bytes, len(view) - at)
                view[at : at + got] = bytes(got)
                missing += got
            at += got
        return missing

    def read(self, address: int, length: int) -> bytes:
        """Up to `length` bytes; fewer where the memory ends or cannot be read."""
        try:
            return os.pread(self._mem_fd, length, address)
        except (OSError, OverflowError):
            return b""


@dataclass(frozen=True, slots=True)
class Usage:
    """What smaps says of one mapping: bytes in memory, bytes swapped out, bytes of its own (not of the file), flags."""

    rss_bytes: int = 0
    swap_bytes: int = 0
    anonymous_bytes: int = 0
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ProcessNotes:
    """
    What a core says of the process as a whole, read before it is stopped.

    stat              from field 3 (state) on
    coredump_filter   None where only a leader could tell it that has exited
    """

    stat: tuple[str, ...]
    auxv: bytes
    coredump_filter: int | None


class Source:
    """
    Descriptors of the target's memory, opened through the host before the target is stopped.

    place   "" or "task/TID/": a leader that has exited before its other threads no longer shows the memory
    """

    def __init__(self, host: Host) -> None:
        self.place = _living_place(host)
        _, fields = split_stat(host.read_proc("stat"))
        self.process = ProcessNotes(
            tuple(field.decode("ascii", "replace") for field in fields),
            host.read_proc(f"{self.place}auxv", 1 << 16),
            None if self.place else _hex(host, "coredump_filter"),
        )
        self._maps_text = b""
        self._mappings: list[Mapped] = []
        self.mem_fd = host.open_proc(f"{self.place}mem")
        self._fds = [self.mem_fd]
        try:
            self._maps_fd = self._open(host, "maps")
            self._smaps_fd = self._open(host, "smaps")
            self.pagemap_fd = self._open(host, "pagemap")
        except CollectError:
            self.close()
            raise

    def _open(self, host: Host, name: str) -> int:
        self._fds.append(fd := host.open_proc(f"{self.place}{name}"))
        return fd

    def mappings(self) -> list[Mapped]:
        """All mappings, by address. Asked again when nothing has changed, it costs only the reading."""
        text = b"".join(_chunks(self._maps_fd))
        if text != self._maps_text:
            self._maps_text, self._mappings = text, _mappings(text)
        return self._mappings

    def usage(self) -> tuple[list[Mapped], dict[int, Usage]]:
        """All mappings, and what is used of each, by its start. Walks the page tables: about 0.1 s per 10 GB."""
        return _parse_smaps(_chunks(self._smaps_fd))

    def close(self) -> None:
        """Close the descriptors."""
        while self._fds:
            os.close(self._fds.pop())


def _living_place(host: Host) -> str:
    if split_stat(host.read_proc("stat"))[1][0] not in (b"Z", b"X"):
        return ""
    for tid in host.list_proc("task")[:MAX_LINK_MAPS]:
        if split_stat(host.read_proc(f"task/{tid}/stat"))[1][0] not in (b"Z", b"X"):
            return f"task/{tid}/"
    raise NotThere("the process is a zombie: its memory is gone", hint="Look for a core that it left on disk.")


def _hex(host: Host, name: str) -> int:
    text = host.read_proc(name).decode("ascii", "replace").strip()
    if not re.fullmatch(r"[0-9a-fA-F]{1,16}", text):
        raise AnswerBroken(f"{name} holds {text[:40]!r}, which is no hexadecimal number")
    return int(text, 16)


def _chunks(fd: int) -> Iterator[bytes]:
    at = 0
    while at < MAX_MAPS_BYTES * 4 and (chunk := os.pread(fd, MIB, at)):
        at += len(chunk)
        yield chunk


def _mappings(text: bytes) -> list[Mapped]:
    return sorted(parse_maps(text.decode("utf-8", "surrogateescape")).mappings, key=lambda mapping: mapping.start)


def _parse_smaps(chunks: Iterator[bytes]) -> tuple[list[Mapped], dict[int, Usage]]:
    heads: list[bytes] = []
    usage: dict[int, Usage] = {}
    known: dict[tuple[int, int, int, bytes], Usage] = {}  # most of many mappings are alike
    sizes = {b"Rss": 0, b"Swap": 0, b"Anonymous": 0}
    start = -1
    rest = b""
    for chunk in chunks:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            name, _, value = line.partition(b":")
            if name in sizes:
                sizes[name] = int(value.split()[0]) * 1024
            elif name == b"VmFlags":
                key = sizes[b"Rss"], sizes[b"Swap"], sizes[b"Anonymous"], value
                if key not in known:
                    known[key] = Usage(*key[:3], frozenset(value.decode("ascii", "replace").split()))
                usage[start] = known[key]
            elif line[:1] in b"0123456789abcdef":
                heads.append(line)
                start = int(line.partition(b"-")[0], 16)
                sizes = dict.fromkeys(sizes, 0)
    return _mappings(b"\n".join(heads)), usage


class Layout:
    """Which mapping an address belongs to."""

    def __init__(self, mappings: Sequence[Mapped]) -> None:
        self.mappings = mappings
        self._starts = [mapping.start for mapping in mappings]

    def find(self, address: int) -> Mapped | None:
        """The mapping that holds the address, if any."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or self.mappings[index].end <= address:
            return None
        return self.mappings[index]


def inside_root(path: str, root: str) -> str:
    """A path of /proc/PID/maps or of a link there, as the target sees it: without the folder that is its root."""
    if root != "/" and (path == root or path.startswith(f"{root}/")):
        return path[len(root) :] or "/"
    return path


def parse_auxv(data: bytes) -> dict[int, int]:
    """The auxiliary vector, type -> value; ends at AT_NULL."""
    values: dict[int, int] = {}
    for kind, value in struct.iter_unpack("=QQ", data[: len(data) - len(data) % 16]):
        if kind == AT_NULL:
            break
        values.setdefault(kind, value)
    return values


def is_code_file(mapping: Mapped) -> bool:
    """Whether the mapping is of a file and executable."""
    return mapping.inode != 0 and "x" in mapping.perms


def find_images(mappings: Sequence[Mapped]) -> list[Mapped]:
    """The mappings at offset 0 of files that are also mapped executable: where an ELF header can be."""
    code = {(mapping.dev, mapping.inode) for mapping in mappings if is_code_file(mapping)}
    return [
        mapping
        for mapping in mappings
        if mapping.offset == 0 and mapping.inode and (mapping.dev, mapping.inode) in code and "r" in mapping.perms
    ][:MAX_IMAGES]


def iter_image_ranges(image: Mapped, memory: Memory) -> Iterator[Range]:
    """
    Where an image in memory says what it is: ELF header, program headers, notes, dynamic section.

    The notes are usually in the first page but need not be (patchelf moves them).
    """
    head = memory.read(image.start, min(4096, image.end - image.start))
    yield image.start, image.start + 4096
    try:
        header = parse_elf_header(head[:ELF_HEADER_BYTES])
    except FormatError:
        return
    entry_bytes = program_header_bytes(header)
    if header.elf_class != 64 or header.phentsize != entry_bytes or header.phnum > MAX_PROGRAM_HEADERS:
        return
    table_bytes = header.phnum * entry_bytes
    table = head[header.phoff : header.phoff + table_bytes]
    if len(table) < table_bytes:
        table = memory.read(image.start + header.phoff, table_bytes).ljust(table_bytes, b"\0")
        yield image.start + header.phoff, image.start + header.phoff + table_bytes
    segments = list(iter_program_headers(table, header))
    first = next((segment for segment in segments if segment.segment_type == PT_LOAD), None)
    if first is None:
        return
    bias = image.start - first.vaddr + first.offset
    limits = {PT_NOTE: MAX_NOTES_BYTES, PT_DYNAMIC: MAX_DYNAMIC_BYTES}
    for segment in segments:
        if segment.segment_type in limits and segment.memsz:
            start = bias + segment.vaddr & 0xFFFFFFFFFFFFFFFF
            yield start, start + min(segment.memsz, limits[segment.segment_type])


@dataclass(frozen=True, slots=True)
class LoadedObject:
    """One entry of the dynamic linker's list: where the entry is, its load bias, its name, its dynamic section."""

    entry: Range
    name_at: int
    name: str
    dynamic: int


def iter_loaded_objects(auxv: Mapping[int, int], memory: Memory) -> Iterator[Range | LoadedObject]:
    """
    The dynamic linker's list of what it loaded, and the ranges that lead there.

    A debugger starts at the program headers (AT_PHDR), finds DT_DEBUG in the dynamic section, there `r_debug`, and
    from it walks the chain of `link_map`. Each of these places must be in a core, or libraries are not found.
    Source: <link.h> of glibc and musl.
    """
    count = min(auxv.get(AT_PHNUM, 0), MAX_PROGRAM_HEADERS)
    at = auxv.get(AT_PHDR, 0)
    table = memory.read(at, count * 56).ljust(count * 56, b"\0")
    yield at, at + count * 56
    headers = [struct.unpack_from("=IIQQQQ", table, 56 * index) for index in range(count)]
    bias = next((at - vaddr for kind, _, _, vaddr, _, _ in headers if kind == PT_PHDR), 0)
    debug_at = 0
    for kind, _, _, vaddr, _, size in headers:
        if kind != PT_DYNAMIC:
            continue
        start = bias + vaddr
        tags = memory.read(start, min(size, MAX_DYNAMIC_TAGS * 16))
        yield start, start + min(size, MAX_DYNAMIC_TAGS * 16)
        for tag, value in struct.iter_unpack("=qQ", tags[: len(tags) - len(tags) % 16]):
            if tag == DT_DEBUG:
                debug_at = value
    if not debug_at:
        return
    yield debug_at, debug_at + 48
    words = struct.unpack("=6Q", memory.read(debug_at, 48).ljust(48, b"\0"))
    seen: set[int] = set()
    entry_at = words[1]
    while entry_at and entry_at not in seen and len(seen) < MAX_LINK_MAPS:
        seen.add(entry_at)
        _, name_at, dynamic, next_at, _ = struct.unpack("=5Q", memory.read(entry_at, 40).ljust(40, b"\0"))
        name = memory.read(name_at, MAX_NAME_BYTES).partition(b"\0")[0] if name_at else b""
        yield LoadedObject((entry_at, entry_at + 40), name_at, name.decode("utf-8", "surrogateescape"), dynamic)
        entry_at = next_at


# -- which pages are there -----------------------------------------------------------------------------------------

# linux/fs.h, since Linux 6.7: _IOWR('f', 16, struct pm_scan_arg), twelve 64-bit words.
_PAGEMAP_SCAN = 0xC0606610
_SCAN_WORDS, _REGION_WORDS = 12, 3
_PRESENT, _SWAPPED, _ZERO_PAGE = 1 << 3, 1 << 4, 1 << 5
_REGIONS = 4096
# Top byte of a 64-bit pagemap entry: bit 63 present, bit 62 swapped out. Documentation/admin-guide/mm/pagemap.rst.
_USED = bytes(1 if top & 0xC0 else 0 for top in range(256))
_BATCH_PAGES = 1 << 17
_RUN = re.compile(b"\1+")


class PageTable:
    """
    Which pages of the target were ever touched, from a descriptor of its /proc/PID/pagemap.

    scans   the kernel knows PAGEMAP_SCAN: it passes over what is not there, and tells the page of zeros that backs
            memory which was only read. Without it, empty space costs time, and such memory counts as touched.
    """

    def __init__(self, pagemap_fd: int, page_bytes: int) -> None:
        import ctypes

        self._fd = pagemap_fd
        self._page_bytes = page_bytes
        self._regions = (ctypes.c_uint64 * (_REGION_WORDS * _REGIONS))()
        self._regions_at = ctypes.addressof(self._regions)
        self.scans = True
        try:
            self._scan(0, page_bytes)
        except OSError:
            self.scans = False

    def used(self, start: int, end: int) -> Iterator[Range]:
        """The touched stretches between two page borders, by address."""
        at = start
        while at < end:
            if self.scans:
                count, stop = self._scan(at, end)
                for word in range(0, count * _REGION_WORDS, _REGION_WORDS):
                    yield self._regions[word], self._regions[word + 1]
            else:
                pages = min(_BATCH_PAGES, (end - at) // self._page_bytes)
                stop = at + pages * self._page_bytes
                entries = os.pread(self._fd, 8 * pages, at // self._page_bytes * 8)
                for run in _RUN.finditer(entries[7::8].translate(_USED)):
                    yield at + run.start() * self._page_bytes, at + run.end() * self._page_bytes
            at = max(stop, at + self._page_bytes)

    def _scan(self, start: int, end: int) -> tuple[int, int]:
        """How many regions were found, and up to where was looked."""
        import fcntl

        argument = bytearray(
            struct.pack(
                "=12Q",
                8 * _SCAN_WORDS,
                0,
                start,
                end,
                0,
                self._regions_at,
                _REGIONS,
                0,
                _ZERO_PAGE,  # inverted: wanted are pages that are not the zero page
                _ZERO_PAGE,
                _PRESENT | _SWAPPED,
                _ZERO_PAGE,  # tell only this bit, which is the same for all: neighbours become one region
            )
        )
        count = fcntl.ioctl(self._fd, _PAGEMAP_SCAN, argument)
        return count, struct.unpack_from("=Q", argument, 32)[0]

    def pieces(self, start: int, end: int, hole_bytes: int) -> list[Range]:
        """The touched stretches, those closer to each other than `hole_bytes` joined."""
        pieces: list[Range] = []
        for begin, stop in self.used(start, end):
            if pieces and begin - pieces[-1][1] < hole_bytes:
                pieces[-1] = pieces[-1][0], stop
            else:
                pieces.append((begin, stop))
        return pieces
