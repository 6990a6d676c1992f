"""
Writes small heap dumps byte by byte, for JVMs and layouts that are not here.

It shares no layout code with pmforensics.formats. Identifiers are handed out in steps, so that none is part of
another by chance. What is inside a heap segment can be written in any order.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

OBJECT, BOOLEAN, CHAR, FLOAT, DOUBLE, BYTE, SHORT, INT, LONG = 2, 4, 5, 6, 7, 8, 9, 10, 11
_PACK = {BOOLEAN: ">?", CHAR: ">H", FLOAT: ">f", DOUBLE: ">d", BYTE: ">b", SHORT: ">h", INT: ">i", LONG: ">q"}
Fields = list[tuple[str, int]]


@dataclass
class HprofWriter:
    """Strings and class records first, then the heap, then the end; `records_last` turns that round."""

    id_bytes: int = 8
    version: bytes = b"JAVA PROFILE 1.0.2"
    time_ms: int = 1_700_000_000_123
    segmented: bool = True  # False: one HEAP_DUMP and no end record, as before JDK 6
    dotted: bool = False  # class names as the agent of JDK 8 writes them
    classes_last: bool = False  # in the heap
    records_last: bool = False
    heap: list[bytes] = field(default_factory=list)
    class_dumps: list[bytes] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    layouts: dict[int, Fields] = field(default_factory=dict)
    supers: dict[int, int] = field(default_factory=dict)
    next_id: int = 0x7000
    strings: dict[str, int] = field(default_factory=dict)

    # ---- pieces

    def i(self, value: int) -> bytes:
        return value.to_bytes(self.id_bytes, "big")

    def new_id(self) -> int:
        self.next_id += 24
        return self.next_id

    def record(self, tag: int, body: bytes) -> bytes:
        return struct.pack(">BII", tag, 0, len(body)) + body

    def text(self, text: str) -> int:
        if text not in self.strings:
            self.strings[text] = self.new_id()
            encoded = text.encode("utf-16-be", "surrogatepass")
            units = struct.unpack(f">{len(encoded) // 2}H", encoded)
            body = b"".join(b"\xc0\x80" if unit == 0 else chr(unit).encode("utf-8", "surrogatepass") for unit in units)
            self.records.append(self.record(0x01, self.i(self.strings[text]) + body))
        return self.strings[text]

    def value(self, kind: int, value: float) -> bytes:
        return self.i(int(value)) if kind == OBJECT else struct.pack(_PACK[kind], value)

    # ---- contents

    def add_class(
        self,
        name: str,
        fields: Fields | None = None,
        *,
        extends: int = 0,
        statics: list[tuple[str, int, float]] | None = None,
        loader: int = 0,
        dumped: bool = True,
        constants: int = 0,
    ) -> int:
        class_id = self.new_id()
        shown = name.replace("/", ".") if self.dotted else name
        load = struct.pack(">I", len(self.layouts) + 1) + self.i(class_id) + bytes(4) + self.i(self.text(shown))
        self.records.append(self.record(0x02, load))
        self.layouts[class_id], self.supers[class_id] = fields or [], extends
        body = b"\x20" + self.i(class_id) + bytes(4) + self.i(extends) + self.i(loader) + 4 * self.i(0)
        body += struct.pack(">I", 8 * len(fields or []))
        body += struct.pack(">H", constants) + b"".join(struct.pack(">HBi", n, INT, n) for n in range(constants))
        body += struct.pack(">H", len(statics or []))
        body += b"".join(
            self.i(self.text(field_name)) + bytes([kind]) + self.value(kind, value)
            for field_name, kind, value in statics or []
        )
        body += struct.pack(">H", len(fields or []))
        body += b"".join(self.i(self.text(field_name)) + bytes([kind]) for field_name, kind in fields or [])
        if dumped:
            self.class_dumps.append(body)
        return class_id

    def add(self, class_id: int, object_id: int = 0, **values: float) -> int:
        """An instance; fields that are not given are zero."""
        object_id = object_id or self.new_id()
        data, current = b"", class_id
        while current:
            data += b"".join(self.value(kind, values.get(name, 0)) for name, kind in self.layouts[current])
            current = self.supers[current]
        self.heap.append(
            b"\x21" + self.i(object_id) + bytes(4) + self.i(class_id) + struct.pack(">I", len(data)) + data
        )
        return object_id

    def add_objects(self, elements: list[int], object_id: int = 0) -> int:
        object_id = object_id or self.new_id()
        head = b"\x22" + self.i(object_id) + bytes(4) + struct.pack(">I", len(elements)) + self.i(0x99)
        self.heap.append(head + b"".join(map(self.i, elements)))
        return object_id

    def add_numbers(self, kind: int, data: bytes, object_id: int = 0) -> int:
        object_id = object_id or self.new_id()
        width = 1 if kind in (BOOLEAN, BYTE) else struct.calcsize(_PACK[kind])
        head = b"\x23" + self.i(object_id) + bytes(4) + struct.pack(">IB", len(data) // width, kind)
        self.heap.append(head + data)
        return object_id

    def add_roots(self) -> None:
        """One of each kind."""
        shapes = {0xFF: 0, 0x01: self.id_bytes, 2: 8, 3: 8, 4: 4, 5: 0, 6: 4, 7: 0, 8: 8}
        self.heap += [bytes([tag]) + self.i(0x77) + bytes(more) for tag, more in shapes.items()]

    # ---- the file

    def header(self) -> bytes:
        return self.version + b"\0" + struct.pack(">IQ", self.id_bytes, self.time_ms)

    def render(self, *, order: int = 0, in_a_segment: int = 50, before_heap: Sequence[bytes] = ()) -> bytes:
        """order: of the heap; 0 as added, -1 backwards, else the seed of a shuffle. before_heap: whole records."""
        heap = list(self.heap)
        if order < 0:
            heap.reverse()
        elif order:
            random.Random(order).shuffle(heap)
        heap = heap + self.class_dumps if self.classes_last else self.class_dumps + heap
        if self.segmented:
            pieces = [heap[at : at + in_a_segment] for at in range(0, len(heap), in_a_segment)]
            body, end = b"".join(self.record(0x1C, b"".join(piece)) for piece in pieces), self.record(0x2C, b"")
        else:
            body, end = self.record(0x0C, b"".join(heap)), b""
        body = b"".join(before_heap) + body
        records = b"".join(self.records)
        return self.header() + (body + records if self.records_last else records + body) + end


# ---- JVMs


@dataclass
class Jdk:
    """How a JDK keeps its strings and system properties."""

    name: str
    char_arrays: bool = False  # strings hold char[]
    shared_arrays: bool = False  # ... of which they are a stretch
    properties: str = "concurrent"  # where Properties keeps its entries: "concurrent" or "own" table
    saved: str = "hashmap"  # "hashmap", "mapn", "properties" or "" for none
    vm_class: str = "jdk/internal/misc/VM"
    constants_class: str = "java/lang/VersionProps"
    system_field: str = "props"


JDKS = [
    Jdk("6", True, True, "own", "properties", "sun/misc/VM", "sun/misc/Version"),
    Jdk("8", True, False, "own", "properties", "sun/misc/VM", "sun/misc/Version"),
    Jdk("11", saved="mapn"),
    Jdk("17"),
    Jdk("openj9", saved="", constants_class="", system_field="systemProperties"),
]


def java_hash(text: str) -> int:
    value = 0
    for char in text:
        value = (31 * value + ord(char)) % 2**32
    return value


def signed(value: int) -> int:
    return value - 2**32 if value >= 2**31 else value


@dataclass
class JvmWriter:
    """Lets a HprofWriter hold the system properties of a JVM, kept as that JDK keeps them."""

    out: HprofWriter
    jdk: Jdk
    buckets: int = 16

    def __post_init__(self) -> None:
        out, jdk = self.out, self.jdk
        self.object = out.add_class("java/lang/Object")
        fields = [("value", OBJECT), ("hash", INT)]
        if jdk.shared_arrays:
            fields += [("offset", INT), ("count", INT)]
        if not jdk.char_arrays:
            fields += [("coder", BYTE)]
        self.string = out.add_class("java/lang/String", fields, extends=self.object)
        entry: Fields = [("hash", INT), ("key", OBJECT), ("value", OBJECT), ("next", OBJECT)]
        node: Fields = [("hash", INT), ("key", OBJECT), ("val", OBJECT), ("next", OBJECT)]
        self.entry = out.add_class("java/util/Hashtable$Entry", entry, extends=self.object)
        self.hash_node = out.add_class("java/util/HashMap$Node", entry, extends=self.object)
        self.concurrent_node = out.add_class("java/util/concurrent/ConcurrentHashMap$Node", node, extends=self.object)
        self.tree_bin = out.add_class(
            "java/util/concurrent/ConcurrentHashMap$TreeBin",
            [("root", OBJECT), ("first", OBJECT)],
            extends=self.concurrent_node,
        )
        table: Fields = [("count", INT), ("table", OBJECT)]
        self.hashtable = out.add_class("java/util/Hashtable", table, extends=self.object)
        self.hash_map = out.add_class("java/util/HashMap", [("size", INT), ("table", OBJECT)], extends=self.object)
        self.concurrent_map = out.add_class(
            "java/util/concurrent/ConcurrentHashMap", [("table", OBJECT), ("baseCount", LONG)], extends=self.object
        )
        self.map_n = out.add_class(
            "java/util/ImmutableCollections$MapN", [("table", OBJECT), ("size", INT)], extends=self.object
        )
        own: Fields = [("defaults", OBJECT)]
        if jdk.properties == "concurrent":
            own.append(("map", OBJECT))
        self.properties = out.add_class("java/util/Properties", own, extends=self.hashtable)

    def add_string(self, text: str) -> int:
        if not self.jdk.char_arrays:
            wide = any(ord(char) > 255 for char in text)
            data = text.encode("utf-16-le" if wide else "latin-1")
            return self.out.add(self.string, value=self.out.add_numbers(BYTE, data), coder=int(wide))
        around = "<before>" if self.jdk.shared_arrays else ""
        array = self.out.add_numbers(CHAR, f"{around}{text}{around}".encode("utf-16-be"))
        return self.out.add(self.string, value=array, offset=len(around), count=len(text))

    def add_hash_table(self, values: dict[str, str], node_class: int) -> int:
        """The array of buckets, with chains."""
        out = self.out
        buckets = [0] * self.buckets
        for key, value in values.items():
            code = java_hash(key)
            if node_class != self.entry:
                code ^= code >> 16
            if node_class == self.concurrent_node:
                code &= 0x7FFFFFFF
            place = code % self.buckets
            text = self.add_string(value)
            buckets[place] = out.add(
                node_class, hash=signed(code), key=self.add_string(key), value=text, val=text, next=buckets[place]
            )
        return out.add_objects(buckets)

    def add_properties(self, values: dict[str, str], *, defaults: int = 0, class_id: int = 0) -> int:
        class_id = class_id or self.properties
        if self.jdk.properties == "own":
            return self.out.add(class_id, table=self.add_hash_table(values, self.entry), defaults=defaults)
        table = self.add_hash_table(values, self.concurrent_node)
        return self.out.add(class_id, map=self.out.add(self.concurrent_map, table=table), defaults=defaults)

    def add_saved(self, values: dict[str, str]) -> int:
        if self.jdk.saved == "properties":
            return self.add_properties(values)
        if self.jdk.saved == "hashmap":
            return self.out.add(self.hash_map, table=self.add_hash_table(values, self.hash_node))
        pairs = [0, 0]
        for key, value in values.items():
            pairs += [self.add_string(key), self.add_string(value)]
        return self.out.add(self.map_n, table=self.out.add_objects([*pairs, 0, 0]))

    def add_system(self, properties_id: int) -> None:
        statics: list[tuple[str, int, float]] = [("in", OBJECT, 0), ("bits", LONG, -1)]
        statics.append((self.jdk.system_field, OBJECT, properties_id))
        self.out.add_class("java/lang/System", extends=self.object, statics=statics)

    def add_vm(self, saved_id: int) -> None:
        statics: list[tuple[str, int, float]] = [("state", INT, 4), ("savedProps", OBJECT, saved_id)]
        self.out.add_class(self.jdk.vm_class, extends=self.object, statics=statics)

    def add_constants(self, **texts: str) -> None:
        statics: list[tuple[str, int, float]] = [(name, OBJECT, self.add_string(text)) for name, text in texts.items()]
        self.out.add_class(self.jdk.constants_class, extends=self.object, statics=statics)
