"""
A second opinion on heap dumps: counts the instances of every class by walking all sub-records.

Written from the HPROF format description alone; it shares nothing with pmforensics.formats.
"""

from __future__ import annotations

import struct
from collections import Counter

SIZES = {4: 1, 5: 2, 6: 4, 7: 8, 8: 1, 9: 2, 10: 4, 11: 8}  # boolean, char, float, double, byte, short, int, long
# Roots: how many identifiers and how many 4-byte numbers follow the tag.
ROOTS = {
    0xFF: (1, 0), 0x01: (2, 0), 0x02: (1, 2), 0x03: (1, 2), 0x04: (1, 1), 0x05: (1, 0), 0x06: (1, 1), 0x07: (1, 0),
    0x08: (1, 2),
}  # fmt: skip


def count_instances(dump: bytes) -> Counter[str]:
    """Class name (with slashes) -> instances; raises on anything that is not whole."""
    at = dump.index(b"\0") + 1
    (id_bytes,) = struct.unpack_from(">I", dump, at)
    at += 12
    strings: dict[int, bytes] = {}
    class_names: dict[int, int] = {}
    per_class: Counter[int] = Counter()
    ended = False
    while at < len(dump):
        tag, _, length = struct.unpack_from(">BII", dump, at)
        at += 9
        body = dump[at : at + length]
        assert len(body) == length, "the last record is cut"
        at += length
        if tag == 0x01:
            strings[int.from_bytes(body[:id_bytes], "big")] = body[id_bytes:]
        elif tag == 0x02:
            class_id = int.from_bytes(body[4 : 4 + id_bytes], "big")
            class_names[class_id] = int.from_bytes(body[8 + id_bytes : 8 + 2 * id_bytes], "big")
        elif tag in (0x0C, 0x1C):
            _walk(body, id_bytes, per_class)
        elif tag == 0x2C:
            ended = True
    assert ended, "there is no end record"
    return Counter({strings[class_names[class_id]].decode(): count for class_id, count in per_class.items()})


def _walk(body: bytes, id_bytes: int, per_class: Counter[int]) -> None:
    at = 0
    while at < len(body):
        tag = body[at]
        at += 1
        if tag in ROOTS:
            ids, words = ROOTS[tag]
            at += ids * id_bytes + 4 * words
        elif tag == 0x20:
            at = _class(body, at + 7 * id_bytes + 8, id_bytes)
        elif tag == 0x21:
            class_at = at + id_bytes + 4
            per_class[int.from_bytes(body[class_at : class_at + id_bytes], "big")] += 1
            (length,) = struct.unpack_from(">I", body, class_at + id_bytes)
            at = class_at + id_bytes + 4 + length
        elif tag == 0x22:
            (count,) = struct.unpack_from(">I", body, at + id_bytes + 4)
            at += id_bytes + 8 + id_bytes + count * id_bytes
        elif tag == 0x23:
            (count,) = struct.unpack_from(">I", body, at + id_bytes + 4)
            at += id_bytes + 9 + count * SIZES[body[at + id_bytes + 8]]
        else:
            raise AssertionError(f"sub-record {tag:#x} at {at}")
    assert at == len(body), "a sub-record reaches over the end of its segment"


def _class(body: bytes, at: int, id_bytes: int) -> int:
    """From the constant pool count on; returns where the class ends."""

    def value_bytes(kind: int) -> int:
        return id_bytes if kind == 2 else SIZES[kind]

    (constants,) = struct.unpack_from(">H", body, at)
    at += 2
    for _ in range(constants):
        at += 3 + value_bytes(body[at + 2])
    (statics,) = struct.unpack_from(">H", body, at)
    at += 2
    for _ in range(statics):
        at += id_bytes + 1 + value_bytes(body[at + id_bytes])
    (fields,) = struct.unpack_from(">H", body, at)
    return at + 2 + fields * (id_bytes + 1)
