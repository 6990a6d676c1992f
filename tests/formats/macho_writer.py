"""
Writes Mach-O files byte by byte, for the cases that no toolchain here produces: cores, which only macOS writes, both
byte orders, 64-bit fat headers, and what no linker would write.

It shares no layout code with pmforensics.formats, so that one mistake cannot hide the other. The tests let
llvm-otool, llvm-dwarfdump and lldb read its files too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

X86_64, ARM64, ARM, I386, PPC = (0x01000007, 3), (0x0100000C, 0), (12, 9), (7, 3), (18, 0)
PAGE = 0x1000
NOWHERE = 0xFFFFFFFFFFFFFFFF


@dataclass
class Section:
    segment: str
    name: str
    address: int
    size: int
    offset: int


@dataclass
class MachWriter:
    """A header and load commands; `tail` follows them at once."""

    bits: int = 64
    big_endian: bool = False
    cpu: tuple[int, int] = ARM64
    file_type: int = 2
    commands: list[bytes] = field(default_factory=list)
    tail: bytes = b""
    count: int | None = None  # of commands, where it shall lie
    command_bytes: int | None = None  # likewise

    def number(self, value: int, width: int = 4) -> bytes:
        return value.to_bytes(width, "big" if self.big_endian else "little")

    def word(self, value: int) -> bytes:
        return self.number(value, self.bits // 8)

    def command(self, kind: int, body: bytes) -> MachWriter:
        body += bytes(-len(body) % (self.bits // 8))
        self.commands.append(self.number(kind) + self.number(len(body) + 8) + body)
        return self

    def uuid(self, uuid: bytes) -> MachWriter:
        return self.command(0x1B, uuid)

    def dylib(self, name: str, version: int = 0x10000) -> MachWriter:
        return self.command(0xD, b"".join(map(self.number, (24, 2, version, version))) + name.encode() + b"\0")

    def dylinker(self, name: str) -> MachWriter:
        return self.command(0xF, self.number(12) + name.encode() + b"\0")

    def thread(self, pc: int) -> MachWriter:
        """Registers of one thread, without which lldb takes no core: all zeros but the program counter."""
        flavor, words, pc_at = {ARM64: (6, 68, 256), X86_64: (4, 42, 128)}[self.cpu]
        state = bytearray(words * 4)
        state[pc_at : pc_at + 8] = self.number(pc, 8)
        return self.command(0x4, self.number(flavor) + self.number(words) + bytes(state))

    def symbols(self, at: int, *symbols: tuple[str, int, int]) -> tuple[MachWriter, bytes]:
        """(name, address, number of its section) each; also returns the tables, which belong at `at` of the file."""
        entries, names = b"", b"\0"
        for name, address, section in symbols:
            entries += self.number(len(names)) + bytes([0x0F, section, 0, 0]) + self.word(address)
            names += name.encode() + b"\0"
        self.command(2, b"".join(map(self.number, (at, len(symbols), at + len(entries), len(names)))))
        return self, entries + names

    def note(self, owner: str, offset: int, size: int) -> MachWriter:
        return self.command(0x31, owner.encode().ljust(16, b"\0") + self.number(offset, 8) + self.number(size, 8))

    def segment(
        self,
        name: str,
        vmaddr: int,
        vmsize: int,
        fileoff: int = 0,
        filesize: int = 0,
        protection: int = 5,
        sections: tuple[Section, ...] = (),
    ) -> MachWriter:
        body = name.encode().ljust(16, b"\0") + b"".join(map(self.word, (vmaddr, vmsize, fileoff, filesize)))
        body += b"".join(map(self.number, (7, protection, len(sections), 0)))
        for section in sections:
            body += section.name.encode().ljust(16, b"\0") + section.segment.encode().ljust(16, b"\0")
            body += self.word(section.address) + self.word(section.size)
            body += b"".join(map(self.number, (section.offset, 0, 0, 0, 0, 0, 0)))
            if self.bits == 64:
                body += self.number(0)
        return self.command(0x19 if self.bits == 64 else 0x1, body)

    @property
    def header_bytes(self) -> int:
        return 32 if self.bits == 64 else 28

    def render(self) -> bytes:
        commands = b"".join(self.commands)
        count = len(self.commands) if self.count is None else self.count
        command_bytes = len(commands) if self.command_bytes is None else self.command_bytes
        out = self.number(0xFEEDFACF if self.bits == 64 else 0xFEEDFACE)
        out += b"".join(map(self.number, (*self.cpu, self.file_type, count, command_bytes, 0)))
        return out.ljust(self.header_bytes, b"\0") + commands + self.tail


def fat(*slices: tuple[tuple[int, int], bytes], wide: bool = False, big_endian: bool = True) -> bytes:
    """A file with one slice per architecture; `wide` has 64-bit offsets."""
    order = "big" if big_endian else "little"
    width = 8 if wide else 4
    out = (0xCAFEBABF if wide else 0xCAFEBABE).to_bytes(4, order) + len(slices).to_bytes(4, order)
    body = b""
    for (cpu, subtype), data in slices:
        body += bytes(-len(body) % PAGE)
        offset = PAGE + len(body)
        out += cpu.to_bytes(4, order) + subtype.to_bytes(4, order)
        out += offset.to_bytes(width, order) + len(data).to_bytes(width, order)
        out += (12).to_bytes(4, order) + (bytes(4) if wide else b"")
        body += data
    return out.ljust(PAGE, b"\0") + body


@dataclass
class Memory:
    """A piece of a process's memory in a core; `protection` 5 is r-x, 3 is rw-, 1 is r--."""

    address: int
    data: bytes
    protection: int = 5
    size: int | None = None  # where less was dumped than mapped


@dataclass
class CoreWriter:
    """A core. A note's content is made by a function that is told its place in the file."""

    bits: int = 64
    big_endian: bool = False
    cpu: tuple[int, int] = ARM64
    memory: list[Memory] = field(default_factory=list)
    notes: list[tuple[str, Callable[[int], bytes]]] = field(default_factory=list)
    pc: int | None = None  # of its one thread; None: no thread

    def __post_init__(self) -> None:
        self.form = MachWriter(self.bits, self.big_endian, self.cpu)

    def number(self, value: int, width: int = 4) -> bytes:
        return self.form.number(value, width)

    def word(self, value: int) -> bytes:
        return self.form.word(value)

    def all_image_infos(self, *images: tuple[str, bytes, int]) -> CoreWriter:
        """(path, UUID, address) each; an empty path is written as unknown."""

        def content(place: int) -> bytes:
            entries_at, entry_bytes = place + 24, 48
            texts_at = entries_at + entry_bytes * len(images)
            entries = texts = b""
            for path, uuid, address in images:
                entries += self.number(texts_at + len(texts) if path else NOWHERE, 8) + uuid
                entries += self.number(address, 8) + self.number(NOWHERE, 8) + bytes(8)
                texts += path.encode() + b"\0" if path else b""
            head = self.number(1) + self.number(len(images)) + self.number(entries_at, 8)
            return head + self.number(entry_bytes) + bytes(4) + entries + texts

        self.notes.append(("all image infos", content))
        return self

    def main_bin_spec(self, kind: int, address: int, uuid: bytes = bytes(16), version: int = 2) -> CoreWriter:
        content = self.number(version) + self.number(kind) + self.number(address, 8)
        content += (self.number(NOWHERE, 8) if version == 2 else b"") + uuid + self.number(12) + self.number(1)
        self.notes.append(("main bin spec", lambda _: content))
        return self

    def load_binary(self, path: str, address: int, uuid: bytes = bytes(16)) -> CoreWriter:
        content = self.number(1) + uuid + self.number(address, 8) + self.number(0, 8) + path.encode() + b"\0"
        self.notes.append(("load binary", lambda _: content))
        return self

    def dyld_list(
        self,
        place: int,
        images: list[tuple[int, str]],
        *,
        version: int = 17,
        dyld: int = 0,
        uuids: list[tuple[int, bytes]] | None = None,
        cache_uuid: bytes = bytes(16),
        array: int | None = None,
    ) -> Memory:
        """dyld's own list of images (address, path), as it stands in the memory of a process."""
        word_bytes = self.bits // 8
        array_at = place + 0x200
        uuids = uuids or []
        uuids_at = array_at + 3 * word_bytes * len(images)
        text_at = uuids_at + (word_bytes + 16) * len(uuids)
        entries = texts = b""
        for address, path in images:
            entries += self.word(address) + self.word(text_at + len(texts)) + self.word(0)
            texts += path.encode() + b"\0"
        for address, uuid in uuids:
            entries += self.word(address) + uuid
        head = self.number(version) + self.number(len(images)) + self.word(array_at if array is None else array)
        head += self.word(0) + bytes([0, 1]).ljust(word_bytes, b"\0") + self.word(dyld)
        head += b"".join(map(self.word, (0, 0, 0, 0, 0, 0, len(uuids), uuids_at, place, len(images), 0, 0, 0, 0, 0)))
        head += cache_uuid + self.word(0) + self.number(0, 8) + self.word(0)
        return Memory(place, head.ljust(0x200, b"\0") + entries + texts, protection=3)

    def render(self) -> bytes:
        form = MachWriter(self.bits, self.big_endian, self.cpu, file_type=4)
        for owner, _ in self.notes:
            form.note(owner, 0, 0)
        for piece in self.memory:
            form.segment("", piece.address, len(piece.data), 0, 0)
        if self.pc is not None:
            form.thread(self.pc)
        place = len(form.render())
        contents = b""
        placed = MachWriter(self.bits, self.big_endian, self.cpu, file_type=4)
        for owner, make in self.notes:
            made = make(place + len(contents))
            placed.note(owner, place + len(contents), len(made))
            contents += made
        contents += bytes(-(place + len(contents)) % PAGE)
        for piece in self.memory:
            size = len(piece.data) if piece.size is None else piece.size
            held = len(piece.data)
            placed.segment("", piece.address, size, place + len(contents) if held else 0, held, piece.protection)
            contents += piece.data + bytes(-held % PAGE)
        if self.pc is not None:
            placed.thread(self.pc)
        placed.tail = contents
        return placed.render()
