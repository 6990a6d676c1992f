"""
Writes small PDBs byte by byte: MSF 7.00 and Portable.

It shares no layout code with pmforensics.formats. The tests let llvm-pdbutil read the MSF files too.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NIL = None  # a stream that is listed with size 0xffffffff


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def info_stream(guid: bytes, age: int, *, version: int = 20000404, signature: int = 0x5B9E7F33) -> bytes:
    return u32(version) + u32(signature) + u32(age) + guid + u32(0)


def dbi_stream(age: int, machine: int = 0x8664) -> bytes:
    return u32(0xFFFFFFFF) + u32(19990903) + u32(age) + bytes(46) + u16(machine) + u32(0)


@dataclass
class MsfWriter:
    """Superblock, two free block maps, then streams from the last to the first, the directory and its map."""

    streams: list[bytes | None] = field(default_factory=list)
    block_bytes: int = 512

    def render(self) -> bytes:
        blocks = [b"", b"\xff" * 8, b"\xff" * 8]

        def place(data: bytes) -> list[int]:
            numbers = []
            for start in range(0, len(data), self.block_bytes):
                numbers.append(len(blocks))
                blocks.append(data[start : start + self.block_bytes])
            return numbers

        # Backwards and with holes between, so that nothing can be read by luck of the order.
        placed: dict[int, list[int]] = {}
        for index in reversed(range(len(self.streams))):
            placed[index] = place(self.streams[index] or b"")
            blocks.append(b"hole")
        directory = u32(len(self.streams))
        for stream in self.streams:
            directory += u32(0xFFFFFFFF) if stream is None else u32(len(stream))
        for index in range(len(self.streams)):
            directory += b"".join(u32(number) for number in placed[index])
        directory_blocks = place(directory)
        map_block = place(b"".join(u32(number) for number in directory_blocks))[0]
        blocks[0] = b"Microsoft C/C++ MSF 7.00\r\n\x1aDS\0\0\0" + u32(self.block_bytes) + u32(1)
        blocks[0] += u32(len(blocks)) + u32(len(directory)) + u32(0) + u32(map_block)
        return b"".join(block.ljust(self.block_bytes, b"\0") for block in blocks)


def pdb(guid: bytes, info_age: int, dbi_age: int | None, *, block_bytes: int = 512, extra_streams: int = 0) -> bytes:
    """A PDB with the two ages, without a DBI stream where `dbi_age` is None."""
    old_directory = b"old" * 900
    streams = [old_directory, info_stream(guid, info_age), b"", None if dbi_age is None else dbi_stream(dbi_age)]
    streams += [b"more" * 200] * extra_streams
    return MsfWriter(streams, block_bytes).render()


def portable_pdb(guid: bytes, stamp: int, *, pdb_first: bool = True, streams: int = 3) -> bytes:
    contents = {b"#Pdb": guid + u32(stamp) + bytes(12), b"#~": bytes(24), b"#Strings": b"\0word\0\0\0"}
    names = list(contents)[:streams] if pdb_first else list(reversed(contents))[:streams]
    version = b"PDB v1.0\0\0\0\0"
    head_bytes = 16 + len(version) + 4 + sum(8 + (len(name) // 4 + 1) * 4 for name in names)
    head = b"BSJB" + u16(1) + u16(1) + u32(0) + u32(len(version)) + version + u16(0) + u16(len(names))
    body = b""
    for name in names:
        head += u32(head_bytes + len(body)) + u32(len(contents[name])) + name.ljust((len(name) // 4 + 1) * 4, b"\0")
        body += contents[name]
    return head + body
