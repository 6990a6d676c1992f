"""
Writes small minidumps byte by byte, for the writers and systems that are not at hand.

It shares no layout code with pmforensics.formats, so that one mistake cannot hide the other. The tests let lldb and
obj2yaml read its files too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOWS, MACOS, LINUX, ANDROID = 2, 0x8101, 0x8201, 0x8203
X86, AMD64, ARM64 = 0, 9, 12
_DIRECTORY_SLOTS = 24


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def rsds(guid: bytes, age: int, name: str = "") -> bytes:
    return b"RSDS" + guid + u32(age) + name.encode() + b"\0"


def nb10(signature: int, age: int, name: str = "") -> bytes:
    return b"NB10" + u32(0) + u32(signature) + u32(age) + name.encode() + b"\0"


def bpel(build_id: bytes) -> bytes:
    return u32(0x4270454C) + build_id


@dataclass
class Module:
    base: int
    name: str
    record: bytes = b""
    size: int = 0x4000
    stamp: int = 0x5F3B9E21
    version: tuple[int, int] | None = None  # high and low half of the file version
    record_at: int | None = None  # default: where the record was placed


@dataclass
class MinidumpWriter:
    """Header, directory, then everything in the order in which it was asked for."""

    version: int = 0xA793
    stamp: int = 1_700_000_000
    body: bytearray = field(default_factory=bytearray)
    streams: list[tuple[int, int, int]] = field(default_factory=list)  # kind, length, offset
    align_lists: bool = False  # four bytes between a count and its entries, as some writers do

    @property
    def at(self) -> int:
        return 32 + 12 * _DIRECTORY_SLOTS + len(self.body)

    def place(self, data: bytes) -> int:
        where = self.at
        self.body += data
        return where

    def stream(self, kind: int, data: bytes, length: int | None = None) -> MinidumpWriter:
        where = self.place(data)
        self.streams.append((kind, len(data) if length is None else length, where))
        return self

    def text(self, words: str) -> int:
        encoded = words.encode("utf-16-le")
        return self.place(u32(len(encoded)) + encoded + b"\0\0")

    def listed(self, kind: int, entries: list[bytes], count: int | None = None) -> MinidumpWriter:
        gap = bytes(4) if self.align_lists else b""
        return self.stream(kind, u32(len(entries) if count is None else count) + gap + b"".join(entries))

    def system(self, platform: int = WINDOWS, processor: int = AMD64, release: str = "") -> MinidumpWriter:
        release_at = self.text(release) if release else 0
        data = u16(processor) + u16(6) + u16(0) + bytes([2, 1]) + u32(10) + u32(0) + u32(19045)
        return self.stream(7, data + u32(platform) + u32(release_at) + u16(0) + u16(0) + bytes(24))

    def modules(self, *modules: Module, count: int | None = None) -> MinidumpWriter:
        return self.listed(4, [self._module(module) for module in modules], count)

    def _module(self, module: Module) -> bytes:
        name_at = self.text(module.name) if module.name else 0
        record_at = self.place(module.record) if module.record else 0
        if module.record_at is not None:
            record_at = module.record_at
        version = bytes(52)
        if module.version is not None:
            version = u32(0xFEEF04BD) + u32(0x10000) + u32(module.version[0]) + u32(module.version[1]) + bytes(36)
        row = u64(module.base) + u32(module.size) + u32(0) + u32(module.stamp) + u32(name_at) + version
        return row + u32(len(module.record)) + u32(record_at) + bytes(8) + bytes(16)

    def unloaded(self, *modules: tuple[int, int, int, str]) -> MinidumpWriter:
        rows = [
            u64(base) + u32(size) + u32(0) + u32(stamp) + u32(self.text(name)) for base, size, stamp, name in modules
        ]
        return self.stream(14, u32(12) + u32(24) + u32(len(rows)) + b"".join(rows))

    def thread(
        self, thread_id: int, context: bytes, stack_start: int, stack: bytes, *, stack_elsewhere: bool = False
    ) -> bytes:
        """One row of the thread list; with `stack_elsewhere` its bytes are left to the 64-bit memory list."""
        stack_at = 0 if stack_elsewhere else self.place(stack)
        context_at = self.place(context) if context else 0
        row = u32(thread_id) + u32(0) + u32(0) + u32(0) + u64(0x7FF000)
        return row + u64(stack_start) + u32(len(stack)) + u32(stack_at) + u32(len(context)) + u32(context_at)

    def memory(self, *ranges: tuple[int, bytes]) -> MinidumpWriter:
        return self.listed(5, [u64(start) + u32(len(data)) + u32(self.place(data)) for start, data in ranges])

    def memory64(self, *ranges: tuple[int, bytes], count: int | None = None) -> MinidumpWriter:
        first = self.place(b"".join(data for _, data in ranges))
        rows = b"".join(u64(start) + u64(len(data)) for start, data in ranges)
        return self.stream(9, u64(len(ranges) if count is None else count) + u64(first) + rows)

    def memory_info(self, *regions: tuple[int, int, int, int, int]) -> MinidumpWriter:
        """(base, size, state, protection, type)"""
        rows = b"".join(
            u64(base) + u64(base) + u32(protect) + u32(0) + u64(size) + u32(state) + u32(protect) + u32(kind) + u32(0)
            for base, size, state, protect, kind in regions
        )
        return self.stream(16, u32(16) + u32(48) + u64(len(regions)) + rows)

    def exception(self, thread_id: int, code: int, address: int, context: bytes, *parameters: int) -> MinidumpWriter:
        context_at = self.place(context)
        record = u32(code) + u32(0) + u64(0) + u64(address) + u32(len(parameters)) + u32(0)
        record += b"".join(u64(value) for value in (*parameters, *([0] * (15 - len(parameters)))))
        return self.stream(6, u32(thread_id) + u32(0) + record + u32(len(context)) + u32(context_at))

    def thread_names(self, names: dict[int, str]) -> MinidumpWriter:
        return self.listed(24, [u32(thread) + u64(self.text(name)) for thread, name in names.items()])

    def auxv(self, *pairs: tuple[int, int]) -> MinidumpWriter:
        return self.stream(0x47670008, b"".join(u64(key) + u64(value) for key, value in (*pairs, (0, 0))))

    def maps(self, text: str) -> MinidumpWriter:
        return self.stream(0x47670009, text.encode())

    def render(self) -> bytes:
        directory = b"".join(u32(kind) + u32(length) + u32(offset) for kind, length, offset in self.streams)
        directory = directory.ljust(12 * _DIRECTORY_SLOTS, b"\0")
        header = b"MDMP" + u32(self.version | 0x62F00000) + u32(len(self.streams)) + u32(32) + u32(0) + u32(self.stamp)
        return header + u64(0) + directory + bytes(self.body)


def amd64_context(pc: int, sp: int, fp: int = 0, *, flags: int = 0x10005F, length: int = 1232, **others: int) -> bytes:
    places = {
        "rax": 120,
        "rcx": 128,
        "rdx": 136,
        "rbx": 144,
        "rsp": 152,
        "rbp": 160,
        "rsi": 168,
        "rdi": 176,
        "rip": 248,
    }
    return _context(length, 8, 48, flags, places, {"rip": pc, "rsp": sp, "rbp": fp, **others})


def x86_context(pc: int, sp: int, fp: int = 0, *, flags: int = 0x1003F, length: int = 716, **others: int) -> bytes:
    places = {
        "edi": 156,
        "esi": 160,
        "ebx": 164,
        "edx": 168,
        "ecx": 172,
        "eax": 176,
        "ebp": 180,
        "eip": 184,
        "esp": 196,
    }
    return _context(length, 4, 0, flags, places, {"eip": pc, "esp": sp, "ebp": fp, **others})


def arm64_context(pc: int, sp: int, fp: int = 0, *, flags: int = 0x400007, length: int = 912, **others: int) -> bytes:
    places = {"x0": 8, "x1": 16, "x28": 232, "fp": 240, "lr": 248, "sp": 256, "pc": 264}
    return _context(length, 8, 0, flags, places, {"pc": pc, "sp": sp, "fp": fp, **others})


def _context(
    length: int, width: int, flags_at: int, flags: int, places: dict[str, int], values: dict[str, int]
) -> bytes:
    out = bytearray(2048)
    out[flags_at : flags_at + 4] = u32(flags)
    for name, value in values.items():
        out[places[name] : places[name] + width] = value.to_bytes(width, "little")
    return bytes(out[:length])
